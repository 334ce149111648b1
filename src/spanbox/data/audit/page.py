"""The findings of an audit as a page with pictures: the first places of each kind."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from spanbox.data.audit.report import AuditReport, Example, Finding
from spanbox.data.manifest import Record, decode_record, manifest_lines, named_boxes
from spanbox.data.review_page import Card, Mark, Section, review_page
from spanbox.errors import DataError

Place = tuple[str, int]  # manifest and line


def audit_page(report: AuditReport) -> str:
    """The page as HTML. Reads the manifests and the images of the places that are shown."""
    findings = (*report.problems, *report.notes)
    examples = [example for finding in findings for example in finding.examples]
    records = _read({place for example in examples for place in _places(example)})
    sections = [_section(finding, records, problem=finding in report.problems) for finding in findings]
    names = ", ".join(report.manifests)
    return review_page("Data check", f"{names}: the first places of each kind; --json lists all of them.", sections)


def _places(example: Example) -> list[Place]:
    return [(example.manifest, example.line), *([example.other] if example.other else [])]


def _section(finding: Finding, records: dict[Place, Record], *, problem: bool) -> Section:
    heading = f"{'Problem' if problem else 'Note'}: {finding.kind} ({finding.count:,})"
    return Section(heading, finding.advice, [_card(example, records) for example in finding.examples])


def _card(example: Example, records: dict[Place, Record]) -> Card:
    found = [(Path(place[0]), records[place]) for place in _places(example) if place in records]
    details = [example.detail]
    title = f"{Path(example.manifest).name}, line {example.line}"
    if not found:
        return Card(title, (), details=details)
    record = found[0][1]
    named = example.detail.partition(":")[0]
    boxes = named_boxes(record)
    marks = [
        Mark(box, "present" if name == named or named not in dict(boxes) else "other", name) for name, box in boxes
    ]
    images = [path.parent / other.image for path, other in found if other.image]
    span = next(((e.start, e.end) for i, e in enumerate(record.entities) if named.startswith(f"entities[{i}]")), (0, 0))
    inside = 0 <= span[0] < span[1] <= len(record.text)
    return Card(f"{title}: {record.id}", images, record.text, span if inside else (0, 0), marks, details)


def _read(places: Iterable[Place]) -> dict[Place, Record]:
    """The records at some lines; those that cannot be read are left out."""
    wanted: dict[str, set[int]] = defaultdict(set)
    for manifest, line in places:
        wanted[manifest].add(line)
    records = {}
    for manifest, lines in wanted.items():
        for number, _, content in manifest_lines(Path(manifest)):
            if number in lines:
                try:
                    records[manifest, number] = decode_record(content, Path(manifest), number)
                except DataError:
                    continue
    return records
