"""Repairs of a manifest that are certain: `spanbox data fix`.

A convention of boxes or offsets is converted only where many of a set contradict the documented one and none the other
reading. Everything else is left to the user; the original is never changed.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np

from spanbox.data.audit.boxes import BoxStatistics
from spanbox.data.audit.conventions import PIXELS, STORED, Boxes, Reading, as_documented
from spanbox.data.audit.names import find_other_spelling
from spanbox.data.audit.spans import READINGS, SpanStatistics, paraphrased_pairs
from spanbox.data.images import ImageFacts, image_facts, turn_boxes
from spanbox.data.importers import UniqueIds
from spanbox.data.joined_groups import JoinedGroups
from spanbox.data.manifest import (
    Box,
    Entity,
    Record,
    decode_record,
    encode_record,
    manifest_lines,
    named_boxes,
    relocated,
    write_manifest,
)
from spanbox.data.paraphrases import ParaphraseSpan
from spanbox.data.source import exists
from spanbox.errors import DataError
from spanbox.files import check_no_input
from spanbox.progress import OnProgress

CERTAIN = 20  # boxes or spans that have to contradict the documented convention
Spanned = TypeVar("Spanned", Entity, ParaphraseSpan)


class Repairs(NamedTuple):
    """Counts of repairs by kind, and of faults left as they are, with the reason."""

    done: Counter[str]
    left: Counter[str]


def fix_manifest(path: Path, out: Path, on_progress: OnProgress | None = None) -> Repairs:
    """Write a repaired copy of a manifest.

    Repairs: boxes and offsets of another convention; names of images in another spelling; ids used twice; groups with
    images of equal pixels, which become one; pairs given twice with all their annotations.

    Args:
        path: the manifest; it is not changed.
        out: the new manifest. Paths of images are relative to its folder.

    Raises:
        DataError: the manifest cannot be read, or a line of it is not a record; no repair of that is certain.
        OutputError: `out` cannot be written, or is the manifest itself.
    """
    check_no_input(out, [path])
    return _Repair(path, out, on_progress).run()


class _Repair:
    def __init__(self, path: Path, out: Path, on_progress: OnProgress | None) -> None:
        self.path, self.out, self.on_progress = path, out, on_progress
        self.counts: Counter[str] = Counter()
        self.left: Counter[str] = Counter()
        self.boxes = {source: BoxStatistics(source) for source in ("entities", "objects")}
        self.spans = SpanStatistics()
        self.paraphrased_spans = SpanStatistics("spans of paraphrases")
        self.groups, self.shown = JoinedGroups[str](), dict[int, str]()  # shown: by the pixels of an image, its group
        self.total = sum(1 for _ in manifest_lines(path))

    def run(self) -> Repairs:
        folder = self.path.parent.resolve()
        for number, record in self._records(0):
            named = msgspec.structs.replace(record, image=_found_image(record, folder))
            facts = _facts(folder / named.image, decode=True)
            if facts is not None and facts.content is not None:
                self.groups.join(self.shown.setdefault(facts.content, named.group_key), named.group_key)
            facts = facts or _facts(folder / named.image, decode=False)  # a damaged image may still have a size
            self.spans.add(record, number)
            for paraphrased in paraphrased_pairs(record):
                self.paraphrased_spans.add(paraphrased, number)
            for field, box in named_boxes(record):
                self.boxes[field.partition("[")[0]].add(box, record.image, facts, number)
        write_manifest(self.out, self._repaired(folder))
        return Repairs(+self.counts, +self.left)

    def _records(self, done: int) -> Iterator[tuple[int, Record]]:
        for count, (number, _, line) in enumerate(manifest_lines(self.path), start=1):
            yield number, decode_record(line, self.path, number)
            if self.on_progress is not None:
                self.on_progress(done + count, 2 * self.total)

    def _repaired(self, folder: Path) -> Iterator[Record]:
        read_span, read_paraphrased = self._certain_span(self.spans), self._certain_span(self.paraphrased_spans)
        readings = self._certain_boxes()
        ids, seen = UniqueIds(), set[bytes]()  # seen: hashes, since lines fill the memory
        for _, record in self._records(self.total):
            named = self._with_found_image(record, folder)
            image = folder / named.image
            with_boxes = self._with_boxes(named, image, readings)
            repaired = self._with_paraphrased_spans(self._with_spans(with_boxes, read_span), read_paraphrased)
            group = self.groups.first(repaired.group_key)
            in_group = msgspec.structs.replace(repaired, id="", group=group)
            content = blake2b(encode_record(in_group), digest_size=16).digest()
            if content in seen:
                self.counts["pairs given twice: removed"] += 1
                continue
            seen.add(content)
            if group != repaired.group_key:
                self.counts["images of equal pixels in different groups: one group"] += 1
                repaired = msgspec.structs.replace(repaired, group=group)
            new_id = ids.add(repaired.id)
            self.counts["ids used twice: made unique"] += new_id != repaired.id
            yield relocated(msgspec.structs.replace(repaired, id=new_id), folder, self.out.parent.resolve())

    def _certain_span(self, spans: SpanStatistics) -> str | None:
        kind = spans.reading()
        if kind is None:
            return None
        says, contradict = spans.wrong_as_given[kind], spans.wrong_as_read[kind]
        return kind if self._is_certain(kind, spans.things, says, contradict) else None

    def _certain_boxes(self) -> dict[str, Reading]:
        certain = {}
        for source, statistics in self.boxes.items():
            if not statistics.has_images:
                continue
            reading = statistics.reading()
            if not reading.format or reading.is_as_documented:
                continue
            kind = f"boxes of {source}, {reading.format} in {reading.unit}"
            if self._is_certain(kind, "boxes", reading.says, reading.contradict):
                certain[source] = reading
        return certain

    def _is_certain(self, kind: str, things: str, says: int, contradict: int) -> bool:
        """Whether a convention may be converted; the reason is kept if it may not."""
        if contradict:
            self.left[f"{kind}: not converted, contradicted by {contradict:,} of its {things}"] = says
        elif says < CERTAIN:
            self.left[f"{kind}: not converted, since fewer than {CERTAIN} {things} show it"] = says
        return not contradict and says >= CERTAIN

    def _with_found_image(self, record: Record, folder: Path) -> Record:
        found = _found_image(record, folder)
        if found == record.image:
            return record
        self.counts["names of images in another spelling: corrected"] += 1
        return msgspec.structs.replace(record, image=found)

    def _with_spans(self, record: Record, kind: str | None) -> Record:
        if kind is None:
            return record
        entities = self._converted_spans(record.text, record.entities, kind, f"{kind}: converted")
        return msgspec.structs.replace(record, entities=entities)

    def _with_paraphrased_spans(self, record: Record, kind: str | None) -> Record:
        if kind is None:
            return record
        paraphrases = []
        for paraphrase in record.paraphrases:
            what = f"{kind}, of paraphrases: converted"
            entities = self._converted_spans(paraphrase.text, paraphrase.entities, kind, what)
            paraphrases.append(msgspec.structs.replace(paraphrase, entities=entities))
        return msgspec.structs.replace(record, paraphrases=tuple(paraphrases))

    def _converted_spans(self, text: str, entities: Sequence[Spanned], kind: str, what: str) -> tuple[Spanned, ...]:
        """Entities of a text with their spans read in another way; `what` counts those that change."""
        converted = []
        for entity in entities:
            span = READINGS[kind](text, (entity.start, entity.end))
            if span is not None and span != (entity.start, entity.end):
                self.counts[what] += 1
                entity = msgspec.structs.replace(entity, start=span[0], end=span[1])
            converted.append(entity)
        return tuple(converted)

    def _with_boxes(self, record: Record, image: Path, readings: dict[str, Reading]) -> Record:
        if not readings:
            return record
        facts = _facts(image, decode=False)

        def convert(source: str, boxes: tuple[Box, ...]) -> tuple[Box, ...]:
            if source not in readings or not boxes:
                return boxes
            reading = readings[source]
            kind = f"boxes of {source}, {reading.format} in {reading.unit}"
            if facts is None and reading.unit != PIXELS:
                self.left[f"{kind}, of images that cannot be read: not converted"] += len(boxes)
                return boxes
            converted = _converted(boxes, facts, image, reading)
            if converted != boxes:
                self.counts[f"{kind}: converted{reading.remark}"] += len(boxes)
            return converted

        def with_boxes(entity: Entity) -> Entity:
            return msgspec.structs.replace(entity, boxes=convert("entities", entity.boxes))

        objects = convert("objects", tuple(proposal.box for proposal in record.objects))
        return msgspec.structs.replace(
            record,
            entities=tuple(map(with_boxes, record.entities)),
            objects=tuple(
                msgspec.structs.replace(proposal, box=box)
                for proposal, box in zip(record.objects, objects, strict=True)
            ),
        )


def _found_image(record: Record, folder: Path) -> str:
    """The image of a record, in the spelling that the folder has."""
    try:
        if not record.image or exists(folder / record.image):
            return record.image
    except (OSError, ValueError):  # a path that the system refuses
        return record.image
    return find_other_spelling(folder, record.image) or record.image


def _converted(boxes: tuple[Box, ...], facts: ImageFacts | None, image: Path, reading: Reading) -> tuple[Box, ...]:
    """The boxes as documented. Those in pixels need no facts."""
    if reading.unit == STORED:
        return turn_boxes(boxes, image)
    sizes = (facts.size, facts.stored) if facts else ((1, 1), (1, 1))
    shown, stored = (np.full((len(boxes), 2), size, dtype=np.float64) for size in sizes)
    converted = as_documented(Boxes(np.array(boxes, dtype=np.float64), shown, stored), reading)
    return tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in converted.round(3).tolist())


def _facts(path: Path, *, decode: bool) -> ImageFacts | None:
    try:
        return image_facts(path, decode=decode)
    except (DataError, OSError, ValueError):  # of a path that the system refuses, too
        return None
