"""Images that keep their aspect ratio: the picture in the upper left corner, boxes, crops and views beside padding."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from coloured import COLOURS, RED, edges_of, hidden_by_views, of_colour
from pairs import Box, entity, save_manifest
from spanbox.data.augment import AugmentSettings
from spanbox.data.augment_image import ImageAugmentSettings, draw_plan, fitted, plain_plan
from spanbox.data.dataset import PairDataset
from spanbox.data.draws import Draws
from spanbox.data.images import image_size
from spanbox.data.limits import SampleLimits
from spanbox.data.manifest import Manifest, Record
from spanbox.data.mask_effects import fill_pixels
from spanbox.data.masking import STRATEGIES, MaskSettings, Proposals, draw_views, kept_levels
from spanbox.data.prepare import least_reduction, prepare
from spanbox.evaluation.occlusion import cells_elsewhere, hide, object_cells
from spanbox.structures import Sample

GREY = (120, 120, 120)
TEXT = "a cat, a dog and a bird"
SIDE = 64
WIDE: dict[str, Box] = {"cat": (20, 20, 90, 70), "dog": (120, 20, 180, 60), "bird": (100, 66, 190, 95)}
TALL: dict[str, Box] = {name: (y0, x0, y1, x1) for name, (x0, y0, x1, y1) in WIDE.items()}
SCENES: dict[str, tuple[tuple[int, int], dict[str, Box]]] = {"wide": ((200, 100), WIDE), "tall": ((100, 200), TALL)}
SIZES = st.tuples(st.integers(1, 3000), st.integers(1, 3000))
FRACTIONS = st.floats(0, 1, width=32)


def scene(name: str) -> Image.Image:
    """Rectangles of one colour each, at the boxes, on grey."""
    size, boxes = SCENES[name]
    image = Image.new("RGB", size, GREY)
    for thing, box in boxes.items():
        image.paste(COLOURS[thing], tuple(int(edge) for edge in box))
    return image


def limits_of(image: dict[str, Any] | None = None, **limits: Any) -> SampleLimits:
    augment = AugmentSettings(image=ImageAugmentSettings(**image)) if image else None
    return SampleLimits(SIDE, aspect="pad", augment=augment, **limits)


def padded(name: str, limits: SampleLimits, step: int = 0) -> Sample:
    spans = [entity(TEXT, thing, box) for thing, box in SCENES[name][1].items()]
    return prepare(scene(name), TEXT, spans, (), limits, id="x", draws=Draws(0, step, 0))


# ---------------------------------------------------------------- the map


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    SIZES, st.integers(1, 400), st.tuples(FRACTIONS, FRACTIONS, FRACTIONS, FRACTIONS), st.tuples(FRACTIONS, FRACTIONS)
)
def test_one_scale_in_both_directions_and_points_stay_in_their_box(
    size: tuple[int, int], side: int, edges: tuple[float, float, float, float], inside: tuple[float, float]
) -> None:
    plan = plain_plan(size, side, "pad")
    width, height = fitted(*size, side)
    assert max(width, height) == side
    across, down = plan.to_square.a * side / size[0], plan.to_square.e * side / size[1]  # pixels to pixels
    scale = side / max(size)
    for one, length in ((across, size[0]), (down, size[1])):
        assert abs(one - scale) * length <= 0.5 + 1e-6 or length * scale < 1  # rounded to whole pixels, at least one
    (x0, x1), (y0, y1) = sorted(edges[:2]), sorted(edges[2:])
    box, point = (x0, y0, x1, y1), (x0 + inside[0] * (x1 - x0), y0 + inside[1] * (y1 - y0))
    moved, (x, y, _, _) = plan.to_square.box(box), plan.to_square.box((*point, *point))
    assert moved[0] - 1e-6 <= x <= moved[2] + 1e-6
    assert moved[1] - 1e-6 <= y <= moved[3] + 1e-6
    assert moved[2] <= width / side + 1e-6
    assert moved[3] <= height / side + 1e-6


AUGMENTED = st.builds(
    ImageAugmentSettings,
    crop=st.sampled_from([0.0, 1.0]),
    crop_scale=st.sampled_from([(0.01, 0.1), (0.2, 1.0)]),
    flip=st.sampled_from([0.0, 1.0]),
    rotation=st.sampled_from([0.0, 45.0]),
    operations=st.integers(0, 2),
    erase=st.sampled_from([0.0, 1.0]),
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(AUGMENTED, SIZES, st.integers(0, 1000))
def test_a_drawn_plan_keeps_shapes(changes: ImageAugmentSettings, size: tuple[int, int], seed: int) -> None:
    """Crops and mirror images have one scale; rotations keep right angles besides."""
    plan = draw_plan(changes, size, 32, [], aspect="pad", may_flip=True, generator=np.random.default_rng(seed))
    assert plan.frame[:2] == (0.0, 0.0)
    assert max(plan.frame) == 1.0
    if plan.erased is not None:
        assert plan.erased[2] <= plan.frame[2] + 1e-9
        assert plan.erased[3] <= plan.frame[3] + 1e-9
    if changes.operations or min(plan.frame[2:]) < 0.5:  # rounding to whole pixels would matter
        return
    x, y = (
        np.array([plan.to_square.a, plan.to_square.d]) / size[0],
        np.array([plan.to_square.b, plan.to_square.e]) / size[1],
    )
    assert np.linalg.norm(x) == pytest.approx(np.linalg.norm(y), rel=0.07)
    assert abs(x @ y) <= 0.07 * np.linalg.norm(x) * np.linalg.norm(y)


def test_the_same_draws_as_with_squash() -> None:
    """The window, the flip and the colours of a sample do not depend on the aspect."""
    changes = ImageAugmentSettings(preset="strong", operations=0)
    plans = [
        draw_plan(changes, (200, 100), 200, [], aspect=aspect, may_flip=True, generator=np.random.default_rng(3))
        for aspect in ("squash", "pad")
    ]
    squashed, kept = plans
    assert squashed.colour is not None
    assert kept.colour is not None
    assert np.array_equal(squashed.colour, kept.colour)
    corners = [(x, y, x, y) for x in (0.2, 0.7) for y in (0.3, 0.6)]
    for corner in corners:
        x, y, _, _ = squashed.to_square.box(corner)
        assert kept.to_square.box(corner)[:2] == pytest.approx((x * kept.frame[2], y * kept.frame[3]))


# ---------------------------------------------------------------- by picture

CHAINS: dict[str, dict[str, Any]] = {
    "plain": {},
    "crop": {"crop": 1.0, "crop_scale": (0.3, 0.9)},
    "crop and flip": {"crop": 1.0, "flip": 1.0, "keep_boxes": "none"},
    "rotation": {"rotation": 15.0},
}


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("name", SCENES)
def test_rectangles_are_found_by_colour_at_the_moved_boxes(name: str, chain: str) -> None:
    compared, tolerance = 0, 2.1 / SIDE
    for step in range(12):
        sample = padded(name, limits_of(CHAINS[chain]), step)
        assert sample.content is not None
        for span, row in zip(sample.span_texts, sample.links, strict=True):
            for column in row.nonzero().flatten().tolist():
                box, mask = sample.regions[column], of_colour(sample.pixels, COLOURS[span])
                found = edges_of(mask)
                assert (found[:2] >= box[:2] - tolerance).all(), (step, span)
                assert (found[2:] <= box[2:] + tolerance).all(), (step, span)
                if chain != "rotation":
                    assert (found - box).abs().max() <= tolerance, (step, span)
                compared += 1
    assert compared > 12


@pytest.mark.parametrize("name", SCENES)
def test_a_square_of_the_file_stays_a_square(name: str) -> None:
    size, _ = SCENES[name]
    image = Image.new("RGB", size, GREY)
    image.paste(RED, (30, 20, 80, 70))
    sample = prepare(image, "", (), (), limits_of())
    x0, y0, x1, y1 = edges_of(of_colour(sample.pixels, RED)).tolist()
    assert x1 - x0 == y1 - y0 == 16 / SIDE


@pytest.mark.parametrize("chain", CHAINS)
def test_the_rest_of_the_square_is_padding(chain: str) -> None:
    """Also where the image goes on beside the crop, and where nothing is seen of a box."""
    for step in range(8):
        sample = padded("wide", limits_of(CHAINS[chain]), step)
        assert sample.content is not None
        width, height = sample.content
        assert (sample.pixels[:, height:] == 128).all()
        assert (sample.pixels[:, :, width:] == 128).all()
        edge = torch.tensor([width, height, width, height]) / SIDE
        assert (sample.regions <= edge).all()


@pytest.mark.parametrize("name", SCENES)
def test_a_crop_of_a_region_keeps_its_shape(name: str) -> None:
    sample = padded(name, limits_of(crop_size=24))
    assert sample.crops is not None
    assert sample.crop_content is not None
    for span, row in zip(sample.span_texts, sample.links, strict=True):
        (column,) = row.nonzero().flatten().tolist()
        x0, y0, x1, y1 = SCENES[name][1][span]
        width, height = sample.crop_content[column].tolist()
        assert width / height == pytest.approx((x1 - x0) / (y1 - y0), rel=0.15)
        assert max(width, height) == 24
        crop = sample.crops[column]
        assert of_colour(crop[:, :height, :width], COLOURS[span])[2:-2, 2:-2].all()
        assert (crop[:, height:] == 128).all()
        assert (crop[:, :, width:] == 128).all()


def test_the_margin_of_a_crop_ends_with_the_picture() -> None:
    spans = [entity(TEXT, "cat", (0, 50, 200, 100))]
    sample = prepare(scene("wide"), TEXT, spans, (), limits_of(crop_size=24, crop_margin=0.5))
    assert sample.crop_content is not None
    assert sample.crop_content.tolist() == [[24, 9]]  # 200 x 75 pixels


@pytest.mark.parametrize("size", [(1, 1), (20000, 1), (1, 20000), (3, 700)])
def test_images_of_extreme_shape(tmp_path: Path, size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, RED)
    image.save(tmp_path / "x.png")
    assert image_size(tmp_path / "x.png") == size
    box = (0, 0, size[0] * 0.5, size[1])
    sample = prepare(tmp_path / "x.png", TEXT, [entity(TEXT, "cat", box)], (), limits_of(crop_size=16))
    width, height = fitted(*size, SIDE)
    assert sample.content == (width, height)
    assert min(width, height) >= 1
    assert of_colour(sample.pixels[:, :height, :width], RED).all()
    assert (sample.regions[:, 2:] > sample.regions[:, :2]).all()
    assert sample.links.tolist() == [[True]]
    assert sample.incidents == ()


@pytest.mark.parametrize("changes", [{}, {"flip": 1.0}])
def test_a_box_that_is_too_narrow_for_its_fractions(changes: dict[str, Any]) -> None:
    image, narrow = Image.new("RGB", (20000, 8), RED), (19999.0, 0.0, 19999.0001, 8.0)
    spans = [entity(TEXT, "cat", narrow), entity(TEXT, "dog", (0, 0, 9000, 8))]
    sample = prepare(image, TEXT, spans, (), limits_of(changes), draws=Draws(0, 0, 0))
    assert sample.links[1].any()
    assert bool(sample.incidents) == bool(changes)  # not seen, so not a box of an augmented image


def test_a_jpeg_is_decoded_at_the_scale_of_its_longer_side() -> None:
    """640 x 480 to 224 is a half by either side; 2000 x 300 to 224 an eighth by the longer one, all by the shorter."""
    assert plain_plan((640, 480), 224, "pad").reduction == plain_plan((640, 480), 224).reduction == 2
    assert (plain_plan((2000, 300), 224, "pad").reduction, plain_plan((2000, 300), 224).reduction) == (8, 1)
    assert least_reduction((2000, 300), limits_of()) == 8
    assert least_reduction((2000, 300), SampleLimits(SIDE)) == 4


def test_jpeg_and_png_agree(tmp_path: Path) -> None:
    image = scene("wide").resize((1600, 800))
    image.save(tmp_path / "x.jpg", quality=95)
    image.save(tmp_path / "x.png")
    jpeg, png = (prepare(tmp_path / f"x.{kind}", "", (), (), limits_of()).pixels.float() for kind in ("jpg", "png"))
    assert (jpeg - png).abs().mean() < 4


# ---------------------------------------------------------------- views


@pytest.fixture
def wide_manifest(tmp_path: Path) -> Manifest:
    scene("wide").save(tmp_path / "x.png")
    spans = tuple(entity(TEXT, name, box) for name, box in WIDE.items())
    return save_manifest(tmp_path, [Record(id="x", image="x.png", text=TEXT, entities=spans)])


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("picture", [(8, 3), (3, 8), (8, 1), (8, 8)])
def test_views_choose_among_the_cells_of_the_picture(strategy: str, picture: tuple[int, int]) -> None:
    chosen = MaskSettings(count=20, ratio=(0.2, 0.8), mix={name: float(name == strategy) for name in STRATEGIES})
    columns, rows = picture
    edge = torch.tensor([columns, rows, columns, rows]) / 8
    regions = torch.tensor([[0.1, 0.1, 0.4, 0.9], [0.5, 0.0, 1.0, 1.0]]) * edge
    links = torch.eye(2, dtype=torch.bool)
    generator = np.random.default_rng(0)
    plan = draw_views(chosen, 8, regions, links, Proposals.none(), generator, picture=picture)
    assert plan.hidden[:, rows:].all()
    assert plan.hidden[:, :, columns:].all()
    visible = (~plan.hidden).flatten(1).sum(dim=1)
    assert set(visible.tolist()) <= set(kept_levels(chosen.levels, rows * columns))
    assert (visible >= 1).all()


@pytest.mark.parametrize("fill", ["zero", "mean", "noise", "blur"])
def test_a_filling_is_made_of_the_picture_alone(fill: Any) -> None:
    pixels = torch.randint(0, 256, (3, SIDE, SIDE), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    hidden = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    alone = pixels[:, :32]
    expected = [fill_pixels(F, hidden, fill, np.random.default_rng(0), (SIDE, 32)) for F in (pixels, _other(pixels))]
    assert torch.equal(expected[0][:, :, :32], expected[1][:, :, :32])
    if fill == "mean":
        colour = alone.float().mean(dim=(1, 2)).round()
        row, column = hidden[0, :4].nonzero()[0].tolist()
        assert torch.equal(expected[0][0, :, row * 8, column * 8].float(), colour)


def _other(pixels: Tensor) -> Tensor:
    """Other pixels below the picture."""
    other = pixels.clone()
    other[:, 32:] = 255 - other[:, 32:]
    return other


def test_a_view_hides_the_rectangle(wide_manifest: Manifest) -> None:
    mask = MaskSettings(count=6, fill="zero", mix={"random": 0, "object": 1, "background": 1}, proposal_share=0)
    dataset = PairDataset(wide_manifest, limits_of(views=mask, view_grid=16), 0, replace_broken=False)
    assert hidden_by_views(dataset, 6) > 5


# ---------------------------------------------------------------- the occlusion test


def test_cells_elsewhere_are_cells_of_the_picture() -> None:
    hidden = object_cells(torch.tensor([[0.0, 0.0, 0.2, 0.2]]), 8)
    for seed in range(20):
        chosen = cells_elsewhere(hidden, np.random.default_rng(seed), (8, 3))
        assert chosen is not None
        assert not chosen[3:].any()
        assert int(chosen.sum()) == int(hidden.sum())
    assert cells_elsewhere(torch.ones(8, 8, dtype=torch.bool).triu(), np.random.default_rng(0), (8, 1)) is None


def test_an_object_is_hidden_in_the_image_and_in_its_crop() -> None:
    sample = padded("wide", limits_of(crop_size=24, crop_margin=0.1))
    (column,) = sample.links[0].nonzero().flatten().tolist()
    occluded = hide(sample, object_cells(sample.regions[column][None], 16), 0.1)
    assert of_colour(sample.pixels, RED).any()
    assert not of_colour(occluded.pixels, RED).any()
    assert sample.crops is not None
    assert occluded.crops is not None
    assert of_colour(sample.crops[column], RED).any()
    assert not of_colour(occluded.crops[column], RED).any()


def test_the_scale_of_a_padded_picture_is_that_of_its_longer_side() -> None:
    assert math.prod(fitted(20000, 1, 224)) == 224
