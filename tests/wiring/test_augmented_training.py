"""Training on augmented copies: a resumed run repeats the uninterrupted one bit for bit, with any number of workers."""

import json
import shutil
from pathlib import Path

import pytest

import miniature
from spanbox.config import load_config
from spanbox.errors import ConfigError
from spanbox.wiring.training import train

AUGMENTED = [
    "data.augment.copies=2",
    "data.augment.image.preset=standard",
    "data.augment.text.preset=strong",
    "loss.copies.weight=0.5",
]
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(miniature.demo_config(scenes, folder, *AUGMENTED, *miniature.DROPOUT))
    return folder


def losses(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if key.startswith("loss")} for line in lines if "loss" in line]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_resumed_run_repeats_it_bit_for_bit(run: Path, tmp_path: Path, workers: int) -> None:
    folder = tmp_path / "resumed"
    shutil.copytree(run, folder, symlinks=True)
    for name in ("step-000006", "last", "best"):
        path = folder / "checkpoints" / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    more = ["train.resume=true", f"data.workers={workers}"]
    assert train(load_config(str(folder / "config.yaml"), more)).step == 6
    assert losses(folder) == losses(run)
    assert len(losses(run)) == 6
    weights = [one / "checkpoints" / "step-000006" / "model.safetensors" for one in (run, folder)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_term_of_copies_is_logged(run: Path) -> None:
    assert all(line["loss.copies"] > 0 for line in losses(run))


def test_a_batch_holds_whole_sets_of_copies(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"8 pairs in 3 copies .* set it to 6"):
        train(miniature.demo_config(scenes, tmp_path / "run", *AUGMENTED, "data.augment.copies=3"))


def test_equal_copies_are_refused(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.augment: copies=2 would be equal"):
        miniature.demo_config(scenes, tmp_path / "run", "data.augment.copies=2")
