"""Grounding: for each span of a text, the boxes of an image by their score, or none.

With boxes, the span is compared with each. Without boxes it is compared with each patch, and the rectangle of patches
that holds the mass of this heatmap becomes its only box.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from spanbox.data.images import image_size, load_image
from spanbox.data.manifest import Box
from spanbox.errors import ConfigError
from spanbox.geometry import in_pixels
from spanbox.models.heatmaps import heaviest_box, similarity_maps
from spanbox.spans import CharSpan
from spanbox.wiring.encoding import ImageSource, as_image, encode_regions, encode_texts, sample_of
from spanbox.wiring.loading import Loaded


class ScoredBox(NamedTuple):
    """A box, x0 y0 x1 y1 in pixels of the image as shown, and the cosine of its feature with that of a span."""

    box: Box
    score: float


@dataclass(frozen=True)
class GroundedSpan:
    """A span of the text with its boxes.

    Attributes:
        start, end: half-open interval of code points of the text.
        text: its words.
        candidates: all boxes, best first.
        shown: whether the image shows it: the best score reaches the threshold; None: without a threshold.
        heatmap: (h, w) float32, cosines with the patches of the image, row 0 at the top, if the boxes come from them.
    """

    start: int
    end: int
    text: str
    candidates: tuple[ScoredBox, ...]
    shown: bool | None
    heatmap: NDArray[np.float32] | None = None

    @property
    def best(self) -> ScoredBox | None:
        """The best box; None if the image does not show the span."""
        return self.candidates[0] if self.candidates and self.shown is not False else None


@dataclass(frozen=True)
class Grounding:
    """The spans of a text in an image.

    Attributes:
        text: the sentence.
        threshold: score from which a span counts as shown; None: no decision.
        spans: in the order in which they were given.
    """

    text: str
    threshold: float | None
    spans: tuple[GroundedSpan, ...]

    def to_dict(self) -> dict[str, Any]:
        """The grounding as plain values for JSON, without heatmaps."""
        return {**vars(self), "spans": [_plain(span) for span in self.spans]}


def ground(
    loaded: Loaded,
    image: ImageSource,
    text: str,
    spans: Sequence[CharSpan],
    boxes: Sequence[Box] | None,
    threshold: float | None,
) -> Grounding:
    """The boxes of each span, best first.

    Args:
        loaded: the model.
        image: any source of an image.
        text: the sentence.
        spans: of the text, half-open intervals of code points.
        boxes: candidates in pixels of the image as shown; None: from the patches of the image.
        threshold: score from which a span counts as shown; None: no decision.

    Raises:
        ConfigError: no boxes, and the model has no features of patches.
        DataError: the image cannot be read, a box has no area within it, or a span has no token.
    """
    source = as_image(image)
    features = encode_texts(loaded, [text], [spans]).spans[0]
    heatmaps: list[NDArray[np.float32] | None] = [None] * len(spans)
    candidates: list[tuple[ScoredBox, ...]]
    if boxes is None:
        size = image_size(source) if isinstance(source, Path) else load_image(source).size
        maps = _maps(loaded, source, features)
        heatmaps = [heat.numpy() for heat in maps]
        found = [in_pixels(heaviest_box(heat), *size) for heat in maps]
        regions = encode_regions(loaded, [source], [found])[0]
        scores = (features * regions).sum(dim=1).tolist()
        candidates = [(ScoredBox(box, score),) for box, score in zip(found, scores, strict=True)]
    else:
        regions = encode_regions(loaded, [source], [boxes])[0]
        candidates = [_ranked(boxes, row) for row in (features @ regions.T).tolist()]
    grounded = [
        GroundedSpan(start, end, text[start:end], own, _shown(own, threshold), heat)
        for (start, end), own, heat in zip(spans, candidates, heatmaps, strict=True)
    ]
    return Grounding(text, threshold, tuple(grounded))


def _maps(loaded: Loaded, image: Path | Image.Image, spans: Tensor) -> Tensor:
    sample = sample_of(loaded, image, [])
    maps = similarity_maps(loaded.model, sample.pixels, spans, sample.content)
    if maps is None:
        raise ConfigError(
            "grounding without boxes: this model encodes crops (model.regions.source), so patches have no features; "
            "give boxes"
        )
    return maps


def _ranked(boxes: Sequence[Box], scores: Sequence[float]) -> tuple[ScoredBox, ...]:
    """Boxes with their scores, best first; equal scores keep their order."""
    return tuple(sorted(map(ScoredBox, boxes, scores), key=lambda scored: -scored.score))


def _shown(candidates: Sequence[ScoredBox], threshold: float | None) -> bool | None:
    if threshold is None:
        return None
    return bool(candidates) and candidates[0].score >= threshold


def _plain(span: GroundedSpan) -> dict[str, Any]:
    candidates = [scored._asdict() for scored in span.candidates]
    return {"start": span.start, "end": span.end, "text": span.text, "shown": span.shown, "candidates": candidates}
