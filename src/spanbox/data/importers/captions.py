"""Sources of plain pairs: Flickr8k, CSV and TSV, and any JSON whose fields a small YAML names."""

import codecs
import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import msgspec

from spanbox.data.importers import check_file
from spanbox.data.importers.driver import Images, Pairs, Source, read_json
from spanbox.data.importers.fields import FieldReader, FieldSpec, get_field, read_spec, split_name
from spanbox.data.manifest import MAX_LINE_BYTES, Record
from spanbox.errors import DataError

MAX_FIELD = 1024 * 1024  # characters of a field of a CSV file


def flickr8k(source: Source) -> Pairs:
    """`Flickr8k.token.txt` (`NAME.jpg#N`, white space, caption) or `captions.txt` (CSV with `image,caption`)."""
    tokens = "Flickr8k.token.txt"
    path = (
        source.root
        if source.root.is_file()
        else source.file(tokens, "captions.txt", expected="the captions of Flickr8k")
    )
    images = Images(source, _beside(path, source, "Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images"))
    if path.suffix == ".csv" or _first_line(path).replace(" ", "") == "image,caption":
        for split, record in _table(path, source, images, ",", {"image": "image", "text": "caption"}):
            yield split, msgspec.structs.replace(record, lang="en", source="flickr8k")
        return
    for number, line in _lines(path):
        name, _, caption = line.partition("#")
        parts = caption.split(maxsplit=1)
        if len(parts) < 2 or not parts[0].isdigit() or not name.strip():
            source.note("all", "wrong line", f"{path.name}:{number}", f"expected NAME#N and a caption: {line[:60]!r}")
            continue
        image = images.path("all", name.strip())
        yield (
            "all",
            Record(f"{Path(name).stem}-{parts[0]}", image, parts[1].strip(), group=image, lang="en", source="flickr8k"),
        )


def table(source: Source) -> Pairs:
    """A CSV or TSV file with a header; the columns `image` and `text`, or those that `--spec` names."""
    spec = read_spec(source) or FieldSpec(image="image", text="text")
    if not source.root.is_file():
        raise DataError(f"{source.root}: no such file; expected a CSV or TSV file with a header")
    images = Images(source, _beside(source.root, source, "images"))
    if spec.entities or spec.objects or spec.records:
        raise DataError(
            f"{source.spec}: a table has no lists of entities, objects or records; give JSON, see docs/data.md"
        )
    names = ("id", "image", "text", "group", "lang", "split")
    columns = {name: column for name in names if (column := getattr(spec, name))}
    delimiter = "\t" if source.root.suffix.casefold() in (".tsv", ".tab") else ","
    yield from _table(source.root, source, images, delimiter, columns)


def any_json(source: Source) -> Pairs:
    """JSON (a list, or an object with a list) or JSON Lines, whose fields `--spec FILE.yaml` names."""
    spec = read_spec(source)
    if spec is None:
        raise DataError("--spec FILE.yaml is needed: it names the fields of the records, see docs/data.md")
    reader = FieldReader(source, spec, Images(source, _beside(source.root, source, "images")))
    for number, content in _json_records(source.root, spec):
        yield from reader.read(content, number)


def _json_records(path: Path, spec: FieldSpec) -> Iterator[tuple[int, object]]:
    if path.suffix.casefold() in (".jsonl", ".ndjson"):
        for number, line in _lines(path):
            try:
                content = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: is not JSON ({error})") from None
            yield number, content
        return
    try:
        content = json.loads(read_json(path))
    except (ValueError, RecursionError) as error:
        lines = "; if each line is an object, rename it to .jsonl" if "Extra data" in str(error) else ""
        raise DataError(f"{path}: is not JSON, or was cut off ({error}){lines}") from None
    records = get_field(content, spec.records) if spec.records else content
    if not isinstance(records, list):
        raise DataError(f"{path}: expected a list of records; name the field that holds it as `records` in the --spec")
    yield from enumerate(records, start=1)


def _table(path: Path, source: Source, images: Images, delimiter: str, columns: dict[str, str]) -> Pairs:
    csv.field_size_limit(MAX_FIELD)
    with _utf8_text(path, newline="") as file:
        reader = csv.DictReader(_bounded_lines(file), delimiter=delimiter)
        try:
            _check_columns(path, columns.values(), list(reader.fieldnames or ()))
            for number, row in enumerate(reader, start=1):
                if any(row.get(None, ())):  # the text would end at its first comma
                    detail = f"more fields than the header; put a text with {delimiter!r} into quotation marks"
                    source.note("all", "wrong line", f"{path.name}:{reader.line_num}", detail)
                    continue
                values = {name: row.get(column) for name, column in columns.items()}
                given = {name: (value or "").strip() for name, value in values.items()}
                if not given["image"] or not given["text"]:
                    source.note("all", "wrong line", f"{path.name}:{reader.line_num}", "without an image or a text")
                    continue
                split = split_name(given.get("split"))
                if "\n" in given["text"]:  # mostly a quotation mark without its other half, which takes lines with it
                    lines = f"to line {reader.line_num}: {given['text'][:60]!r}"
                    source.note(split, "text over several lines", f"{path.name}, row {number}", lines)
                image, group, lang = images.path(split, given["image"]), given.get("group", ""), given.get("lang", "")
                yield split, Record(given.get("id") or str(number), image, given["text"], group, lang)
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: cannot be read ({error})") from None


def _check_columns(path: Path, wanted: Iterable[str], there: Sequence[str]) -> None:
    for column in wanted:
        if column not in there:
            raise DataError(f"{path}: has no column {column!r}, but {', '.join(there)[:200]}")
        if there.count(column) > 1:
            raise DataError(f"{path}: has two columns {column!r}; rename one")


def _bounded_lines(file: TextIO) -> Iterator[str]:
    while line := file.readline(MAX_LINE_BYTES):
        if len(line) == MAX_LINE_BYTES:
            raise csv.Error(f"a line of more than {MAX_LINE_BYTES:,} characters")
        yield line


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with _utf8_text(path) as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            if line.strip():
                yield number, line.rstrip("\r\n")


@contextmanager
def _utf8_text(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """A text file that is open for reading. Raises DataError if it is not a file, or not UTF-8."""
    check_file(path)
    with path.open(encoding="utf-8-sig", newline=newline) as file:
        try:
            yield file
        except UnicodeDecodeError as error:
            place = error.object[max(0, error.start - 20) : error.start + 20]
            is_utf16 = place.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
            known = "utf-16" if is_utf16 else "ENCODING (gb18030 of Chinese, windows-1252 of Western texts)"
            raise DataError(
                f"{path}: is not UTF-8, at {place!r}; save it as UTF-8, as by iconv -t utf-8 FILE -f {known}"
            ) from None


def _first_line(path: Path) -> str:
    return next((line for _, line in _lines(path)), "").strip()


def _beside(path: Path, source: Source, *names: str) -> Path:
    """The folder of the images: the given one, one of these names beside the file, or the folder of the file."""
    if source.images is not None:
        return source.image_folder()
    folder = path.parent if path.is_file() else path
    return next((folder / name for name in names if (folder / name).is_dir()), folder)
