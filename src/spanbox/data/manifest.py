"""The manifest: JSON Lines, one image-text pair a line, strict and indexed by byte offsets.

`Manifest(path)[i]` reads one line. Opening a manifest the first time checks every line and writes an index of byte
offsets beside it; while size and time of the file stay the same, later openings map that index and read nothing else,
so that a worker holds O(1) memory for millions of lines. No image is touched here.

The format is described in docs/data.md.
"""

import codecs
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import IO, Literal, overload

import msgspec
import numpy as np
from numpy.typing import NDArray

from spanbox.errors import DataError

Box = tuple[float, float, float, float]
InvertedBoxes = Literal["error", "drop"]


class Entity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A span of the text and the boxes that show it."""

    start: int  # half-open, in Unicode code points of the text
    end: int
    type: str = ""
    identity: str = ""  # what the entity is, across samples; default: its text, case-folded, spaces collapsed
    boxes: tuple[Box, ...] = ()  # x0 y0 x1 y1 in pixels of the image as shown; empty: nothing to see
    ambiguous: bool = False  # the importer could not tell which of several boxes is meant


class ObjectBox(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A detector's proposal."""

    box: Box
    score: float = 1.0
    label: str = ""


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One line of a manifest: an image-text pair with its entities and proposals, in pixels, nothing decoded."""

    id: str
    image: str
    text: str
    group: str = ""  # pairs that show the same image share it; default: the image path
    lang: str = ""
    entities: tuple[Entity, ...] = ()
    objects: tuple[ObjectBox, ...] = ()

    @property
    def group_key(self) -> str:
        return self.group or self.image

    def span_text(self, entity: Entity) -> str:
        return self.text[entity.start : entity.end]

    def identity_key(self, entity: Entity) -> str:
        return " ".join((entity.identity or self.span_text(entity)).casefold().split())


_decoder = msgspec.json.Decoder(Record)
_encoder = msgspec.json.Encoder()


def encode_record(record: Record) -> bytes:
    """The record as one line of a manifest, with its newline."""
    return _encoder.encode(record) + b"\n"


def write_manifest(path: Path, records: Iterator[Record] | Sequence[Record]) -> int:
    """Write records to `path`, complete or not at all, and return how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with _replacing(path) as file:
        for record in records:
            file.write(encode_record(record))
            count += 1
    return count


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when the block ends well, and vanishes when it does not."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            yield file
        except BaseException:
            Path(file.name).unlink()
            raise
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)


def is_inverted(box: Box) -> bool:
    """Whether a box has no area, or holds a number that is not finite."""
    x0, y0, x1, y1 = box
    return not (-inf < x0 < x1 < inf and -inf < y0 < y1 < inf)


def find_faults(record: Record) -> list[tuple[str, str]]:
    """What is wrong with a record beyond its types, as (field, what was found and how to mend it)."""
    faults = [(name, "is empty; give it a value") for name in ("id", "image") if not getattr(record, name)]
    for i, entity in enumerate(record.entities):
        if not 0 <= entity.start < entity.end <= len(record.text):
            faults.append(
                (
                    f"entities[{i}]",
                    f"[{entity.start}, {entity.end}) is no span of a text of {len(record.text)} characters; offsets "
                    "are half-open and count Unicode code points from 0",
                )
            )
        elif not record.span_text(entity).strip():
            faults.append((f"entities[{i}]", "holds nothing but white space; remove it or move its edges"))
    return faults


def named_boxes(record: Record) -> list[tuple[str, Box]]:
    """Every box of a record with the field that holds it."""
    named = [(f"entities[{i}].boxes[{j}]", b) for i, e in enumerate(record.entities) for j, b in enumerate(e.boxes)]
    return named + [(f"objects[{i}].box", proposal.box) for i, proposal in enumerate(record.objects)]


def find_inverted_boxes(record: Record) -> list[tuple[str, str]]:
    """Boxes without an area, as (field, what was found and how to mend it)."""
    return [
        (
            field,
            f"{list(box)} has no area; a box is [x0, y0, x1, y1] with x0 < x1 and y0 < y1. Mend it, or set "
            "data.inverted_boxes=drop to leave such boxes out",
        )
        for field, box in named_boxes(record)
        if is_inverted(box)
    ]


def without_inverted_boxes(record: Record) -> Record:
    """The record with its inverted boxes left out."""
    return msgspec.structs.replace(
        record,
        entities=tuple(
            msgspec.structs.replace(entity, boxes=tuple(box for box in entity.boxes if not is_inverted(box)))
            for entity in record.entities
        ),
        objects=tuple(proposal for proposal in record.objects if not is_inverted(proposal.box)),
    )


def decode_record(line: bytes, path: Path, number: int) -> Record:
    """Read one line, checking its fields and their types alone; `find_faults` knows the rest. Raises DataError."""
    try:
        return _decoder.decode(line)
    except msgspec.ValidationError as error:
        problem, _, field = str(error).partition(" - at ")
        raise line_error(path, number, field.strip("`$.") or "the line", f"{problem}; see docs/data.md") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        found = line[:60].decode(errors="replace")
        mend = "every line is one JSON object in UTF-8"
        raise line_error(path, number, "the line", f"is no JSON ({error}): {found!r}; {mend}") from None


def parse_record(line: bytes, path: Path, number: int) -> Record:
    """Read one line. Raises DataError with file, line number, field, what was found and how to mend it."""
    record = decode_record(line, path, number)
    for field, fault in find_faults(record):
        raise line_error(path, number, field, fault)
    return record


def line_error(path: Path, number: int, field: str, fault: str) -> DataError:
    return DataError(f"{path}, line {number}: {field}: {fault}")


class Manifest(Sequence[Record]):
    """A manifest on disk as a sequence of records; picklable, and cheap to hold in every worker.

    Args:
        path: the `.jsonl` file.
        inverted_boxes: `error` refuses a manifest with a box without an area, `drop` leaves such boxes out.
        subset: only so many of its lines, spread evenly over it; None: all.

    Raises:
        DataError: no such file, an empty one, one with a wrong line, or a subset larger than it.
    """

    def __init__(self, path: Path | str, inverted_boxes: InvertedBoxes = "error", *, subset: int | None = None) -> None:
        self.path = Path(path)
        self._drop_inverted = inverted_boxes == "drop"
        index = self._open()
        if subset is not None and subset > len(index.offsets):
            raise DataError(f"{self.path}: has {len(index.offsets)} pairs, not {subset}; ask for fewer")
        self._size = subset or len(index.offsets)
        self.inverted_count = index.inverted_count
        if index.inverted_count and not self._drop_inverted:
            raise next(_inverted_errors(self.path))

    def _open(self) -> "_Index":
        index = _Index.open(self.path)
        self._offsets = index.offsets
        # A mapping has no read position, so that threads and forked workers may share it.
        with self.path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return index

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        line = range(self._size)[index] * len(self._offsets) // self._size
        start = int(self._offsets[line])
        end = self._bytes.find(b"\n", start)
        content = self._bytes[start:] if end < 0 else self._bytes[start:end]
        record = parse_record(content, self.path, number=line + 1)
        return without_inverted_boxes(record) if self._drop_inverted and self.inverted_count else record

    def image_path(self, record: Record) -> Path:
        """Where the record's image lies: paths are relative to the manifest."""
        return self.path.parent / record.image

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_offsets", "_bytes")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._open()


def manifest_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Every line that is not blank, as (line number, byte offset, line). A byte order mark at the start is skipped."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            mark = len(codecs.BOM_UTF8) if number == 1 and line.startswith(codecs.BOM_UTF8) else 0
            if line[mark:].strip():
                yield number, offset + mark, line[mark:]
            offset += len(line)


def _inverted_errors(path: Path) -> Iterator[DataError]:
    for number, _, line in manifest_lines(path):
        for field, fault in find_inverted_boxes(parse_record(line, path, number)):
            yield line_error(path, number, field, fault)


class _Index:
    """Byte offsets of the lines of a manifest that was checked, kept beside it as `<name>.index.npy`.

    The array holds `[version, size, mtime_ns, inverted boxes, offset, offset, ...]`. That it exists, for a file of this
    size and time, means that every line was read and found right.
    """

    VERSION = 1
    HEADER = 4

    def __init__(self, array: NDArray[np.int64]) -> None:
        self.offsets = array[self.HEADER :]
        self.inverted_count = int(array[self.HEADER - 1])

    @classmethod
    def open(cls, path: Path) -> "_Index":
        if not path.is_file():
            raise DataError(f"{path}: no such manifest; expected a JSON Lines file, see docs/data.md")
        stat = path.stat()
        header = [cls.VERSION, stat.st_size, stat.st_mtime_ns]
        index_path = path.with_name(f"{path.name}.index.npy")
        try:
            array = np.lib.format.open_memmap(index_path, mode="r")
            if array.dtype == np.int64 and array.ndim == 1 and len(array) > cls.HEADER and list(array[:3]) == header:
                return cls(array)
        except (OSError, ValueError):
            pass  # no index yet, or a damaged one: make it anew
        built = cls._build(path, header)
        _save_beside(index_path, built)
        return cls(built)

    @staticmethod
    def _build(path: Path, header: list[int]) -> NDArray[np.int64]:
        offsets, inverted = [], 0
        for number, offset, line in manifest_lines(path):
            inverted += len(find_inverted_boxes(parse_record(line, path, number)))
            offsets.append(offset)
        if not offsets:
            raise DataError(f"{path}: the manifest is empty; expected one JSON object a line, see docs/data.md")
        return np.array([*header, inverted, *offsets], dtype=np.int64)


def _save_beside(path: Path, array: NDArray[np.int64]) -> None:
    """Save `array`, complete or not at all. In a folder that cannot be written the index is made anew each time."""
    if not os.access(path.parent, os.W_OK):
        return
    with _replacing(path) as file:
        np.save(file, array, allow_pickle=False)
