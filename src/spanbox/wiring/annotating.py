"""Taggers and detectors by name: pipelines of spaCy, zero-shot detectors from folders, or functions of the user."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from spanbox.data.auto_annotate import Detector, Tagger
from spanbox.data.spacy_tagger import SpacyTagger, Spans
from spanbox.engine.device import choose_device
from spanbox.models.detection import ZeroShotDetector
from spanbox.wiring.functions import function_key, import_function

SPACY = "spacy:"


@dataclass
class FunctionTagger:
    """A function of the user: from a list of texts to a list of lists of spans."""

    name: str  # module:function
    function: Callable[[list[str]], Any]

    @property
    def key(self) -> str:
        return function_key(self.name, self.function)

    def tag(self, texts: Sequence[str]) -> Any:
        return self.function(list(texts))


@dataclass
class FunctionDetector:
    """A function of the user: from lists of images and of their labels to a list of lists of boxes."""

    name: str  # module:function
    function: Callable[[list[Image.Image], list[list[str]]], Any]

    @property
    def key(self) -> str:
        return function_key(self.name, self.function)

    def detect(self, images: Sequence[Image.Image], labels: Sequence[Sequence[str]]) -> Any:
        return self.function(list(images), [list(own) for own in labels])


def make_tagger(name: str | None, spans: Spans) -> Tagger | None:
    """The tagger of `--tagger spacy:PIPELINE` or `module:function`. Raises ConfigError."""
    if name is None:
        return None
    if name.startswith(SPACY):
        return SpacyTagger(name.removeprefix(SPACY), spans)
    return FunctionTagger(name, import_function(name, "--tagger"))


def make_detector(name: str | None, device: str, threshold: float) -> Detector | None:
    """The detector of `--detector DIR` or `module:function`. Raises ConfigError."""
    if name is None:
        return None
    if ":" in name and not Path(name).is_dir():
        return FunctionDetector(name, import_function(name, "--detector"))
    return ZeroShotDetector(Path(name), choose_device(device), threshold)
