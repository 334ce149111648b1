"""Zero-shot detectors from local folders, with random weights: boxes in pixels, labels of their own, wrong folders."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from detectors import write_grounding_dino, write_owlvit
from spanbox.errors import ConfigError
from spanbox.models.detection import ZeroShotDetector, _nearest

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def owlvit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_owlvit(tmp_path_factory.mktemp("owlvit"))


def noise(width: int, height: int) -> Image.Image:
    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def test_boxes_are_in_pixels_of_each_image(owlvit: Path) -> None:
    """A box of the tiny model is a quarter of the image wide and high."""
    detector = ZeroShotDetector(owlvit, CPU, 0.0)
    for (width, height), found in zip(
        [(64, 64), (128, 40)], detector.detect([noise(64, 64), noise(128, 40)], [["cat", "a dog"]] * 2), strict=True
    ):
        assert len(found) == 16  # one of each patch
        for entry in found:
            x0, y0, x1, y1 = entry["box"]
            assert (x1 - x0, y1 - y0) == pytest.approx((width / 4, height / 4), rel=0.01)
            assert entry["label"] in ("cat", "a dog")
            assert 0 <= entry["score"] <= 1
        centres = {round((entry["box"][0] + entry["box"][2]) / 2 / width * 4) for entry in found}
        assert centres == {1, 2, 3, 4}


def test_each_image_has_labels_of_its_own(owlvit: Path) -> None:
    detector = ZeroShotDetector(owlvit, CPU, 0.0)
    image = noise(60, 40)
    together = detector.detect([image, image, image], [["cat"], ["a dog", "x" * 200], []])
    alone = [detector.detect([image], [labels])[0] for labels in (["cat"], ["a dog", "x" * 200], [])]
    assert together == alone
    assert {found["label"] for found in together[0]} == {"cat"}
    assert together[2] == []


def test_the_threshold_leaves_out_what_is_below_it(owlvit: Path) -> None:
    everything = ZeroShotDetector(owlvit, CPU, 0.0)
    scores = sorted(found["score"] for found in everything.detect([noise(60, 40)], [["cat"]])[0])
    middle = (scores[7] + scores[8]) / 2
    above = ZeroShotDetector(owlvit, CPU, middle)
    assert len(above.detect([noise(60, 40)], [["cat"]])[0]) == 8
    assert above.key != everything.key


@pytest.mark.slow
def test_grounding_dino(tmp_path: Path) -> None:
    detector = ZeroShotDetector(write_grounding_dino(tmp_path), CPU, 0.0)
    (found,) = detector.detect([noise(60, 40)], [["a cat", "dog"]])
    assert len(found) == 12  # one of each query
    assert all(len(entry["box"]) == 4 for entry in found)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a cat", "A Cat"), ("cat", "A Cat"), ("dog", "dog"), ("red", "red"), ("", ""), ("红 帽子", "红 帽子")],
)
def test_words_of_a_detector_are_matched_with_labels(name: str, expected: str) -> None:
    assert _nearest(name, ["A Cat", "dog", "red hat", "red shoe", "红 帽子"]) == expected


def test_a_package_that_is_missing_is_named(owlvit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("\nOwlv2ImageProcessor requires the scipy library but it was not found.")

    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", missing)
    with pytest.raises(ConfigError, match="cannot be loaded: Owlv2ImageProcessor requires the scipy library"):
        ZeroShotDetector(owlvit, CPU, 0.1)


def test_wrong_folders_are_explained(owlvit: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not a folder with a config\.json"):
        ZeroShotDetector(tmp_path / "none", CPU, 0.1)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="a model of type 'bert'; expected owlvit"):
        ZeroShotDetector(tmp_path, CPU, 0.1)
    for name in ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((owlvit / name).read_bytes())
    with pytest.raises(ConfigError, match="cannot be loaded"):
        ZeroShotDetector(tmp_path, CPU, 0.1)
    (tmp_path / "model.safetensors").write_bytes((owlvit / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(ConfigError, match="cannot be loaded"):
        ZeroShotDetector(tmp_path, CPU, 0.1)
    (tmp_path / "config.json").write_text(json.dumps(["owlvit"]))
    with pytest.raises(ConfigError, match="not a folder with a config"):
        ZeroShotDetector(tmp_path, CPU, 0.1)
