"""Colours and resampling of an augmented image, against slow loops over its pixels."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from spanbox.data.augment_image import ImagePlan
from spanbox.data.colours import Look
from spanbox.data.images import Pixels
from spanbox.data.render import FILL, render
from spanbox.geometry import Affine


def noise(*shape: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)


def as_drawn(plan: ImagePlan, values: np.ndarray[Any, np.dtype[np.uint8]], side: int = 16) -> Tensor:
    return render(Pixels(values, (values.shape[1], values.shape[0])), plan, side)


@pytest.mark.parametrize("seed", range(4))
def test_colours_are_changed_as_one_after_the_other(seed: int) -> None:
    """Against a slow loop over pixels, without rounding in between."""
    generator = np.random.default_rng(seed)
    values = noise(16, 16, 3)
    look = Look()
    factors = generator.uniform(0.5, 1.5, size=3)
    look.brighten(factors[0])
    look.contrast(factors[1])
    look.saturate(factors[2])
    result = as_drawn(ImagePlan(colour=look.matrix()), values)
    for y in range(16):
        for x in range(16):
            pixel = values[y, x].astype(float) * factors[0]
            pixel = (pixel - 127.5) * factors[1] + 127.5
            grey = pixel @ np.array([0.299, 0.587, 0.114])
            pixel = grey + (pixel - grey) * factors[2]
            expected = np.floor(pixel.clip(0, 255) + 0.5).clip(0, 255)
            assert np.abs(result[:, y, x].numpy() - expected).max() <= 1


def test_a_full_turn_of_the_hue_changes_nothing_and_a_third_swaps_channels() -> None:
    full, third = Look(), Look()
    full.turn_hue(1.0)
    third.turn_hue(1 / 3)
    values = noise(16, 16, 3)
    plain = torch.from_numpy(values).permute(2, 0, 1)
    assert torch.equal(as_drawn(ImagePlan(colour=full.matrix()), values), plain)
    turned = as_drawn(ImagePlan(colour=third.matrix()), values)
    assert torch.equal(turned, plain[[1, 2, 0]]) or torch.equal(turned, plain[[2, 0, 1]])


def test_tables_are_composed() -> None:
    look = Look()
    look.solarize(128)
    look.posterize(2)
    values = noise(16, 16, 3)
    result = as_drawn(ImagePlan(table=look.table()), values)
    expected = np.where(values < 128, values, 255 - values) // 64 * 64
    assert np.array_equal(result.permute(1, 2, 0).numpy(), expected)


def test_grey_images_have_equal_channels() -> None:
    look = Look()
    look.saturate(0.0)
    result = as_drawn(ImagePlan(colour=look.matrix()), noise(16, 16, 3))
    assert (result.int().amax(dim=0) - result.int().amin(dim=0)).max() == 0


@pytest.mark.parametrize("degrees", [10.0, -35.0])
def test_a_rotation_reads_the_pixels_that_its_map_names(degrees: float) -> None:
    """Bilinear, against a slow loop; between pixel centres only, since the border is Pillow's own."""
    values = noise(20, 30, 3)
    plan = ImagePlan(Affine.rotation(degrees))
    result = as_drawn(plan, values, side=24).numpy()
    back = plan.to_square.inverse()
    compared = 0
    for row in range(24):
        for column in range(24):
            x, y = (column + 0.5) / 24, (row + 0.5) / 24
            u, v = (back.a * x + back.b * y + back.c) * 30 - 0.5, (back.d * x + back.e * y + back.f) * 20 - 0.5
            left, top = math.floor(u), math.floor(v)
            if not (0 <= left < 29 and 0 <= top < 19):
                continue
            right_share, low_share = u - left, v - top
            four = values[top : top + 2, left : left + 2].astype(float)
            upper = four[0, 0] * (1 - right_share) + four[0, 1] * right_share
            lower = four[1, 0] * (1 - right_share) + four[1, 1] * right_share
            assert np.abs(result[:, row, column] - (upper * (1 - low_share) + lower * low_share)).max() <= 1.01
            compared += 1
    assert compared > 300


def test_what_lies_beyond_the_image_is_grey() -> None:
    shifted = as_drawn(ImagePlan(Affine(c=0.5)), np.zeros((32, 32, 3), dtype=np.uint8))
    assert (shifted[:, :, :8] == FILL).all()
    assert (shifted[:, :, 8:] == 0).all()
