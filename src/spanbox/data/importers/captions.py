"""Sources of plain pairs: Flickr8k, CSV and TSV, and any JSON whose fields a small YAML names."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from spanbox.data.audit.conventions import FORMATS
from spanbox.data.images import image_size
from spanbox.data.importers.driver import Images, Pairs, Source, clipped
from spanbox.data.manifest import MAX_LINE_BYTES, Box, Entity, ObjectBox, Record
from spanbox.documents import DocumentError, read_yaml
from spanbox.errors import DataError
from spanbox.settings import Settings

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
        yield from _table(path, source, images, ",", {"image": "image", "text": "caption"})
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
    spec = _spec(source) if source.spec else FieldSpec(image="image", text="text")
    if not source.root.is_file():
        raise DataError(f"{source.root}: no such file; expected a CSV or TSV file with a header")
    images = Images(source, _beside(source.root, source, "images"))
    columns = {name: column for name in ("id", "image", "text", "group", "lang") if (column := getattr(spec, name))}
    delimiter = "\t" if source.root.suffix.casefold() in (".tsv", ".tab") else ","
    yield from _table(source.root, source, images, delimiter, columns)


class EntityFields(Settings):
    """Names of the fields of an entity."""

    list: str = Field(description="field with the list of entities")
    start: str | None = None
    end: str | None = None
    text: str | None = None  # instead of start and end: the entity's text, searched in the sentence
    type: str | None = None
    boxes: str | None = None  # a box, or a list of boxes


class ObjectFields(Settings):
    """Names of the fields of a proposal."""

    list: str
    box: str
    score: str | None = None
    label: str | None = None


class FieldSpec(Settings):
    """Which fields hold what; a dotted name leads into objects."""

    records: str | None = Field(None, description="field with the list of records, of a JSON object")
    id: str | None = None
    image: str
    text: str
    group: str | None = None
    lang: str | None = None
    split: str | None = None
    entities: EntityFields | None = None
    objects: ObjectFields | None = None
    boxes: str = Field("x0 y0 x1 y1", description="convention of the boxes")
    unit: Literal["pixels", "fractions", "percent", "thousandths"] = "pixels"


def any_json(source: Source) -> Pairs:
    """JSON (a list, or an object with a list) or JSON Lines, whose fields `--spec FILE.yaml` names."""
    if source.spec is None:
        raise DataError("--spec FILE.yaml is needed: it names the fields of the records, see docs/data.md")
    spec = _spec(source)
    if spec.boxes not in FORMATS:
        raise DataError(f"{source.spec}: boxes: {spec.boxes!r} is unknown; known are {', '.join(FORMATS)}")
    images = Images(source, _beside(source.root, source, "images"))
    for number, content in _json_records(source.root, spec):
        split = str(_get(content, spec.split) or "all") if spec.split else "all"
        split = split if split.isidentifier() else "all"
        try:
            yield split, _record(content, spec, images, split, number)
        except (_Unusable, DataError) as error:
            source.note(split, "unusable record", number, str(error))


class _Unusable(ValueError):
    pass


def _record(content: dict[str, Any], spec: FieldSpec, images: Images, split: str, number: int) -> Record:
    text, image = _text(content, spec.text), _text(content, spec.image)
    path = images.path(split, image)
    size: tuple[int, int] | None = None
    if spec.unit != "pixels" and (spec.entities or spec.objects):
        size = image_size(images.folder / image)

    def box(values: object) -> Box | None:
        return _to_box(values, spec, size)

    entities: list[Entity] = []
    for entry in _list(content, spec.entities.list if spec.entities else None):
        assert spec.entities is not None
        entities += _entities(entry, spec.entities, text, box)
    objects = []
    for entry in _list(content, spec.objects.list if spec.objects else None):
        assert spec.objects is not None
        found = box(_get(entry, spec.objects.box))
        score = _get(entry, spec.objects.score) if spec.objects.score else 1.0
        if found:
            label = str(_get(entry, spec.objects.label) or "") if spec.objects.label else ""
            objects.append(ObjectBox(found, float(score) if isinstance(score, int | float) else 1.0, label))
    group, lang = (str(_get(content, name) or "") if name else "" for name in (spec.group, spec.lang))
    record_id = str(_get(content, spec.id)) if spec.id else str(number)
    return Record(record_id, path, text, group, lang, tuple(entities), tuple(objects))


def _entities(entry: object, fields: EntityFields, text: str, box: Any) -> Iterator[Entity]:
    given = _get(entry, fields.boxes) if fields.boxes else []
    if isinstance(given, list) and given and not isinstance(given[0], list):
        given = [given]
    boxes = tuple(found for values in (given if isinstance(given, list) else []) if (found := box(values)))
    kind = str(_get(entry, fields.type) or "") if fields.type else ""
    if fields.text:
        name = _text(entry, fields.text)
        start = text.find(name)
        if start < 0 or not name:
            raise _Unusable(f"the text has no {name!r}")
        yield Entity(start, start + len(name), kind, boxes=boxes)
        return
    first, last = (_get(entry, name) if name else None for name in (fields.start, fields.end))
    if not isinstance(first, int) or not isinstance(last, int):
        raise _Unusable(f"an entity without whole numbers as start and end: {first!r}, {last!r}")
    yield Entity(first, last, kind, boxes=boxes)


def _to_box(values: object, spec: FieldSpec, size: tuple[int, int] | None) -> Box | None:
    if not isinstance(values, list) or len(values) != 4 or not all(isinstance(v, int | float) for v in values):
        raise _Unusable(f"{values!r} is no box of four numbers")
    x0, y0, x1, y1 = FORMATS[spec.boxes](np.array([values], dtype=np.float64))[0].tolist()
    if size is None:
        return clipped((x0, y0, x1, y1), None)
    whole = {"fractions": 1.0, "percent": 100.0, "thousandths": 1000.0}[spec.unit]
    width, height = size[0] / whole, size[1] / whole
    return clipped((x0 * width, y0 * height, x1 * width, y1 * height), size)


def _get(content: object, name: str | None) -> Any:
    for part in (name or "").split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


def _text(content: object, name: str) -> str:
    found = _get(content, name)
    if not isinstance(found, str):
        raise _Unusable(f"{name}: expected text, found {type(found).__name__}")
    return found


def _list(content: object, name: str | None) -> list[Any]:
    found = _get(content, name) if name else None
    if found is not None and not isinstance(found, list):
        raise _Unusable(f"{name}: expected a list, found {type(found).__name__}")
    return found or []


def _json_records(path: Path, spec: FieldSpec) -> Iterator[tuple[int, dict[str, Any]]]:
    if path.suffix.casefold() in (".jsonl", ".ndjson"):
        for number, line in _lines(path):
            try:
                content = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: is not JSON ({error})") from None
            yield number, content
        return
    try:
        content = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON, or was cut off ({error})") from None
    records = _get(content, spec.records) if spec.records else content
    if not isinstance(records, list):
        raise DataError(f"{path}: expected a list of records; name the field that holds it as `records` in the --spec")
    yield from enumerate(records, start=1)


def _spec(source: Source) -> FieldSpec:
    assert source.spec is not None
    try:
        return FieldSpec.model_validate(read_yaml(source.spec))
    except (DocumentError, OSError) as error:
        raise DataError(f"{source.spec}: cannot be read as YAML: {error}") from None
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors()[:5])
        raise DataError(f"{source.spec}: {problems}; see docs/data.md") from None


def _table(path: Path, source: Source, images: Images, delimiter: str, columns: dict[str, str]) -> Pairs:
    csv.field_size_limit(MAX_FIELD)
    with path.open(encoding="utf-8-sig", newline="", errors="replace") as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        missing = [column for column in columns.values() if column not in (reader.fieldnames or ())]
        if missing:
            raise DataError(f"{path}: has no column {missing[0]!r}, but {', '.join(reader.fieldnames or ())[:200]}")
        try:
            for number, row in enumerate(reader, start=1):
                values = {name: row.get(column) for name, column in columns.items()}
                if not values["image"] or not values["text"]:
                    source.note("all", "wrong line", f"{path.name}:{reader.line_num}", "without an image or a text")
                    continue
                image = images.path("all", values["image"].strip())
                given = {name: (value or "").strip() for name, value in values.items()}
                group, lang = given.get("group", ""), given.get("lang", "")
                yield "all", Record(given.get("id") or str(number), image, given["text"], group, lang)
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: cannot be read ({error})") from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            if line.strip():
                yield number, line.rstrip("\r\n")


def _first_line(path: Path) -> str:
    return next((line for _, line in _lines(path)), "").strip()


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    return path.read_bytes()


def _beside(path: Path, source: Source, *names: str) -> Path:
    """The folder of the images: the given one, one of these names beside the file, or the folder of the file."""
    if source.images is not None:
        return source.image_folder()
    folder = path.parent if path.is_file() else path
    return next((folder / name for name in names if (folder / name).is_dir()), folder)
