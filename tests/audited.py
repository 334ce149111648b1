"""Small data sets for the tests of the audit, and what it finds in them."""

from pathlib import Path

from PIL import Image

from spanbox.data.audit import AuditReport
from spanbox.data.manifest import Record, write_manifest

BOX = (1.0, 1.0, 10.0, 10.0)


def image(folder: Path, name: str, colour: str = "red", size: tuple[int, int] = (40, 30)) -> str:
    folder.mkdir(exist_ok=True)
    Image.new("RGB", size, colour).save(folder / name)
    return name


def manifest(folder: Path, *records: Record, name: str = "train.jsonl") -> Path:
    path = folder / name
    write_manifest(path, records)
    return path


def found(report: AuditReport) -> dict[str, list[tuple[int, str]]]:
    return {kind: [(e.line, e.detail) for e in finding.examples] for kind, finding in report.findings.items()}
