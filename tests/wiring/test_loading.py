"""Checkpoints whose descriptions are damaged: each is refused with the file and the reason. Levels, thresholds."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

import miniature
import spanbox
from spanbox.api import _threshold
from spanbox.config import load_config
from spanbox.errors import CheckpointError, SpanboxError
from spanbox.wiring import load, train

LEVELS: tuple[Literal["coarse", "fine"], ...] = ("coarse", "fine")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scenes = miniature.write_scenes(tmp_path_factory.mktemp("scenes"))
    run = tmp_path_factory.mktemp("runs") / "run"
    return train(miniature.demo_config(scenes, run, "data.val=null", "train.steps=1")).run_dir


@pytest.mark.parametrize(
    ("overrides", "untrained"),
    [
        ([], []),
        (["loss.fine.weight=0"], ["fine"]),
        (["loss.coarse.weight=0"], ["coarse"]),
        (["loss.fine.weight=0", "model.projections=shared"], []),
        (["loss.fine.weight=0", "train.start=runs/towers"], []),
    ],
)
def test_levels_without_trained_features(trained: Path, overrides: list[str], untrained: list[str]) -> None:
    loaded = replace(load(trained), config=load_config("demo", overrides))
    assert [level for level in LEVELS if loaded.untrained(level)] == untrained


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained / "checkpoints" / "step-000001", tmp_path / "checkpoint")


def test_a_whole_one_is_loaded(checkpoint: Path) -> None:
    assert load(checkpoint).checkpoint == checkpoint


@pytest.mark.parametrize("name", ["architecture.json", "preprocessing.json"])
@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", "{}", "9" * 5_000, "[" * 100_000, '{"text": 1, "vision": 2}', '"\\ud800"']
)
def test_descriptions_that_are_damaged(name: str, content: str, checkpoint: Path) -> None:
    (checkpoint / name).write_text(content)
    with pytest.raises(CheckpointError, match=name):
        load(checkpoint)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("text", "model_type", None),
        ("text", "model_type", ["bert"]),
        ("text", "hidden_size", "wide"),
        ("text", "hidden_size", 10**7),
        ("text", "num_hidden_layers", 10**6),
        ("vision", "num_hidden_layers", 10**6),
        ("vision", "image_size", 10**6),
        ("vision", "image_size", 96),
        ("vision", "patch_size", 0),
        ("vision", "hidden_size", 0),
    ],
)
def test_architectures_that_cannot_be(part: str, key: str, value: Any, checkpoint: Path) -> None:
    """Among them sizes that no machine holds, which must be refused before anything is allocated."""
    path = checkpoint / "architecture.json"
    architecture = json.loads(path.read_text())
    architecture[part][key] = value
    path.write_text(json.dumps(architecture))
    with pytest.raises(SpanboxError):
        load(checkpoint)


def test_an_image_size_that_is_not_the_towers(checkpoint: Path) -> None:
    path = checkpoint / "preprocessing.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_size": 100_000}))
    with pytest.raises(CheckpointError, match="image_size is 100000, but the vision tower takes 48 pixels"):
        load(checkpoint)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[" * 100_000, b'{"version": "1.0", "model": {"type": "x"}}', b"\xff"]
)
def test_tokenizers_that_are_damaged(content: bytes, checkpoint: Path) -> None:
    (checkpoint / "tokenizer" / "tokenizer.json").write_bytes(content)
    with pytest.raises(SpanboxError, match=r"tokenizer: no tokenizer could be loaded|no vocabulary"):
        load(checkpoint)


def test_a_tokenizer_that_is_no_file(checkpoint: Path) -> None:
    path = checkpoint / "tokenizer" / "tokenizer.json"
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(SpanboxError, match=r"tokenizer\.json is not a regular file"):
        load(checkpoint)


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors", "architecture.json", "preprocessing.json"])
def test_incomplete_copies(name: str, checkpoint: Path) -> None:
    (checkpoint / name).unlink()
    with pytest.raises(CheckpointError):
        load(checkpoint)


def test_the_threshold_of_a_run_without_one_is_that_of_its_evaluation(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run", symlinks=True)
    assert spanbox.load(run).threshold is None
    evaluated = {"checkpoint": "step-000001", "matching.presence.threshold": 0.25}
    (run / "metrics.json").write_text(json.dumps(evaluated))
    assert spanbox.load(run).threshold == 0.25
    (run / "metrics.json").write_text(json.dumps(evaluated | {"checkpoint": "step-000002"}))
    assert spanbox.load(run).threshold is None


@pytest.mark.parametrize("content", ["", "[]", "{", '{"matching.presence.threshold": "high"}'])
def test_a_damaged_threshold_is_none(content: str, checkpoint: Path) -> None:
    (checkpoint / "validation.json").write_text(content)
    assert spanbox.load(checkpoint).threshold is None


def test_the_threshold_of_a_checkpoint_directly_below_the_root() -> None:
    """As containers mount it."""
    assert _threshold(Path("/no-such-checkpoint")) is None
