"""The audit of manifests: their content and all their faults, before the first training step.

Training stops at the first wrong line; the audit reads on and reports all of them, with file and line. It also looks at
the images, at all boxes and spans of a set together, and across manifests: an image in both train and test makes every
figure of the test worthless.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from spanbox.data.audit.boxes import BoxStatistics, find_misplaced_boxes
from spanbox.data.audit.duplicates import UNKNOWN, Columns, find_duplicates
from spanbox.data.audit.names import describe_difference, find_other_spelling
from spanbox.data.audit.report import (
    EXAMPLES,
    KEEP_INVERTED,
    NOTES,
    PROBLEMS,
    AuditReport,
    Counts,
    Example,
    Finding,
)
from spanbox.data.audit.spans import SpanStatistics, find_odd_spans
from spanbox.data.images import ImageFacts, image_facts
from spanbox.data.manifest import (
    Record,
    check_manifest_file,
    decode_record,
    find_faults,
    find_inverted_boxes,
    manifest_lines,
    named_boxes,
)
from spanbox.errors import DataError

__all__ = ["EXAMPLES", "NOTES", "PROBLEMS", "AuditReport", "Counts", "Finding", "audit"]

_LINES_AT_ONCE = 256
_IMAGES_REMEMBERED = 65_536  # pairs of one image are usually close together

OnProgress = Callable[[int, int], None]  # (lines done, lines in all)


def audit(manifests: Sequence[Path], *, decode: bool = True, on_progress: OnProgress | None = None) -> AuditReport:
    """Read every line and image of the manifests, count their content and find their faults.

    Args:
        manifests: those of one data set, one per split; they are also compared with each other.
        decode: decode every image and compare their pixels; otherwise only their headers are read.
        on_progress: called after every few lines.

    Raises:
        DataError: a manifest does not exist or cannot be read. Faults inside of one are reported, not raised.
    """
    for path in manifests:
        check_manifest_file(path)
    return _Audit(manifests, decode).run(on_progress)


class _Image(NamedTuple):
    """The facts of an image file, or the reason why there are none."""

    facts: ImageFacts | None = None
    fault: tuple[str, str] | None = None  # kind of finding, reason

    @property
    def content(self) -> int:
        return self.facts.content or UNKNOWN if self.facts else UNKNOWN


def _inspect(path: Path, decode: bool) -> _Image:
    try:
        if not path.exists():
            return _Image(fault=("missing image", "no such file"))
        return _Image(image_facts(path, decode=decode))
    except DataError as error:
        return _Image(fault=("broken image", str(error).removeprefix(f"{path}: broken image: ")))
    except (OSError, ValueError) as error:  # a path that the system refuses
        return _Image(fault=("missing image", getattr(error, "strerror", None) or str(error)))


class _Statistics:
    """Boxes and spans of a whole manifest."""

    def __init__(self) -> None:
        self.spans = SpanStatistics()
        self.boxes = {source: BoxStatistics(source) for source in ("entities", "objects")}

    def add(self, record: Record, image: ImageFacts | None, line: int) -> None:
        self.spans.add(record, line)
        for name, box in named_boxes(record):
            self.boxes[name.partition("[")[0]].add(box, image, line)

    def findings(self) -> Iterator[tuple[str, int, str]]:
        yield from self.spans.findings()
        for boxes in self.boxes.values():
            yield from boxes.findings()


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
        if "inverted box" in self.findings and "boxes look like x y width height" in self.findings:
            self.findings["inverted box"].advice = KEEP_INVERTED
        named = {str(path): counts for path, counts in zip(self.manifests, self.counts, strict=True)}
        return AuditReport(named, self.total, self.findings, self.decode)

    def _add(self, kind: str, manifest: int, line: int, detail: str) -> None:
        finding = self.findings.get(kind) or self.findings.setdefault(kind, Finding(kind))
        finding.add(Example(str(self.manifests[manifest]), line, detail))

    def _read_manifest(self, index: int, pool: ThreadPoolExecutor) -> Iterator[int]:
        """Check every line; yields the number of lines that were checked since the last time."""
        folder = self.manifests[index].parent.resolve()
        inspect = lru_cache(_IMAGES_REMEMBERED)(partial(_inspect, decode=self.decode))
        lines = manifest_lines(self.manifests[index])
        statistics = _Statistics()
        empty = True
        while batch := list(islice(lines, _LINES_AT_ONCE)):
            decoded = ((number, self._decode(index, number, line)) for number, _, line in batch)
            records = [(number, record) for number, record in decoded if record is not None]
            paths = [Path(os.path.normpath(folder / record.image)) for _, record in records]
            for (number, record), path, image in zip(records, paths, pool.map(inspect, paths), strict=True):
                self.columns.append(index, number, record, path, image.content)
                statistics.add(record, image.facts, number)
                for kind, detail in _find_faults_of_pair(record, image, folder):
                    self._add(kind, index, number, detail)
                for counts in (self.counts[index], self.total):
                    counts.add(record)
            empty = False
            yield len(batch)
        if empty:
            self._add("wrong line", index, 1, "the manifest is empty; expected one JSON object per line")
        for kind, line, detail in statistics.findings():
            self._add(kind, index, line, detail)

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
        for index, counts in enumerate(self.counts):
            for name, number in (("text", counts.texts), ("group", counts.groups)):
                if counts.pairs > 1 and number == 1:
                    self._add("no negatives", index, 1, f"all {counts.pairs} pairs have the same {name}")
        manifest, line = columns["manifest"].tolist(), columns["line"].tolist()
        for kind, row, first in find_duplicates(columns):
            same_file = manifest[row] == manifest[first]
            where = f"line {line[first]}" if same_file else f"{self.manifests[manifest[first]]}:{line[first]}"
            self._add(kind, manifest[row], line[row], f"as in {where}")


def _find_odd_paraphrases(record: Record) -> Iterator[tuple[str, str]]:
    """Paraphrases that say nothing new, and their spans that cut a word or hold no visible character."""
    texts = [record.text]
    for i, paraphrase in enumerate(record.paraphrases):
        if paraphrase.text in texts:
            yield "paraphrase given twice", f"paraphrases[{i}]: {paraphrase.text!r}"
        texts.append(paraphrase.text)
        if all(span.entity in range(len(record.entities)) for span in paraphrase.entities):
            for kind, detail in find_odd_spans(record.paraphrased(paraphrase)):
                yield kind, f"paraphrases[{i}].{detail}"


def _find_faults_of_pair(record: Record, image: _Image, folder: Path) -> Iterator[tuple[str, str]]:
    """The faults of one pair by itself, as (kind, detail)."""
    if not record.text.strip():
        yield "empty text", f"text: {record.text!r}"
    for name, fault in find_faults(record):
        yield "unusable span" if "entities[" in name else "wrong line", f"{name}: {fault}"
    for (start, end), count in Counter((entity.start, entity.end) for entity in record.entities).items():
        if count > 1:
            yield "span given twice", f"{count} entities at [{start}, {end}): {record.text[start:end]!r}"
    yield from find_odd_spans(record)
    yield from _find_odd_paraphrases(record)
    for name, fault in find_inverted_boxes(record):
        yield "inverted box", f"{name}: {fault.partition(';')[0]}"
    if image.fault is not None and record.image:
        kind, reason = image.fault
        other = find_other_spelling(folder, record.image) if kind == "missing image" else None
        if other is not None:
            reason += (
                f", but the folder has {other!r}, in another spelling ({describe_difference(record.image, other)})"
            )
        yield kind, f"{record.image}: {reason}"
    if image.facts is not None:
        yield from find_misplaced_boxes(named_boxes(record), *image.facts.size)
