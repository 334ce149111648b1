"""Visual Genome: regions with their phrases, and the objects of the images; the later versions and 1.0."""

from collections.abc import Iterator
from pathlib import Path
from posixpath import basename

import msgspec

from spanbox.data.importers import is_file
from spanbox.data.importers.driver import Images, Pairs, Source, clipped, read_typed, whole_text
from spanbox.data.manifest import ObjectBox, Record
from spanbox.errors import DataError

# Version 1.0 calls the ids `id` and `image`.


class _Region(msgspec.Struct):
    phrase: str
    x: float
    y: float
    width: float
    height: float
    region_id: int | None = None
    id: int | None = None
    image_id: int | None = None
    image: int | None = None


class _Regions(msgspec.Struct):
    regions: list[_Region]
    id: int | None = None
    image_id: int | None = None


class _Object(msgspec.Struct):
    x: float
    y: float
    w: float
    h: float
    names: list[str] = []


class _Objects(msgspec.Struct):
    objects: list[_Object]
    image_id: int | None = None
    id: int | None = None


class _Image(msgspec.Struct):
    width: float
    height: float
    url: str = ""
    image_id: int | None = None
    id: int | None = None


def visual_genome(source: Source) -> Pairs:
    """`region_descriptions.json`, `image_data.json`, `objects.json` if it is there; images in VG_100K, VG_100K_2."""
    path = source.file("region_descriptions.json", expected="the regions and their phrases")
    data = read_typed(source.file("image_data.json", expected="the sizes and files of the images"), list[_Image])
    files = {_one_of(image.image_id, image.id): image for image in data}
    objects: dict[int | None, tuple[ObjectBox, ...]] = {}
    if is_file(source.root / "objects.json"):
        given = read_typed(source.root / "objects.json", list[_Objects])
        for shown in given:
            image_id = _one_of(shown.image_id, shown.id)
            objects[image_id] = tuple(_proposals(source, image_id, files.get(image_id), shown.objects))
    else:
        source.note("all", "no objects", "objects.json", "no such file; regions are imported without proposals")
    images = Images(source, source.images or source.root)
    described = read_typed(path, list[_Regions])
    source.total = sum(len(entry.regions) for entry in described)
    for entry in described:
        for region in entry.regions:
            image_id = _one_of(region.image_id, region.image, entry.image_id, entry.id)
            image = files.get(image_id)
            if image is None:
                source.note(
                    "all", "region of an unknown image", _one_of(region.region_id, region.id), f"image {image_id}"
                )
                continue
            yield "all", _record(source, region, image_id, image, objects.get(image_id, ()), images)


def _record(
    source: Source, region: _Region, image_id: int | None, image: _Image, objects: tuple[ObjectBox, ...], images: Images
) -> Record:
    size = (image.width, image.height)
    region_id = _one_of(region.region_id, region.id)
    given = (region.x, region.y, region.x + region.width, region.y + region.height)
    box = clipped(given, size)
    if box is None:
        source.note("all", "unusable box", region_id, f"{list(given)} in an image of {size[0]:g} x {size[1]:g}")
    elif box != given:
        source.note("all", "clipped box", region_id, f"{list(given)} in an image of {size[0]:g} x {size[1]:g}")
    text = region.phrase.strip()
    return Record(
        f"{image_id}-{region_id}",
        images.path("all", _file(image, images.folder)),
        text,
        group=str(image_id),
        lang="en",
        entities=whole_text(text, box),
        objects=objects,
        source="visual-genome",
    )


def _proposals(
    source: Source, image_id: int | None, image: _Image | None, objects: list[_Object]
) -> Iterator[ObjectBox]:
    """The objects of an image; those that cannot be used are noted, once for all its regions."""
    if image is None:  # it has no regions that are used
        return
    for found in objects:
        given = (found.x, found.y, found.x + found.w, found.y + found.h)
        place = clipped(given, (image.width, image.height))
        if place is None:
            source.note("all", "unusable proposal", image_id, f"{list(given)} has no area within the image")
        else:
            yield ObjectBox(place, label=found.names[0] if found.names else "")


def _file(image: _Image, folder: Path) -> str:
    """`VG_100K/2.jpg` of the url, or `2.jpg` where the folder has no such folders."""
    parts = image.url.split("/")
    name = basename(image.url)
    if not name or len(parts) < 2:
        raise DataError(f"image_data.json: {image.url!r} names no file")
    return f"{parts[-2]}/{name}" if (folder / parts[-2]).is_dir() else name


def _one_of(*ids: int | None) -> int | None:
    return next((value for value in ids if value is not None), None)
