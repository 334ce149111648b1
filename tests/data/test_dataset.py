"""From records to samples: pixels that agree with boxes and crops; masked views; broken images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pairs import BLUE, RED, Box, entity, save_manifest
from spanbox.data.augment import AugmentSettings
from spanbox.data.augment_image import ImageAugmentSettings
from spanbox.data.dataset import PairDataset
from spanbox.data.limits import SampleLimits
from spanbox.data.manifest import Manifest, ObjectBox, Record
from spanbox.data.masking import MaskSettings
from spanbox.data.render import to_pixels, to_square
from spanbox.errors import DataError
from spanbox.structures import Incident, Sample, SampleViews, stable_id

LIMITS = SampleLimits(image_size=16)
TEXT = "The cat and the dog met a bird"


def dataset_of(
    manifest: Manifest, limits: SampleLimits = LIMITS, seed: int = 0, *, training: bool = True
) -> PairDataset:
    return PairDataset(manifest, limits, seed, replace_broken=training)


def only_sample(manifest: Manifest, limits: SampleLimits = LIMITS) -> Sample:
    item = dataset_of(manifest, limits, training=False)[0, 0]
    assert isinstance(item, Sample)
    return item


def painted(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """A blue image with a red box."""
    image = Image.new("RGB", size, BLUE)
    image.paste(RED, box)
    return image


def redness(pixels: Tensor) -> Tensor:
    """Share of pixels that are nearly red; (3, H, W) or (R, 3, H, W)."""
    red, _, blue = pixels.float().unbind(-3)
    return ((red > 200) & (blue < 55)).float().mean((-2, -1))


def test_sample_of_a_record(tmp_path: Path) -> None:
    record = Record(id="x", image="x.png", text=TEXT, group="g", entities=(entity(TEXT, "dog", (0, 0, 20, 10)),))
    sample = only_sample(save_manifest(tmp_path, [record]))
    assert (sample.id, sample.text, sample.group) == ("x", TEXT, stable_id("g"))
    assert sample.pixels.shape == (3, 16, 16)
    assert sample.pixels.dtype == torch.uint8
    assert sample.pixels.is_contiguous()
    assert sample.span_texts == ("dog",)
    torch.testing.assert_close(sample.regions, torch.tensor([[0.0, 0.0, 0.5, 0.5]]))
    assert sample.crops is None
    assert sample.incidents == ()


def test_captions_of_one_image_share_a_group(tmp_path: Path) -> None:
    records = [Record(id=name, image="x.png", text=name) for name in "ab"]
    first, second = (dataset_of(save_manifest(tmp_path, records))[0, i] for i in (0, 1))
    assert isinstance(first, Sample)
    assert isinstance(second, Sample)
    assert first.group == second.group == stable_id("x.png")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_agree_with_pixels_and_crops_of_images_stored_on_their_side(tmp_path: Path, orientation: int) -> None:
    """The box is where the image as shown is red, however it is stored."""
    undone = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that leads back from the shown image
    box = (100, 20, 140, 80)
    shown = painted((160, 100), box)
    stored = shown.transpose(Image.Transpose(undone[orientation])) if orientation > 1 else shown
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "x.png", exif=exif)
    record = Record(id="x", image="x.png", text=TEXT, entities=(entity(TEXT, "cat", box),))
    sample = only_sample(save_manifest(tmp_path, [record]), SampleLimits(image_size=32, crop_size=12))
    assert sample.crops is not None
    assert redness(sample.crops[:, :, 1:-1, 1:-1]).item() == 1
    x0, y0, x1, y1 = (sample.regions[0] * 32).round().int().tolist()
    assert redness(sample.pixels[:, y0 + 1 : y1 - 1, x0 + 1 : x1 - 1]) == 1
    area = (box[2] - box[0]) * (box[3] - box[1]) / (160 * 100)
    assert redness(sample.pixels).item() == pytest.approx(area, abs=0.03)


def crops_of(folder: Path, box: Box, margin: float) -> Tensor:
    painted((160, 100), (40, 30, 80, 50)).save(folder / "x.png")
    record = Record(id="x", image="x.png", text=TEXT, entities=(entity(TEXT, "cat", box),))
    limits = replace(LIMITS, crop_size=40, crop_margin=margin)
    crops = only_sample(save_manifest(folder, [record]), limits).crops
    assert crops is not None
    assert crops.shape == (1, 3, 40, 40)
    assert crops.dtype == torch.uint8
    assert crops.is_contiguous()
    return crops


def test_a_crop_shows_its_box_and_nothing_else(tmp_path: Path) -> None:
    crops = crops_of(tmp_path, (40, 30, 80, 50), margin=0)
    assert redness(crops[..., 1:-1, 1:-1]).item() == 1
    assert redness(crops_of(tmp_path, (80, 50, 120, 90), margin=0)[..., 1:-1, 1:-1]).item() == 0


def test_a_crop_may_have_a_margin(tmp_path: Path) -> None:
    """Half of the box's size on each side: the box takes the middle half of its crop's width and height."""
    crop = crops_of(tmp_path, (40, 30, 80, 50), margin=0.5)[0]
    assert redness(crop[:, 11:29, 11:29]) == 1
    assert redness(crop).item() == pytest.approx(1 / 4, abs=0.03)


def test_a_margin_stops_at_the_border(tmp_path: Path) -> None:
    crop = crops_of(tmp_path, (0, 0, 160, 100), margin=0.5)[0]
    assert redness(crop).item() == pytest.approx(40 * 20 / (160 * 100), abs=0.02)


def test_crops_of_an_image_without_regions(tmp_path: Path) -> None:
    manifest = save_manifest(tmp_path, [Record(id="x", image="x.png", text=TEXT)])
    crops = only_sample(manifest, replace(LIMITS, crop_size=6)).crops
    assert crops is not None
    assert crops.shape == (0, 3, 6, 6)
    assert crops.dtype == torch.uint8


def test_incidents_of_the_annotation_are_the_samples(tmp_path: Path) -> None:
    record = Record(id="x", image="x.png", text=TEXT, entities=(entity(TEXT, "cat", (0, 0, 99, 9)),))
    assert [incident.kind for incident in only_sample(save_manifest(tmp_path, [record])).incidents] == ["clipped box"]


def noise(width: int, height: int, low: int, high: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(low, high + 1, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (3, 5), (31, 33), (32, 32), (200, 90)])
def test_an_image_is_resized_as_pillow_does(size: tuple[int, int]) -> None:
    image = noise(*size, low=64, high=191)
    square = to_square(np.array(image), 32)
    assert square.shape == (3, 32, 32)
    assert square.dtype == torch.uint8
    assert square.is_contiguous()
    expected = to_pixels(image.resize((32, 32), Image.Resampling.BICUBIC))
    assert (square.int() - expected.int()).abs().max() <= 2


@pytest.mark.parametrize("size", [(31, 33), (33, 31), (5, 5), (200, 90)])
def test_what_the_filter_overshoots_is_clipped(size: tuple[int, int]) -> None:
    """Pillow may clip between other passes: single pixels differ, a value that wraps around would move the mean."""
    image = noise(*size, low=0, high=255)
    expected = to_pixels(image.resize((32, 32), Image.Resampling.BICUBIC))
    assert (to_square(np.array(image), 32).float() - expected.float()).abs().mean() < 0.5


# ---------------------------------------------------------------- broken images


def manifest_with_broken(folder: Path, broken: str) -> Manifest:
    records = [Record(id=name, image=f"{name}.png", text=f"text of {name}") for name in "abcdef"]
    for name in broken:
        (folder / f"{name}.png").write_bytes(b"no image")
    return save_manifest(folder, records)


def test_a_broken_image_is_replaced_and_noted(tmp_path: Path) -> None:
    sample = dataset_of(manifest_with_broken(tmp_path, "b"))[0, 1]
    assert isinstance(sample, Sample)
    assert sample.id != "b"
    assert sample.text == f"text of {sample.id}"
    (incident,) = set(sample.incidents)
    assert incident.kind == "broken image"
    assert incident.sample == "b"
    assert "b.png" in incident.detail


def test_the_replacement_is_drawn_from_seed_step_and_index_alone(tmp_path: Path) -> None:
    manifest = manifest_with_broken(tmp_path, "bc")

    def replacements(seed: int, index: int) -> list[str]:
        dataset = dataset_of(manifest, seed=seed)
        torch.rand(3)  # moves the global random state
        items = [dataset[step, index] for step in range(12)]
        assert all(isinstance(item, Sample) for item in items)
        return [item.id for item in items if isinstance(item, Sample)]

    first = replacements(seed=0, index=1)
    assert replacements(seed=0, index=1) == first
    assert set(first) <= set("adef")
    assert len(set(first)) > 1, "it differs between steps"
    assert replacements(seed=1, index=1) != first
    assert replacements(seed=0, index=2) != first


def test_a_readable_pair_is_itself_in_every_step(tmp_path: Path) -> None:
    dataset = dataset_of(manifest_with_broken(tmp_path, "b"))
    for step in range(3):
        sample = dataset[step, 3]
        assert isinstance(sample, Sample)
        assert (sample.id, sample.incidents) == ("d", ())


def test_every_broken_image_on_the_way_is_noted(tmp_path: Path) -> None:
    dataset = dataset_of(manifest_with_broken(tmp_path, "bcdef"))
    samples = [dataset[step, 1] for step in range(8)]
    assert {sample.id for sample in samples if isinstance(sample, Sample)} == {"a"}
    assert max(len(sample.incidents) for sample in samples if isinstance(sample, Sample)) > 1


def test_evaluation_returns_the_incident(tmp_path: Path) -> None:
    item = dataset_of(manifest_with_broken(tmp_path, "b"), training=False)[0, 1]
    assert isinstance(item, Incident)
    assert (item.kind, item.sample) == ("broken image", "b")


def test_twenty_broken_images_in_a_row_are_an_error(tmp_path: Path) -> None:
    dataset = dataset_of(manifest_with_broken(tmp_path, "abcdef"))
    with pytest.raises(DataError, match=r"pairs\.jsonl: 20 images in a row cannot be read; the last: .*\.png"):
        dataset[0, 0]


def test_length_is_the_manifests(tmp_path: Path) -> None:
    assert len(dataset_of(manifest_with_broken(tmp_path, ""))) == 6


class TestViews:
    """Masked views of a red box on blue, where 8 x 8 cells of 4 pixels lie on the image."""

    @pytest.fixture
    def manifest(self, tmp_path: Path) -> Manifest:
        painted((80, 80), (20, 20, 60, 60)).save(tmp_path / "a.png")
        named = entity(TEXT, "cat", (20, 20, 60, 60))
        offered = (ObjectBox(box=(0, 0, 20, 20), score=0.9),)
        return save_manifest(tmp_path, [Record(id="a", image="a.png", text=TEXT, entities=(named,), objects=offered)])

    def drawn(self, manifest: Manifest, key: tuple[int, int] = (0, 0), seed: int = 0, **views: object) -> SampleViews:
        settings = MaskSettings.model_validate({"count": 6, "proposal_share": 0.0, **views})
        limits = SampleLimits(image_size=32, views=settings, view_grid=8)
        sample = dataset_of(manifest, limits, seed)[key]
        assert isinstance(sample, Sample)
        assert sample.views is not None
        return sample.views

    def test_what_hides_the_box_is_against_it_and_what_keeps_it_for_it(self, manifest: Manifest) -> None:
        hiding = self.drawn(manifest, mix={"random": 0, "object": 1, "background": 0})
        keeping = self.drawn(manifest, mix={"random": 0, "object": 0, "background": 1})
        assert hiding.hidden[:, 2:6, 2:6].all()
        assert not keeping.hidden[:, 2:6, 2:6].any()
        assert keeping.hidden.any()
        assert (hiding.sentence.tolist(), hiding.spans.tolist()) == ([-1] * 6, [[-1]] * 6)
        assert (keeping.sentence.tolist(), keeping.spans.tolist()) == ([1] * 6, [[1]] * 6)
        assert hiding.pixels is None

    def test_filled_pixels_no_longer_show_it(self, manifest: Manifest) -> None:
        views = self.drawn(manifest, mix={"random": 0, "object": 1, "background": 0}, fill="zero")
        assert views.pixels is not None
        assert views.pixels.shape == (6, 3, 32, 32)
        assert redness(views.pixels).max() == 0

    def test_they_come_from_seed_step_and_index(self, manifest: Manifest) -> None:
        once, again = self.drawn(manifest, (1, 0)), self.drawn(manifest, (1, 0))
        assert torch.equal(once.hidden, again.hidden)
        assert not torch.equal(once.hidden, self.drawn(manifest, (2, 0)).hidden)
        assert not torch.equal(once.hidden, self.drawn(manifest, (1, 0), seed=1).hidden)

    def test_a_cached_sample_gets_new_ones(self, manifest: Manifest) -> None:
        limits = SampleLimits(image_size=32, views=MaskSettings(count=4), view_grid=8)
        dataset = PairDataset(manifest, limits, 0, replace_broken=True, cache_bytes=10**6)
        first, second = dataset[0, 0], dataset[1, 0]
        assert isinstance(first, Sample)
        assert isinstance(second, Sample)
        assert first.pixels is second.pixels
        assert first.views is not None
        assert second.views is not None
        assert not torch.equal(first.views.hidden, second.views.hidden)

    def test_none_unless_asked_for(self, manifest: Manifest) -> None:
        assert only_sample(manifest).views is None


class TestCachedImages:
    """Which images a process has cached changes no pixel: processes differ in that, and so does a resumed run."""

    LIMITS = SampleLimits(16, augment=AugmentSettings(image=ImageAugmentSettings(crop=0.5, crop_scale=(0.3, 0.4))))

    @pytest.fixture
    def photos(self, tmp_path: Path) -> Manifest:
        for name in "abc":
            noise(160, 160, 0, 255).save(tmp_path / f"{name}.jpg", quality=95)
        return save_manifest(tmp_path, [Record(name, f"{name}.jpg", "a cat") for name in "abc"])

    def pixels(self, dataset: PairDataset, step: int, place: int) -> Tensor:
        sample = dataset[step, place]
        assert isinstance(sample, Sample)
        return sample.pixels

    def test_of_an_evaluation(self, photos: Manifest) -> None:
        dataset = PairDataset(photos, self.LIMITS, 0, replace_broken=True, cache_bytes=10**6)
        before = self.pixels(dataset.for_evaluation(), 0, 0)
        self.pixels(dataset, 0, 0)
        assert torch.equal(self.pixels(dataset.for_evaluation(), 0, 0), before)

    def test_of_an_image_for_which_no_byte_is_left(self, photos: Manifest) -> None:
        size = 160 * 160 * 3 // 4**2  # of an image as it is decoded for the smallest crop
        full, empty = (PairDataset(photos, self.LIMITS, 0, replace_broken=True, cache_bytes=size) for _ in range(2))
        self.pixels(full, 0, 0)
        for step in range(9):
            assert torch.equal(self.pixels(full, step, 1), self.pixels(empty, step, 1))
