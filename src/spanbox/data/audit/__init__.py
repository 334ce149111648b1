"""The audit of manifests: their content and all their faults, before the first training step.

Training stops at the first wrong line; the audit reads on and reports all of them, with file and line. It also looks at
the images, at all boxes and spans of a set together, and across manifests: an image in both train and test makes every
test metric worthless.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from spanbox.data.audit.boxes import BoxStatistics, find_misplaced_boxes
from spanbox.data.audit.duplicates import UNKNOWN, Columns, find_duplicates, find_near_duplicates
from spanbox.data.audit.names import describe_difference, find_other_spelling
from spanbox.data.audit.near import Fingerprint, Fingerprints, fingerprint
from spanbox.data.audit.report import (
    EXAMPLES,
    NOTES,
    OTHER_FORMATS,
    PROBLEMS,
    AuditReport,
    Counts,
    Example,
    Finding,
)
from spanbox.data.audit.shape import Shape, find_language_conflict, find_rare_types
from spanbox.data.audit.spans import SpanStatistics, find_odd_spans, paraphrased_pairs
from spanbox.data.audit.texts import find_odd_text
from spanbox.data.audit.tokens import Check, token_check
from spanbox.data.images import ImageFacts, decoded_facts, image_facts
from spanbox.data.manifest import (
    MAX_TEXT_CHARACTERS,
    Record,
    check_manifest_file,
    decode_record,
    find_faults,
    find_inverted_boxes,
    identity_key,
    manifest_lines,
    named_boxes,
)
from spanbox.data.source import exists
from spanbox.data.words import is_invisible
from spanbox.errors import DataError
from spanbox.processes import available_cores
from spanbox.progress import OnProgress

__all__ = ["EXAMPLES", "NOTES", "PROBLEMS", "AuditReport", "Counts", "Finding", "audit", "token_check"]

_LINES_AT_ONCE = 256
_IMAGES_REMEMBERED = 16_384  # pairs of one image are usually close together


def audit(
    manifests: Sequence[Path],
    *,
    decode: bool = True,
    tokens: Check | None = None,
    on_progress: OnProgress | None = None,
) -> AuditReport:
    """Read every line and image of the manifests, count their content and find their faults.

    Args:
        manifests: those of one data set, one per split; they are also compared with each other.
        decode: decode every image and compare their pixels; otherwise only their headers are read.
        tokens: check of the tokens of each text, see `token_check`.
        on_progress: called after every few lines.

    Raises:
        DataError: a manifest does not exist or cannot be read. Faults inside of one are reported, not raised.
    """
    for path in manifests:
        check_manifest_file(path)
    return _Audit(manifests, decode, tokens).run(on_progress)


class _Image(NamedTuple):
    """The facts of an image file, or the reason why there are none."""

    facts: ImageFacts | None = None
    fault: tuple[str, str] | None = None  # kind of finding, reason
    fingerprint: Fingerprint | None = None  # None: not decoded, or nothing to compare

    @property
    def content(self) -> int:
        return self.facts.content or UNKNOWN if self.facts else UNKNOWN


def _inspect(path: Path, decode: bool) -> _Image:
    try:
        if not exists(path):
            return _Image(fault=("missing image", "no such file"))
        if not decode:
            return _Image(image_facts(path, decode=False))
        facts, image = decoded_facts(path)
        return _Image(facts, fingerprint=fingerprint(image))
    except DataError as error:
        return _Image(fault=("broken image", str(error).removeprefix(f"{path}: broken image: ")))
    except (OSError, ValueError) as error:  # a path that the system refuses
        return _Image(fault=("missing image", getattr(error, "strerror", None) or str(error)))


class _Statistics:
    """Boxes, spans and distributions of a whole manifest."""

    def __init__(self) -> None:
        self.shape = Shape()
        self.spans = SpanStatistics()
        self.paraphrased_spans = SpanStatistics("spans of paraphrases")
        self.boxes = {source: BoxStatistics(source) for source in ("entities", "objects")}

    def add(self, record: Record, image: ImageFacts | None, line: int) -> None:
        self.shape.add(record, image, line)
        self.spans.add(record, line)
        for paraphrased in paraphrased_pairs(record):
            self.paraphrased_spans.add(paraphrased, line)
        for field, box in named_boxes(record):
            self.boxes[field.partition("[")[0]].add(box, record.image, image, line)

    def findings(self) -> Iterator[tuple[str, int, str]]:
        yield from self.spans.findings()
        yield from self.paraphrased_spans.findings()
        for boxes in self.boxes.values():
            yield from boxes.findings()
        yield from self.shape.outliers()


class _Audit:
    """An audit in progress."""

    def __init__(self, manifests: Sequence[Path], decode: bool, tokens: Check | None) -> None:
        self.manifests = manifests
        self.decode = decode
        self.tokens = tokens
        self.shapes: dict[str, Shape] = {}
        self.counts = [Counts() for _ in manifests]
        self.total = Counts()
        self.findings: dict[str, Finding] = {}
        self.columns = Columns()
        self.identities = [set[str]() for _ in manifests]  # of the first entities, until they differ
        self.fingerprints = Fingerprints()
        self.first_row: dict[int, int] = {}  # of each content that has a fingerprint, in their order

    def run(self, on_progress: OnProgress | None) -> AuditReport:
        total = sum(1 for path in self.manifests for _ in manifest_lines(path))
        done = 0
        with ThreadPoolExecutor(available_cores()) as pool:
            for index in range(len(self.manifests)):
                for count in self._read_manifest(index, pool):
                    done += count
                    if on_progress is not None:
                        on_progress(done, total)
        self._compare_lines()
        if "inverted box" in self.findings and (formats := sorted(OTHER_FORMATS & self.findings.keys())):
            self.findings["inverted box"].advice = f"do not drop them: {' and '.join(formats)}"
        named = {str(path): counts for path, counts in zip(self.manifests, self.counts, strict=True)}
        return AuditReport(named, self.total, self.findings, self.decode, self.shapes)

    def _add(self, kind: str, manifest: int, line: int, detail: str, other: tuple[str, int] | None = None) -> None:
        finding = self.findings.get(kind) or self.findings.setdefault(kind, Finding(kind))
        finding.add(Example(str(self.manifests[manifest]), line, detail, other))

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
                if image.fingerprint is not None and image.content not in self.first_row:
                    self.first_row[image.content] = len(self.columns)
                    self.fingerprints.add(image.fingerprint)
                self.columns.append(index, number, record, path, image.content)
                statistics.add(record, image.facts, number)
                if len(self.identities[index]) < 2:
                    self.identities[index].update(identity_key(record.text, entity) for entity in record.entities)
                is_read = len(record.text) <= MAX_TEXT_CHARACTERS  # a longer text is a wrong line, and fills the memory
                of_tokens = self.tokens(record) if self.tokens and is_read else ()
                for kind, detail in chain(_find_faults_of_pair(record, image, folder), of_tokens):
                    self._add(kind, index, number, detail)
                for counts in (self.counts[index], self.total):
                    counts.add(record)
            empty = False
            yield len(batch)
        if empty:
            self._add("wrong line", index, 1, "the manifest is empty; expected one JSON object per line")
        self.shapes[str(self.manifests[index])] = statistics.shape
        for kind, line, detail in statistics.findings():
            self._add(kind, index, line, detail)
        for kind, detail in find_rare_types(self.counts[index].types):
            self._add(kind, index, 1, detail)

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
            if counts.entities_with_box > 1 and len(self.identities[index]) == 1 and not counts.proposals:
                (identity,) = self.identities[index]
                self._add("no negatives", index, 1, f"all {counts.entities} entities have the identity {identity!r}")
        manifest, line = columns["manifest"].tolist(), columns["line"].tolist()
        near = find_near_duplicates(columns, self.fingerprints, list(self.first_row.values()))
        for kind, row, first, detail in chain(find_duplicates(columns), near):
            same_file = manifest[row] == manifest[first]
            where = f"line {line[first]}" if same_file else f"{self.manifests[manifest[first]]}:{line[first]}"
            other = str(self.manifests[manifest[first]]), line[first]
            self._add(kind, manifest[row], line[row], f"as in {where}{detail}", other)


def _find_odd_paraphrases(record: Record) -> Iterator[tuple[str, str]]:
    """Paraphrases that repeat another text of the pair, and odd spans in them, as (kind, detail)."""
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
    if is_invisible(record.text):
        yield "empty text", f"text: {record.text!a}"
    for name, fault in find_faults(record):
        is_of_span = "entities[" in name and not name.endswith("relevance")
        yield "unusable span" if is_of_span else "wrong line", f"{name}: {fault}"
    for (start, end), count in Counter((entity.start, entity.end) for entity in record.entities).items():
        if count > 1:
            yield "span given twice", f"{count} entities at [{start}, {end}): {record.text[start:end]!r}"
    yield from find_odd_text(record.text)
    yield from find_odd_spans(record)
    yield from _find_odd_paraphrases(record)
    yield from find_language_conflict(record)
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
