"""Augmentation under any settings: every plan, image and box give a whole sample; presets, and what is refused."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from coloured import RED, TEXT
from pairs import Box, entity
from spanbox.data.augment import AugmentSettings
from spanbox.data.augment_image import PRESETS, ImageAugmentSettings, draw_plan, whole_pixels
from spanbox.data.draws import Draws
from spanbox.data.limits import SampleLimits
from spanbox.data.prepare import prepare
from spanbox.geometry import area_of, box_area, clip_box
from spanbox.structures import SHOWN

# ---------------------------------------------------------------- properties
SETTINGS = st.builds(
    ImageAugmentSettings,
    crop=st.sampled_from([0.0, 1.0]),
    crop_scale=st.sampled_from([(0.01, 0.1), (0.2, 1.0), (1.0, 1.0)]),
    crop_ratio=st.sampled_from([(1.0, 1.0), (0.2, 5.0)]),
    keep_boxes=st.sampled_from(["none", "one", "all"]),
    flip=st.sampled_from([0.0, 1.0]),
    rotation=st.sampled_from([0.0, 45.0]),
    operations=st.integers(0, 3),
    magnitude=st.sampled_from([1.0, 10.0]),
    erase=st.sampled_from([0.0, 1.0]),
)
SIZES = st.tuples(st.integers(1, 3000), st.integers(1, 3000))
FRACTIONS = st.floats(0, 1, width=32)


@st.composite
def boxes_in_fractions(draw: st.DrawFn) -> Box:
    x, y = (sorted((draw(FRACTIONS) * 0.99, draw(FRACTIONS) * 0.99)) for _ in "xy")
    return x[0], y[0], max(x[1], x[0] + 0.01), max(y[1], y[0] + 0.01)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(SETTINGS, SIZES, boxes_in_fractions(), st.integers(0, 1000), st.tuples(FRACTIONS, FRACTIONS))
def test_any_plan_is_a_map_that_boxes_can_follow(
    changes: ImageAugmentSettings, size: tuple[int, int], box: Box, seed: int, inside: tuple[float, float]
) -> None:
    plan = draw_plan(changes, size, 32, [box], may_flip=True, generator=np.random.default_rng(seed))
    x, y = box[0] + inside[0] * (box[2] - box[0]), box[1] + inside[1] * (box[3] - box[1])
    placed, (moved_x, moved_y, _, _) = plan.to_square.box(box), plan.to_square.box((x, y, x, y))
    rounding = 1e-6 * max(1.0, *map(abs, placed))
    assert placed[0] - rounding <= moved_x <= placed[2] + rounding
    assert placed[1] - rounding <= moved_y <= placed[3] + rounding
    clipped = clip_box(placed)
    assert 0 <= clipped[0] <= clipped[2] <= 1
    assert 0 <= clipped[1] <= clipped[3] <= 1
    if plan.to_square.is_upright:
        assert area_of(placed) == pytest.approx(abs(plan.to_square.area) * area_of(box), rel=1e-6)
    assert plan.reduction in (1, 2, 4, 8)


@settings(max_examples=100, deadline=None)
@given(SIZES, st.tuples(FRACTIONS, FRACTIONS, FRACTIONS, FRACTIONS), st.integers(1, 400))
def test_windows_grow_to_whole_pixels_of_the_decoded_image(
    size: tuple[int, int], edges: tuple[float, float, float, float], side: int
) -> None:
    (x0, x1), (y0, y1) = sorted((edges[0], edges[1])), sorted((edges[2], edges[3]))
    window = (x0, y0, x1, y1)
    grown, reduction = whole_pixels(window, size, side)
    assert 0 <= grown[0] < grown[2] <= 1
    assert 0 <= grown[1] < grown[3] <= 1
    for axis, pixels in enumerate(size):
        low, high = grown[axis] * pixels, grown[axis + 2] * pixels
        assert low / reduction == pytest.approx(round(low / reduction), abs=1e-6)
        assert high == pytest.approx(pixels, abs=1e-6) or high / reduction == pytest.approx(round(high / reduction))
        at_most = (pixels - 1) // reduction * reduction / pixels  # the last whole pixel
        assert grown[axis] <= min(window[axis], at_most) + 1e-9 or reduction == 1
        assert grown[axis + 2] >= window[axis + 2] - 1e-9
    if reduction > 1:
        assert min((x1 - x0) * size[0], (y1 - y0) * size[1]) >= reduction * side


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(SETTINGS, st.tuples(st.integers(1, 90), st.integers(1, 90)), boxes_in_fractions(), st.integers(0, 1000))
def test_any_image_and_box_give_a_whole_sample(
    changes: ImageAugmentSettings, size: tuple[int, int], box: Box, seed: int
) -> None:
    in_pixels = (box[0] * size[0], box[1] * size[1], box[2] * size[0], box[3] * size[1])
    limits = SampleLimits(16, crop_size=8, augment=AugmentSettings(image=changes))
    cat = entity(TEXT, "cat", in_pixels)
    sample = prepare(Image.new("RGB", size, RED), TEXT, [cat], (), limits, draws=Draws(seed, 0, 0))
    assert sample.pixels.shape == (3, 16, 16)
    assert sample.crops is not None
    assert len(sample.crops) == len(sample.regions) == sample.links.shape[1] <= 1
    assert ((sample.regions >= 0) & (sample.regions <= 1)).all()
    assert (box_area(sample.regions) > 0).all()
    assert sample.links.any() == (sample.shown == (SHOWN,))
    assert bool(sample.links.any()) != any(incident.kind == "box out of view" for incident in sample.incidents)


# ---------------------------------------------------------------- settings


def test_a_preset_gives_values_that_others_override() -> None:
    standard = ImageAugmentSettings.model_validate({"preset": "standard"})
    assert standard.flip == PRESETS["standard"]["flip"]
    own = ImageAugmentSettings.model_validate({"preset": "standard", "flip": 0.0})
    assert (own.flip, own.crop_scale) == (0.0, standard.crop_scale)
    assert ImageAugmentSettings.model_validate(standard.model_dump()) == standard
    assert not ImageAugmentSettings().active
    assert standard.active


def test_presets_are_ordered_by_strength() -> None:
    light, standard, strong = (ImageAugmentSettings(preset=name) for name in ("light", "standard", "strong"))
    assert light.crop_scale[0] > standard.crop_scale[0] > strong.crop_scale[0]
    assert light.contrast < standard.contrast < strong.contrast


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"preset": "medium"}, "'none', 'light', 'standard' or 'strong'"),
        ({"preset": ["light"]}, "'none', 'light', 'standard' or 'strong'"),
        ({"crop_scale": (0.9, 0.2)}, "the lowest first"),
        ({"crop_scale": (0.0, 1.0)}, "above 0"),
        ({"erase_scale": (0.1, 1.5)}, "erase_scale is a share of the image and at most 1"),
    ],
)
def test_wrong_settings_say_what_is_right(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ImageAugmentSettings.model_validate(wrong)
