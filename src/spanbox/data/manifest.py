"""The manifest: JSON Lines, one image-text pair per line, strictly checked.

`Manifest(path)[i]` reads one line. The first opening checks every line and writes an index of byte offsets beside the
manifest (see `line_index`). As long as size and time of the file stay the same, later openings only check that index,
so that a worker uses little memory for millions of lines. Images are not read here.

The format is described in docs/data.md.
"""

import codecs
import os
from array import array
from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path
from posixpath import normpath
from typing import Any, Literal, overload

import msgspec
import numpy as np
from numpy.typing import NDArray

from spanbox.data.line_index import LineIndex, OpenFile, load_index, make_index, save_index
from spanbox.data.paraphrases import Paraphrase, find_paraphrase_faults, find_span_faults
from spanbox.documents import IS_LFS_POINTER, is_lfs_pointer
from spanbox.errors import DataError
from spanbox.files import replacing

MAX_LINE_BYTES = 16 * 1024 * 1024
MAX_TEXT_CHARACTERS = 50_000
"""A tokenizer reads the whole text, with about 100 bytes per character, before it truncates."""

Box = tuple[float, float, float, float]
InvertedBoxes = Literal["error", "drop"]


class Entity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A span of the text and the boxes that show it."""

    start: int  # half-open, in Unicode code points of the text
    end: int
    type: str = ""
    identity: str = ""  # equal for the same entity in other pairs; default: its text, case-folded, spaces collapsed
    boxes: tuple[Box, ...] = ()  # x0 y0 x1 y1 in pixels of the image as shown; empty: not in the image
    relevance: tuple[float, ...] = ()  # of each box, in [0, 1]: how surely it shows the entity; empty: 1 for all
    ambiguous: bool = False  # unknown which of its boxes is meant; without boxes: unknown whether the image shows it

    def box_relevance(self) -> tuple[float, ...]:
        """The relevance of each box."""
        return self.relevance or (1.0,) * len(self.boxes)


class ObjectBox(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A detector's proposal."""

    box: Box
    score: float = 1.0
    label: str = ""


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One line of a manifest: an image-text pair with its entities and proposals, boxes in pixels."""

    id: str
    image: str
    text: str
    group: str = ""  # pairs that show the same image share it; default: the image path
    lang: str = ""
    entities: tuple[Entity, ...] = ()
    objects: tuple[ObjectBox, ...] = ()
    paraphrases: tuple[Paraphrase, ...] = ()  # other texts for the image, drawn in training
    relevance: float = 1  # in [0, 1]: how surely text and image belong together; 0: no positives
    source: str = ""  # the data set that the pair comes from
    meta: dict[str, Any] = {}  # anything else; kept by every command, used by none

    @property
    def group_key(self) -> str:
        """The group, or the image path in its simplest spelling: `./images//a.png` and `images/a.png` are one image."""
        return self.group or normal_path(self.image)

    def span_text(self, entity: Entity) -> str:
        return self.text[entity.start : entity.end]

    def paraphrased(self, paraphrase: Paraphrase) -> "Record":
        """The pair with a paraphrase as its text, and the same entities in it; none for the coarse level only."""
        entities = []
        for span in sorted(paraphrase.entities, key=lambda span: span.entity):
            entity = self.entities[span.entity]
            identity = entity.identity or self.span_text(entity)
            entities.append(msgspec.structs.replace(entity, start=span.start, end=span.end, identity=identity))
        lang = paraphrase.lang or self.lang
        return msgspec.structs.replace(self, text=paraphrase.text, lang=lang, entities=tuple(entities), paraphrases=())


def identity_key(text: str, entity: Entity) -> str:
    """What an entity of `text` is: its identity or its text, case-folded, spaces collapsed."""
    return " ".join((entity.identity or text[entity.start : entity.end]).casefold().split())


_decoder = msgspec.json.Decoder(Record)
_encoder = msgspec.json.Encoder()


def normal_path(path: str) -> str:
    """A path without `.`, `..` and repeated slashes, by its text alone: links are not followed."""
    return normpath(path).replace("//", "/")  # POSIX keeps two slashes at the start


def image_file(record: Record, folder: Path) -> str:
    """The path of a record's image from the root, in its simplest spelling: equal for relative and absolute ones.

    Args:
        folder: of the manifest, resolved.
    """
    return normal_path(str(folder / record.image))


def encode_record(record: Record) -> bytes:
    """The record as one line of a manifest, with its newline."""
    return _encoder.encode(record) + b"\n"


def relocated(record: Record, folder: Path, new_folder: Path) -> Record:
    """The record for a manifest in another folder: its image relative to that, its group as it was.

    Args:
        folder, new_folder: resolved.
    """
    if folder == new_folder or Path(record.image).is_absolute():
        return record
    image = Path(os.path.relpath(folder / record.image, new_folder)).as_posix()
    return msgspec.structs.replace(record, image=image, group=record.group_key)


def write_manifest(path: Path, records: Iterator[Record] | Sequence[Record]) -> int:
    """Write records to `path`, whole or not at all, and return their number. Raises OutputError."""
    count = 0
    with replacing(path) as file:
        for record in records:
            file.write(encode_record(record))
            count += 1
    return count


def is_inverted(box: Box) -> bool:
    """Whether a box has no area, or holds a number that is not finite."""
    x0, y0, x1, y1 = box
    return not (-inf < x0 < x1 < inf and -inf < y0 < y1 < inf)


def find_faults(record: Record) -> list[tuple[str, str]]:
    """Faults of a record beyond wrong types, as (field, description and remedy)."""
    faults = [(name, "is empty; give it a value") for name in ("id", "image") if not getattr(record, name)]
    if len(record.text) > MAX_TEXT_CHARACTERS:
        faults.append(("text", f"has {len(record.text):,} characters; shorten it to {MAX_TEXT_CHARACTERS:,}"))
    faults += find_span_faults(record.text, record.entities)
    for i, paraphrase in enumerate(record.paraphrases):
        found = find_paraphrase_faults(paraphrase, len(record.entities), MAX_TEXT_CHARACTERS)
        faults += [(f"paraphrases[{i}].{field}", fault) for field, fault in found]
    return faults + _find_relevance_faults(record)


def _find_relevance_faults(record: Record) -> list[tuple[str, str]]:
    faults = []
    if not 0 <= record.relevance <= 1:
        faults.append(("relevance", f"{record.relevance} is not within 0 and 1"))
    for i, entity in enumerate(record.entities):
        if entity.relevance and len(entity.relevance) != len(entity.boxes):
            found = f"{len(entity.relevance)} numbers for {len(entity.boxes)} boxes; give one per box, or none"
            faults.append((f"entities[{i}].relevance", found))
        elif not all(0 <= value <= 1 for value in entity.relevance):
            faults.append((f"entities[{i}].relevance", f"{list(entity.relevance)} are not within 0 and 1"))
    return faults


def has_relevance(record: Record) -> bool:
    """Whether a pair or a box of it has a relevance below 1."""
    return record.relevance < 1 or any(value < 1 for entity in record.entities for value in entity.relevance)


def named_boxes(record: Record) -> list[tuple[str, Box]]:
    """Every box of a record with the field that holds it."""
    named = [(f"entities[{i}].boxes[{j}]", b) for i, e in enumerate(record.entities) for j, b in enumerate(e.boxes)]
    return named + [(f"objects[{i}].box", proposal.box) for i, proposal in enumerate(record.objects)]


def find_inverted_boxes(record: Record) -> list[tuple[str, str]]:
    """Boxes without an area, as (field, description and remedy)."""
    return [
        (
            field,
            f"{list(box)} has no area; a box is [x0, y0, x1, y1] with x0 < x1 and y0 < y1. Fix it, or set "
            "data.inverted_boxes=drop in train, data clean --recipe or data show to leave such boxes out; if all boxes "
            "are x y width height, convert them (spanbox data check tests for that)",
        )
        for field, box in named_boxes(record)
        if is_inverted(box)
    ]


def _without_inverted_boxes(entity: Entity) -> Entity:
    """An entity whose boxes are all without area becomes one that the image may show, not one that is only named."""
    kept = [i for i, box in enumerate(entity.boxes) if not is_inverted(box)]
    return msgspec.structs.replace(
        entity,
        boxes=tuple(entity.boxes[i] for i in kept),
        relevance=tuple(entity.relevance[i] for i in kept) if entity.relevance else (),
        ambiguous=entity.ambiguous or not kept,
    )


def without_inverted_boxes(record: Record) -> Record:
    """The record with its inverted boxes left out."""
    return msgspec.structs.replace(
        record,
        entities=tuple(
            _without_inverted_boxes(entity) if any(map(is_inverted, entity.boxes)) else entity
            for entity in record.entities
        ),
        objects=tuple(proposal for proposal in record.objects if not is_inverted(proposal.box)),
    )


def decode_record(line: bytes, path: Path, number: int) -> Record:
    """Read one line and check its fields and their types; `find_faults` checks the values. Raises DataError."""
    if len(line) > MAX_LINE_BYTES:
        fault = f"is longer than {MAX_LINE_BYTES >> 20} MiB: {_excerpt(line)}; every line is one JSON object"
        raise line_error(path, number, "the line", fault)
    try:
        return _decoder.decode(line)
    except msgspec.ValidationError as error:
        problem, _, field = str(error).partition(" - at ")
        raise line_error(path, number, field.strip("`$.") or "the line", f"{problem}; see docs/data.md") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        fault = f"is not JSON ({error}): {_excerpt(line)}; every line is one JSON object in UTF-8"
        raise line_error(path, number, "the line", fault) from None


def _excerpt(line: bytes) -> str:
    return repr(line[:60].decode(errors="replace"))


def parse_record(line: bytes, path: Path, number: int) -> Record:
    """Read and check one line. Raises DataError with file, line number, field, fault and remedy."""
    record = decode_record(line, path, number)
    for field, fault in find_faults(record):
        raise line_error(path, number, field, fault)
    return record


def line_error(path: Path, number: int, field: str, fault: str) -> DataError:
    return DataError(f"{path}, line {number}: {field}: {fault}")


class Manifest(Sequence[Record]):
    """A manifest on disk as a sequence of records; can be pickled, and uses little memory in each worker.

    Args:
        path: the `.jsonl` file.
        inverted_boxes: `error` refuses a manifest with a box without an area, `drop` leaves such boxes out, `keep`
            gives records as they are, for commands that copy them.
        subset: use only this many lines, spread evenly; None: all.

    Raises:
        DataError: the file does not exist, cannot be read, is empty or has an invalid line, or `subset` is too large.
    """

    def __init__(
        self, path: Path | str, inverted_boxes: InvertedBoxes | Literal["keep"] = "error", *, subset: int | None = None
    ) -> None:
        self.path = Path(path)
        self._inverted_boxes = inverted_boxes
        self._open()
        if subset is not None and subset > self._index.count:
            raise DataError(f"{self.path}: has {self._index.count} pairs, not {subset}; set a smaller subset")
        self._size = subset or self._index.count
        if self.inverted_count and inverted_boxes == "error":
            raise next(_inverted_errors(self.path))

    def _open(self) -> None:
        check_manifest_file(self.path)
        self._file = OpenFile(self.path)
        self._index = _open_index(self.path, *self._file.state())
        self.inverted_count = self._index.inverted_count
        self.has_relevance = self._index.weighted_count > 0

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        line = range(self._size)[index] * self._index.count // self._size
        record = parse_record(self._read_line(line), self.path, number=line + 1)
        drops = self._inverted_boxes == "drop" and self.inverted_count
        return without_inverted_boxes(record) if drops else record

    def _read_line(self, line: int) -> bytes:
        bounds = self._index.bounds(line)
        if bounds is None:
            raise DataError(f"{self.path}: its index was changed while it was in use; start again")
        start, end = bounds
        content = self._file.read(start, min(end - start, MAX_LINE_BYTES + 1))
        if not content:
            raise DataError(f"{self.path}: was cut off while it was in use; start again")
        return content.partition(b"\n")[0]

    def image_path(self, record: Record) -> Path:
        """The path of the record's image: paths are relative to the manifest."""
        return self.path.parent / record.image

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_file", "_index")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._open()


def check_manifest_file(path: Path) -> None:
    """Check that `path` is a file that can be read more than once. Raises DataError."""
    expected = "expected a JSON Lines file, see docs/data.md"
    try:
        if path.is_dir():
            raise DataError(f"{path}: is a folder; {expected}")
        if path.exists() and not path.is_file():
            raise DataError(f"{path}: is a pipe or a device, which cannot be read twice; {expected}")
        if not path.exists():
            raise DataError(f"{path}: no such manifest; {expected}")
        if is_lfs_pointer(path):
            raise DataError(f"{path}: is {IS_LFS_POINTER}")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {expected}") from None


def manifest_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Every line that is not blank, as (line number, byte offset, line). A byte order mark at the start is skipped.

    Of a line longer than `MAX_LINE_BYTES` only the beginning is given, which `decode_record` refuses. Raises DataError
    when the file cannot be read.
    """
    offset, number = 0, 0
    try:
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                mark = len(codecs.BOM_UTF8) if number == 1 and line.startswith(codecs.BOM_UTF8) else 0
                content = line[mark:].rstrip(b"\r\n") if len(line) <= MAX_LINE_BYTES else line
                if content.strip():
                    yield number, offset + mark, content
                offset += len(line)
                while not line.endswith(b"\n") and (line := file.readline(MAX_LINE_BYTES)):  # the rest of a long line
                    offset += len(line)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _inverted_errors(path: Path) -> Iterator[DataError]:
    for number, _, line in manifest_lines(path):
        for field, fault in find_inverted_boxes(parse_record(line, path, number)):
            yield line_error(path, number, field, fault)


def _open_index(path: Path, size: int, mtime_ns: int) -> LineIndex:
    """The index of a manifest that had this size and time when it was opened."""
    found = load_index(path, size, mtime_ns)
    if found is not None:
        return found
    checked = _check_lines(path, size, mtime_ns)
    if OpenFile(path).state() != (size, mtime_ns):
        raise DataError(f"{path}: was changed while it was read; start again when it is complete")
    return save_index(path, checked)


def _check_lines(path: Path, size: int, mtime_ns: int) -> NDArray[np.int64]:
    """The index array, after reading and checking every line."""
    starts, inverted, weighted = array("q"), 0, 0
    for number, offset, line in manifest_lines(path):
        record = parse_record(line, path, number)
        inverted += len(find_inverted_boxes(record))
        weighted += has_relevance(record)
        starts.append(offset)
    if not starts:
        raise DataError(f"{path}: the manifest is empty; expected one JSON object per line, see docs/data.md")
    return make_index(starts, size, mtime_ns, inverted_count=inverted, weighted_count=weighted)
