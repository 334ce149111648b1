"""The audit of manifests: what is in them and everything that is wrong, before the first step is trained.

Training stops at the first wrong line; the audit reads on and tells all of them, with file and line. It looks at the
images, too, and across manifests: an image that is in train and in test makes every figure of the test worthless.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from spanbox.data.audit_duplicates import UNKNOWN, Columns, find_duplicates, hash_file
from spanbox.data.images import image_size, load_image
from spanbox.data.manifest import (
    Record,
    decode_record,
    find_faults,
    find_inverted_boxes,
    is_inverted,
    manifest_lines,
    named_boxes,
)
from spanbox.errors import DataError

EXAMPLES = 5  # kept of each kind of finding
TOLERANCE = 1.0  # pixels by which a box may leave the image: annotators and detectors round
_LINES_AT_ONCE = 256
_IMAGES_REMEMBERED = 65_536  # pairs of one image usually stand close together

OnProgress = Callable[[int, int], None]  # (lines done, lines in all)

# Each kind of finding, and what it means for training or what to do about it.
PROBLEMS = {
    "wrong line": "training stops here; mend or remove the line",
    "unusable span": "training stops here; offsets are half-open and count Unicode code points from 0",
    "span given twice": "give the entity once, with all its boxes",
    "inverted box": "mend it, or set data.inverted_boxes=drop",
    "box outside the image": "check scale and order: a box is x0 y0 x1 y1, in pixels of the image as shown",
    "box partly outside the image": "it will be clipped; check that it was made for this size of the image",
    "missing image": "counts against data.broken_limit",
    "broken image": "counts against data.broken_limit",
    "id used twice": "give every pair an id of its own",
    "image in two manifests": "remove it from one of them, or the model is tested on what it was trained on",
    "same image content in two manifests": "remove it from one of them, or the model is tested on what it has seen",
    "group in two manifests": "remove it from one of them, or the model is tested on what it has seen",
}
NOTES = {
    "same text in two manifests": "usual for short captions; such texts are easier to find",
    "id also in another manifest": "harmless for training; reports name pairs by their ids",
    "same image in different groups": "give these pairs the same group, or they are each other's negatives",
}


class Example(NamedTuple):
    """Where something was found."""

    manifest: str
    line: int
    detail: str


@dataclass
class Finding:
    """One kind of problem or note: how often, and the first few places."""

    kind: str
    advice: str
    count: int = 0
    examples: list[Example] = field(default_factory=list)

    def to_json(self) -> dict[str, object]:
        return {**vars(self), "examples": [example._asdict() for example in self.examples]}


@dataclass
class Counts:
    """What is in a manifest, or in all of them. `images`, `groups` and `texts` count different ones."""

    pairs: int = 0
    images: int = 0
    groups: int = 0
    texts: int = 0
    entities: int = 0
    entities_with_box: int = 0
    entities_without_box: int = 0
    boxes: int = 0
    proposals: int = 0
    languages: Counter[str] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)

    def add(self, record: Record) -> None:
        with_box = sum(bool(entity.boxes) for entity in record.entities)
        self.pairs += 1
        self.entities += len(record.entities)
        self.entities_with_box += with_box
        self.entities_without_box += len(record.entities) - with_box
        self.boxes += sum(len(entity.boxes) for entity in record.entities)
        self.proposals += len(record.objects)
        self.languages[record.lang] += 1
        self.types.update(entity.type for entity in record.entities)


@dataclass
class AuditReport:
    """What an audit found."""

    manifests: dict[str, Counts]
    total: Counts
    findings: dict[str, Finding]
    decoded: bool  # images were decoded and compared by content, not only their headers read

    @property
    def problems(self) -> list[Finding]:
        return [self.findings[kind] for kind in PROBLEMS if kind in self.findings]

    @property
    def notes(self) -> list[Finding]:
        return [self.findings[kind] for kind in NOTES if kind in self.findings]

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_json(self) -> dict[str, object]:
        return {
            "ok": self.ok,
            "decoded": self.decoded,
            "manifests": {path: vars(counts) for path, counts in self.manifests.items()},
            "total": vars(self.total),
            "problems": [finding.to_json() for finding in self.problems],
            "notes": [finding.to_json() for finding in self.notes],
        }


def audit(manifests: Sequence[Path], *, decode: bool = True, on_progress: OnProgress | None = None) -> AuditReport:
    """Read every line and image of the manifests, and tell what is in them and what is wrong.

    Args:
        manifests: those of one data set, one a split. What must not be in two of them is looked for across them.
        decode: decode every image and compare their contents; otherwise only their headers are read.
        on_progress: told after every few lines.

    Raises:
        DataError: there is no such manifest. What is wrong inside of one is reported, not raised.
    """
    for path in manifests:
        if not path.is_file():
            raise DataError(f"{path}: no such manifest; expected a JSON Lines file, see docs/data.md")
    return _Audit(manifests, decode).run(on_progress)


class _Image(NamedTuple):
    """What was learned of an image file."""

    size: tuple[int, int] | None = None  # width and height as shown
    content: int = UNKNOWN
    fault: tuple[str, str] | None = None  # kind of finding, reason


def _inspect(path: Path, decode: bool) -> _Image:
    try:
        if not path.is_file():
            return _Image(fault=("missing image", "no such file"))
        return _Image(load_image(path).size, hash_file(path)) if decode else _Image(image_size(path))
    except DataError as error:
        return _Image(fault=("broken image", str(error).removeprefix(f"{path}: broken image: ")))
    except OSError as error:  # a path that the system refuses
        return _Image(fault=("missing image", error.strerror or str(error)))


class _Audit:
    """An audit in progress."""

    def __init__(self, manifests: Sequence[Path], decode: bool) -> None:
        self.manifests = manifests
        self.decode = decode
        self.counts = [Counts() for _ in manifests]
        self.total = Counts()
        self.findings: dict[str, Finding] = {}
        self.columns = Columns()

    def run(self, on_progress: OnProgress | None) -> AuditReport:
        total = sum(1 for path in self.manifests for _ in manifest_lines(path))
        done = 0
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for index in range(len(self.manifests)):
                for count in self._read_manifest(index, pool):
                    done += count
                    if on_progress is not None:
                        on_progress(done, total)
        self._compare_lines()
        named = {str(path): counts for path, counts in zip(self.manifests, self.counts, strict=True)}
        return AuditReport(named, self.total, self.findings, self.decode)

    def _add(self, kind: str, manifest: int, line: int, detail: str) -> None:
        finding = self.findings.setdefault(kind, Finding(kind, (PROBLEMS | NOTES)[kind]))
        finding.count += 1
        if len(finding.examples) < EXAMPLES:
            finding.examples.append(Example(str(self.manifests[manifest]), line, detail))

    def _read_manifest(self, index: int, pool: ThreadPoolExecutor) -> Iterator[int]:
        """Check every line; yields how many lines were checked since the last time."""
        folder = self.manifests[index].parent.resolve()
        inspect = lru_cache(_IMAGES_REMEMBERED)(partial(_inspect, decode=self.decode))
        lines = manifest_lines(self.manifests[index])
        empty = True
        while batch := list(islice(lines, _LINES_AT_ONCE)):
            decoded = ((number, self._decode(index, number, line)) for number, _, line in batch)
            records = [(number, record) for number, record in decoded if record is not None]
            paths = [Path(os.path.normpath(folder / record.image)) for _, record in records]
            for (number, record), path, image in zip(records, paths, pool.map(inspect, paths), strict=True):
                self.columns.append(index, number, record, path, image.content)
                for kind, detail in _find_problems(record, image):
                    self._add(kind, index, number, detail)
                for counts in (self.counts[index], self.total):
                    counts.add(record)
            empty = False
            yield len(batch)
        if empty:
            self._add("wrong line", index, 1, "the manifest is empty; expected one JSON object per line")

    def _decode(self, index: int, number: int, line: bytes) -> Record | None:
        path = self.manifests[index]
        try:
            return decode_record(line, path, number)
        except DataError as error:
            self._add("wrong line", index, number, str(error).removeprefix(f"{path}, line {number}: "))
            return None

    def _compare_lines(self) -> None:
        columns = self.columns
        for index, counts in ((None, self.total), *enumerate(self.counts)):
            counts.images = columns.count_distinct("image", index)
            counts.groups = columns.count_distinct("group", index)
            counts.texts = columns.count_distinct("text", index)
        manifest, line = columns["manifest"].tolist(), columns["line"].tolist()
        for kind, row, first in find_duplicates(columns):
            same_file = manifest[row] == manifest[first]
            where = f"line {line[first]}" if same_file else f"{self.manifests[manifest[first]]}:{line[first]}"
            self._add(kind, manifest[row], line[row], f"as in {where}")


def _find_problems(record: Record, image: _Image) -> Iterator[tuple[str, str]]:
    """What is wrong with one pair by itself, as (kind, detail)."""
    for name, fault in find_faults(record):
        yield "unusable span" if name.startswith("entities") else "wrong line", f"{name}: {fault}"
    for name, fault in find_inverted_boxes(record):
        yield "inverted box", f"{name}: {fault.partition(';')[0]}"
    for (start, end), count in Counter((entity.start, entity.end) for entity in record.entities).items():
        if count > 1:
            yield "span given twice", f"{count} entities at [{start}, {end}): {record.text[start:end]!r}"
    if image.fault is not None and record.image:
        kind, reason = image.fault
        yield kind, f"{record.image}: {reason}"
    if image.size is not None:
        yield from _find_misplaced_boxes(record, *image.size)


def _find_misplaced_boxes(record: Record, width: int, height: int) -> Iterator[tuple[str, str]]:
    for name, (x0, y0, x1, y1) in named_boxes(record):
        detail = f"{name}: {[x0, y0, x1, y1]} in an image of {width} x {height}"
        if is_inverted((x0, y0, x1, y1)):
            continue
        if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            yield "box outside the image", detail
        elif min(x0, y0) < -TOLERANCE or x1 > width + TOLERANCE or y1 > height + TOLERANCE:
            yield "box partly outside the image", detail
