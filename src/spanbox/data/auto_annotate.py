"""Entities from a tagger and objects from a detector, for data that has none.

The tagger finds the spans; the detector then looks for the objects that they name, or for given labels. Their results
are checked and written at once to a cache beside the output, so that nothing is computed twice, even after a kill or
for a manifest with more pairs.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec
import torch
from PIL import Image

from spanbox.data.images import load_image
from spanbox.data.manifest import (
    Box,
    Entity,
    ObjectBox,
    Record,
    check_manifest_file,
    is_inverted,
    manifest_lines,
    parse_record,
    relocated,
    write_manifest,
)
from spanbox.data.paraphrases import find_span_faults
from spanbox.data.result_cache import Cached, ResultCache, storable
from spanbox.data.source import state_of
from spanbox.errors import DataError, SpanboxError
from spanbox.files import check_no_input, check_writable_file
from spanbox.geometry import box_iou, clip_box
from spanbox.progress import OnProgress

BATCHES_AT_ONCE = 4
_ROUNDING = 1.0  # pixels by which a box may leave its image without being counted

Result = TypeVar("Result")


class Tagger(Cached, Protocol):
    """Finds entities in texts."""

    def tag(self, texts: Sequence[str]) -> Any:
        """A list for each text, of `{"start": ..., "end": ..., "type": ...}` in characters; `type` may be left out."""


class Detector(Cached, Protocol):
    """Finds objects in images."""

    def detect(self, images: Sequence[Image.Image], labels: Sequence[Sequence[str]]) -> Any:
        """A list for each image, of `{"box": [x0, y0, x1, y1] in pixels, "score": ..., "label": ...}`.

        Args:
            images: RGB, upright.
            labels: names of the objects to look for in each image; a detector of fixed classes may ignore them.
        """


class _Span(msgspec.Struct, array_like=True):
    start: int
    end: int
    type: str


class _Found(msgspec.Struct, array_like=True):
    box: Box
    score: float
    label: str


class _Image(msgspec.Struct, array_like=True):
    size: tuple[int, int]
    found: list[_Found]


class Options(NamedTuple):
    """Which entities and objects are added, and how."""

    labels: tuple[str, ...] = ()  # to look for in every image; none: the texts of the pair's entities
    link: bool = False  # boxes found by an entity's text become its boxes, if it has none
    replace: bool = False  # entities and objects that are there are replaced
    most: int = 100  # objects of an image, those of the highest scores
    overlap: float = 0.7  # IoU from which a box repeats a better one of the same label


class AutoAnnotation:
    """Fills entities and objects of the records of a manifest.

    Args:
        manifest: its pairs.
        out: the new manifest. The cache lies beside it.
        tagger: fills `entities` where there are none.
        detector: fills `objects` where there are none.
        options: see `Options`.
        batch_size: texts or images that a model gets at a time.

    `counts` holds the numbers of additions, and of items left out by reason.

    Raises:
        DataError: a wrong manifest.
        OutputError: `out` or its cache cannot be written.
    """

    def __init__(
        self,
        manifest: Path,
        out: Path,
        *,
        tagger: Tagger | None = None,
        detector: Detector | None = None,
        options: Options | None = None,
        batch_size: int = 16,
    ) -> None:
        self.manifest = manifest
        self.out = out
        self.tagger = tagger
        self.detector = detector
        self.options = options or Options()
        self.batch_size = batch_size
        self.counts: Counter[str] = Counter()
        check_manifest_file(manifest)
        check_writable_file(out, ".jsonl")
        check_no_input(out, [manifest])
        self.pairs = sum(1 for _ in self._records())
        self.cache = ResultCache(out.with_name(f"{out.name}.annotations"))

    def run(self, on_progress: OnProgress = lambda done, total: None) -> None:
        """Write `out`, whole or not at all.

        Raises:
            DataError: the tagger or the detector fails. What they found before stays in the cache.
            OutputError: `out` or its cache cannot be written.
        """
        write_manifest(self.out, self._annotated(on_progress))

    def _records(self) -> Iterator[Record]:
        for number, _, line in manifest_lines(self.manifest):
            yield parse_record(line, self.manifest, number)

    def _annotated(self, on_progress: OnProgress) -> Iterator[Record]:
        old, new = self.manifest.parent.resolve(), self.out.parent.resolve()
        records, done = self._records(), 0
        while window := list(islice(records, self.batch_size * BATCHES_AT_ONCE)):
            if self.tagger is not None:
                window = self._tagged(self.tagger, window)
            if self.detector is not None:
                window = self._detected(self.detector, window)
            for record in window:
                yield relocated(record, old, new)
            done += len(window)
            on_progress(done, self.pairs)

    def _tagged(self, tagger: Tagger, records: Sequence[Record]) -> list[Record]:
        """The records with entities."""
        wanted = [record for record in records if self.options.replace or not record.entities]
        self.counts["pairs with entities: left as they are"] += len(records) - len(wanted)
        texts = dict.fromkeys(record.text for record in wanted if self._spans(tagger, record.text) is None)
        for batch in _batches(list(texts), self.batch_size):
            given = self._call(tagger.name, "texts", len(batch), partial(tagger.tag, batch))
            spans = [[_span(tagger.name, entry) for entry in entries] for entries in given]
            self.cache.add(tagger.key, batch, [msgspec.json.encode(found).decode() for found in spans])
        found = []
        for record in records:
            if self.options.replace or not record.entities:
                entities = tuple(self._usable(record, self._spans(tagger, record.text) or []))
                record = msgspec.structs.replace(record, entities=entities, paraphrases=_plain(record))
                self.counts["entities found"] += len(entities)
                self.counts["pairs without an entity found"] += not entities
            found.append(record)
        return found

    def _spans(self, tagger: Tagger, text: str) -> list[_Span] | None:
        """The spans of a text; None if it has not been processed yet."""
        return _decoded(self.cache.get(tagger.key, text), list[_Span])

    def _found(self, detector: Detector, record: Record) -> _Image | None:
        """The detections in a pair's image; None if it has not been processed yet."""
        return _decoded(self.cache.get(detector.key, self._job(record)), _Image)

    def _usable(self, record: Record, spans: Sequence[_Span]) -> Iterator[Entity]:
        seen: set[tuple[int, int]] = set()
        for span in sorted(spans, key=lambda span: (span.start, span.end)):
            # Of an entity without boxes, `ambiguous` means that it is unknown whether the image shows it.
            entity = Entity(span.start, span.end, span.type, ambiguous=True)
            if find_span_faults(record.text, [entity]):
                self.counts["spans outside of their text, or of white space: left out"] += 1
            elif (span.start, span.end) in seen:
                self.counts["spans given twice: left out"] += 1
            else:
                seen.add((span.start, span.end))
                yield entity

    def _detected(self, detector: Detector, records: Sequence[Record]) -> list[Record]:
        """The records with objects, and with boxes of entities."""
        jobs: dict[str, tuple[Record, list[str]]] = {}
        for record in records:
            labels = self._labels(record)
            if self._needs_objects(record) and labels and self._found(detector, record) is None:
                jobs.setdefault(self._job(record), (record, labels))
        for batch in _batches(list(jobs), self.batch_size):
            self._detect(detector, {name: jobs[name] for name in batch})
        return [self._with_objects(detector, record) for record in records]

    def _needs_objects(self, record: Record) -> bool:
        unlinked = self.options.link and any(not entity.boxes for entity in record.entities)
        return self.options.replace or not record.objects or unlinked

    def _labels(self, record: Record) -> list[str]:
        """What to look for; names that differ in case or spaces alone are one."""
        names = self.options.labels or [record.span_text(entity) for entity in record.entities]
        return list({_normal(name): " ".join(name.split()) for name in names}.values())

    def _job(self, record: Record) -> str:
        """The image and labels of a pair, as a key of the cache."""
        state = state_of(self.manifest.parent / record.image)
        return json.dumps([record.image, state, self._labels(record)])

    def _detect(self, detector: Detector, jobs: Mapping[str, tuple[Record, list[str]]]) -> None:
        """Bring the objects of a batch into the cache; images that cannot be read are left out."""
        images, labels, names = [], [], []
        for name, (record, own) in jobs.items():
            try:
                images.append(load_image(self.manifest.parent / record.image))
            except (DataError, OSError, ValueError):  # the latter two: a path that the system refuses
                continue
            labels.append(own)
            names.append(name)
        if not images:
            return
        given = self._call(detector.name, "images", len(images), partial(detector.detect, images, labels))
        found = [
            _Image(image.size, [_object(detector.name, entry) for entry in entries])
            for image, entries in zip(images, given, strict=True)
        ]
        self.cache.add(detector.key, names, [msgspec.json.encode(each).decode() for each in found])

    def _best(self, image: _Image) -> list[_Found]:
        """The best objects of an image, without repetitions, clipped to it."""
        kept: list[_Found] = []
        width, height = image.size
        for each in sorted(image.found, key=lambda each: -each.score):
            box = clip_box(each.box, (0.0, 0.0, float(width), float(height)))
            if is_inverted(box):
                self.counts["boxes without an area within their image: left out"] += 1
                continue
            if max(abs(a - b) for a, b in zip(box, each.box, strict=True)) > _ROUNDING:
                self.counts["boxes clipped to their image"] += 1
            same = [other.box for other in kept if other.label == each.label]
            if same and bool((box_iou(torch.tensor([box]), torch.tensor(same)) >= self.options.overlap).any()):
                self.counts["boxes that repeat a better one: left out"] += 1
            elif len(kept) == self.options.most:
                self.counts["boxes over the limit of an image: left out"] += 1
            else:
                kept.append(_Found(box, each.score, each.label))
        return kept

    def _with_objects(self, detector: Detector, record: Record) -> Record:
        if not self._needs_objects(record):
            self.counts["pairs with objects: left as they are"] += 1
            return record
        if not self._labels(record):
            self.counts["pairs without an entity to look for"] += 1
            return record
        image = self._found(detector, record)
        if image is None:
            self.counts["images that cannot be read"] += 1
            return record
        found = self._best(image)
        if self.options.replace or not record.objects:
            objects = tuple(ObjectBox(each.box, each.score, each.label) for each in found)
            self.counts["objects found"] += len(objects)
            record = msgspec.structs.replace(record, objects=objects)
        if self.options.link:
            entities = tuple(self._linked(record, entity, found) for entity in record.entities)
            record = msgspec.structs.replace(record, entities=entities)
        return record

    def _linked(self, record: Record, entity: Entity, found: Sequence[_Found]) -> Entity:
        """The entity with the boxes that were found by its text; their scores become their relevance."""
        name = _normal(record.span_text(entity))
        own = [each for each in found if _normal(each.label) == name]
        if entity.boxes or not own:
            return entity
        self.counts["entities linked to a box"] += 1
        boxes, relevance = tuple(each.box for each in own), tuple(min(max(each.score, 0.0), 1.0) for each in own)
        return msgspec.structs.replace(entity, boxes=boxes, relevance=relevance, ambiguous=len(own) > 1)

    def _call(self, name: str, what: str, count: int, call: Callable[[], Any]) -> list[list[Any]]:
        """What a tagger or a detector returns, checked to be a list for each input."""
        kept = f"{len(self.cache)} results are kept in {self.cache.path}; the same command goes on from there"
        try:
            given = call()
        except SpanboxError:
            raise
        except Exception as error:  # whatever the user's function raises
            raise DataError(
                f"{name} failed with {type(error).__name__}: {error} at a batch of {count} {what}. {kept}"
            ) from error
        if not isinstance(given, list | tuple) or len(given) != count:
            shown = f"{len(given)} entries" if isinstance(given, list | tuple) else type(given).__name__
            raise DataError(f"{name} gave {shown} for {count} {what}; expected a list with a list for each. {kept}")
        for entries in given:
            if not isinstance(entries, list | tuple):
                raise DataError(f"{name} gave a list with {type(entries).__name__}; expected lists. {kept}")
        return [list(entries) for entries in given]


def _decoded(result: str | None, kind: type[Result]) -> Result | None:
    """A result of the cache; None where there is none, or it is damaged."""
    try:
        return None if result is None else msgspec.json.decode(result, type=kind)
    except (msgspec.MsgspecError, RecursionError):
        return None


def _span(name: str, entry: Any) -> _Span:
    try:
        return _Span(int(entry["start"]), int(entry["end"]), _text(entry.get("type")))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise DataError(f'{name} gave {entry!r:.200}; expected {{"start": ..., "end": ..., "type": ...}}') from None


def _object(name: str, entry: Any) -> _Found:
    try:
        x0, y0, x1, y1 = (float(edge) for edge in entry["box"])
        score = float(entry.get("score", 1.0))
        if all(map(math.isfinite, (x0, y0, x1, y1, score))):
            return _Found((x0, y0, x1, y1), score, _text(entry.get("label")))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        pass
    raise DataError(
        f'{name} gave {entry!r:.200}; expected finite numbers, {{"box": [x0, y0, x1, y1], "score": ..., "label": ...}}'
    )


def _text(value: Any) -> str:
    """A label, such as the number of a class, as a text; empty for None."""
    return "" if value is None else storable(str(value))


def _plain(record: Record) -> Any:
    """The paraphrases without spans, which belong to the replaced entities."""
    return tuple(msgspec.structs.replace(paraphrase, entities=()) for paraphrase in record.paraphrases)


def _normal(name: str) -> str:
    return " ".join(name.casefold().split())


def _batches(items: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
