"""Items to embed: of a manifest, of a folder of images, or of a column of a CSV file.

An item is a text or an image with its spans or boxes; each gives one row, or one for each span or box.
"""

import csv
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from spanbox.data.manifest import Box, Manifest, Record
from spanbox.documents import refuse_special
from spanbox.errors import DataError
from spanbox.spans import CharSpan
from spanbox.wiring.embedding import digest_of_images, images_of

Kind = Literal["images", "texts", "spans", "regions"]
LEVELS: dict[Kind, Literal["coarse", "fine"]] = {
    "images": "coarse",
    "texts": "coarse",
    "spans": "fine",
    "regions": "fine",
}
"""The level that trains the features."""
COLUMNS: dict[Kind, dict[str, type]] = {
    "images": {"id": str, "image": str},
    "texts": {"id": str, "text": str},
    "spans": {"id": str, "sentence": str, "start": int, "end": int, "text": str, "type": str},
    "regions": {"id": str, "image": str, "x0": float, "y0": float, "x1": float, "y1": float, "label": str},
}
"""Columns beside the feature; `image` is relative to the folder of the source."""
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".ppm"))
MAX_FIELD = 1024 * 1024
"""Characters of a field of a CSV file."""


@dataclass(frozen=True)
class Item:
    """A text or an image, and the values of its rows."""

    id: str
    text: str | None
    image: Path | None
    parts: tuple[CharSpan | Box, ...]  # spans of the text or boxes of the image; empty for texts and images
    rows: tuple[tuple[Any, ...], ...]  # values of the columns, one tuple for each row


@dataclass(frozen=True)
class Source:
    """The items of a file or folder, in its order.

    Attributes:
        kind: of the embedded items.
        folder: that image paths are relative to.
        count: number of items.
        item: the item at an index.
        digest: of the content; it changes when the items do, or the images that are read.
    """

    kind: Kind
    folder: Path
    count: int
    item: Callable[[int], Item]
    digest: str


def open_source(path: Path, kind: Kind, column: str | None = None) -> Source:
    """The items of a manifest (`.jsonl`), a folder (images) or a CSV file (texts, or images, of a column).

    Raises:
        DataError: there is no such file, it has no items of this kind, or its format is wrong.
    """
    if path.is_dir():
        return _of_folder(path, kind)
    if path.suffix.lower() == ".csv":
        return _of_csv(path, kind, column)
    if column is not None:
        raise DataError(f"{path}: --column names a column of a CSV file; expected a file that ends in .csv")
    manifest = Manifest(path, "keep")  # a box without an area is left out, as all that cannot be encoded
    images = images_of(manifest) if kind in ("images", "regions") else ()
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "blake2b").digest()  # a manifest may be larger than memory
    digest = _digest(content, images)
    return Source(kind, path.parent, len(manifest), lambda index: _of_record(manifest, manifest[index], kind), digest)


def _of_record(manifest: Manifest, record: Record, kind: Kind) -> Item:
    image, text = manifest.image_path(record), record.text
    match kind:
        case "images":
            return Item(record.id, None, image, (), ((record.id, record.image),))
        case "texts":
            return Item(record.id, text, None, (), ((record.id, text),))
        case "spans":
            spans = [(entity.start, entity.end) for entity in record.entities]
            words = [text[start:end] for start, end in spans]
            rows = [
                (record.id, text, *span, word, entity.type)
                for span, word, entity in zip(spans, words, record.entities, strict=True)
            ]
            return Item(record.id, text, None, tuple(spans), tuple(rows))
        case "regions":
            boxes: dict[Box, str] = {}
            for entity in record.entities:
                for box in entity.boxes:
                    boxes.setdefault(box, record.span_text(entity))
            for each in record.objects:
                boxes.setdefault(each.box, each.label)
            places = [(record.id, record.image, *box, label) for box, label in boxes.items()]
            return Item(record.id, None, image, tuple(boxes), tuple(places))


def _of_folder(folder: Path, kind: Kind) -> Source:
    if kind != "images":
        raise DataError(f"{folder}: a folder has images, no {kind}; give a manifest")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not paths:
        raise DataError(f"{folder}: no images; expected files that end in {', '.join(sorted(IMAGE_SUFFIXES))}")
    names = [path.relative_to(folder).as_posix() for path in paths]
    for name in names:
        if name.encode(errors="replace").decode() != name:
            raise DataError(f"{folder}: {name!a} is not a name in UTF-8, so an index cannot hold it; rename it")

    def item(index: int) -> Item:
        return Item(names[index], None, paths[index], (), ((names[index], names[index]),))

    return Source(kind, folder, len(paths), item, _digest("\n".join(names).encode(), paths))


def _of_csv(path: Path, kind: Kind, column: str | None) -> Source:
    if kind not in ("texts", "images"):
        raise DataError(f"{path}: a CSV column has texts or image paths, no {kind}; give a manifest")
    values = _column(path, column)

    def item(index: int) -> Item:
        value, id = values[index], str(index)
        if kind == "texts":
            return Item(id, value, None, (), ((id, value),))
        return Item(id, None, path.parent / value, (), ((id, value),))

    images = (path.parent / value for value in values) if kind == "images" else ()
    return Source(kind, path.parent, len(values), item, _digest("\0".join(values).encode(), images))


def _column(path: Path, name: str | None) -> Sequence[str]:
    """The values of a column of a CSV file with a head; without a name its only one."""
    csv.field_size_limit(MAX_FIELD)
    try:
        refuse_special(path)
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            heads = next(reader, [])
            chosen = heads[0] if name is None and len(heads) == 1 else name
            if name is None and len(heads) == 1 and ({";", "\t"} & set(heads[0])):
                raise DataError(
                    f"{path}: its only column is {heads[0]!r}; separate columns by commas, or name this one by --column"
                )
            if chosen is None or heads.count(chosen) != 1:
                found = "is not given" if name is None else f"is {name!r}"
                raise DataError(f"{path}: --column {found}; its columns are {', '.join(map(repr, heads))}")
            place = heads.index(chosen)
            return [_fields(row, len(heads), path, reader.line_num)[place] for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV in UTF-8 ({error})") from None


def _fields(row: list[str], columns: int, path: Path, line: int) -> list[str]:
    if len(row) != columns:
        raise DataError(f"{path}:{line}: {len(row)} fields in {columns} columns; quote a field that has a comma")
    return row


def _digest(content: bytes, images: Iterable[Path]) -> str:
    return hashlib.blake2b(content + digest_of_images(images).encode(), digest_size=16).hexdigest()
