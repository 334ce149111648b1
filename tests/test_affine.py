"""Affine maps of boxes: points stay inside, areas scale as the map says, maps compose and invert."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spanbox.geometry import Affine, box_area

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


def point(x: float, y: float) -> Tensor:
    return torch.tensor([[x, y, x, y]], dtype=torch.float64)


@given(CHAINS, st.floats(0, 1), st.floats(0, 1))
def test_a_composition_is_one_map_after_the_other(steps: list[Affine], x: float, y: float) -> None:
    by_steps = point(x, y)
    for step in steps:
        by_steps = step.boxes(by_steps)
    torch.testing.assert_close(composed(steps).boxes(point(x, y)), by_steps)


@given(CHAINS, st.floats(0, 1), st.floats(0, 1))
def test_the_inverse_leads_back(steps: list[Affine], x: float, y: float) -> None:
    there = composed(steps)
    back = there.inverse().boxes(there.boxes(point(x, y)))
    torch.testing.assert_close(back, point(x, y), atol=1e-6, rtol=1e-6)


@given(CHAINS, st.lists(st.floats(0, 1), min_size=6, max_size=6))
def test_a_point_of_a_box_stays_inside(steps: list[Affine], numbers: list[float]) -> None:
    x0, x1 = sorted(numbers[:2])
    y0, y1 = sorted(numbers[2:4])
    there = composed(steps)
    box = there.boxes(torch.tensor([[x0, y0, x1, y1]], dtype=torch.float64))[0]
    inside = there.boxes(point(x0 + numbers[4] * (x1 - x0), y0 + numbers[5] * (y1 - y0)))[0]
    assert (inside[:2] >= box[:2] - 1e-9).all()
    assert (inside[2:] <= box[2:] + 1e-9).all()


@given(CHAINS)
def test_areas_scale_as_the_map_says(steps: list[Affine]) -> None:
    """Of upright maps exactly; of others the box around the moved one is larger."""
    there = composed(steps)
    box = torch.tensor([[0.2, 0.3, 0.6, 0.9]], dtype=torch.float64)
    ratio = (box_area(there.boxes(box)) / box_area(box)).item()
    if there.is_upright:
        assert ratio == pytest.approx(abs(there.area), rel=1e-6)
    else:
        assert ratio >= abs(there.area) * (1 - 1e-6)


def test_a_rotation_is_about_the_centre_and_clockwise() -> None:
    turned = Affine.rotation(90.0).boxes(point(0.5, 0.0))  # the middle of the upper edge
    torch.testing.assert_close(turned, point(1.0, 0.5))
    torch.testing.assert_close(Affine.rotation(30.0).boxes(point(0.5, 0.5)), point(0.5, 0.5))


def test_no_boxes() -> None:
    assert Affine.rotation(10.0).boxes(torch.zeros(0, 4)).shape == (0, 4)
