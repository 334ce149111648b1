"""Records from the objects of any source; a small YAML, `--spec`, names the fields.

Objects are those of JSON; of Parquet and Arrow they may also hold the bytes of images.
"""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec
import numpy as np
from pydantic import Field, ValidationError

from spanbox.data.audit.conventions import FORMATS
from spanbox.data.images import image_size
from spanbox.data.importers.driver import Images, Pairs, Source, clipped
from spanbox.data.manifest import Box, Entity, ObjectBox, Record
from spanbox.data.words import surely_cuts_word
from spanbox.documents import DocumentError, read_yaml
from spanbox.errors import DataError
from spanbox.settings import Settings

_WHOLE = {"pixels": None, "fractions": 1.0, "percent": 100.0, "thousandths": 1000.0}
_ROUNDING = 1.0  # pixels by which a box may leave its image without being reported
_SHARD = re.compile(r"-\d+(-of-\d+(-[0-9a-f]+)?)?$")  # `datasets` once added a fingerprint
_KNOWN_SPLIT = re.compile(r"(?:.*?[-_])?((?i:train|val|valid|validation|dev|test|eval)(?:[-_\dA-Z][\w-]*)?)")
_LAST_PART = re.compile(r"(?:.*[-_])?([^\W\d]\w*)")


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
    """Names of the fields of a record; a dotted name leads into nested objects."""

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

    def columns(self) -> list[str]:
        """The outermost fields that are read."""
        named = [self.id, self.image, self.text, self.group, self.lang, self.split]
        named += [fields.list for fields in (self.entities, self.objects) if fields]
        return list(dict.fromkeys(name.partition(".")[0] for name in named if name))


def read_spec(source: Source) -> FieldSpec | None:
    """The names of the fields that the user gave. Raises DataError."""
    if source.spec is None:
        return None
    try:
        spec = FieldSpec.model_validate(read_yaml(source.spec))
    except (DocumentError, OSError) as error:
        raise DataError(f"{source.spec}: cannot be read as YAML: {error}") from None
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors()[:5])
        raise DataError(f"{source.spec}: {problems}; see docs/data.md") from None
    if spec.boxes not in FORMATS:
        raise DataError(f"{source.spec}: boxes: {spec.boxes!r} is unknown; known are {', '.join(FORMATS)}")
    return spec


class _Unusable(ValueError):
    pass


class FieldReader:
    """Turns the objects of a source into pairs.

    Args:
        source: notes what was left out.
        spec: names the fields.
        images: where paths of images lead, and where images inside of the source are written.
    """

    def __init__(self, source: Source, spec: FieldSpec, images: Images) -> None:
        self._source = source
        self._spec = spec
        self._images = images

    def read(self, content: object, number: int, split: str = "all") -> Pairs:
        """The pairs of an object, one for each of its texts; an object that cannot be used is noted.

        Args:
            content: the object.
            number: its place in the source, from 1: the id where the spec names none.
            split: where the spec names none.
        """
        if self._spec.split:
            split = split_name(get_field(content, self._spec.split))
        try:
            yield from ((split, record) for record in self._records(content, number, split))
        except (_Unusable, DataError) as error:
            self._source.note(split, "unusable record", number, str(error))

    def _records(self, content: object, number: int, split: str) -> list[Record]:
        spec = self._spec
        texts = _texts(content, spec.text)
        image = self._image(get_field(content, spec.image), split)
        size = self._size(image) if spec.entities or spec.objects else None
        given = get_field(content, spec.id) if spec.id else number
        record_id = str(number if given is None else given)
        ids = [record_id] if len(texts) == 1 else [f"{record_id}-{i}" for i in range(len(texts))]

        def box(values: object) -> Box | None:
            return self._box(values, size, split, record_id)

        objects = self._objects(content, box)
        group, lang = (_name(content, name) for name in (spec.group, spec.lang))
        entities = self._entities(content, texts, box)
        return [
            Record(one, image, text, group, lang, found, objects)
            for one, text, found in zip(ids, texts, entities, strict=True)
        ]

    def _image(self, value: object, split: str) -> str:
        """The path of an image for the manifest; of `{bytes, path}` the bytes are used if there are any."""
        path = value
        if isinstance(value, dict):
            content, path = value.get("bytes"), value.get("path")
            value = content or path
        if isinstance(value, bytes):
            stored = self._images.store(value)
            if stored is None:
                name = path[:100] if isinstance(path, str) else "the image"
                raise _Unusable(f"{self._spec.image}: {name} is of no known format of images")
            return stored
        if not isinstance(value, str) or not value:
            kind = "nothing" if not value else type(value).__name__
            raise _Unusable(f"{self._spec.image}: expected an image or its path, found {kind}")
        return self._images.path(split, value)

    def _size(self, image: str) -> tuple[int, int] | None:
        """Width and height of an image; None where it cannot be read and the boxes do without."""
        try:
            return image_size(self._source.out / image)
        except DataError:
            if self._spec.unit != "pixels":
                raise
            return None

    def _entities(
        self, content: object, texts: list[str], box: Callable[[object], Box | None]
    ) -> list[tuple[Entity, ...]]:
        """The entities of each text. Those that are named by their text may be in some of several texts only."""
        fields = self._spec.entities
        entities: list[list[Entity]] = [[] for _ in texts]
        for entry in _list(content, fields.list) if fields else ():
            assert fields is not None
            given = _boxes(entry, fields.boxes)
            boxes = tuple(found for values in given if (found := box(values)))
            kind = _name(entry, fields.type)
            places = _places(entry, fields, texts, [[(e.start, e.end) for e in own] for own in entities])
            for own, place in zip(entities, places, strict=True):
                if place is not None:
                    own.append(Entity(*place, kind, boxes=boxes, ambiguous=bool(given) and not boxes))
        return [tuple(_merged(own)) for own in entities]

    def _objects(self, content: object, box: Callable[[object], Box | None]) -> tuple[ObjectBox, ...]:
        fields = self._spec.objects
        found = []
        for entry in _list(content, fields.list) if fields else ():
            assert fields is not None
            place = box(get_field(entry, fields.box))
            score = get_field(entry, fields.score) if fields.score else None
            if score is not None and not _is_number(score):
                raise _Unusable(f"{score!r} is not a score")
            if place is not None:
                found.append(ObjectBox(place, 1.0 if score is None else float(score), _name(entry, fields.label)))
        return tuple(found)

    @np.errstate(over="ignore")  # a box beyond all floats has no area within its image
    def _box(self, values: object, size: tuple[int, int] | None, split: str, record_id: str) -> Box | None:
        """A box in pixels within the image; None, with a note, where it has no area there."""
        spec = self._spec
        if not isinstance(values, list) or len(values) != 4 or not all(map(_is_number, values)):
            raise _Unusable(f"{values!r:.100} is not a box of four numbers")
        corners = FORMATS[spec.boxes](np.array([values], dtype=np.float64))[0]
        whole = _WHOLE[spec.unit]
        if size is not None and whole is not None:
            corners = corners * np.array([*size, *size]) / whole
        x0, y0, x1, y1 = corners.tolist()
        box = clipped((x0, y0, x1, y1), size)
        if box is None:
            self._source.note(split, "unusable box", record_id, f"{values} has no area within the image")
        elif max(abs(a - b) for a, b in zip(box, (x0, y0, x1, y1), strict=True)) > _ROUNDING:
            self._source.note(split, "clipped box", record_id, f"{values} in an image of {size}")
        return box


def _boxes(entry: object, name: str | None) -> list[object]:
    """The boxes of an entity, given as one box or as a list of boxes."""
    given = get_field(entry, name) if name else None
    if given is not None and not isinstance(given, list):
        raise _Unusable(f"{name}: {given!r:.100} is neither a box nor a list of boxes")
    return [given] if given and not isinstance(given[0], list) else given or []


def _merged(entities: list[Entity]) -> Iterator[Entity]:
    """Each entity once: sources that list an entity for each of its boxes repeat its span."""
    by_span: dict[tuple[int, int, str], list[Entity]] = {}
    for entity in entities:
        by_span.setdefault((entity.start, entity.end, entity.type), []).append(entity)
    for first, *others in by_span.values():
        boxes = tuple(dict.fromkeys(box for entity in (first, *others) for box in entity.boxes))
        is_lost = any(entity.ambiguous for entity in (first, *others))
        yield msgspec.structs.replace(first, boxes=boxes, ambiguous=is_lost and not boxes) if others else first


def _places(
    entry: object, fields: EntityFields, texts: list[str], taken: list[list[tuple[int, int]]]
) -> list[tuple[int, int] | None]:
    """The place of an entity in each text; None where a text does not name it."""
    if fields.text:
        name = _text(entry, fields.text)
        places = [_find(text, name, own) for text, own in zip(texts, taken, strict=True)]
        if not any(places):
            raise _Unusable(f"the text has no {name!r}")
        return places
    first, last = (get_field(entry, name) if name else None for name in (fields.start, fields.end))
    if type(first) is not int or type(last) is not int:
        raise _Unusable(f"an entity without whole numbers as start and end: {first!r}, {last!r}")
    if len(texts) > 1:
        raise _Unusable(f"an entity at [{first}, {last}) of one of {len(texts)} texts: unknown of which")
    return [(first, last)]


def _find(text: str, name: str, taken: list[tuple[int, int]]) -> tuple[int, int] | None:
    """The first place of a name that cuts no word and is not that of another entity; else the first place."""
    places = [match.span() for match in re.finditer(re.escape(name), text)] if name else []
    whole = [place for place in places if not any(surely_cuts_word(text, edge) for edge in place)]
    return next((place for place in (*whole, *places) if place not in taken), next(iter(places), None))


def split_name(given: object) -> str:
    """The name of a split, which becomes that of a file: `test-set` of `test set`; `all` where there is none."""
    name = "" if given is None or given != given else str(given)  # NaN: none
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "all"


def known_split(name: str) -> str | None:
    """The split that the name of a folder or file, without its ending, ends with: `val_unseen` of `coco-val_unseen`."""
    found = _KNOWN_SPLIT.fullmatch(_SHARD.sub("", name))
    return found[1] if found else None


def split_of_file(stem: str, folder: str = "") -> str:
    """The split of a file: a known one of its name or of its folder's, else the last part of the latter.

    Args:
        stem: the name without its ending; numbers of shards are passed over.
        folder: the name of the folder, where it may be that of a split.
    """
    known = known_split(stem) or known_split(folder)
    named = _LAST_PART.fullmatch(folder or _SHARD.sub("", stem))
    return known or (named[1] if named else "all")


def get_field(content: object, name: str | None) -> Any:
    """The value of a dotted name; of a list of objects, the list of their values. None where there is none."""
    for part in (name or "").split("."):
        if isinstance(content, list) and content and all(isinstance(entry, dict) for entry in content):
            content = [entry.get(part) for entry in content]
        else:
            content = content.get(part) if isinstance(content, dict) else None
    return content


def _name(content: object, name: str | None) -> str:
    """The value of a field as text, such as the number of a class, which may be 0; empty where there is none."""
    found = get_field(content, name) if name else None
    return "" if found is None or found != found else str(found)  # NaN: none, as tables of pandas have it


def _text(content: object, name: str) -> str:
    found = get_field(content, name)
    if not isinstance(found, str):
        raise _Unusable(f"{name}: expected text, found {type(found).__name__}")
    return found


def _texts(content: object, name: str) -> list[str]:
    found = get_field(content, name)
    texts = found if isinstance(found, list) else [found]
    if not texts or not all(isinstance(text, str) for text in texts):
        kinds = sorted({type(text).__name__ for text in texts}) or ["an empty list"]
        raise _Unusable(f"{name}: expected text, found {', '.join(kinds)}")
    return [text.strip() for text in texts] if len(texts) > 1 else texts  # offsets are those of a text as it is


def _list(content: object, name: str) -> Iterator[Any]:
    """The entries of a list, or of an object of equally long lists, as `datasets` saves a list of objects."""
    found = get_field(content, name)
    if isinstance(found, dict) and found and all(isinstance(column, list) for column in found.values()):
        if len({len(column) for column in found.values()}) > 1:
            raise _Unusable(f"{name}: the lists of its fields have different lengths")
        found = [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
    if found is not None and not isinstance(found, list):
        raise _Unusable(f"{name}: expected a list, found {type(found).__name__}")
    yield from found or ()


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False
