"""The answers of the explorer: retrieved pairs, and the words and boxes of a pair, by one or two models.

All values are plain, for JSON. Boxes are fractions of the image.
"""

import io
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from PIL import Image

from spanbox.api import Model
from spanbox.data.images import image_size, load_bytes, load_reduced
from spanbox.data.manifest import Box, Manifest, Record
from spanbox.data.words import cuts_word, find_words
from spanbox.errors import ConfigError, DataError
from spanbox.evaluation.extract import FeatureBank
from spanbox.evaluation.ranking import nan_last
from spanbox.evaluation.reranking import RERANKED
from spanbox.geometry import area_of, clip_box, in_fractions
from spanbox.models.heatmaps import to_unit_range
from spanbox.spans import CharSpan
from spanbox.wiring.encoding import encode_image_sides, encode_text_sides, readable_spans
from spanbox.wiring.fusing import fused_scores, image_side, text_side

FusedScores = Callable[[torch.Tensor], torch.Tensor]
"""Maps rows of a bank to their fused scores with a query."""

HITS = 12
LONGEST_TEXT = 2_000
"""Characters of a query."""
MOST_PIXELS = 40_000_000
"""Of an uploaded picture."""
MOST_UPLOADS = 8
"""Pictures kept in memory; older ones are forgotten."""
PICTURE_SIDE = 960
"""Longer side of a served picture, in pixels."""
MOST_BOXES = 40


class UnknownError(Exception):
    """There is no such pair or picture."""


@dataclass(frozen=True)
class Searched:
    """A model with its features of the manifest's pairs."""

    name: str
    model: Model
    bank: FeatureBank


class Session:
    """Models on one manifest.

    Models are used by one request at a time, and one picture is decoded at a time: a large one takes much memory.

    Args:
        models: one or two.
        manifest: the pairs to search in.
    """

    def __init__(self, models: list[Searched], manifest: Manifest) -> None:
        self.models = models
        self.manifest = manifest
        self._uploads: OrderedDict[str, Image.Image] = OrderedDict()
        self._numbered = 0
        self._lock, self._decoding = Lock(), Lock()

    def info(self) -> dict[str, Any]:
        """Names and sizes for the head of the page."""
        models = [{"name": each.name, "threshold": each.model.threshold} for each in self.models]
        return {"data": self.manifest.path.name, "pairs": len(self.manifest), "models": models}

    def search_text(self, text: str) -> dict[str, Any]:
        """The pairs whose images are nearest to a text. Raises DataError for a text that is empty or too long."""
        _check_text(text)
        with self._lock:
            results = [
                self._nearest(
                    each, each.model.encode_texts(text), each.bank.image, partial(_text_with_images, each, text)
                )
                for each in self.models
            ]
            unknown = [word for each in self.models for word in each.model.unknown_words(text)]
        return {"query": text, "models": results, "unknown": list(dict.fromkeys(unknown))}

    def search_picture(self, content: bytes) -> dict[str, Any]:
        """The pairs whose sentences are nearest to a picture, and the name under which it is kept in memory.

        Raises:
            DataError: it is not an image, damaged, or larger than the limit of pixels.
        """
        with self._decoding:
            picture = load_bytes(content, MOST_PIXELS)
        picture.thumbnail((2 * PICTURE_SIDE, 2 * PICTURE_SIDE), Image.Resampling.LANCZOS)
        with self._lock:
            self._numbered += 1
            name = f"u{self._numbered}"
            self._uploads[name] = picture
            while len(self._uploads) > MOST_UPLOADS:
                self._uploads.popitem(last=False)
            results = [
                self._nearest(
                    each, each.model.encode_images(picture), each.bank.text, partial(_picture_with_texts, each, picture)
                )
                for each in self.models
            ]
        return {"picture": name, "models": results}

    def picture(self, name: str) -> bytes:
        """A pair's image (by its place) or an upload (by its name) as JPEG. Raises UnknownError or DataError."""
        image = self._uploads.get(name)
        if image is None:
            image, _ = load_reduced(self.manifest.image_path(self._record(name)), PICTURE_SIDE)
        image = image.copy()
        image.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=88)
        return file.getvalue()

    def ground(self, name: str, text: str | None) -> dict[str, Any]:
        """The words of a text and the boxes of a picture, with scores and heatmaps by each model.

        Args:
            name: of a picture.
            text: None: the pair's own sentence.

        Raises:
            UnknownError: no such picture.
            DataError: a text that is not the pair's own is empty or too long, or the image cannot be read.
        """
        uploaded = self._uploads.get(name)
        record = None if uploaded is not None else self._record(name)
        own = record is not None and text in (None, record.text)
        words = record.text if record is not None and own else text or ""
        if not own:
            _check_text(words)
        units = _units(words, record if own else None)
        with self._lock:
            # From its file, as for the features of the pairs: it may be decoded at a part of its size.
            image = uploaded or self.manifest.image_path(self._record(name))
            size = image_size(image) if isinstance(image, Path) else image.size
            boxes = _boxes(record, size) if record is not None else []
            models = [_grounded(each, image, size, words, units, [box for box, _ in boxes]) for each in self.models]
        return {
            "text": words,
            "units": [{"start": start, "end": end, "entity": kind} for start, end, kind in units],
            "boxes": [{"box": in_fractions(box, *size), "label": label} for box, label in boxes],
            "models": models,
        }

    def _record(self, name: str) -> Record:
        if not re.fullmatch(r"[0-9]{1,9}", name) or int(name) >= len(self.manifest):
            raise UnknownError(name)
        return self.manifest[int(name)]

    def _nearest(self, searched: Searched, query: Any, features: torch.Tensor, fused: FusedScores) -> dict[str, Any]:
        """The best pairs by the towers; with fusion, the towers' candidates re-ranked by fused scores."""
        scores = nan_last(features @ torch.as_tensor(query))
        best = scores.topk(min(RERANKED if searched.model.reranks else HITS, len(scores)))
        values, rows = best.values, best.indices
        if searched.model.reranks:
            values, order = nan_last(fused(rows).cpu()).sort(descending=True, stable=True)
            rows = rows[order]
        hits = []
        for score, row in zip(values[:HITS].tolist(), rows[:HITS].tolist(), strict=True):
            place = int(searched.bank.place[row])
            record = self.manifest[place]
            hits.append({"pair": place, "id": record.id, "text": record.text, "score": score})
        return {"name": searched.name, "hits": hits}


def _text_with_images(searched: Searched, text: str, rows: torch.Tensor) -> torch.Tensor:
    """Fused scores of a text with images of the bank."""
    return fused_scores(
        searched.model, encode_text_sides(searched.model, [text]), image_side(searched.bank, rows)
    ).flatten()


def _picture_with_texts(searched: Searched, picture: Image.Image, rows: torch.Tensor) -> torch.Tensor:
    """Fused scores of a picture with texts of the bank."""
    return fused_scores(
        searched.model, text_side(searched.bank, rows), encode_image_sides(searched.model, [picture])
    ).flatten()


def _check_text(text: str) -> None:
    if not text.strip():
        raise DataError("the text is empty")
    if len(text) > LONGEST_TEXT:
        raise DataError(f"the text has {len(text):,} characters, more than {LONGEST_TEXT:,}")


def _units(text: str, record: Record | None) -> list[tuple[int, int, bool]]:
    """Intervals of the text that can be selected: the entities of the record, and the words between them."""
    entities: list[CharSpan] = []
    for entity in sorted(record.entities, key=lambda each: (each.start, -each.end)) if record else ():
        if not entities or entity.start >= entities[-1][1]:
            entities.append((entity.start, entity.end))
    between = [word for word in _words(text) if not any(word[0] < end and start < word[1] for start, end in entities)]
    return sorted([(*span, True) for span in entities] + [(*span, False) for span in between])


def _words(text: str) -> Iterator[CharSpan]:
    """Words, and the single letters, with their marks, of scripts without spaces between words."""
    for start, end, is_unspaced in find_words(text):
        cuts = (place for place in range(start + 1, end) if is_unspaced and not cuts_word(text, place))
        yield from pairwise((start, *cuts, end))


def _boxes(record: Record, size: tuple[int, int]) -> list[tuple[Box, str]]:
    """The boxes of a record that lie in its image, those of its entities first, with their words or labels."""
    boxes: dict[Box, str] = {}
    for entity in record.entities:
        for box in entity.boxes:
            boxes.setdefault(box, record.span_text(entity))
    for each in sorted(record.objects, key=lambda each: -each.score):
        boxes.setdefault(each.box, each.label)
    inside = [(box, label) for box, label in boxes.items() if area_of(clip_box(in_fractions(box, *size))) > 0]
    return inside[:MOST_BOXES]


def _grounded(
    searched: Searched,
    image: Image.Image | Path,
    size: tuple[int, int],
    text: str,
    units: list[tuple[int, int, bool]],
    boxes: list[Box],
) -> dict[str, Any]:
    """Scores and heatmaps of the units by one model. A unit beyond the tokens that the model reads has none."""
    model = searched.model
    spans = readable_spans(model, text, [(start, end) for start, end, _ in units])
    found: dict[CharSpan, dict[str, Any]] = {}
    try:
        for grounded in model.ground(image, text, spans).spans:
            assert grounded.heatmap is not None
            heat = to_unit_range(torch.from_numpy(grounded.heatmap)[None])[0]
            found[grounded.start, grounded.end] = {
                "heat": (255 * heat).round().int().tolist(),
                "box": in_fractions(grounded.candidates[0].box, *size),
                "score": grounded.candidates[0].score,
                "shown": grounded.shown,
                "scores": [],
            }
    except ConfigError:  # a model of crops has no heatmaps, one of the coarse level alone no scores of words
        found = {span: {"heat": None, "box": None, "score": None, "shown": None, "scores": []} for span in spans}
    if boxes and spans and not model.untrained("fine"):
        regions = model.encode_regions(image, boxes)
        scores = model.similarity(model.encode_spans(text, spans), regions)
        for span, row in zip(spans, scores.tolist(), strict=True):
            best = max(row)
            shown = None if model.threshold is None else best >= model.threshold
            found[span] |= {"scores": row, "score": best, "shown": shown}
    sentence = model.similarity(model.encode_texts(text), model.encode_images(image)).item()
    return {"name": searched.name, "sentence": sentence, "units": [found.get((start, end)) for start, end, _ in units]}
