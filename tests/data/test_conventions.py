"""Conventions of boxes are told from all boxes of a set: right on 99 of 100 sets of each, or they cannot be told."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from spanbox.data.audit.boxes import kind_of
from spanbox.data.audit.conventions import (
    ANY_ORDER,
    CORNERS,
    FRACTIONS,
    PERCENT,
    PIXELS,
    STORED,
    THOUSANDTHS,
    Boxes,
    as_documented,
    find_reading,
)

Floats = NDArray[np.float64]
SETS = 100


def draw_set(seed: int, *, images: int = 40, square: bool = False) -> Boxes:
    """Boxes as annotators draw them: two to four an image, of all sizes, cut at the edges; photographs of phones."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(images):
        sides = generator.integers(300, 1400, 2).astype(float)
        width, height = (sides[0], sides[0]) if square else sides
        for _ in range(int(generator.integers(2, 5))):
            centre = generator.uniform(0, 1, 2) * (width, height)
            size = np.exp(generator.uniform(np.log(0.08), np.log(0.9), 2)) * (width, height)
            low, high = np.maximum(centre - size / 2, 0), np.minimum(centre + size / 2, (width, height))
            rows.append([*low, *high, width, height])
    table = np.array(rows).round(2)
    return Boxes(table[:, :4], table[:, 4:], table[:, 4:])


def changed(boxes: Boxes, numbers: Floats) -> Boxes:
    return boxes._replace(numbers=numbers)


def to_sizes(boxes: Boxes) -> Floats:
    b = boxes.numbers
    return np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], axis=1)


def to_centres(boxes: Boxes) -> Floats:
    b = boxes.numbers
    return np.concatenate([(b[:, :2] + b[:, 2:]) / 2, b[:, 2:] - b[:, :2]], axis=1)


def to_any_order(boxes: Boxes) -> Floats:
    b = boxes.numbers.copy()
    swapped = np.random.default_rng(0).random((len(b), 2)) < 0.5
    b[:, :2], b[:, 2:] = np.where(swapped, b[:, 2:], b[:, :2]), np.where(swapped, b[:, :2], b[:, 2:])
    return b


def to_columns_first(boxes: Boxes) -> Floats:
    return boxes.numbers[:, [0, 2, 1, 3]]


def relative(boxes: Boxes) -> Floats:
    return boxes.numbers / np.tile(boxes.shown, 2)


def to_longer_side(boxes: Boxes, side: float) -> Floats:
    return boxes.numbers * side / boxes.shown.max(axis=1, keepdims=True)


CONVENTIONS: dict[str, tuple[Callable[[Boxes], Floats], str, str]] = {
    "as documented": (lambda b: b.numbers, CORNERS, PIXELS),
    "xywh": (to_sizes, "x y width height", PIXELS),
    "cxcywh": (to_centres, "centre x, centre y, width, height", PIXELS),
    "yxyx": (lambda b: b.numbers[:, [1, 0, 3, 2]], "y0 x0 y1 x1", PIXELS),
    "xxyy": (to_columns_first, "x0 x1 y0 y1", PIXELS),
    "far corner first": (lambda b: b.numbers[:, [2, 3, 0, 1]], "x1 y1 x0 y0", PIXELS),
    "any order": (to_any_order, ANY_ORDER, PIXELS),
    "fractions": (relative, CORNERS, FRACTIONS),
    "percent": (lambda b: 100 * relative(b), CORNERS, PERCENT),
    "thousandths": (lambda b: 1000 * relative(b), CORNERS, THOUSANDTHS),
    "half": (lambda b: b.numbers / 2, CORNERS, "images scaled by one factor"),
    "twice": (lambda b: b.numbers * 2, CORNERS, "images scaled by one factor"),
    "square": (lambda b: 512 * relative(b), CORNERS, "square images"),
    "longer side": (lambda b: to_longer_side(b, 640), CORNERS, "images with one longer side"),
    "fractions of centre and size": (
        lambda b: to_centres(b._replace(numbers=relative(b))),
        "centre x, centre y, width, height",
        FRACTIONS,
    ),
    "fractions of columns and rows": (
        lambda b: to_columns_first(b._replace(numbers=relative(b))),
        "x0 x1 y0 y1",
        FRACTIONS,
    ),
    "percent of corner and size": (
        lambda b: 100 * to_sizes(b._replace(numbers=relative(b))),
        "x y width height",
        PERCENT,
    ),
    "thousandths of corner and size": (
        lambda b: 1000 * to_sizes(b._replace(numbers=relative(b))),
        "x y width height",
        THOUSANDTHS,
    ),
}


def draw_small(seed: int, count: int) -> Boxes:
    """Boxes of 1 to 10 % of the sides of their images."""
    generator = np.random.default_rng(seed)
    shown = generator.integers(300, 900, (count, 2)).astype(float)
    size = generator.uniform(0.01, 0.1, (count, 2)) * shown
    low = generator.uniform(0, 1, (count, 2)) * (shown - size)
    return Boxes(np.concatenate([low, low + size], axis=1), shown, shown)


@pytest.mark.parametrize(
    ("change", "name"),
    [(to_sizes, "x y width height"), (to_centres, "centre x, centre y, width, height"), (lambda b: b.numbers, CORNERS)],
)
@pytest.mark.parametrize("count", [5, 30, 300])
def test_fractions_of_small_objects_are_never_told_wrongly(
    change: Callable[[Boxes], Floats], name: str, count: int
) -> None:
    """Only those at the edges of their images show whether a corner or the centre comes first."""
    told = []
    for seed in range(20):
        boxes = draw_small(seed, count)
        reading = find_reading(changed(boxes, change(boxes._replace(numbers=relative(boxes)))))
        assert reading.unit == FRACTIONS
        assert kind_of(reading).startswith("boxes look like")
        told.append(reading.format)
    assert set(told) <= {name, ""}
    assert count < 300 or told.count(name) >= 19


def test_fractions_of_large_objects_may_be_corners_or_sizes() -> None:
    """The width of an object of more than half the image is larger than its left edge, as its right edge is."""
    shown = np.tile([640.0, 480.0], (60, 1))
    low, size = np.random.default_rng(0).uniform([[0], [0.5]], [[0.2], [0.8]], (60, 2, 2)).transpose(1, 0, 2)
    boxes = Boxes(np.concatenate([low, low + size], axis=1), shown, shown)
    found = find_reading(changed(boxes, to_sizes(boxes)))
    assert (found.format, found.unit) == ("", FRACTIONS)
    assert "x0 y0 x1 y1 in fractions or x y width height in fractions" in found.reason
    assert find_reading(boxes).format == CORNERS


@pytest.mark.parametrize("scale", [100, 1000])
@pytest.mark.parametrize("as_given", [lambda boxes: boxes.numbers, to_sizes])
def test_a_few_boxes_beyond_the_edges_hide_no_unit(scale: float, as_given: Callable[[Boxes], Floats]) -> None:
    """Read as pixels of larger images, all would fit."""
    boxes = draw_set(0, images=200)
    larger = (boxes.shown > 1.25 * scale).any(axis=1)
    boxes = Boxes(relative(boxes)[larger] * scale, boxes.shown[larger], boxes.shown[larger])
    boxes.numbers[0, 2:] = 1.02 * scale
    assert find_reading(changed(boxes, as_given(boxes))).unit == (PERCENT if scale == 100 else THOUSANDTHS)


@pytest.mark.parametrize("side", [100.0, 224.0])
def test_corners_of_larger_images_are_not_taken_for_sizes_in_thousandths(side: float) -> None:
    """The images were reduced after their annotation at 512 x 512: the sum of two corners is up to 1024."""
    boxes = draw_small(0, 100)
    shown = np.full_like(boxes.shown, side)
    assert find_reading(Boxes(512 * relative(boxes), shown, shown)).format == ""


def test_boxes_that_reach_one_end_of_a_unit_alone_are_not_of_it() -> None:
    """Made for images of 960 x 720, where no box touches an edge."""
    small = draw_small(0, 300)
    shown = np.tile([640.0, 480.0], (300, 1))
    boxes = Boxes(1.5 * relative(small) * np.tile(shown, 2), shown, shown)
    assert find_reading(boxes).format == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", CONVENTIONS)
def test_99_of_100_sets_are_told(name: str) -> None:
    change, form, unit = CONVENTIONS[name]
    right = wrong = 0
    for seed in range(SETS):
        boxes = draw_set(seed)
        given = changed(boxes, change(boxes))
        found = find_reading(given)
        right += (found.format, found.unit) == (form, unit)
        wrong += bool(found.format) and (found.format, found.unit) != (form, unit)
        if (found.format, found.unit) == (form, unit):
            assert found.is_as_documented == (name == "as documented")
            np.testing.assert_allclose(as_documented(given, found), boxes.numbers, atol=6.0 if found.size else 0.1)
    assert right >= 0.99 * SETS
    assert wrong <= 0.01 * SETS


@pytest.mark.parametrize("sizes", [[(640, 480), (480, 640)], [(4000, 3000), (3000, 4000)], [(500, 375), (612, 612)]])
@pytest.mark.parametrize("side", [100, 336, 1000])
def test_units_of_upright_and_wide_photographs_are_not_taken_for_a_size_of_theirs(
    sizes: list[tuple[int, int]], side: int
) -> None:
    """Read as scaled images, or as those of one longer side, thousandths reach only the ends of the shorter sides."""
    for seed in range(5):
        generator = np.random.default_rng(seed)
        shown = np.array(sizes, dtype=float)[generator.integers(len(sizes), size=400)]
        centre, size = generator.uniform(0, 1, shown.shape), np.exp(generator.uniform(-2.5, 0, shown.shape))
        shares = np.concatenate([np.maximum(centre - size / 2, 0), np.minimum(centre + size / 2, 1)], axis=1)
        boxes = Boxes((shares * side).round(2), shown, shown, 200)
        found = find_reading(boxes)
        assert found.unit in ("square images", PERCENT, THOUSANDTHS)
        np.testing.assert_allclose(as_documented(boxes, found), shares * np.tile(shown, 2), atol=0.02 * shown.max())


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_fractions_among_pixels_are_told_and_not_certain(share: float) -> None:
    boxes = draw_set(0, images=100)
    first = np.arange(len(boxes.numbers)) < share * len(boxes.numbers)
    found = find_reading(changed(boxes, np.where(first[:, None], relative(boxes), boxes.numbers)))
    assert kind_of(found) == "boxes look like fractions"
    assert (found.says, found.contradict) == (first.sum(), (~first).sum())


@pytest.mark.parametrize(("scale", "unit"), [(0.5, "images scaled by one factor"), (100, PERCENT)])
def test_a_box_that_leaves_its_image_hides_no_smaller_unit(scale: float, unit: str) -> None:
    boxes = draw_set(0)
    numbers = scale * (relative(boxes) if unit == PERCENT else boxes.numbers)
    numbers[7] = [-5, -5, 9999, 9999]
    found = find_reading(changed(boxes, numbers))
    assert (found.unit, found.contradict, found.boxes) == (unit, 1, len(numbers))


def test_fractions_in_several_orders_are_of_no_known_one() -> None:
    """Sorted, their corners would fit, too: half of them are not corners."""
    boxes = draw_set(0)._replace(numbers=relative(draw_set(0)))
    half = np.arange(len(boxes.numbers)) % 2 == 0
    found = find_reading(changed(boxes, np.where(half[:, None], to_columns_first(boxes), to_centres(boxes))))
    assert (found.format, kind_of(found)) == ("", "boxes look like fractions")


def test_corners_in_any_order_of_square_images_are_not_taken_for_thousandths() -> None:
    """The sum of two numbers below 512 is below 1000, like a corner and a size in thousandths."""
    shown = np.full((60, 2), 512.0)
    low, high = np.sort(np.random.default_rng(0).uniform(0, 490, (2, 60, 2)), axis=0)
    boxes = Boxes(np.concatenate([low, high], axis=1), shown, shown)
    assert find_reading(changed(boxes, to_any_order(boxes))).format == ANY_ORDER


@pytest.mark.parametrize("in_fractions", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
def test_corners_with_one_axis_exchanged_may_be_mirrored_ones(axis: int, in_fractions: bool) -> None:
    """With y from the lower edge the sorted corners would be those of other boxes."""
    boxes = draw_set(0)
    numbers = relative(boxes) if in_fractions else boxes.numbers
    mirrored, edge = numbers.copy(), np.ones_like(boxes.shown) if in_fractions else boxes.shown
    mirrored[:, axis::2] = edge[:, axis, None] - numbers[:, axis::2]
    found = find_reading(changed(boxes, mirrored))
    assert found.format == ""
    assert "corners in any order in" in found.reason
    assert "or mirrored corners in" in found.reason


@pytest.mark.slow
def test_boxes_of_unturned_photographs_are_told() -> None:
    right = 0
    for seed in range(SETS):
        boxes = draw_set(seed)
        turned = np.arange(len(boxes.numbers)) % 3 == 0
        shown = np.where(turned[:, None], boxes.stored[:, ::-1], boxes.stored)
        right += find_reading(boxes._replace(shown=shown)).unit == STORED
    assert right >= 0.99 * SETS


def test_rows_first_are_not_taken_for_boxes_of_unturned_photographs() -> None:
    """In a photograph that is turned by a quarter, the order of the axes is that of its sides as stored."""
    for seed in range(20):
        boxes = draw_set(seed)
        turned = np.arange(len(boxes.numbers)) % 3 == 0
        stored = np.where(turned[:, None], boxes.shown[:, ::-1], boxes.shown)
        found = find_reading(boxes._replace(numbers=boxes.numbers[:, [1, 0, 3, 2]], stored=stored))
        assert (found.format, found.unit) == ("y0 x0 y1 x1", PIXELS)


def test_rows_first_cannot_be_told_in_square_images() -> None:
    boxes = draw_set(0, square=True)
    assert find_reading(changed(boxes, boxes.numbers[:, [1, 0, 3, 2]])).is_as_documented


@pytest.mark.parametrize("scale", [1, 100, 1000, 512])
def test_units_in_which_the_order_of_the_axes_does_not_show_say_so(scale: float) -> None:
    boxes = draw_set(0)
    rows_first = changed(boxes, (scale * relative(boxes))[:, [1, 0, 3, 2]])
    assert find_reading(rows_first).remark == "; y before x fits as well: look at some boxes"
    assert find_reading(boxes).remark == find_reading(changed(boxes, boxes.numbers / 2)).remark == ""


@pytest.mark.slow
def test_two_conventions_in_one_set_cannot_be_told() -> None:
    for seed in range(SETS):
        boxes = draw_set(seed)
        half = np.arange(len(boxes.numbers)) % 2 == 0
        found = find_reading(changed(boxes, np.where(half[:, None], to_sizes(boxes), boxes.numbers)))
        assert found.format == ""
        assert found.says > 0


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 0.7])
def test_pixels_among_thousandths_are_not_taken_for_thousandths(share: float) -> None:
    """In images below 1,000 pixels all boxes in pixels fit as thousandths."""
    for seed in range(20):
        boxes = draw_set(seed, images=600)
        boxes = Boxes(*(part[(boxes.shown < 1000).all(axis=1)] for part in boxes[:3]))
        in_pixels = np.random.default_rng(seed).random((len(boxes.numbers), 1)) < share
        mixed = changed(boxes, np.where(in_pixels, boxes.numbers, 1000 * relative(boxes)))
        assert find_reading(mixed).unit != THOUSANDTHS


def test_objects_in_the_middle_of_their_images_are_not_taken_for_another_size() -> None:
    """Photographs of products: no box reaches an edge, and all are alike."""
    boxes = draw_set(0)
    middle = np.tile(boxes.shown, 2) * [0.1, 0.1, 0.9, 0.9]
    assert find_reading(changed(boxes, middle)).is_as_documented


@pytest.mark.slow
@pytest.mark.parametrize("images", [12, 40, 200])
@pytest.mark.parametrize(
    "sizes", [[(640, 480), (640, 427), (480, 640)], [(500, 375), (333, 500)], [(2048, 1536), (1536, 2048)]]
)
@pytest.mark.parametrize("whole", [False, True])
def test_photographs_with_one_longer_side_are_as_documented(
    sizes: list[tuple[int, int]], images: int, whole: bool
) -> None:
    """Boxes at the edges of upright and wide photographs touch the edges of a square, too; that is not their size."""
    for seed in range(20):
        generator = np.random.default_rng(seed)
        shown = np.array(sizes, dtype=float)[generator.integers(len(sizes), size=2 * images)]
        centre, size = generator.uniform(0, 1, shown.shape), np.exp(generator.uniform(-2.5, 0, shown.shape))
        low, high = np.maximum(centre - size / 2, 0) * shown, np.minimum(centre + size / 2, 1) * shown
        low, high = (0 * low, shown) if whole else (low, high)
        assert find_reading(Boxes(np.concatenate([low, high], axis=1).round(1), shown, shown, images)).is_as_documented


def test_the_extent_of_boxes_shows_no_more_than_the_boxes_that_reach_it() -> None:
    """Twenty boxes at the edges of a smaller image are evidence; a hundred boxes that are small are none."""
    boxes = draw_set(0)
    found = find_reading(changed(boxes, boxes.numbers / 2))
    assert 0 < found.says < len(boxes.numbers)
    percent = find_reading(changed(boxes, (20 + 60 * relative(boxes)).round(2)))
    assert (percent.unit, percent.says) == (PERCENT, 0)


def test_numbers_near_the_largest_float_contradict_every_reading() -> None:
    """Some programs write it where there is no box."""
    boxes = draw_set(0)
    numbers = boxes.numbers.copy()
    numbers[::10] = np.finfo(np.float64).max
    assert find_reading(changed(boxes, numbers)).contradict == len(numbers[::10])


def test_without_sizes_the_order_of_the_numbers_still_shows() -> None:
    boxes = draw_set(0)
    nothing = np.zeros_like(boxes.shown)
    assert find_reading(Boxes(to_sizes(boxes), nothing, nothing)).format == "x y width height"
    assert find_reading(Boxes(boxes.numbers[:, [2, 3, 0, 1]], nothing, nothing)).format == "x1 y1 x0 y0"
    assert find_reading(Boxes(boxes.numbers, nothing, nothing)).is_as_documented


def test_the_edges_of_a_few_images_show_nothing() -> None:
    """Two photographs of which detectors found many boxes that touch the edges of something inside of them."""
    boxes = draw_set(0)
    assert find_reading(changed(boxes, boxes.numbers / 2)).unit == "images scaled by one factor"
    assert find_reading(changed(boxes, boxes.numbers / 2)._replace(images=2)).is_as_documented


@pytest.mark.parametrize("count", [0, 1, 3])
def test_few_boxes_show_nothing(count: int) -> None:
    boxes = draw_set(0)
    few = Boxes(to_sizes(boxes)[:count], boxes.shown[:count], boxes.stored[:count])
    assert find_reading(few).is_as_documented
