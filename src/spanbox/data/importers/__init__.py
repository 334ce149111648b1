"""Importers: published data sets to manifests.

Every importer writes one manifest a split, counts what it left out and why, and returns the counts as an
`ImportSummary`, which it also writes beside the manifests as `import.json`. What is shared by several of them is here.
"""

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from spanbox.data.manifest import Record
from spanbox.errors import DataError

OnProgress = Callable[[int, int], None]  # (pairs done, pairs in all)

_SAFE_ID = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class Oddity:
    """Something of the source that was left out of a manifest or needs a look."""

    kind: str
    where: str  # the id of the pair, or a file
    detail: str


@dataclass
class SplitSummary:
    """What one split gave."""

    source: str
    manifest: str
    counts: Counter[str] = field(default_factory=Counter)
    oddities: list[Oddity] = field(default_factory=list)

    def add(self, kind: str, where: str, detail: str) -> None:
        self.oddities.append(Oddity(kind, where, detail))

    @property
    def oddity_counts(self) -> Counter[str]:
        return Counter(oddity.kind for oddity in self.oddities)


@dataclass
class ImportSummary:
    """What an import read, where it found it, and what it left out and why."""

    format: str
    folders: dict[str, str]
    splits: dict[str, SplitSummary] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write everything, each oddity by name, as JSON."""
        splits = {
            name: {
                "source": split.source,
                "manifest": split.manifest,
                "counts": split.counts,
                "oddity_counts": split.oddity_counts,
                "oddities": {
                    kind: [{"where": o.where, "detail": o.detail} for o in split.oddities if o.kind == kind]
                    for kind in split.oddity_counts
                },
            }
            for name, split in self.splits.items()
        }
        content = {"format": self.format, "folders": self.folders, "splits": splits}
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def check_id(image_id: str, where: str) -> str:
    """The id, if it is safe as the stem of a file name: nothing is read or written outside the given folders."""
    if not _SAFE_ID.fullmatch(image_id) or ".." in image_id:
        raise DataError(
            f"{where}: image id {image_id!r} cannot be the name of a file; expected letters, digits, '_', '-' and "
            "single dots, as in 71044 or 16_05_01_6"
        )
    return image_id


def unique_id(wanted: str, taken: set[str]) -> str:
    """`wanted`, or the first of `wanted-2`, `wanted-3`, ... that is not in `taken`; adds it there."""
    candidate, repeat = wanted, 1
    while candidate in taken:
        repeat += 1
        candidate = f"{wanted}-{repeat}"
    taken.add(candidate)
    return candidate


def with_progress(records: Iterable[Record], on_progress: OnProgress | None, done: int, total: int) -> Iterator[Record]:
    """The same records; after each one `on_progress` is told how many are done, `done` of them before these."""
    for number, record in enumerate(records, start=done + 1):
        yield record
        if on_progress is not None:
            on_progress(number, total)


def relative_folder(folder: Path, manifest_folder: Path) -> str:
    """`folder` as seen from the manifest, symbolic links followed on both sides, with forward slashes."""
    return Path(os.path.relpath(folder.resolve(), manifest_folder.resolve())).as_posix()


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: no folder can be made there ({error.strerror})") from None


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, complete or not at all; a file that is its own copy stays as it is."""
    if target.exists() and source.samefile(target):
        return
    partial = target.with_name(f".{target.name}.partial")
    shutil.copyfile(source, partial)
    partial.replace(target)
