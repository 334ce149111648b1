"""Runs with `train.cache_frozen`: the losses are those without it, and a frozen tower encodes each row once."""

import json
from pathlib import Path
from typing import Any

import pytest

import miniature
from spanbox.errors import ConfigError
from spanbox.models.towers import VisionTower
from spanbox.wiring import train

FREEZE = ["model.vision.freeze=all", "data.val=null", "data.views.count=0", "train.steps=8"]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of images that a vision tower encodes."""
    counts: list[int] = []
    forward = VisionTower.forward

    def counted(self: VisionTower, pixels: Any, kept: Any = None) -> Any:
        counts.append(len(pixels))
        return forward(self, pixels, kept)

    monkeypatch.setattr(VisionTower, "forward", counted)
    return counts


def losses(scenes: Path, run: Path, *overrides: str) -> list[float]:
    train(miniature.demo_config(scenes, run, *FREEZE, "train.log_every=1", *overrides))
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def test_equal_losses_and_each_image_once(scenes: Path, tmp_path: Path, encoded: list[int]) -> None:
    expected = losses(scenes, tmp_path / "without")
    every_time = sum(encoded)
    cache = f"train.cache_frozen={tmp_path / 'cache'}"
    encoded.clear()
    assert losses(scenes, tmp_path / "first", cache) == pytest.approx(expected, rel=1e-5)
    first = sum(encoded)
    encoded.clear()
    assert losses(scenes, tmp_path / "second", cache) == pytest.approx(expected, rel=1e-5)
    pairs = len((scenes / "train.jsonl").read_text(encoding="utf-8").splitlines())
    assert sum(encoded) < first < every_time  # what is left measures the memory, and finds the shapes
    assert first - sum(encoded) <= pairs


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.vision.freeze=0"], "the text tower learns, the vision tower learns; freeze one whole"),
        (["data.views.count=2", "data.views.fill=mean"], "the vision tower reads images that are filled at random"),
        (
            ["model.vision.freeze=0", "model.text.freeze=all", "data.augment.text.deletion=0.1"],
            "the text tower reads augmented texts",
        ),
    ],
)
def test_nothing_to_keep(overrides: list[str], message: str, scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        losses(scenes, tmp_path / "run", f"train.cache_frozen={tmp_path / 'cache'}", *overrides)
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "run").exists()
