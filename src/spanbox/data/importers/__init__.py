"""Importers: published data sets to manifests.

Every importer writes one manifest per split, counts what it left out by reason, and returns the counts as an
`ImportSummary`, which it also writes beside the manifests as `import.json`. This file holds what importers share.

The source files come from strangers: each is read up to a stated size, and nothing is written outside the output.
"""

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from spanbox.data.manifest import Record
from spanbox.documents import IS_LFS_POINTER, is_lfs_pointer
from spanbox.errors import DataError
from spanbox.files import replacing, write_json
from spanbox.progress import OnProgress

MAX_ID_BYTES = 200  # a file system takes names of 255, and endings are added

_SAFE_ID = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True, slots=True)
class Oddity:
    """A part of the source that was left out of a manifest, or that the user should check."""

    kind: str
    where: str  # the id of the pair, or a file
    detail: str


@dataclass
class SplitSummary:
    """Counts and oddities of one split."""

    source: str
    manifest: str
    counts: Counter[str] = field(default_factory=Counter)
    oddities: list[Oddity] = field(default_factory=list)
    oddity_totals: Counter[str] | None = None  # where not all oddities are listed

    def add(self, kind: str, where: str, detail: str) -> None:
        self.oddities.append(Oddity(kind, where, detail))

    @property
    def oddity_counts(self) -> Counter[str]:
        return Counter(oddity.kind for oddity in self.oddities) if self.oddity_totals is None else self.oddity_totals


def annotation_counts(record: Record) -> dict[str, int]:
    """Numbers of entities, boxes and proposals of a record, for the counts of its split."""
    return {
        "entities": len(record.entities),
        "entities with a box": sum(bool(entity.boxes) for entity in record.entities),
        "boxes": sum(len(entity.boxes) for entity in record.entities),
        "proposals": len(record.objects),
    }


@dataclass
class ImportSummary:
    """The folders that an import read, and the counts and oddities of each split."""

    format: str
    folders: dict[str, str]
    splits: dict[str, SplitSummary] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write everything, each oddity by name, as JSON. Raises OutputError."""
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
        write_json(path, content)


def check_id(image_id: str, where: str) -> str:
    """The id, if it is safe as the stem of a file name: nothing is read or written outside the given folders."""
    if not _SAFE_ID.fullmatch(image_id) or ".." in image_id or len(image_id.encode()) > MAX_ID_BYTES:
        shown = image_id if len(image_id) <= MAX_ID_BYTES else f"{image_id[:40]}..."
        raise DataError(
            f"{where}: image id {shown!r} cannot be the name of a file; expected letters, digits, '_', '-' and "
            f"single dots, as in 71044 or 16_05_01_6, and at most {MAX_ID_BYTES} bytes"
        )
    return image_id


class UniqueIds:
    """Makes ids unique: `a`, then `a-2`, `a-3`, ..."""

    def __init__(self) -> None:
        self._uses: dict[str, int] = {}

    def add(self, wanted: str) -> str:
        """`wanted`, or the first of `wanted-2`, `wanted-3`, ... that was not given before."""
        candidate = wanted
        while candidate in self._uses:
            self._uses[wanted] += 1
            candidate = f"{wanted}-{self._uses[wanted]}"
        self._uses[candidate] = 1
        return candidate


def with_progress(records: Iterable[Record], on_progress: OnProgress | None, done: int, total: int) -> Iterator[Record]:
    """The same records; `on_progress` is called after each one. `done` records were yielded before these."""
    for number, record in enumerate(records, start=done + 1):
        yield record
        if on_progress is not None:
            on_progress(number, total)


def relative_folder(folder: Path, manifest_folder: Path) -> str:
    """`folder` relative to the manifest's folder, symbolic links resolved on both sides, with forward slashes.

    Raises:
        DataError: its name is not UTF-8, as those in a manifest are.
    """
    relative = Path(os.path.relpath(folder.resolve(), manifest_folder.resolve())).as_posix()
    try:
        relative.encode()
    except UnicodeEncodeError:
        raise DataError(f"{folder}: the name of this folder is not UTF-8; rename it") from None
    return relative


def is_file(path: Path) -> bool:
    """Whether `path` is a regular file that can be looked up."""
    try:
        return path.is_file()
    except OSError:
        return False


def check_file(path: Path) -> None:
    """Check that `path` is a file, and no pipe, whose reader would wait, or pointer of Git LFS. Raises DataError."""
    if not is_file(path):
        raise DataError(f"{path}: is not a file that can be read")
    if is_lfs_pointer(path):
        raise DataError(f"{path}: is {IS_LFS_POINTER}")


def read_file(path: Path, limit: int) -> bytes:
    """The content of a file of at most `limit` bytes. Raises DataError."""
    check_file(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise DataError(f"{path}: is larger than {limit >> 20} MiB, the most that is read of such a file")
            return file.read(size)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all; a file that is its own copy is left alone. Raises DataError, OutputError."""
    if is_file(target) and source.samefile(target):
        return
    try:
        file = source.open("rb")
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error.strerror})") from None
    with file, replacing(target) as copy:
        shutil.copyfileobj(file, copy)
