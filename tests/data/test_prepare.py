"""One path from an image, a text, spans and boxes to a sample, without a manifest."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pairs import entity, save_manifest
from spanbox.data.dataset import PairDataset
from spanbox.data.limits import SampleLimits
from spanbox.data.manifest import ObjectBox, Record
from spanbox.data.prepare import prepare
from spanbox.errors import DataError
from spanbox.structures import SHOWN, Sample, stable_id

LIMITS = SampleLimits(image_size=16, crop_size=8, proposals=2)
TEXT = "a cat, 一只狗"


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(256, size=(30, 50, 3), dtype=np.uint8))


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_record_and_its_parts_give_the_same_sample(tmp_path: Path, *, in_memory: bool) -> None:
    spans = (entity(TEXT, "cat", (10, 5, 30, 20)), entity(TEXT, "狗"))
    boxes = (ObjectBox((0, 20, 10, 30)),)
    picture().save(tmp_path / "x.png")
    record = Record(id="x", image="x.png", text=TEXT, entities=spans, objects=boxes)
    of_record = PairDataset(save_manifest(tmp_path, [record]), LIMITS, 0, replace_broken=False)[0, 0]
    image = picture() if in_memory else tmp_path / "x.png"
    sample = prepare(image, TEXT, spans, boxes, LIMITS, id="x", group="x.png")
    assert isinstance(of_record, Sample)
    assert torch.equal(sample.pixels, of_record.pixels)
    assert sample.crops is not None
    assert of_record.crops is not None
    assert torch.equal(sample.crops, of_record.crops)
    assert torch.equal(sample.regions, of_record.regions)
    assert (sample.spans, sample.shown) == (of_record.spans, of_record.shown)
    assert (sample.identities, sample.group) == (of_record.identities, of_record.group)


def test_an_image_and_a_text_alone() -> None:
    sample = prepare(picture(), "", (), (), SampleLimits(image_size=4))
    assert sample.pixels.shape == (3, 4, 4)
    assert sample.regions.shape == (0, 4)
    assert sample.spans == ()


def test_boxes_alone_are_candidates() -> None:
    boxes = [ObjectBox((10, 5, 30, 20)), ObjectBox((0, 0, 50, 30))]
    sample = prepare(picture(), "", (), boxes, SampleLimits(image_size=4, objects_only=True))
    torch.testing.assert_close(sample.regions, torch.tensor([[0.2, 1 / 6, 0.6, 2 / 3], [0, 0, 1, 1]]))


def test_the_group_is_the_id_unless_given() -> None:
    cat = entity(TEXT, "cat", (10, 5, 30, 20))
    sample = prepare(picture(), TEXT, [cat], (), LIMITS, id="x")
    assert (sample.group, sample.shown) == (stable_id("x"), (SHOWN,))


@pytest.mark.parametrize("mode", ["RGBA", "L", "I;16", "CMYK"])
def test_an_image_in_memory_may_have_any_mode(mode: str) -> None:
    assert prepare(Image.new(mode, (3, 2)), "", (), (), LIMITS).pixels.dtype == torch.uint8


def test_an_image_in_memory_keeps_its_size(tmp_path: Path) -> None:
    Image.new("RGB", (640, 480)).save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        prepare(image, "", (), (), SampleLimits(image_size=16))
        assert image.size == (640, 480)


def test_a_broken_image_in_memory_is_an_error(tmp_path: Path) -> None:
    Image.new("RGB", (640, 480)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:300])
    with Image.open(tmp_path / "a.png") as image, pytest.raises(DataError, match="an image in memory: broken image"):
        prepare(image, "", (), (), LIMITS)
