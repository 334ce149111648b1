"""Augmented images stay true: boxes, crops of regions and masks of views follow the pixels, whatever is drawn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from coloured import COLOURS, RED, TEXT, edges_of, hidden_by_views, of_colour
from pairs import Box, entity, save_manifest
from spanbox.data.annotate import annotate, moved
from spanbox.data.augment import AugmentSettings
from spanbox.data.augment_image import PRESETS, ImageAugmentSettings, ImagePlan, draw_plan, has_direction
from spanbox.data.dataset import PairDataset
from spanbox.data.draws import Draws
from spanbox.data.limits import SampleLimits
from spanbox.data.manifest import Manifest, ObjectBox, Record
from spanbox.data.masking import MaskSettings
from spanbox.data.paraphrases import Paraphrase
from spanbox.data.prepare import prepare
from spanbox.errors import DataError
from spanbox.geometry import Affine, box_area, in_fractions
from spanbox.structures import NAMED_ONLY, NOT_KNOWN, SHOWN, Incident, Sample

SIDE = 64
BOXES: dict[str, Box] = {"cat": (20, 30, 90, 100), "dog": (120, 20, 180, 60), "bird": (100, 110, 190, 145)}
FRACTIONS_OF_BOXES = [in_fractions(box, 200, 160) for box in BOXES.values()]


def scene(size: tuple[int, int] = (200, 160), boxes: dict[str, Box] = BOXES) -> Image.Image:
    """Rectangles of one colour each, at the boxes, on grey."""
    image = Image.new("RGB", size, (120, 120, 120))
    for name, box in boxes.items():
        image.paste(COLOURS[name], tuple(int(edge) for edge in box))
    return image


def limits_of(side: int = SIDE, **image: Any) -> SampleLimits:
    return SampleLimits(side, augment=AugmentSettings(image=ImageAugmentSettings(**image)))


def drawn(step: int, limits: SampleLimits, image: Image.Image | None = None, boxes: dict[str, Box] = BOXES) -> Sample:
    spans = [entity(TEXT, name, box) for name, box in boxes.items()]
    return prepare(image or scene(boxes=boxes), TEXT, spans, (), limits, id="x", draws=Draws(0, step, 0))


def shown_boxes(sample: Sample) -> dict[str, Tensor]:
    found = {}
    for name, row in zip(sample.span_texts, sample.links, strict=True):
        for column in row.nonzero().flatten().tolist():
            found[name] = sample.regions[column]
    return found


CHAINS: dict[str, dict[str, Any]] = {
    "crop": {"crop": 1.0, "crop_scale": (0.3, 0.9)},
    "flip": {"flip": 1.0},
    "crop and flip": {"crop": 1.0, "flip": 1.0, "keep_boxes": "none"},
    "rotation": {"rotation": 25.0},
    "operations": {"operations": 3, "magnitude": 6.0},
    "everything": {"crop": 1.0, "flip": 0.5, "rotation": 15.0, "operations": 1, "blur": 0.0},
}


@pytest.fixture
def scene_manifest(tmp_path: Path) -> Manifest:
    scene().save(tmp_path / "x.png")
    spans = tuple(entity(TEXT, name, box) for name, box in BOXES.items())
    return save_manifest(tmp_path, [Record(id="x", image="x.png", text=TEXT, entities=spans)])


# ---------------------------------------------------------------- by picture


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAINS)
def test_rectangles_are_found_by_colour_at_the_moved_boxes(name: str) -> None:
    """Edges agree to about a pixel. Of a rotated rectangle that the border cuts, the box may be too large."""
    limits = limits_of(**CHAINS[name])
    tolerance, compared = 2.1 / SIDE, 0
    for step in range(30):
        sample = drawn(step, limits)
        for span, box in shown_boxes(sample).items():
            mask = of_colour(sample.pixels, COLOURS[span])
            if mask.sum() < 9:
                continue  # an operation changed the colours
            found = edges_of(mask)
            assert (found[:2] >= box[:2] - tolerance).all(), (step, span)
            assert (found[2:] <= box[2:] + tolerance).all(), (step, span)
            if _plan_of(step, limits).to_square.is_upright or ((box > 0).all() and (box < 1).all()):
                assert (found - box).abs().max() <= tolerance, (step, span)
                compared += 1
    assert compared > 20


def test_a_moved_box_is_not_the_old_one() -> None:
    """The test above would pass an image and boxes that never move."""
    limits = limits_of(**CHAINS["crop and flip"])
    pictures = {drawn(step, limits).pixels.numpy().tobytes() for step in range(10)}
    assert len(pictures) == 10


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAINS)
def test_a_crop_of_a_region_shows_its_rectangle(name: str) -> None:
    limits = limits_of(**CHAINS[name] | {"operations": 0})
    limits = SampleLimits(SIDE, crop_size=24, augment=limits.augment)
    compared = 0
    for step in range(15):
        sample = drawn(step, limits)
        assert sample.crops is not None
        for span, row in zip(sample.span_texts, sample.links, strict=True):
            for column in row.nonzero().flatten().tolist():
                inner = sample.crops[column][:, 8:16, 8:16]
                assert of_colour(inner, COLOURS[span]).float().mean() > 0.8, (step, span)
                compared += 1
    assert compared > 15


def test_a_view_hides_the_rectangle_of_the_augmented_image(scene_manifest: Manifest) -> None:
    """A view that hides an entity leaves nothing of its colour; one that keeps it, all."""
    mask = MaskSettings(count=6, fill="zero", mix={"random": 0, "object": 1, "background": 1}, proposal_share=0)
    augment = limits_of(**CHAINS["crop and flip"]).augment
    limits = SampleLimits(SIDE, augment=augment, views=mask, view_grid=16)
    dataset = PairDataset(scene_manifest, limits, 0, replace_broken=False)
    assert hidden_by_views(dataset, 8) > 5


# ---------------------------------------------------------------- what is drawn


def test_a_crop_keeps_linked_boxes_whole() -> None:
    """Half of the crops are smaller than one box, and all of them than the three, so they grow."""
    whole = {"none": [], "one": [], "all": []}
    for keep, counts in whole.items():
        limits = limits_of(crop=1.0, crop_scale=(0.05, 0.2), keep_boxes=keep)
        for step in range(40):
            placed = [_plan_of(step, limits).to_square.box(box) for box in FRACTIONS_OF_BOXES]
            counts.append(sum(min(box) > -1e-9 and max(box) < 1 + 1e-9 for box in placed))
    assert sum(count == 0 for count in whole["none"]) > 10
    assert min(whole["one"]) == 1
    assert set(whole["all"]) == {len(FRACTIONS_OF_BOXES)}


@pytest.mark.parametrize("aspect", ["squash", "pad"])
def test_a_box_that_ends_where_the_crop_does_is_whole(aspect: Any) -> None:
    """Also where rounding puts its edge a little beyond: with min_visible=1 it would be left out."""
    settings = ImageAugmentSettings(crop=1.0, crop_scale=(0.3, 1.0), flip=0.5, min_visible=1.0)
    for step in range(200):
        generator = np.random.default_rng(step)
        size = int(generator.integers(50, 900)), int(generator.integers(50, 900))
        box = ObjectBox((size[0] / 2 - step % 20, size[1] // 3, *size))
        annotation = annotate("", (), (box,), size, SampleLimits(SIDE, proposals=1))
        linked = [tuple(annotation.regions[0].tolist())]
        plan = draw_plan(settings, size, 224, linked, aspect=aspect, may_flip=True, generator=generator)
        assert len(moved(annotation, plan.to_square, settings.min_visible, (), frame=plan.frame).regions) == 1


def test_crops_that_keep_all_boxes_differ() -> None:
    limits = limits_of(crop=1.0, crop_scale=(0.05, 0.2), keep_boxes="all")
    assert len({_plan_of(step, limits).to_square for step in range(40)}) > 10


def test_a_crop_keeps_all_of_no_boxes() -> None:
    image = ImageAugmentSettings(crop=1.0, crop_scale=(0.1, 0.1), keep_boxes="all")
    plan = draw_plan(image, (200, 160), SIDE, [], may_flip=True, generator=np.random.default_rng(0))
    assert plan.to_square.a > 2


def _plan_of(step: int, limits: SampleLimits) -> ImagePlan:
    assert limits.augment is not None
    generator = np.random.default_rng((0, step, 0, 2))
    image = limits.augment.image
    return draw_plan(image, (200, 160), SIDE, FRACTIONS_OF_BOXES, may_flip=True, generator=generator)


def test_links_of_boxes_out_of_view_are_dropped_and_counted() -> None:
    """Too little of the cat is left to know it, nothing of the dog; what remains of the bird is enough."""
    spans = [entity(TEXT, name, box) for name, box in BOXES.items()]
    before = annotate(TEXT, spans, [], (200, 160), limits_of())
    window = (75 / 200, 80 / 160, 150 / 200, 1.0)
    names = list(BOXES)
    after = moved(before, Affine.onto(window).inverse(), 0.3, names, sample="x")
    assert after.shown == (NOT_KNOWN, NAMED_ONLY, SHOWN)
    assert after.links.tolist() == [[False], [False], [True]]
    torch.testing.assert_close(after.regions, torch.tensor([[1 / 3, 0.375, 1.0, 0.8125]]))
    assert after.link_relevance.tolist() == [[0], [0], [1]]
    assert after.incidents == (
        Incident("box out of view", "x", "6% of a box of 'cat' is left"),
        Incident("box out of view", "x", "0% of a box of 'dog' is left"),
    )


def test_a_chain_that_cuts_every_box_away_leaves_spans_without_a_box() -> None:
    limits = limits_of(crop=1.0, crop_scale=(0.001, 0.002), keep_boxes="none")
    samples = [drawn(step, limits) for step in range(20)]
    bare = [sample for sample in samples if not sample.links.any()]
    assert bare
    for sample in bare:
        assert sample.regions.shape == (0, 4)
        assert len(sample.spans) == 3
        assert SHOWN not in sample.shown
        assert [incident.kind for incident in sample.incidents] == ["box out of view"] * 3


def test_proposals_follow_too() -> None:
    limits = limits_of(flip=1.0)
    limits = SampleLimits(SIDE, proposals=2, augment=limits.augment, views=MaskSettings(count=1), view_grid=8)
    sample = prepare(scene(), "", (), [ObjectBox((0, 0, 50, 80))], limits, draws=Draws(0, 0, 0))
    torch.testing.assert_close(sample.regions, torch.tensor([[0.75, 0.0, 1.0, 0.5]]))
    assert sample.proposals is not None
    torch.testing.assert_close(sample.proposals[0], sample.regions)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a cup on the LEFT of a book", True),
        ("the right-hand cup", True),
        ("the leftmost one", True),
        ("counter-clockwise, then anticlockwise", True),
        ("a westward road", True),
        ("the eastern bank", True),
        ("a sign that points northeast", True),
        ("a righthanded player", True),
        ("狗在left边", True),
        ("the top_left corner", True),
        ("the leftside lane", True),
        ("clock-wise", True),
        ("狗在ＬＥＦＴ边", True),
        ("bright copyright leftovers at breakfast", False),
        ("a cup above a book", False),
        ("杯子在书的左边", True),
        ("右侧有一棵树", True),
        ("河的东岸", False),
        ("山的西侧", True),
        ("山的東邊", True),
        ("向西走", True),
        ("逆时针", True),
        ("一个西瓜和别的东西", False),
        ("广东的杯子", False),
        ("", False),
    ],
)
def test_words_of_direction(text: str, *, found: bool) -> None:
    assert has_direction(text) == found


@pytest.mark.parametrize(
    ("lang", "further", "flips"),
    [
        ("", "", True),
        ("en-GB", "", True),
        ("zh", "", True),
        ("de", "", False),
        ("en", "fr", False),
        ("ru", "en", False),
    ],
)
def test_images_of_languages_whose_directions_are_not_known_are_not_mirrored(
    tmp_path: Path, lang: str, further: str, flips: bool
) -> None:
    scene().save(tmp_path / "x.png")
    others = (Paraphrase("chien", lang=further),)
    data = save_manifest(tmp_path, [Record("1", "x.png", "Hund links", lang=lang, paraphrases=others)])
    dataset, plain = (PairDataset(data, limits_of(flip=flip), 0, replace_broken=True) for flip in (1.0, 0.0))
    pixels, as_it_is = dataset[0, 0].pixels, plain[0, 0].pixels  # type: ignore[union-attr]
    assert torch.equal(pixels, as_it_is.flip(-1) if flips else as_it_is)


def test_texts_with_a_direction_are_not_mirrored(tmp_path: Path) -> None:
    """Nor is the image of another text of the same group: it would contradict this one."""
    scene().save(tmp_path / "x.png")
    scene().save(tmp_path / "y.png")
    records = [
        Record(id="a", image="x.png", text="a cat on the left"),
        Record(id="b", image="x.png", text="a cat"),
        Record(id="c", image="y.png", text="a cat"),
        Record(id="d", image="y.png", text="猫"),
    ]
    dataset = PairDataset(save_manifest(tmp_path, records), limits_of(flip=1.0), 0, replace_broken=True)
    samples = [dataset[0, index] for index in range(4)]
    assert all(isinstance(sample, Sample) for sample in samples)
    as_it_is, mirrored = samples[0].pixels, samples[2].pixels  # type: ignore[union-attr]
    assert torch.equal(samples[1].pixels, as_it_is)  # type: ignore[union-attr]
    assert torch.equal(samples[3].pixels, mirrored)  # type: ignore[union-attr]
    assert torch.equal(mirrored, as_it_is.flip(-1))


def test_an_erased_rectangle_spares_linked_boxes() -> None:
    limits = limits_of(erase=1.0, erase_scale=(0.05, 0.2), min_visible=0.6)
    erased = 0
    for step in range(30):
        sample = drawn(step, limits)
        erased += not torch.equal(sample.pixels, drawn(0, limits_of()).pixels)
        for name, box in shown_boxes(sample).items():
            share = of_colour(sample.pixels, COLOURS[name]).sum() / (box_area(box) * SIDE**2)
            assert share > 0.55
    assert erased > 10


def test_everything_comes_from_seed_step_and_index(scene_manifest: Manifest) -> None:
    limits = limits_of(**PRESETS["strong"])

    def drawn_pixels(seed: int, step: int, cache_bytes: int = 0) -> bytes:
        dataset = PairDataset(scene_manifest, limits, seed, replace_broken=True, cache_bytes=cache_bytes)
        torch.rand(2)
        sample = dataset[step, 0]
        assert isinstance(sample, Sample)
        return sample.pixels.numpy().tobytes()

    first = [drawn_pixels(0, step) for step in range(6)]
    assert [drawn_pixels(0, step) for step in range(6)] == first
    assert len(set(first)) == 6
    assert drawn_pixels(1, 0) != first[0]
    assert [drawn_pixels(0, step, cache_bytes=10**7) for step in range(6)] == first


def test_a_cached_image_is_augmented_again_and_evaluated_as_it_is(scene_manifest: Manifest) -> None:
    dataset = PairDataset(scene_manifest, limits_of(crop=1.0), 0, replace_broken=True, cache_bytes=10**7)
    first, second, plain = dataset[0, 0], dataset[1, 0], dataset.for_evaluation()[0, 0]
    assert isinstance(first, Sample)
    assert isinstance(second, Sample)
    assert isinstance(plain, Sample)
    scene_manifest.image_path(scene_manifest[0]).unlink()
    assert torch.equal(dataset[1, 0].pixels, second.pixels)  # type: ignore[union-attr]
    assert not torch.equal(first.pixels, second.pixels)
    assert torch.equal(plain.pixels, prepare(scene(), "", (), (), SampleLimits(SIDE)).pixels)


def test_without_draws_nothing_changes() -> None:
    limits = limits_of(**PRESETS["strong"])
    assert torch.equal(
        prepare(scene(), "", (), (), limits).pixels, prepare(scene(), "", (), (), SampleLimits(SIDE)).pixels
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3, 2)])
def test_tiny_images(size: tuple[int, int]) -> None:
    limits = limits_of(**PRESETS["strong"])
    for step in range(10):
        sample = drawn(step, limits, Image.new("RGB", size, RED), {"cat": (0, 0, *size)})
        assert sample.pixels.shape == (3, SIDE, SIDE)


@pytest.mark.slow
def test_an_image_of_400_million_pixels_is_refused(tmp_path: Path) -> None:
    Image.new("L", (20_000, 20_000)).save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="broken image: too large"):
        prepare(tmp_path / "a.jpg", "", (), (), limits_of(crop=1.0), draws=Draws(0, 0, 0))
