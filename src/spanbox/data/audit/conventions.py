"""The convention in which the boxes of a set were written: the reading of their numbers that fits their images.

A reading is a format (which number is which edge) and a unit (the numbers of the right and the lower edge of an image).
One box seldom shows its reading; all boxes of a set together usually do. Evidence is counted, never assumed: boxes that
have no area or leave their image contradict a reading, and boxes that touch both edges of an image show its size. Where
no reading or several fit, the convention is undetermined.

    n boxes
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TOLERANCE = 1.0  # pixels by which a box may leave the image: annotators and detectors round
OF_FRACTIONS = 0.05  # by which a box in fractions may leave it
FEW = 0.01  # share of boxes that may contradict a reading
FEWEST = 4  # boxes from which a format can be determined
EVIDENCE = 0.05  # share of boxes that have to contradict the documented reading
MOST = 0.6  # share of boxes that have to be out of order before all are sorted
UNCLEAR = 0.25  # share of such boxes from which a set without any reading is reported
FEWEST_IMAGES = 8  # from which the annotated size can be inferred from the edges that boxes touch
TOUCHING = 3  # boxes at an edge that show where it is
MORE_OFTEN = 2  # times as many boxes touch the edges of another size as those of the images as shown, at least
LARGER = 1.25  # times the largest number of a unit: the longer side of images from which it is noted
EDGE = 0.004  # of the side: how near a box touches
SAME_SIZE = 0.03  # relative difference of sizes that are the same

PIXELS, FRACTIONS, PERCENT, THOUSANDTHS, STORED, SQUARE = (
    "pixels",
    "fractions",
    "percent",
    "thousandths",
    "pixels before turning",
    "square images",
)
CORNERS = "x0 y0 x1 y1"
ANY_ORDER = "corners in any order"
MIRRORED = "mirrored corners"  # such as y from the lower edge; no box distinguishes them from exchanged corners


class Boxes(NamedTuple):
    """Boxes of a set with the sizes of their images; sizes are 0 where the image could not be read."""

    numbers: Floats  # (n, 4)
    shown: Floats  # (n, 2): width and height as shown
    stored: Floats  # (n, 2): before the EXIF orientation is applied
    images: int = FEWEST_IMAGES  # that the boxes are of


class Reading(NamedTuple):
    """A convention in which the numbers may have been written, with the evidence for it."""

    format: str  # a key of FORMATS, or "" if it is not determined
    unit: str
    size: float  # of the unit: a factor, or a side in pixels; 0 if it has none
    says: int  # boxes that show it: they contradict `x0 y0 x1 y1` in pixels, or touch the edges of another size
    boxes: int
    contradict: int  # boxes that contradict this reading
    reason: str

    @property
    def is_as_documented(self) -> bool:
        return self.format == CORNERS and self.unit == PIXELS

    @property
    def remark(self) -> str:
        """A caveat: in a unit whose right and lower edges are equal, exchanged x and y would fit too."""
        is_square = self.unit in (FRACTIONS, PERCENT, THOUSANDTHS, SQUARE)
        return "; y before x fits as well: look at some boxes" if self.format and is_square else ""


def _corners(b: Floats) -> Floats:
    return b


def _corner_and_size(b: Floats) -> Floats:
    return np.column_stack([b[:, 0], b[:, 1], b[:, 0] + b[:, 2], b[:, 1] + b[:, 3]])


def _centre_and_size(b: Floats) -> Floats:
    return np.column_stack([b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2])


def _rows_first(b: Floats) -> Floats:
    return b[:, [1, 0, 3, 2]]


def _columns_first(b: Floats) -> Floats:
    return b[:, [0, 2, 1, 3]]


def _far_corner_first(b: Floats) -> Floats:
    return b[:, [2, 3, 0, 1]]


def _sorted_corners(b: Floats) -> Floats:
    return np.concatenate([np.minimum(b[:, :2], b[:, 2:]), np.maximum(b[:, :2], b[:, 2:])], axis=1)


FORMATS: dict[str, Callable[[Floats], Floats]] = {
    CORNERS: _corners,
    "x y width height": _corner_and_size,
    "y0 x0 y1 x1": _rows_first,
    "centre x, centre y, width, height": _centre_and_size,
    "x0 x1 y0 y1": _columns_first,
    "x1 y1 x0 y0": _far_corner_first,
    ANY_ORDER: _sorted_corners,
}
UNITS: dict[str, Callable[[Boxes, float], Floats]] = {
    PIXELS: lambda boxes, size: boxes.shown,
    STORED: lambda boxes, size: boxes.stored,
    FRACTIONS: lambda boxes, size: np.ones_like(boxes.shown),
    PERCENT: lambda boxes, size: np.full_like(boxes.shown, 100.0),
    THOUSANDTHS: lambda boxes, size: np.full_like(boxes.shown, 1000.0),
    "images scaled by one factor": lambda boxes, size: size * boxes.shown,
    SQUARE: lambda boxes, size: np.full_like(boxes.shown, size),
    "images with one longer side": lambda boxes, size: size * boxes.shown / boxes.shown.max(axis=1, keepdims=True),
}
"""The numbers (n, 2) at the right and the lower edge of each image."""


def as_documented(boxes: Boxes, reading: Reading) -> Floats:
    """The boxes (n, 4) as `x0 y0 x1 y1` in pixels of the images as shown. Not for `STORED`, which has to be turned."""
    scale = boxes.shown / UNITS[reading.unit](boxes, reading.size)
    return FORMATS[reading.format](boxes.numbers) * np.tile(scale, 2)


@np.errstate(over="ignore")  # the sum of an edge and a size may be beyond all floats
def find_reading(boxes: Boxes) -> Reading:
    """The reading that explains the boxes: `is_as_documented` where nothing speaks against it, without a format where
    the boxes contradict it and no other, or several others, fit."""
    known: NDArray[np.bool_] = np.all(boxes.shown > 0, axis=1)
    if known.any() and not known.all():  # boxes of images that cannot be read show less
        boxes = Boxes(boxes.numbers[known], boxes.shown[known], boxes.stored[known], boxes.images)
    count = len(boxes.numbers)
    wrong = _contradict(boxes, CORNERS, PIXELS)
    documented = Reading(CORNERS, PIXELS, 0.0, 0, count, int(wrong.sum()), "")
    if not count:
        return documented
    others = list(_other_readings(boxes, wrong))
    if len(others) == 1 or (others and others[0].unit == STORED):
        return others[0]
    if others:
        names = " or ".join(f"{other.format} in {other.unit}" for other in others)
        unit = FRACTIONS if all(other.unit == FRACTIONS for other in others) else ""
        return Reading("", unit, 0.0, int(wrong.sum()), count, count, f"they fit as {names}")
    if count >= 2 * FEWEST and wrong.sum() >= UNCLEAR * count:
        return Reading("", "", 0.0, int(wrong.sum()), count, count, "they fit in no known convention")
    turned_round = int(np.any(boxes.numbers[:, :2] > boxes.numbers[:, 2:], axis=1).sum())
    if turned_round >= max(FEWEST, EVIDENCE * count):  # no annotator draws so many; others of that format look right
        reason = f"{turned_round:,} have x1 below x0 or y1 below y0; some of the others may be of another format, too"
        return Reading("", "", 0.0, turned_round, count, count, reason)
    return documented


def _other_readings(boxes: Boxes, wrong: NDArray[np.bool_]) -> Iterator[Reading]:
    """Readings other than the documented one that fit; mostly none or one."""
    count, says = len(boxes.numbers), int(wrong.sum())
    in_unit = (boxes.numbers >= -OF_FRACTIONS) & (boxes.numbers <= 1 + OF_FRACTIONS)
    small: NDArray[np.bool_] = np.all(in_unit, axis=1)
    if small.all() or small.sum() >= max(FEWEST, EVIDENCE * count):
        yield from _fractions(boxes, small)
        return
    turned: NDArray[np.bool_] = np.any(boxes.shown != boxes.stored, axis=1)
    in_upright = wrong[~turned]  # rows first fits into images turned by a quarter as stored, too
    if wrong[turned].any() and in_upright.sum() < max(2, EVIDENCE * len(in_upright)):
        left = _contradict(boxes, CORNERS, STORED)[turned]
        if left.sum() <= FEW * turned.sum():
            reason = f"{int(wrong[turned].sum())} of {int(turned.sum())} in images with an EXIF orientation leave the "
            reason += "image as shown; all fit into it as stored"
            yield Reading(CORNERS, STORED, 0.0, int(wrong[turned].sum()), count, int(left.sum()), reason)
            return
    if count < FEWEST:
        return
    if says >= max(2, EVIDENCE * count):
        yield from _readings_that_fit_better(boxes, says)
    else:  # a few boxes outside of their images would hide that the others fill a part of them
        inside = Boxes(boxes.numbers[~wrong], boxes.shown[~wrong], boxes.stored[~wrong], boxes.images)
        for found in _smaller_units(inside):
            yield found._replace(boxes=count, contradict=found.contradict + says)


def _fractions(boxes: Boxes, small: NDArray[np.bool_]) -> Iterator[Reading]:
    """The readings of a set of which the boxes (n,) that are `small` are fractions; the others contradict them."""
    count, says = len(small), int(small.sum())
    reason = "all numbers are between 0 and 1" + (f" in {says:,} of them, convert only these" if says < count else "")
    fractions = Boxes(boxes.numbers[small], boxes.shown[small], boxes.stored[small])
    names = _formats_of_fractions(fractions)
    for name in names:
        yield _reading(boxes, name, FRACTIONS, 0.0, says, reason)
    any_order = [] if names else _any_order(fractions, FRACTIONS, says, reason)
    for found in any_order:
        yield found._replace(boxes=count, contradict=found.contradict + count - says)
    if not names and not any_order:
        yield Reading("", FRACTIONS, 0.0, says, count, count, f"{reason}, and they fit in no known order")


def _formats_of_fractions(boxes: Boxes) -> list[str]:
    """The formats that fit fractions best: several where nearly as few boxes contradict them.

    Small objects fit as corner and size, and as centre and size, but for those at the edges of their images.
    """
    formats = [name for name in FORMATS if name not in (ANY_ORDER, "y0 x0 y1 x1")]  # the latter fits as corners do
    fitting = [name for name in formats if _fits(boxes, name, FRACTIONS)]
    left = {name: int(_contradict(boxes, name, FRACTIONS, leeway=0.0).sum()) for name in fitting}
    most = min(left.values(), default=0) + FEW * len(boxes.numbers)
    if fitting:
        return [name for name, count in left.items() if count <= most]
    return [CORNERS] if _contradict(boxes, CORNERS, FRACTIONS).mean() < UNCLEAR else []


def _readings_that_fit_better(boxes: Boxes, says: int) -> Iterator[Reading]:
    """Formats in pixels first, then units, then corners in any order, which fits most boxes that are none."""
    reason = f"{says} of {len(boxes.numbers)} have no area or leave their images as x0 y0 x1 y1"
    sized = bool((boxes.shown > 0).all())
    if not sized:  # without sizes only the order of the numbers can be compared
        if _contradict(boxes, CORNERS, PIXELS).mean() >= 0.2:
            name = "x1 y1 x0 y0" if _fits(boxes, "x1 y1 x0 y0", PIXELS) else "x y width height"
            yield _reading(boxes, name, PIXELS, 0.0, says, reason)
        return
    formats = [name for name in FORMATS if name != ANY_ORDER]
    found = [
        _in_its_unit(boxes, _reading(boxes, name, PIXELS, 0.0, says, reason))
        for name in formats
        if _fits(boxes, name, PIXELS)
    ] or list(_scaled(boxes, reason, says))
    may_be_parts = not found and not _fits(boxes, ANY_ORDER, PIXELS) and not _touch_their_images(boxes)
    for name in formats if may_be_parts else ():
        if name == "y0 x0 y1 x1":
            continue  # the edges of these units are equal, so the order of the axes is undetermined
        for unit, whole in ((PERCENT, 100.0), (THOUSANDTHS, 1000.0)):
            if _fits(boxes, name, unit) and _reach(boxes, name, unit) >= 0.9 * whole:
                found.append(_reading(boxes, name, unit, 0.0, says, reason))
    in_order = (boxes.numbers[:, :2] < boxes.numbers[:, 2:]).all(axis=1).mean() > 1 - EVIDENCE
    if may_be_parts and in_order and CORNERS not in {reading.format for reading in found}:
        return  # they may be corners for another size of the images, whose sums reach the ends of a unit by chance
    yield from found or _any_order(boxes, PIXELS, says, reason)


def _in_its_unit(boxes: Boxes, reading: Reading) -> Reading:
    """A reading in pixels, or in a smaller unit if the boxes fill only a part of their images in its format."""
    corners = boxes._replace(numbers=FORMATS[reading.format](boxes.numbers))
    for smaller in _smaller_units(corners):
        reason = f"{reading.reason}; {smaller.reason}"
        return smaller._replace(format=reading.format, reason=reason)
    return reading


def _any_order(boxes: Boxes, unit: str, says: int, reason: str) -> list[Reading]:
    """Corners in any order, if most boxes need that reading and no other size explains them, since it fits everywhere.

    Where one axis is exchanged in all boxes and the other in none, they may be mirrored as well.
    """
    count = len(boxes.numbers)
    wrong = _contradict(boxes, CORNERS, unit).sum()
    unsized = min(_contradict(boxes, name, unit).sum() for name in FORMATS if "width" in name)
    if wrong < MOST * count or unsized < UNCLEAR * count or not _fits(boxes, ANY_ORDER, unit):
        return []
    found = _reading(boxes, ANY_ORDER, unit, 0.0, says, reason)
    exchanged = (boxes.numbers[:, :2] > boxes.numbers[:, 2:]).mean(axis=0)
    is_one_axis = exchanged.min() <= FEW and exchanged.max() >= 1 - FEW
    return [found, found._replace(format=MIRRORED)] if is_one_axis else [found]


def _smaller_units(boxes: Boxes) -> Iterator[Reading]:
    """Units in which the boxes fit into their images too, but fill only a part of each."""
    if not (boxes.shown > 0).all():
        return
    found = list(_scaled(boxes, "together they do not fill their images", 0))
    yield from found
    if found or len(boxes.numbers) < 2 * FEWEST:
        return
    for unit, whole in ((PERCENT, 100.0), (THOUSANDTHS, 1000.0)):
        in_larger = (boxes.shown.max(axis=1) >= LARGER * whole).mean()
        if in_larger >= 0.8 and _fits(boxes, CORNERS, unit) and _reach(boxes, CORNERS, unit) >= 0.8 * whole:
            # All objects may lie in one corner of their images: no box shows it.
            yield _reading(boxes, CORNERS, unit, 0.0, 0, f"the numbers are between 0 and {whole:.0f}")
            return


def _scaled(boxes: Boxes, reason: str, says: int) -> Iterator[Reading]:
    """Sizes at which the images were annotated, where boxes touch all four edges of an image of that size.

    Boxes of photographs with one longer side, upright and across, touch the edges of a square of that side. They touch
    the edges of their images as shown more often. In another unit than theirs, boxes of such photographs reach only the
    ends of the longer sides, or of the shorter ones. Equal boxes count once: a logo in a corner of all shows no size.
    """
    if boxes.images < FEWEST_IMAGES:
        return
    far, longest = boxes.numbers[:, 2:], boxes.shown.max(axis=1, keepdims=True)
    is_longer = boxes.shown == longest
    is_shorter = boxes.shown == boxes.shown.min(axis=1, keepdims=True)
    touching_shown = _touching(far, boxes.shown)
    _, different = np.unique(boxes.numbers, axis=0, return_index=True)
    near_edges = boxes.numbers[different, :2] <= EDGE * boxes.shown[different] + TOLERANCE
    if (near_edges.sum(axis=0) < TOUCHING).any():
        return
    units = {
        "images scaled by one factor": far / boxes.shown,
        "images with one longer side": far / boxes.shown * longest,
        SQUARE: far,
    }
    for unit, extent in units.items():
        right, low = extent.max(axis=0)
        size = float(max(right, low))
        touches = extent[different] >= (1 - EDGE) * size
        touching = touches.sum(axis=0)
        shows_size = (touching >= TOUCHING) & (touching > MORE_OFTEN * touching_shown)
        is_of_all_sides = all(touches[side[different]].sum() >= TOUCHING for side in (is_longer, is_shorter))
        if size <= 0 or not shows_size.all() or not is_of_all_sides or not _fits(boxes, CORNERS, unit, size):
            continue
        as_shown = (np.abs(UNITS[unit](boxes, size) / boxes.shown - 1) <= SAME_SIZE).all(axis=1).mean()
        if as_shown < 0.2:
            unit = PERCENT if unit == SQUARE and abs(size - 100) < 1 else unit
            unit = THOUSANDTHS if unit == SQUARE and abs(size - 1000) < 5 else unit
            what = f"{size:.3g} times the size" if unit == "images scaled by one factor" else f"{size:.0f} pixels"
            where = f"{reason}; {int(touching.min())} boxes touch the edges at {what}"
            yield _reading(boxes, CORNERS, unit, size, max(says, int(touching.min())), where)
            return


def _touch_their_images(boxes: Boxes) -> bool:
    """Whether some of the boxes are pixels as documented: more touch the edges of their images as shown than by chance.

    Pixels fit as thousandths too, where images are small.
    """
    touching = _touching(boxes.numbers[:, 2:], boxes.shown)
    return bool((touching >= max(TOUCHING, EVIDENCE * len(boxes.numbers))).all())


def _touching(far: Floats, edges: Floats) -> NDArray[np.int64]:
    """How many boxes (2,) touch the right and the lower edge, by their far corners (n, 2)."""
    touching: NDArray[np.int64] = (np.abs(far - edges) <= EDGE * edges + TOLERANCE).sum(axis=0)
    return touching


def _reading(boxes: Boxes, name: str, unit: str, size: float, says: int, reason: str) -> Reading:
    contradict = int(_contradict(boxes, name, unit, size).sum())
    return Reading(name, unit, size, says, len(boxes.numbers), contradict, reason)


def _fits(boxes: Boxes, name: str, unit: str, size: float = 0.0) -> bool:
    return bool(_contradict(boxes, name, unit, size).sum() <= FEW * len(boxes.numbers))


def _reach(boxes: Boxes, name: str, unit: str) -> float:
    """How far boxes reach along the longer or the shorter sides of their images, whichever is less.

    Of boxes that fit: a few that leave their images show no unit.
    """
    fitting = ~_contradict(boxes, name, unit)
    far, shown = FORMATS[name](boxes.numbers)[fitting, 2:], boxes.shown[fitting]
    sides = (shown == side(axis=1, keepdims=True) for side in (shown.max, shown.min))
    return min(float(far[side].max()) for side in sides)


def _contradict(
    boxes: Boxes, name: str, unit: str, size: float = 0.0, *, leeway: float = OF_FRACTIONS
) -> NDArray[np.bool_]:
    """Boxes (n,) that have no area or leave their image under a reading; without a size only the former.

    They may leave it by a pixel, and in fractions by `leeway`.
    """
    b = FORMATS[name](boxes.numbers)
    edge = UNITS[unit](boxes, size)
    known: NDArray[np.bool_] = np.all(boxes.shown > 0, axis=1)
    per_pixel = np.where(known[:, None], edge / np.where(boxes.shown > 0, boxes.shown, 1.0), 1.0)
    tolerance = per_pixel * TOLERANCE if unit != FRACTIONS else np.maximum(per_pixel, leeway)
    right: NDArray[np.bool_] = np.all(b[:, :2] >= -tolerance, axis=1) & np.all(b[:, :2] < b[:, 2:], axis=1)
    right &= np.all(b[:, 2:] <= edge + tolerance, axis=1) | ~known
    return ~right
