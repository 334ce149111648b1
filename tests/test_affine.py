"""Affine maps of boxes: points stay inside, areas scale as the map says, maps compose and invert."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanbox.geometry import Affine, Box, area_of

SMALL = st.floats(-2, 2, width=32)
STEPS = st.one_of(
    st.tuples(st.floats(0, 0.9), st.floats(0, 0.9)).map(
        lambda at: Affine.onto((at[0], at[1], at[0] + 0.1, at[1] + 0.1))
    ),
    st.just(Affine.mirror()),
    st.floats(-45, 45).map(Affine.rotation),
    st.tuples(st.floats(-30, 30), st.floats(-30, 30)).map(lambda angles: Affine.shear(*angles)),
    st.tuples(SMALL, SMALL).map(lambda shift: Affine(c=shift[0], f=shift[1])),
)
CHAINS = st.lists(STEPS, min_size=1, max_size=5)


def composed(steps: list[Affine]) -> Affine:
    whole = Affine()
    for step in steps:
        whole = whole.then(step)
    return whole


def point(x: float, y: float) -> Box:
    return x, y, x, y


def near(box: Box) -> Any:
    return pytest.approx(box, rel=1e-6, abs=1e-6)


@pytest.mark.slow
@given(CHAINS, st.floats(0, 1), st.floats(0, 1))
def test_a_composition_is_one_map_after_the_other(steps: list[Affine], x: float, y: float) -> None:
    by_steps = point(x, y)
    for step in steps:
        by_steps = step.box(by_steps)
    assert composed(steps).box(point(x, y)) == near(by_steps)


@pytest.mark.slow
@given(CHAINS, st.floats(0, 1), st.floats(0, 1))
def test_the_inverse_leads_back(steps: list[Affine], x: float, y: float) -> None:
    there = composed(steps)
    assert there.inverse().box(there.box(point(x, y))) == near(point(x, y))


@given(CHAINS, st.lists(st.floats(0, 1), min_size=6, max_size=6))
def test_a_point_of_a_box_stays_inside(steps: list[Affine], numbers: list[float]) -> None:
    x0, x1 = sorted(numbers[:2])
    y0, y1 = sorted(numbers[2:4])
    there = composed(steps)
    box = there.box((x0, y0, x1, y1))
    x, y, _, _ = there.box(point(x0 + numbers[4] * (x1 - x0), y0 + numbers[5] * (y1 - y0)))
    assert box[0] - 1e-9 <= x <= box[2] + 1e-9
    assert box[1] - 1e-9 <= y <= box[3] + 1e-9


@given(CHAINS)
def test_areas_scale_as_the_map_says(steps: list[Affine]) -> None:
    """Of upright maps exactly; of others the box around the moved one is larger."""
    there = composed(steps)
    box = (0.2, 0.3, 0.6, 0.9)
    ratio = area_of(there.box(box)) / area_of(box)
    if there.is_upright:
        assert ratio == pytest.approx(abs(there.area), rel=1e-6)
    else:
        assert ratio >= abs(there.area) * (1 - 1e-6)


def test_a_rotation_is_about_the_centre_and_clockwise() -> None:
    assert Affine.rotation(90.0).box(point(0.5, 0.0)) == near(point(1.0, 0.5))  # the middle of the upper edge
    assert Affine.rotation(30.0).box(point(0.5, 0.5)) == near(point(0.5, 0.5))
