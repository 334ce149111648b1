"""COCO: captions with the boxes of the images, linked by the names of the categories; and RefCOCO on the same images.

COCO does not link words to boxes. A word that names a category, in singular or plural or by a synonym,
becomes an entity of that category's boxes; it is `ambiguous` where the image has several.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from spanbox.data.importers import is_file
from spanbox.data.importers.driver import Images, Pairs, Source, clipped, read_typed, whole_text
from spanbox.data.importers.pickles import read_plain_pickle
from spanbox.data.manifest import Box, Entity, ObjectBox, Record
from spanbox.errors import DataError

# Words of captions beside the names of the categories, in singular.
SYNONYMS = {
    "person": ("man", "woman", "boy", "girl", "child", "kid", "baby", "lady", "guy", "player", "skier", "surfer"),
    "bicycle": ("bike",), "motorcycle": ("motorbike",), "airplane": ("plane", "jet", "aircraft"),
    "dog": ("puppy",), "cat": ("kitten",), "cow": ("cattle", "bull", "calf"), "sheep": ("lamb",),
    "couch": ("sofa",), "tv": ("television", "monitor"), "cell phone": ("cellphone", "phone", "smartphone"),
    "dining table": ("table",), "sports ball": ("ball",), "donut": ("doughnut",), "hot dog": ("hotdog",),
    "refrigerator": ("fridge",), "potted plant": ("plant",), "handbag": ("purse",), "teddy bear": ("teddy",),
    "fire hydrant": ("hydrant",), "baseball bat": ("bat",), "wine glass": ("glass",), "hair drier": ("hairdryer",),
}  # fmt: skip
IRREGULAR = {
    "person": "people", "man": "men", "woman": "women", "child": "children", "lady": "ladies", "baby": "babies",
    "knife": "knives", "mouse": "mice", "sheep": "sheep", "calf": "calves", "scissors": "scissors", "skis": "skis",
}  # fmt: skip


class _Image(msgspec.Struct):
    id: int
    file_name: str
    width: float = 0
    height: float = 0


class _Annotation(msgspec.Struct):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    id: int = 0
    iscrowd: int = 0


class _Category(msgspec.Struct):
    id: int
    name: str


class _Instances(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


class _Caption(msgspec.Struct):
    image_id: int
    caption: str
    id: int = 0


class _Captions(msgspec.Struct):
    annotations: list[_Caption]
    images: list[_Image] = []


def coco(source: Source) -> Pairs:
    """`captions_SPLIT.json` and `instances_SPLIT.json`, here or in `annotations/`; images in `SPLIT/` or `images/`."""
    found = [path for folder in ("", "annotations") for path in sorted((source.root / folder).glob("captions_*.json"))]
    if not found:
        raise DataError(f"{source.root}: has no captions_SPLIT.json, here or in annotations/")
    first: dict[str, Path] = {}
    for path in found:
        split = _plain(_split_of(path))
        if first.setdefault(split, path) != path:  # 2014 and 2017 have the same images, some in other splits
            raise DataError(
                f"{source.root}: {first[split].name} and {path.name} are both {split}; copy those to import into a "
                "separate folder"
            )
    for path in found:
        yield from _split(source, path, _split_of(path))


def _split_of(path: Path) -> str:
    return path.name.removeprefix("captions_").removesuffix(".json")


def _split(source: Source, path: Path, split: str) -> Pairs:
    captions = read_typed(path, _Captions)
    instances_path = path.with_name(path.name.replace("captions_", "instances_", 1))
    instances = _Instances(captions.images, [], [])
    if is_file(instances_path):
        instances = read_typed(instances_path, _Instances)
    else:
        source.note(_plain(split), "no boxes", instances_path.name, "no such file; captions are imported without boxes")
    files = {image.id: image for image in (*captions.images, *instances.images)}
    names = {category.id: category.name for category in instances.categories}
    boxes = _boxes(source, _plain(split), instances.annotations, files)
    images = Images(source, source.image_folder(split.partition(".")[0], "images"))
    source.total += len(captions.annotations)
    for caption in captions.annotations:
        image = files.get(caption.image_id)
        if image is None:
            source.note(_plain(split), "caption of an unknown image", caption.id, f"image_id {caption.image_id}")
            continue
        own = [(names.get(category, str(category)), box) for category, box in boxes.get(caption.image_id, ())]
        text = caption.caption.strip()
        yield (
            _plain(split),
            Record(
                f"{caption.image_id}-{caption.id}",
                images.path(_plain(split), image.file_name),
                text,
                lang="en",
                entities=tuple(link_words(text, own, names.values())),
                objects=tuple(ObjectBox(box, label=name) for name, box in own),
                source="coco",
            ),
        )


def _plain(split: str) -> str:
    """`train2017` is `train`."""
    return re.sub(r"\W.*|\d+", "", split) or "all"


def _boxes(
    source: Source, split: str, annotations: list[_Annotation], files: dict[int, _Image]
) -> dict[int, list[tuple[int, Box]]]:
    """The boxes of each image with their categories; boxes of crowds are left out."""
    found: dict[int, list[tuple[int, Box]]] = defaultdict(list)
    for annotation in annotations:
        if annotation.iscrowd:
            source.note(split, "box of a crowd", annotation.id, f"image {annotation.image_id}, left out")
            continue
        image = files.get(annotation.image_id)
        size = (image.width, image.height) if image and image.width > 0 and image.height > 0 else None
        x, y, width, height = annotation.bbox
        box = clipped((x, y, x + width, y + height), size)
        if box is None:
            source.note(split, "unusable box", annotation.id, f"{list(annotation.bbox)} in image {annotation.image_id}")
        else:
            found[annotation.image_id].append((annotation.category_id, box))
    return found


def link_words(text: str, objects: list[tuple[str, Box]], names: Iterable[str] = ()) -> Iterator[Entity]:
    """Entities of the words that name a category of which the image has boxes, longest names first.

    Args:
        names: of all categories. The words of a name belong to no other category: a hot dog is not a dog, even without
            a box.
    """
    by_name: dict[str, list[Box]] = defaultdict(list)
    for name, box in objects:
        by_name[name].append(box)
    by_name |= {name: [] for name in names if name not in by_name and not by_name.keys().isdisjoint(name.split())}
    taken: list[tuple[int, int]] = []
    for name, boxes in sorted(by_name.items(), key=lambda item: (-len(item[0]), item[0])):
        for match in _pattern(name).finditer(text):
            start, end = match.span()
            if all(end <= first or start >= last for first, last in taken):
                taken.append((start, end))
                if boxes:
                    yield Entity(start, end, name, boxes=tuple(boxes), ambiguous=len(boxes) > 1)


@cache
def _pattern(name: str) -> re.Pattern[str]:
    words = (name, *SYNONYMS.get(name, ()))
    forms = sorted({form for word in words for form in (word, plural(word))}, key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, forms))})\b", re.IGNORECASE)


def plural(word: str) -> str:
    """The English plural of a noun, of its last word."""
    head, space, last = word.rpartition(" ")
    if last in IRREGULAR:
        ending = IRREGULAR[last]
    elif last.endswith(("s", "x", "z", "ch", "sh")):
        ending = f"{last}es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        ending = f"{last[:-1]}ies"
    else:
        ending = f"{last}s"
    return f"{head}{space}{ending}"


class _Sentence(msgspec.Struct):
    sent_id: int | str
    sent: str = ""
    raw: str = ""


class _Reference(msgspec.Struct):
    ref_id: int | str
    ann_id: int
    split: str
    sentences: list[_Sentence]


def refcoco(source: Source) -> Pairs:
    """`refs(SPLIT_BY).p` or `.json`, and `instances.json`; images of COCO's `train2014/`, or `--images DIR`."""
    path = _reference_file(source.root)
    instances = read_typed(source.file("instances.json", expected="the boxes of the references"), _Instances)
    files = {image.id: image for image in instances.images}
    names = {category.id: category.name for category in instances.categories}
    boxes = {annotation.id: annotation for annotation in instances.annotations}
    objects = _boxes(source, "train", instances.annotations, files)
    images = Images(source, source.image_folder("train2014", "images", "images/mscoco/images/train2014"))
    references = read_typed(path, list[Any]) if path.suffix == ".json" else read_plain_pickle(path)
    if not isinstance(references, list):
        raise DataError(f"{path}: expected a list of references, found {type(references).__name__}")
    source.total = len(references)
    for number, content in enumerate(references):
        try:
            reference = msgspec.convert(content, _Reference)
        except (msgspec.MsgspecError, RecursionError) as error:
            source.note("train", "unusable reference", number, str(error))
            continue
        annotation = boxes.get(reference.ann_id)
        image = files.get(annotation.image_id) if annotation else None
        if annotation is None or image is None or not reference.split.isalnum():
            source.note("train", "unusable reference", number, _fault(reference, annotation))
            continue
        others = objects.get(annotation.image_id, ())
        proposals = tuple(ObjectBox(other, label=names.get(category, "")) for category, other in others)
        kind = names.get(annotation.category_id, "")
        for record in _references(reference, annotation, image, kind, proposals, images):
            yield reference.split, record


def _reference_file(folder: Path) -> Path:
    paths = sorted(path for ending in ("p", "json") for path in folder.glob(f"refs(*).{ending}"))
    if not paths:
        raise DataError(f"{folder}: has no refs(SPLIT_BY).p or .json, as in refcoco/refs(unc).p")
    if len(paths) > 1:
        listed = ", ".join(path.name for path in paths)
        raise DataError(f"{folder}: has {listed}; copy the one to import into a separate folder, with instances.json")
    return paths[0]


def _fault(reference: _Reference, annotation: _Annotation | None) -> str:
    if not reference.split.isalnum():
        return f"split {reference.split[:40]!r}"
    return f"ann_id {reference.ann_id}" if annotation is None else f"image_id {annotation.image_id}"


def _references(
    reference: _Reference,
    annotation: _Annotation,
    image: _Image,
    kind: str,
    proposals: tuple[ObjectBox, ...],
    images: Images,
) -> Iterator[Record]:
    """The sentences of a reference as records."""
    x, y, width, height = annotation.bbox
    size = (image.width, image.height) if image.width > 0 and image.height > 0 else None
    box = clipped((x, y, x + width, y + height), size)
    for sentence in reference.sentences:
        text = (sentence.sent or sentence.raw).strip()
        yield Record(
            f"{reference.ref_id}-{sentence.sent_id}",
            images.path(reference.split, image.file_name),
            text,
            lang="en",
            entities=whole_text(text, box, kind),
            objects=proposals,
            source="refcoco",
        )
