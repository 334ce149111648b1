"""Taggers and detectors by name: pipelines of spaCy, zero-shot detectors from folders, or functions of the user."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from spanbox.data.auto_annotate import Detector, Tagger
from spanbox.data.spacy_tagger import SpacyTagger, Spans
from spanbox.engine.device import choose_device
from spanbox.models.detection import ZeroShotDetector
from spanbox.wiring.functions import UserFunction

SPACY = "spacy:"


class FunctionTagger(UserFunction):
    """A tagger from a user's function that maps a list of texts to a list of lists of spans."""

    def tag(self, texts: Sequence[str]) -> Any:
        return self.function(list(texts))


class FunctionDetector(UserFunction):
    """A detector from a user's function that maps images and their labels to a list of lists of boxes."""

    def detect(self, images: Sequence[Image.Image], labels: Sequence[Sequence[str]]) -> Any:
        return self.function(list(images), [list(own) for own in labels])


def make_tagger(name: str | None, spans: Spans) -> Tagger | None:
    """The tagger of `--tagger spacy:PIPELINE` or `module:function`. Raises ConfigError."""
    if name is None:
        return None
    if name.startswith(SPACY):
        return SpacyTagger(name.removeprefix(SPACY), spans)
    return FunctionTagger(name, "--tagger")


def make_detector(name: str | None, device: str, threshold: float) -> Detector | None:
    """The detector of `--detector DIR` or `module:function`. Raises ConfigError."""
    if name is None:
        return None
    if ":" in name and not Path(name).is_dir():
        return FunctionDetector(name, "--detector")
    return ZeroShotDetector(Path(name), choose_device(device), threshold)
