"""Boxes by tables, RoIAlign against a plain loop."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import geometry_reference
from spanbox.geometry import (
    Box,
    box_area,
    box_iou,
    clip_boxes,
    denormalise_boxes,
    expand_boxes,
    in_fractions,
    roi_align,
)

WHOLE = [0.0, 0.0, 1.0, 1.0]

corners = st.floats(-0.5, 1.5, width=32)
boxes = st.lists(st.tuples(corners, corners, corners, corners), max_size=4).map(
    lambda rows: torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0.0, 0.0, 200.0, 100.0), WHOLE),
        ((50.0, 50.0, 100.0, 75.0), [0.25, 0.5, 0.5, 0.75]),
        ((-20.0, 0.0, 220.0, 100.0), [-0.1, 0.0, 1.1, 1.0]),
    ],
    ids=["whole image", "inside", "beyond the border"],
)
def test_fractions_and_back(box: Box, expected: list[float]) -> None:
    fractions = in_fractions(box, width=200, height=100)
    assert fractions == pytest.approx(expected)
    torch.testing.assert_close(denormalise_boxes(torch.tensor([fractions]), width=200, height=100), torch.tensor([box]))


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([0.2, 0.3, 0.4, 0.5], [0.2, 0.3, 0.4, 0.5]),
        ([-0.5, -0.1, 0.5, 1.7], [0.0, 0.0, 0.5, 1.0]),
        ([1.2, 0.1, 1.4, 0.2], [1.0, 0.1, 1.0, 0.2]),
    ],
    ids=["inside", "across the border", "outside"],
)
def test_clip(box: list[float], expected: list[float]) -> None:
    torch.testing.assert_close(clip_boxes(torch.tensor(box)), torch.tensor(expected))


@pytest.mark.parametrize(
    ("box", "area"),
    [(WHOLE, 1.0), ([0.25, 0.5, 0.75, 1.0], 0.25), ([0.5, 0.5, 0.5, 0.9], 0.0), ([0.9, 0.9, 0.1, 0.1], 0.0)],
    ids=["whole image", "quarter", "line", "inverted"],
)
def test_area(box: list[float], area: float) -> None:
    assert box_area(torch.tensor(box)).item() == pytest.approx(area)


@pytest.mark.parametrize(
    ("first", "second", "iou"),
    [
        (WHOLE, WHOLE, 1.0),
        ([0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0], 0.0),
        ([0.0, 0.0, 0.5, 1.0], WHOLE, 0.5),
        ([0.0, 0.0, 0.5, 0.5], [0.25, 0.25, 0.75, 0.75], 1 / 7),
        ([0.3, 0.3, 0.3, 0.3], [0.3, 0.3, 0.3, 0.3], 0.0),
        ([0.9, 0.9, 0.1, 0.1], WHOLE, 0.0),
    ],
    ids=["same", "touching", "half", "corner", "both without area", "inverted"],
)
def test_iou(first: list[float], second: list[float], iou: float) -> None:
    assert box_iou(torch.tensor([first]), torch.tensor([second])).item() == pytest.approx(iou)


def test_iou_within_each_of_several_images() -> None:
    corners = torch.rand(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    boxes = torch.cat([corners.amin(dim=2), corners.amax(dim=2)], dim=2)
    expected = torch.stack([box_iou(one, one[:2]) for one in boxes])
    torch.testing.assert_close(box_iou(boxes, boxes[:, :2]), expected)


@pytest.mark.slow
@given(first=boxes, second=boxes)
def test_iou_equals_the_loop(first: torch.Tensor, second: torch.Tensor) -> None:
    expected = torch.tensor(geometry_reference.box_iou(first.double(), second.double()), dtype=torch.float64)
    torch.testing.assert_close(
        box_iou(first.double(), second.double()), expected.reshape(len(first), len(second)), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(
    ("box", "margin", "expected"),
    [
        ([0.4, 0.4, 0.6, 0.5], 0.0, [0.4, 0.4, 0.6, 0.5]),
        ([0.4, 0.4, 0.6, 0.5], 0.5, [0.3, 0.35, 0.7, 0.55]),
        ([0.0, 0.5, 0.4, 1.0], 0.25, [0.0, 0.375, 0.5, 1.0]),
    ],
    ids=["not at all", "each side by half its length", "stops at the border"],
)
def test_expand(box: list[float], margin: float, expected: list[float]) -> None:
    torch.testing.assert_close(expand_boxes(torch.tensor(box), margin), torch.tensor(expected))


EDGE_BOXES = [
    WHOLE,
    [0.1, 0.2, 0.7, 0.9],
    [0.5, 0.5, 0.501, 0.5001],  # smaller than a cell
    [0.3, 0.3, 0.3, 0.8],  # no width
    [-0.4, -0.3, 0.5, 0.6],  # partly outside
    [0.6, 0.7, 1.5, 1.8],
    [1.6, 0.1, 1.9, 0.4],  # wholly outside
    [-2.0, -2.0, 3.0, 3.0],  # around the image
    [0.8, 0.9, 0.2, 0.1],  # inverted: a mirrored reading, as in the reference implementations
]


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 4), (3, 7)], ids=str)
@pytest.mark.parametrize(("output_size", "sampling_ratio"), [(1, 1), (1, 3), (2, 2), (3, 2), (7, 1)])
def test_roi_align_equals_the_loop(size: tuple[int, int], output_size: int, sampling_ratio: int) -> None:
    features = torch.randn(2, *size, 3, dtype=torch.float64)
    boxes = torch.stack([torch.tensor(EDGE_BOXES), torch.rand(len(EDGE_BOXES), 4) * 1.4 - 0.2])
    expected = geometry_reference.roi_align(features, boxes, output_size, sampling_ratio)
    torch.testing.assert_close(roi_align(features, boxes, output_size, sampling_ratio), expected, rtol=1e-9, atol=1e-12)


def test_roi_align_has_the_gradient_of_the_loop() -> None:
    features = torch.randn(1, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([EDGE_BOXES])
    weights = torch.randn(1, len(EDGE_BOXES), 2, 2, 2, dtype=torch.float64)
    (fast,) = torch.autograd.grad((roi_align(features, boxes, 2) * weights).sum(), features)
    (slow,) = torch.autograd.grad((geometry_reference.roi_align(features, boxes, 2, 2) * weights).sum(), features)
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_roi_align_is_not_rounded_under_autocast(dtype: torch.dtype) -> None:
    features = torch.randn(1, 6, 5, 3).to(dtype)
    boxes = torch.tensor([[[0.11, 0.23, 0.57, 0.89]]])
    with torch.autocast("cpu", torch.bfloat16):
        found = roi_align(features, boxes, 2)
    assert torch.equal(found, roi_align(features.float(), boxes, 2).to(dtype))


def test_roi_align_gradcheck() -> None:
    features = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: roi_align(f, torch.tensor([EDGE_BOXES]), 2), features)


def test_roi_align_of_the_whole_image_is_its_mean() -> None:
    features = torch.randn(1, 4, 4, 3)
    pooled = roi_align(features, torch.tensor([[WHOLE]]), output_size=4, sampling_ratio=1)
    torch.testing.assert_close(pooled[0, 0], features[0])
    torch.testing.assert_close(pooled.mean(dim=(2, 3))[0, 0], features.mean(dim=(1, 2))[0])


def test_roi_align_rows_go_down_and_columns_right() -> None:
    down, right = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    bins = roi_align(torch.stack([down, right], dim=-1)[None], torch.tensor([[WHOLE]]), output_size=2)[0, 0]
    assert (bins[1, :, 0] > bins[0, :, 0]).all()
    assert (bins[:, 1, 1] > bins[:, 0, 1]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_roi_align_keeps_the_dtype_of_the_features(dtype: torch.dtype) -> None:
    assert roi_align(torch.randn(1, 4, 4, 3).to(dtype), torch.tensor([[WHOLE]]), 2).dtype == dtype


def test_roi_align_without_regions() -> None:
    features = torch.randn(2, 3, 3, 5, requires_grad=True)
    bins = roi_align(features, torch.zeros(2, 0, 4), 2)
    assert bins.shape == (2, 0, 2, 2, 5)
    bins.sum().backward()
    assert (features.grad == 0).all()


def test_roi_align_without_images() -> None:
    assert roi_align(torch.zeros(0, 3, 3, 5), torch.zeros(0, 4, 4), 2).shape == (0, 4, 2, 2, 5)
