"""Runs an importer: records of a source, in their order, to a manifest per split.

An importer is a function from a `Source` to (split, record) pairs. An entity that lost its boxes, since none can be
used, is `ambiguous`: the image may show it. The driver checks and writes the records, makes ids
unique, clips boxes, counts and lists what was left out, and shows progress. A second import gives the same files.
"""

import codecs
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import IO, TypeVar

import msgspec

from spanbox.data.importers import (
    ImportSummary,
    Oddity,
    SplitSummary,
    UniqueIds,
    annotation_counts,
    check_file,
    is_file,
    read_file,
    relative_folder,
)
from spanbox.data.manifest import (
    MAX_LINE_BYTES,
    Box,
    Entity,
    Record,
    encode_record,
    find_faults,
    is_inverted,
)
from spanbox.data.source import state_of
from spanbox.data.words import is_invisible
from spanbox.errors import DataError
from spanbox.files import check_no_input, check_writable_file, check_writable_folder, removing_new_folders, replacing
from spanbox.progress import OnProgress

LISTED = 1000  # oddities of each kind that are listed by name; all are counted
MOST_SPLITS = 100  # each is an open file
MAX_JSON_BYTES = 4 * 1024**3

# Beginnings of files of images, as patterns, with the endings of their names.
_SUFFIXES = {
    rb"\xff\xd8\xff": "jpg", rb"\x89PNG\r\n\x1a\n": "png", rb"RIFF....WEBP": "webp", rb"GIF8": "gif", rb"BM": "bmp",
    rb"II\*\0|MM\0\*": "tif", rb"....ftypavi[fs]": "avif",
}  # fmt: skip

Loaded = TypeVar("Loaded")
Pairs = Iterator[tuple[str, Record]]


@dataclass
class Source:
    """The files of an import, with the counts and oddities found in them."""

    root: Path
    out: Path
    images: Path | None = None  # folder of the images; None: where the format has them
    spec: Path | None = None  # YAML that names fields, for formats that need one
    notes: Counter[tuple[str, str]] = field(default_factory=Counter)  # by split and kind
    listed: dict[tuple[str, str], list[Oddity]] = field(default_factory=dict)
    total: int = 0  # records, where it is known

    def note(self, split: str, kind: str, where: object, detail: str) -> None:
        """Count something that was left out or should be looked at."""
        self.notes[split, kind] += 1
        found = self.listed.setdefault((split, kind), [])
        if len(found) < LISTED:
            found.append(Oddity(kind, str(where), detail))

    def file(self, *names: str, expected: str) -> Path:
        """The first of these files that the source has. Raises DataError, which names the expected files."""
        for name in names:
            if is_file(path := self.root / name):
                return path
        raise DataError(f"{self.root}: has no {' or '.join(names)}; {expected}")

    def image_folder(self, *names: str) -> Path:
        """The folder of the images: the given one, or the first of these in or beside the source that exists."""
        if self.images is not None:
            if not self.images.is_dir():
                raise DataError(f"--images {self.images}: no such folder")
            return self.images
        near = [self.root / name for name in names] + [self.root.parent / name for name in names]
        return next((folder for folder in near if folder.is_dir()), near[0] if near else self.root)


Importer = Callable[[Source], Pairs]


def run_import(name: str, importer: Importer, source: Source, on_progress: OnProgress | None = None) -> ImportSummary:
    """Write `out/SPLIT.jsonl` for each split, and `out/import.json`.

    Raises:
        DataError: a file of the source is missing or cannot be read.
        OutputError: a file cannot be written, or would replace the source.
    """
    with removing_new_folders(source.out):
        return _run(name, importer, source, on_progress)


def _run(name: str, importer: Importer, source: Source, on_progress: OnProgress | None) -> ImportSummary:
    check_writable_folder(source.out)
    check_writable_file(source.out / "import.json", ".json")
    check_no_input(source.out / "import.json", [source.root])
    counts = _write_manifests(importer, source, on_progress)
    summary = ImportSummary(name, {"records": str(source.root)})
    for split in dict.fromkeys((*counts, *(of for of, _ in source.notes))):  # some have no records, only notes
        counter = counts.get(split, Counter())
        oddities = [oddity for (of, _), found in source.listed.items() if of == split for oddity in found]
        kinds = Counter({kind: number for (of, kind), number in source.notes.items() if of == split})
        summary.splits[split] = SplitSummary(str(source.root), f"{split}.jsonl", counter, oddities, kinds)
    summary.write(source.out / "import.json")
    return summary


def _write_manifests(importer: Importer, source: Source, on_progress: OnProgress | None) -> dict[str, Counter[str]]:
    """Write the manifests, all or none, and count the content of each."""
    counts: dict[str, Counter[str]] = {}
    files: dict[str, tuple[IO[bytes], UniqueIds]] = {}
    with ExitStack() as stack:
        try:
            for done, (split, record) in enumerate(importer(source), start=1):
                if split not in files:
                    path = _path_of(split, source, [*files])
                    files[split] = stack.enter_context(replacing(path)), UniqueIds()
                    counts[split] = Counter()
                file, ids = files[split]
                try:
                    file.write(_line(record, ids))
                    counts[split].update({"pairs": 1} | annotation_counts(record))
                except _Unusable as fault:
                    source.note(split, "unusable record", record.id, str(fault))
                if on_progress is not None:
                    on_progress(done, max(source.total, done))
        except OSError as error:  # a folder that cannot be read, a name that is too long
            if error.filename is None:
                raise
            raise DataError(f"{error.filename}: cannot be read ({error.strerror or error})") from None
        if not any(count["pairs"] for count in counts.values()):
            raise DataError(f"{source.root}: nothing to import; {_first_oddity(source)}")
    return counts


def _path_of(split: str, source: Source, others: Sequence[str]) -> Path:
    """The path of a manifest that can be written. Raises DataError where there are too many splits."""
    if len(others) == MOST_SPLITS:
        raise DataError(
            f"{source.root}: has more than {MOST_SPLITS} splits ({', '.join(others[:3])}, ...); name another field as "
            "`split` in the --spec, or none"
        )
    path = source.out / f"{split}.jsonl"
    check_no_input(path, [source.root])
    check_writable_file(path, ".jsonl")
    return path


class _Unusable(ValueError):
    pass


def _line(record: Record, ids: UniqueIds) -> bytes:
    """The line of a record with a unique id. Raises _Unusable where a manifest would refuse it or the text is empty."""
    if is_invisible(record.text):
        raise _Unusable("text: is empty")
    for name, fault in find_faults(record):
        raise _Unusable(f"{name}: {fault}")
    try:
        line = encode_record(msgspec.structs.replace(record, id=ids.add(record.id)))
    except (UnicodeEncodeError, OverflowError, msgspec.MsgspecError) as error:  # half a surrogate pair, huge numbers
        raise _Unusable(f"cannot be written: {error}") from None
    if len(line) > MAX_LINE_BYTES:
        raise _Unusable(f"has {len(line):,} bytes; a line of a manifest has at most {MAX_LINE_BYTES >> 20} MiB")
    return line


def _first_oddity(source: Source) -> str:
    found = next((oddity for oddities in source.listed.values() for oddity in oddities), None)
    return f"{found.where}: {found.kind}: {found.detail}" if found else "no records were found"


def read_typed(path: Path, kind: type[Loaded]) -> Loaded:
    """A JSON file as a typed value; fields that the type lacks are skipped. Raises DataError."""
    try:
        return msgspec.json.decode(read_json(path), type=kind)
    except msgspec.ValidationError as error:
        raise DataError(f"{path}: is not in the format that is expected: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON, or was cut off ({error})") from None


def read_json(path: Path) -> bytes:
    """The content of a JSON file with a list or an object. Raises DataError."""
    check_file(path)
    try:
        with path.open("rb") as file:
            start = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if not start.startswith((b"[", b"{")):  # before gigabytes of something else are read
        raise DataError(f"{path}: is not JSON with a list or an object, or was cut off")
    return read_file(path, MAX_JSON_BYTES).removeprefix(codecs.BOM_UTF8)


def clipped(box: Box, size: tuple[float, float] | None) -> Box | None:
    """A box within its image (width, height), or None where it has no area there."""
    if is_inverted(box):
        return None
    if size is None:
        return box
    x0, y0, x1, y1 = max(box[0], 0.0), max(box[1], 0.0), min(box[2], size[0]), min(box[3], size[1])
    return None if is_inverted((x0, y0, x1, y1)) else (x0, y0, x1, y1)


class Images:
    """Paths of images for a manifest; missing ones are noted once each."""

    def __init__(self, source: Source, folder: Path) -> None:
        self._source = source
        self.folder = folder
        self._relative = relative_folder(folder, source.out)
        self._missing: set[str] = set()

    def path(self, split: str, name: str) -> str:
        """The path of an image relative to the manifest.

        Args:
            split: of the pair.
            name: the path of the image in the folder, or an absolute one that leads into it.

        Raises:
            DataError: the name leaves the folder.
        """
        name = self._in_folder(name)
        if name.startswith("/") or ".." in Path(name).parts or "\0" in name:
            folder = "give the folder that holds all images as --images" if name.startswith("/") else "correct its name"
            raise DataError(f"{self._source.root}: the image {name!r} lies outside of {self.folder}; {folder}")
        if name not in self._missing and state_of(self.folder / name) is None:
            self._missing.add(name)
            self._source.note(split, "missing image", name, str(self.folder / name))
        return f"{self._relative}/{name}"

    def _in_folder(self, name: str) -> str:
        """The name with the folder taken away, if it is an absolute path that leads into it."""
        if name.startswith("/"):
            for folder in (self.folder.absolute(), self.folder.resolve()):
                if Path(name).is_relative_to(folder):
                    return Path(name).relative_to(folder).as_posix()
        return name

    def store(self, content: bytes) -> str | None:
        """Write an image that the source holds to `OUT/images`, and return its path relative to the manifest.

        The name is a hash of the bytes, so that an image of several pairs is one file and their group. None where they
        are of no known format. Raises OutputError.
        """
        suffix = next((suffix for start, suffix in _SUFFIXES.items() if re.match(start, content, re.DOTALL)), None)
        if suffix is None:
            return None
        digest = blake2b(content, digest_size=16).hexdigest()
        path = f"images/{digest[:2]}/{digest}.{suffix}"
        target = self._source.out / path
        if not (is_file(target) and target.read_bytes() == content):
            with replacing(target) as file:
                file.write(content)
        return path


def whole_text(text: str, box: Box | None, kind: str = "") -> tuple[Entity, ...]:
    """The entity that is the whole text, with its box, if that can be used; none where the text is empty."""
    start, end = len(text) - len(text.lstrip()), len(text.rstrip())
    boxes = (box,) if box else ()
    return (Entity(start, end, kind, boxes=boxes, ambiguous=not boxes),) if end > start else ()
