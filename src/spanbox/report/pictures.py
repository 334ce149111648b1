"""Pictures of the manifest's pairs, small enough for a page: data URIs of JPEG thumbnails and of heatmaps.

Only files that the manifest names are opened. One that is missing or broken becomes a picture without pixels that holds
the reason, because a report of a thousand pairs must not fail for one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from spanbox.data.manifest import Manifest, Record
from spanbox.data.source import state_of
from spanbox.data.thumbnails import data_uri, load_thumbnail
from spanbox.errors import DataError
from spanbox.report.examples import Box, Examples

THUMBNAIL = 224  # longer side in pixels
QUALITY = 78
HEAT_ALPHA = 0.78  # opacity where a heatmap is highest


@dataclass(frozen=True)
class Picture:
    """A pair with its image as a thumbnail; without pixels where the pair or its image cannot be shown."""

    id: str
    record: Record | None
    image: Image.Image | None
    full_size: tuple[int, int]  # width and height of the file as shown
    fault: str = ""

    @cached_property
    def source(self) -> str:
        """The thumbnail as a data URI."""
        assert self.image is not None
        return _source(self.image)

    def boxes_of(self, entity: int) -> list[Box]:
        """The boxes of an entity, as fractions of the image; none where the entity is unknown."""
        width, height = self.full_size
        if self.record is None or not 0 <= entity < len(self.record.entities) or not width:
            return []
        boxes = self.record.entities[entity].boxes
        return [(x0 / width, y0 / height, x1 / width, y1 / height) for x0, y0, x1, y1 in boxes]

    def span_of(self, entity: int) -> tuple[int, int]:
        """Start and end of an entity in the text; (0, 0) where the entity is unknown."""
        if self.record is None or not 0 <= entity < len(self.record.entities):
            return 0, 0
        return self.record.entities[entity].start, self.record.entities[entity].end

    def words_of(self, entity: int) -> str:
        """The words of an entity; the pair's id where the entity is unknown."""
        start, end = self.span_of(entity)
        return self.record.text[start:end] if self.record and end else self.id

    @property
    def text(self) -> str:
        """The sentence; the pair's id where the pair is unknown."""
        return self.record.text if self.record else self.id


class Album:
    """The pairs of the examples of a run.

    Args:
        examples: they name the manifest and the ids.
        folder: of `examples.json`, for the relative place of the manifest.
        manifest: the manifest, where it was moved; None: the places that the examples name.
    """

    def __init__(self, examples: Examples, folder: Path, manifest: Path | None = None) -> None:
        self._manifest: Manifest | None = None
        self._records: dict[str, Record] = {}
        self._repeated: set[str] = set()
        self._pictures: dict[str, Picture] = {}
        self._fault = ""
        path = manifest or _find_manifest(examples, folder)
        try:
            self._manifest = Manifest(path, "drop")
            self._records, self._repeated = _find(self._manifest, set(_ids(examples)))
        except (DataError, OSError, ValueError) as error:  # ValueError: a path that the system refuses
            self._fault = str(error)
        self._pictured = set(_pictured_ids(examples))

    def __getitem__(self, id: str) -> Picture:
        if id not in self._pictures:
            self._pictures[id] = self._open(id)
        return self._pictures[id]

    @property
    def missing(self) -> tuple[int, int, str]:
        """Number of missing images of the examples, of all, and the first missing one or the manifest's fault."""
        if self._fault:
            return len(self._pictured), len(self._pictured), self._fault
        assert self._manifest is not None
        paths = {id: self._manifest.image_path(self._records[id]) for id in self._pictured if id in self._records}
        gone = sorted(id for id in self._pictured if id not in paths or state_of(paths[id]) is None)
        if not gone:
            return 0, len(self._pictured), ""
        why = f"{self._manifest.path}: {gone[0]!r}: {self._why_none(gone[0])}"
        return len(gone), len(self._pictured), str(paths.get(gone[0], why))

    def _why_none(self, id: str) -> str:
        """The reason why the pair of an id cannot be shown."""
        if self._fault:
            return "no manifest"
        return "several pairs have this id" if id in self._repeated else "no such pair in the manifest"

    def _open(self, id: str) -> Picture:
        record = self._records.get(id)
        if record is None or self._manifest is None:
            return Picture(id, None, None, (0, 0), self._why_none(id))
        path = self._manifest.image_path(record)
        try:
            image, full_size = load_thumbnail(path, THUMBNAIL)
        except (DataError, OSError, ValueError) as error:  # the latter two: a path that the system refuses
            return Picture(
                id, record, None, (0, 0), str(error).removeprefix(f"{path}: ").removeprefix("broken image: ")
            )
        return Picture(id, record, image, full_size)


def _source(image: Image.Image) -> str:
    return data_uri(image, quality=QUALITY, optimize=True)


def thumbnail_source(path: Path) -> tuple[str, tuple[int, int]]:
    """A thumbnail of an image as a data URI, and the image's width and height as shown.

    Raises:
        DataError: the image cannot be read.
    """
    image, full_size = load_thumbnail(path, THUMBNAIL)
    return _source(image), full_size


def _find_manifest(examples: Examples, folder: Path) -> Path:
    """The first place of the manifest at which there is a file."""
    beside = folder / examples.manifest_from_here if examples.manifest_from_here else None
    places = [place for place in (beside, Path(examples.manifest)) if place is not None]
    return next((place for place in places if _is_file(place)), places[-1])


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a path that the system refuses
        return False


def heat_source(heat: NDArray[np.float32]) -> str:
    """A heatmap (g, g) in [0, 1] as a data URI of g x g pixels: the hotter, the brighter and the less transparent."""
    return data_uri(heat_image(heat), "PNG")


def heat_image(heat: NDArray[np.float32]) -> Image.Image:
    """A heatmap (g, g) in [0, 1] as an RGBA image of g x g pixels."""
    values = np.nan_to_num(heat).clip(0, 1)
    rgba = _heat_colours()[np.rint(values * 255).astype(np.intp)]
    rgba[..., 3] = np.rint(255 * HEAT_ALPHA * values)
    return Image.fromarray(rgba)


def dimmed(image: Image.Image) -> Image.Image:
    """An image with less colour and light, for a heatmap to lie on; the page's style does the same."""
    grey = ImageOps.grayscale(image).convert("RGB")
    return ImageEnhance.Brightness(Image.blend(image, grey, 0.7)).enhance(0.75)


def heat_inside(heat: NDArray[np.float32], boxes: Iterable[Box]) -> tuple[float, bool] | None:
    """Share of a heatmap's sum in cells whose centre lies in one of the boxes, and whether its peak does.

    None without boxes, or where the map is empty.
    """
    values = np.nan_to_num(heat).clip(0, None).astype(np.float64)
    rows, columns = np.meshgrid(*((np.arange(size) + 0.5) / size for size in values.shape), indexing="ij")
    inside = np.zeros(values.shape, dtype=bool)
    for x0, y0, x1, y1 in boxes:
        inside |= (columns >= x0) & (columns <= x1) & (rows >= y0) & (rows <= y1)
    if not inside.any() or not values.sum():
        return None
    return float(values[inside].sum() / values.sum()), bool(inside.flat[int(values.argmax())])


@cache
def _heat_colours() -> NDArray[np.uint8]:
    """(256, 4): matplotlib's `inferno`, whose lightness grows evenly, so that it reads without colour too."""
    from matplotlib import colormaps

    colours: NDArray[np.uint8] = colormaps["inferno"](np.arange(256), bytes=True)
    return colours


def _find(manifest: Manifest, ids: set[str]) -> tuple[dict[str, Record], set[str]]:
    """The pairs of some ids, and the ids that several pairs share, which examples cannot refer to."""
    found: dict[str, Record] = {}
    repeated = set()
    for record in manifest:
        if record.id in found:
            repeated.add(record.id)
        elif record.id in ids:
            found[record.id] = record
    return {id: record for id, record in found.items() if id not in repeated}, repeated


def _pictured_ids(examples: Examples) -> Iterable[str]:
    """The pairs of which the image is shown, and not the sentence alone."""
    for direction, retrievals in examples.retrieval.items():
        for retrieval in retrievals:
            yield from [retrieval.query] if direction == "i2t" else (scored.id for scored in retrieval.found)
    yield from (match.id for match in examples.matching)
    yield from (example.id for example in examples.heatmaps)


def _ids(examples: Examples) -> Iterable[str]:
    for retrievals in examples.retrieval.values():
        for retrieval in retrievals:
            yield retrieval.query
            yield from (scored.id for scored in retrieval.found)
            if retrieval.right:
                yield retrieval.right.id
    yield from (match.id for match in examples.matching)
    yield from (example.id for example in examples.heatmaps)
    if examples.similarity and examples.similarity.coarse:
        yield from examples.similarity.coarse.ids
    if examples.similarity and examples.similarity.fine:
        yield from (span.id for span in examples.similarity.fine.spans)
        yield from (region.id for region in examples.similarity.fine.regions)
