"""Runs of several processes, started as a user starts them: by `torchrun`, on the processors of this machine.

test_endings.py kills and stops them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import miniature
from command import HANGS
from spanbox.data.manifest import Manifest
from spanbox.errors import ConfigError
from spanbox.wiring import train
from spanbox.wiring.training import check_batch_size

pytestmark = pytest.mark.slow
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.write_scenes(tmp_path_factory.mktemp("scenes"), languages=("en", "zh"))


def torchrun(ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*TORCHRUN, str(ranks), "-m", "spanbox", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=HANGS)


def train_on(ranks: int, data: Path, run: Path, *more: str) -> str:
    """What the run printed, on both outputs."""
    done = torchrun(ranks, "train", "demo", *miniature.demo_overrides(data, run, *more))
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def log(run: Path, kind: str = "train") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["kind"] == kind]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in log(run)]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_are_one_run_which_one_rank_goes_on_with(parallel: str, scenes: Path, tmp_path: Path) -> None:
    """Without mined negatives in its first steps, then with them."""
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    mining = ["data.mining.every=0.5", "data.mining.count=3"]
    train(miniature.demo_config(scenes, alone, *mining))
    printed = train_on(2, scenes, shared, f"train.parallel={parallel}", "train.chunk_size=2", "train.keep=5", *mining)
    assert losses(shared) == pytest.approx(losses(alone), rel=1e-4)
    assert [line["step"] for line in log(shared, "validation")] == [3, 6]
    assert printed.count("run folder:") == 1
    assert [line["chunk_size"] for line in log(shared)] == [{"text": 2, "image": 2}] * 6
    mined = [sorted(path.name for path in (run / "neighbours").glob("*.npy")) for run in (alone, shared)]
    assert mined[0] == mined[1] != []
    last = shared / "checkpoints" / "last"
    last.unlink()
    last.symlink_to("step-000003")
    train(miniature.demo_config(scenes, shared, "train.resume=true", *mining))
    assert [line["step"] for line in log(shared)] == [1, 2, 3, 4, 5, 6]
    assert losses(shared) == pytest.approx(losses(alone), rel=1e-4)


def test_two_ranks_go_on_with_a_run_of_one_and_end_early_together(scenes: Path, tmp_path: Path) -> None:
    """What does not learn is at its best in the first validation."""
    run = tmp_path / "run"
    still = ["train.optimiser.lr=1e-12", "train.validate_every=1", "train.patience=2"]
    train(miniature.demo_config(scenes, run, "train.steps=1", *still))
    printed = train_on(2, scenes, run, "train.resume=true", *still)
    assert [line["step"] for line in log(run)] == [1, 2, 3]
    assert [line["step"] for line in log(run, "validation")] == [1, 2, 3]
    assert [line["step"] for line in log(run, "early stop")] == [3]
    assert printed.count("the run ends here (train.patience)") == 1


def test_when_a_rank_fails_its_error_is_reported(scenes: Path, tmp_path: Path) -> None:
    """No picture can be read: each rank that finds out ends, and none waits for another."""
    data = miniature.write_scenes(tmp_path / "scenes")
    for image in (data / "images" / "train").iterdir():
        image.write_bytes(b"no image")
    done = torchrun(2, "train", "demo", *miniature.demo_overrides(data, tmp_path / "run"))
    assert done.returncode != 0
    assert "cannot be read" in done.stderr


def test_a_batch_that_cannot_be_shared_evenly_is_refused(scenes: Path, tmp_path: Path) -> None:
    config = miniature.demo_config(scenes, tmp_path / "run", "train.batch_size=2")
    with pytest.raises(ConfigError, match=r"2 pairs cannot be shared evenly among 3 processes; set it to 3"):
        check_batch_size(config, Manifest(scenes / "train.jsonl"), world_size=3)
