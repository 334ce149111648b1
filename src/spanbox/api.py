"""The public interface of a trained model: `spanbox.load` returns a `Model`.

    model = spanbox.load("runs/first")
    model.similarity(model.encode_texts(["a red kite"]), model.encode_images(["kite.jpg", "boat.jpg"]))
    model.ground("kite.jpg", "a red kite above a boat", spans=["red kite", "boat"])

Names and options follow sentence-transformers where it has the same ones.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from spanbox.data.manifest import Box
from spanbox.data.tokenizer import unknown_words
from spanbox.documents import read_object
from spanbox.engine.checkpoint import VALIDATION
from spanbox.errors import ConfigError, DataError
from spanbox.evaluation.presence import THRESHOLD
from spanbox.progress import Progress, hidden
from spanbox.spans import CharSpan
from spanbox.wiring import loading
from spanbox.wiring.encoding import (
    ImageSource,
    box_of,
    encode_image_sides,
    encode_images,
    encode_regions,
    encode_text_sides,
    encode_texts,
)
from spanbox.wiring.fusing import fused_scores, fusion_of
from spanbox.wiring.grounding import GroundedSpan, Grounding, ScoredBox, ground
from spanbox.wiring.inputs import (
    Span,
    checked_text,
    checked_threshold,
    find_spans,
    listed_images,
    listed_texts,
    paired,
    several,
)
from spanbox.wiring.loading import Loaded

__all__ = ["GroundedSpan", "Grounding", "ImageSource", "Model", "ScoredBox", "Span", "load"]

Features = NDArray[np.float32] | Tensor
"""Features as a numpy array, or as a tensor on the device of the model (`convert_to_tensor`)."""
Item = TypeVar("Item")
Encoded = TypeVar("Encoded")


@dataclass(frozen=True)
class Model(Loaded):
    """A trained model that encodes texts, images, spans and regions, and grounds spans in images.

    All features lie in one space of `dim` dimensions. Texts are compared with images, spans with regions, by their
    cosine (`similarity`). `model`, `tokenizer` and `config` are the parts it consists of.

    Attributes:
        threshold: score from which an entity counts as shown, as the validation of the run chose it; None: there was
            no validation with entities of both kinds.
    """

    threshold: float | None = None

    @property
    def dim(self) -> int:
        """Dimension of the features."""
        return self.config.model.dim

    def encode_texts(
        self,
        texts: str | Sequence[str],
        *,
        batch_size: int = 32,
        show_progress_bar: bool = False,
        convert_to_tensor: bool = False,
        normalize: bool = True,
    ) -> Features:
        """Features of sentences, (N, dim) float32, or (dim,) of a single one.

        As in training, a text is read up to its first `config.data.max_tokens` tokens.

        Args:
            texts: one or several.
            batch_size: number of texts to encode at a time.
            show_progress_bar: show the progress on stderr.
            convert_to_tensor: return a tensor on the device of the model instead of a numpy array.
            normalize: return features of unit length.

        Raises:
            DataError: an item is not a text.
            ConfigError: `batch_size` is not a whole number above 0.
        """
        several, single = listed_texts(texts)
        rows = self._in_batches(
            lambda batch: list(encode_texts(self, batch, unit=normalize).texts),
            several,
            batch_size,
            show_progress_bar,
            length=len,
        )
        return self._stacked(rows, convert_to_tensor, single=single)

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text that become unknown tokens, such as words in another script.

        They have no effect on the features of the text.
        """
        return unknown_words(self.tokenizer, checked_text(text))

    def encode_images(
        self,
        images: ImageSource | Sequence[ImageSource],
        *,
        batch_size: int = 32,
        show_progress_bar: bool = False,
        convert_to_tensor: bool = False,
        normalize: bool = True,
    ) -> Features:
        """Features of images, (N, dim) float32, or (dim,) of a single one. Options as for `encode_texts`.

        Args:
            images: one or several: paths or `file://` URLs, PIL images, uint8 arrays (H, W, 3) or (H, W), uint8 tensors
                (3, H, W). Files are opened batch by batch.

        Raises:
            DataError: an image cannot be read.
            ConfigError: `batch_size` is not a whole number above 0.
        """
        several, single = listed_images(images)
        rows = self._in_batches(
            lambda batch: list(encode_images(self, batch, unit=normalize)), several, batch_size, show_progress_bar
        )
        return self._stacked(rows, convert_to_tensor, single=single)

    def encode_spans(
        self,
        text: str | Sequence[str],
        spans: Sequence[Span] | Sequence[Sequence[Span]],
        *,
        batch_size: int = 32,
        show_progress_bar: bool = False,
        convert_to_tensor: bool = False,
        normalize: bool = True,
    ) -> Any:
        """Features of spans of a sentence, (K, dim) float32; for several sentences a list with one array for each.

        Options as for `encode_texts`.

        Args:
            text: one sentence or several.
            spans: of the sentence, or a list for each: half-open intervals (start, end) of code points, or the words
                themselves.

        Raises:
            DataError: a span is not in its text, or has no token among those that are read; or the number of lists of
                spans is not that of the texts.
            ConfigError: `batch_size` is not a whole number above 0.
        """
        texts, single = listed_texts(text)
        pairs = [(one, find_spans(one, own)) for one, own in paired(texts, spans, "spans", single=single)]

        def encode(batch: Sequence[tuple[str, list[CharSpan]]]) -> list[Tensor]:
            return encode_texts(self, *_sides(batch), unit=normalize).spans

        rows = self._in_batches(encode, pairs, batch_size, show_progress_bar, length=lambda pair: len(pair[0]))
        return _of_each(rows, convert_to_tensor, single=single)

    def encode_regions(
        self,
        image: ImageSource | Sequence[ImageSource],
        boxes: Sequence[Box] | Sequence[Sequence[Box]],
        *,
        batch_size: int = 32,
        show_progress_bar: bool = False,
        convert_to_tensor: bool = False,
        normalize: bool = True,
    ) -> Any:
        """Features of boxes of an image, (R, dim) float32; for several images a list with one array for each.

        Options as for `encode_texts`.

        Args:
            image: one image or several, as for `encode_images`.
            boxes: of the image, or a list for each: x0, y0, x1, y1 in pixels of the image as shown.

        Raises:
            DataError: an image cannot be read, or a box has no area within it; or the number of lists of boxes is not
                that of the images.
            ConfigError: `batch_size` is not a whole number above 0.
        """
        images, single = listed_images(image)
        pairs = [(one, several(own, "boxes")) for one, own in paired(images, boxes, "boxes", single=single)]

        def encode(batch: Sequence[tuple[ImageSource, list[Box]]]) -> list[Tensor]:
            return encode_regions(self, *_sides(batch), unit=normalize)

        rows = self._in_batches(encode, pairs, batch_size, show_progress_bar)
        return _of_each(rows, convert_to_tensor, single=single)

    def similarity(self, first: Features, second: Features) -> Features:
        """Cosines (N, M) of features (N, dim) with features (M, dim). The result is a tensor if `first` is one.

        Either may be a single feature (dim,). Raises DataError for features of another shape.
        """
        one, other = (F.normalize(self._rows(each), dim=-1) for each in (first, second))
        return _converted(one @ other.to(one.device).T, isinstance(first, Tensor))

    def pair_scores(
        self,
        texts: str | Sequence[str],
        images: ImageSource | Sequence[ImageSource],
        *,
        batch_size: int = 32,
        show_progress_bar: bool = False,
        convert_to_tensor: bool = False,
    ) -> Features:
        """Fused scores (N, M) of N texts with M images, by a model with `model.fusion`.

        Every text attends to every image, so this takes much longer than `similarity`: use it to re-rank the first
        candidates of `similarity`. Scores lie in [-1, 1]; compare them with each other only.

        Args:
            texts: one or several.
            images: one or several, as for `encode_images`.
            batch_size: number of texts or images to encode at a time.
            show_progress_bar: show the progress on stderr.
            convert_to_tensor: return a tensor on the device of the model instead of a numpy array.

        Raises:
            ConfigError: the model has no fusion, or `batch_size` is not a whole number above 0.
            DataError: an item of `texts` is not a text, or an image cannot be read.
        """
        fusion_of(self)
        sentences, _ = listed_texts(texts)
        several, _ = listed_images(images)
        if not sentences or not several:
            return _converted(torch.empty(len(sentences), len(several), device=self.device), convert_to_tensor)
        sides = [encode_text_sides(self, batch) for batch in _batches(sentences, batch_size)]
        columns, done = [], 0
        with (Progress if show_progress_bar else hidden)("scoring", len(several)) as progress:
            for batch in _batches(several, batch_size):
                images_of_batch = encode_image_sides(self, batch)
                columns.append(torch.cat([fused_scores(self, side, images_of_batch) for side in sides]))
                done += len(batch)
                progress.update(done)
        return _converted(torch.cat(columns, dim=1), convert_to_tensor)

    def ground(
        self,
        image: ImageSource,
        text: str,
        spans: Sequence[Span] | None = None,
        boxes: Sequence[Box] | None = None,
        *,
        threshold: float | None = None,
    ) -> Grounding:
        """Find for each span of a text the best boxes of an image, or report that the image does not show it.

        Args:
            image: as for `encode_images`.
            text: a sentence or a phrase.
            spans: intervals or words of the text; None: the whole text.
            boxes: candidates, x0, y0, x1, y1 in pixels of the image as shown, as a detector finds them. None: the span
                is compared with every patch, and the rectangle of patches that holds the mass of this heatmap becomes
                its box.
            threshold: the least score of a span that the image shows; None: the model's own (`Model.threshold`).

        Returns:
            The spans, each with its scored boxes; `best` is None where the image does not show the span. See
            `Grounding`.

        Raises:
            DataError: the image cannot be read, a box has no area within it, the text is empty, or a span is not in the
                text or has no token.
            ConfigError: no boxes are given, and the model has no features of patches; no loss trained the features of
                spans and regions; or the threshold is not a finite number.
        """
        if reason := self.untrained("fine"):
            raise ConfigError(f"grounding: {reason}; train with loss.fine.weight above 0, on data with boxes")
        if not checked_text(text).strip() and spans is None:
            raise DataError("the text is empty; give a sentence or a phrase")
        found = [(0, len(text))] if spans is None else find_spans(text, spans)
        candidates = None if boxes is None else [box_of(box) for box in several(boxes, "boxes")]
        return ground(
            self, image, text, found, candidates, self.threshold if threshold is None else checked_threshold(threshold)
        )

    def _in_batches(
        self,
        encode: Callable[[Sequence[Item]], list[Encoded]],
        items: Sequence[Item],
        batch_size: int,
        show_progress: bool,
        *,
        length: Callable[[Item], int] = lambda _: 0,
    ) -> list[Encoded]:
        """The encoded items in their original order; items of similar length share a batch, to save padding."""
        order = sorted(range(len(items)), key=lambda place: length(items[place]))
        encoded: dict[int, Encoded] = {}
        with (Progress if show_progress else hidden)("encoding", len(items)) as progress:
            for places in _batches(order, batch_size):
                encoded |= zip(places, encode([items[place] for place in places]), strict=True)
                progress.update(len(encoded))
        return [encoded[place] for place in range(len(items))]

    def _stacked(self, rows: Sequence[Tensor], as_tensor: bool, *, single: bool) -> Features:
        stacked = torch.stack(list(rows)) if rows else torch.empty(0, self.dim, device=self.device)
        return _converted(stacked[0] if single else stacked, as_tensor)

    def _rows(self, features: Features) -> Tensor:
        """Features as rows (N, dim)."""
        try:
            rows = (
                features if isinstance(features, Tensor) else torch.from_numpy(np.require(features, "f4", ["C", "W"]))
            )
        except (TypeError, ValueError):
            raise DataError(
                f"{type(features).__name__} does not hold features; expected an array or a tensor"
            ) from None
        if rows.ndim not in (1, 2) or rows.shape[-1] != self.dim:
            raise DataError(f"features of shape {tuple(rows.shape)}; expected (N, {self.dim}) or ({self.dim},)")
        return rows.float().reshape(-1, self.dim)


def load(path: Path | str, device: str | torch.device = "cpu") -> Model:
    """See `spanbox.load`."""
    loaded = loading.load(path, str(device))
    return Model(**vars(loaded), threshold=_threshold(loaded.checkpoint))


def _sides(pairs: Sequence[tuple[Item, Encoded]]) -> tuple[list[Item], list[Encoded]]:
    return [one for one, _ in pairs], [other for _, other in pairs]


def _batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    try:
        step = index(size)  # integers of numpy too
    except TypeError:
        step = 0
    if step < 1:
        raise ConfigError(f"batch_size is {size!r}; expected a whole number above 0")
    return (items[start : start + step] for start in range(0, len(items), step))


def _of_each(rows: Sequence[Tensor], as_tensor: bool, *, single: bool) -> Any:
    """Features of the parts of each input, as a list; for a single input its features alone."""
    features = [_converted(one, as_tensor) for one in rows]
    return features[0] if single else features


def _converted(features: Tensor, as_tensor: bool) -> Features:
    return features if as_tensor else features.cpu().numpy()


def _threshold(checkpoint: Path) -> float | None:
    """The visibility threshold that validation stored with a checkpoint; for checkpoints of earlier versions, which
    lack it, the one of the run's last evaluation. None without either."""
    validation, evaluation = (
        read_object(path) for path in (checkpoint / VALIDATION, checkpoint.parent.parent / "metrics.json")
    )
    of_this_one = evaluation if evaluation.get("checkpoint") == checkpoint.resolve().name else {}
    found = validation.get(THRESHOLD, of_this_one.get(THRESHOLD))
    return found if isinstance(found, float) else None
