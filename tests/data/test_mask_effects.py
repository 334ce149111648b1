"""What masked views mean, by tables and by the plain loop, and what their hidden pixels are filled with."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mask_reference
from spanbox.data.mask_effects import fill_pixels, view_meaning
from spanbox.data.masking import MaskSettings, MixSettings, PixelFill, Proposals, draw_views
from spanbox.geometry import box_area

SETTINGS = MaskSettings(min_coverage=0.9, keep_coverage=0.1)
FILLS: list[PixelFill] = ["zero", "mean", "noise", "blur"]

# Areas 0.04, 0.16, 0.25 and none.
REGIONS = torch.tensor([[0.0, 0.0, 0.2, 0.2], [0.2, 0.2, 0.6, 0.6], [0.5, 0.5, 1.0, 1.0], [0.3, 0.3, 0.3, 0.8]])


def meaning(coverage: list[list[float]], links: list[list[int]]) -> tuple[list[list[int]], list[int]]:
    found = view_meaning(torch.tensor(coverage), REGIONS, torch.tensor(links).bool(), SETTINGS)
    assert found.spans.dtype == found.sentence.dtype == torch.int8
    return found.spans.tolist(), found.sentence.tolist()


def test_worked_out_by_hand() -> None:
    """The first entity has one box, the second two, of areas 0.16 and 0.25, the third none."""
    links = [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    coverage = [
        [1.0, 0.0, 0.0, 0.0],  # hides the first
        [0.0, 1.0, 1.0, 0.0],  # hides the second
        [0.0, 1.0, 0.0, 0.0],  # one box of the second: 39 % of its area
        [0.0, 0.25, 0.0, 0.0],  # a quarter of one box: 9.8 % of the area of both
        [0.0, 0.75, 1.0, 0.0],  # 90.2 %
        [0.05, 0.1, 0.1, 0.0],  # keeps both, up to the bound
        [0.5, 0.5, 0.5, 0.0],
        [1.0, 1.0, 1.0, 0.0],
    ]
    spans = [[-1, 1, 0], [1, -1, 0], [1, 0, 0], [1, 1, 0], [1, -1, 0], [1, 1, 0], [0, 0, 0], [-1, -1, 0]]
    assert meaning(coverage, links) == (spans, [-1, -1, 0, 1, -1, 1, 0, -1])


def test_entities_that_share_a_box() -> None:
    assert meaning([[1.0, 0.0, 0.0, 0.0]], [[1, 0, 0, 0], [1, 0, 0, 0]]) == ([[-1, -1]], [-1])


def test_regions_that_show_no_entity_do_not_count() -> None:
    assert meaning([[0.0, 1.0, 1.0, 0.0]], [[1, 0, 0, 0]]) == ([[1]], [1])


def test_entities_without_boxes_are_neutral() -> None:
    assert meaning([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]], [[0, 0, 0, 0]]) == ([[0], [0]], [0, 0])


def test_boxes_without_area_show_nothing() -> None:
    assert meaning([[0.0, 0.0, 0.0, 0.0]], [[0, 0, 0, 1]]) == ([[0]], [0])


def test_images_without_boxes_are_neutral() -> None:
    found = view_meaning(torch.zeros(2, 0), torch.zeros(0, 4), torch.zeros(3, 0, dtype=torch.bool), SETTINGS)
    assert found.spans.tolist() == [[0, 0, 0], [0, 0, 0]]
    assert found.sentence.tolist() == [0, 0]


def test_sentences_without_entities_are_neutral() -> None:
    found = view_meaning(torch.ones(2, 4), REGIONS, torch.zeros(0, 4, dtype=torch.bool), SETTINGS)
    assert found.spans.shape == (2, 0)
    assert found.sentence.tolist() == [0, 0]


def test_no_views_mean_nothing() -> None:
    found = view_meaning(torch.zeros(0, 4), REGIONS, torch.ones(2, 4, dtype=torch.bool), SETTINGS)
    assert (found.spans.shape, found.sentence.shape) == ((0, 2), (0,))


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), views=st.integers(1, 4), spans=st.integers(1, 4), regions=st.integers(0, 5))
def test_equals_the_plain_loop(seed: int, views: int, spans: int, regions: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Sums of quarters and sixteenths are exact, so that the bounds are met to the bit, and often.
    coverage = torch.randint(0, 5, (views, regions), generator=generator).double() / 4
    corners = torch.randint(0, 5, (regions, 4), generator=generator).double() / 4
    links = torch.rand(spans, regions, generator=generator) < 0.5
    expected = mask_reference.view_meaning(coverage, box_area(corners).tolist(), links, 0.75, 0.25)
    found = view_meaning(coverage, corners, links, MaskSettings(min_coverage=0.75, keep_coverage=0.25))
    assert (found.spans.tolist(), found.sentence.tolist()) == expected


@pytest.mark.parametrize("tight", [True, False])
@pytest.mark.parametrize(("strategy", "expected"), [("object", -1), ("background", 1)])
def test_strategies_mean_what_they_were_drawn_for(strategy: str, expected: int, tight: bool) -> None:
    """Even where nothing less than the whole object is demanded."""
    mix = dict.fromkeys(MixSettings.model_fields, 0.0) | {strategy: 1.0}
    demanding = MaskSettings.model_validate(
        {"count": 50, "mix": mix, "tight": tight, "min_coverage": 1.0, "keep_coverage": 0.0}
    )
    regions = torch.tensor([[0.1, 0.1, 0.37, 0.52], [0.51, 0.23, 0.81, 0.9], [0.6, 0.6, 0.602, 0.601]])
    links = torch.tensor([[1, 0, 0], [0, 1, 1]]).bool()
    plan = draw_views(demanding, 14, regions, links, Proposals.none(), np.random.default_rng(0))
    found = view_meaning(plan.coverage, regions, links, demanding)
    assert (found.sentence == expected).all()
    assert (found.spans == expected).any(dim=1).all()


# Pixels


def image(side: int = 24) -> Tensor:
    return torch.randint(0, 256, (3, side, side), dtype=torch.uint8)


def some_views(grid: int, views: int = 3) -> Tensor:
    return torch.rand(views, grid, grid) < 0.5


def filled(pixels: Tensor, hidden: Tensor, fill: PixelFill, seed: int = 0) -> Tensor:
    return fill_pixels(pixels, hidden, fill, np.random.default_rng(seed))


@pytest.mark.slow
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("grid", [1, 3, 8, 24])
def test_filled_pixels_equal_the_plain_loop(fill: PixelFill, grid: int) -> None:
    pixels, hidden = image(), some_views(grid)
    filling = filled(pixels, torch.ones(1, 1, 1, dtype=torch.bool), fill)[0]
    views = filled(pixels, hidden, fill)
    assert views.dtype == torch.uint8
    assert torch.equal(views, mask_reference.fill_pixels(pixels, hidden, filling))


def everything_hidden(pixels: Tensor, fill: PixelFill) -> Tensor:
    return filled(pixels, torch.ones(1, 1, 1, dtype=torch.bool), fill)[0]


def test_zero_is_black() -> None:
    assert not everything_hidden(image(), "zero").any()


def test_mean_is_the_colour_of_the_image() -> None:
    pixels = torch.tensor([10, 20, 30], dtype=torch.uint8)[:, None, None].repeat(1, 4, 4)
    pixels[:, :2] += 101
    assert everything_hidden(pixels, "mean")[:, 0, 0].tolist() == [60, 70, 80]  # halves to even: 60.5, 70.5, 80.5


def test_noise_has_the_mean_and_deviation_of_the_image() -> None:
    pixels = (torch.randn(3, 96, 96) * torch.tensor([10.0, 20.0, 5.0])[:, None, None] + 120).to(torch.uint8)
    noise, levels = everything_hidden(pixels, "noise").float(), pixels.float()
    torch.testing.assert_close(noise.mean(dim=(1, 2)), levels.mean(dim=(1, 2)), atol=1.0, rtol=0)
    torch.testing.assert_close(noise.std(dim=(1, 2)), levels.std(dim=(1, 2)), atol=0.5, rtol=0)


def test_noise_depends_on_the_generator_alone() -> None:
    pixels, hidden = image(), some_views(8)
    first = filled(pixels, hidden, "noise")
    torch.rand(5)
    assert torch.equal(first, filled(pixels, hidden, "noise"))
    assert not torch.equal(first, filled(pixels, hidden, "noise", seed=1))


def test_blur_keeps_broad_colours_and_no_detail() -> None:
    halves = torch.zeros(3, 64, 64, dtype=torch.uint8)
    halves[:, :, 32:] = 200
    blurred = everything_hidden(halves, "blur")
    assert (blurred[:, :, :24] == 0).all()
    assert (blurred[:, :, 40:] == 200).all()
    stripes = torch.zeros(3, 64, 64, dtype=torch.uint8)
    stripes[:, :, ::2] = 200
    assert (everything_hidden(stripes, "blur") == 100).all()


@pytest.mark.parametrize("fill", FILLS)
def test_an_image_smaller_than_its_blur(fill: PixelFill) -> None:
    assert filled(image(4), some_views(2), fill).shape == (3, 3, 4, 4)


@pytest.mark.parametrize("fill", FILLS)
def test_an_image_of_one_colour_is_not_changed(fill: PixelFill) -> None:
    plain = torch.full((3, 16, 16), 0 if fill == "zero" else 77, dtype=torch.uint8)
    assert (filled(plain, some_views(4), fill) == plain).all()


@pytest.mark.parametrize("fill", FILLS)
def test_no_views_to_fill(fill: PixelFill) -> None:
    assert filled(image(), some_views(4, views=0), fill).shape == (0, 3, 24, 24)
