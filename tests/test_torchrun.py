"""Runs of several processes, started as a user starts them: by `torchrun`, on the processors of this machine."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import miniature
from spanbox.wiring import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.write_scenes(tmp_path_factory.mktemp("scenes"), languages=("en", "zh"))


def torchrun(ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    return subprocess.run(
        [*command, "-m", "spanbox", *arguments], capture_output=True, text=True, env=environment, timeout=120
    )


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
    train(miniature.demo_config(scenes, tmp_path / "alone"))
    run = tmp_path / "shared"
    printed = train_on(2, scenes, run, f"train.parallel={parallel}", "train.chunk_size=2", "train.keep=5")
    assert losses(run) == pytest.approx(losses(tmp_path / "alone"), rel=1e-4)
    assert [line["step"] for line in log(run, "validation")] == [3, 6]
    assert printed.count("run folder:") == 1
    assert [line["chunk_size"] for line in log(run)] == [2] * 6
    last = run / "checkpoints" / "last"
    last.unlink()
    last.symlink_to("step-000003")
    train(miniature.demo_config(scenes, run, "train.resume=true"))
    assert [line["step"] for line in log(run)] == [1, 2, 3, 4, 5, 6]
    assert losses(run) == pytest.approx(losses(tmp_path / "alone"), rel=1e-4)


def test_a_run_of_one_rank_goes_on_with_two(scenes: Path, tmp_path: Path) -> None:
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    train(miniature.demo_config(scenes, whole))
    train(miniature.demo_config(scenes, shared, "train.steps=3"))
    train_on(2, scenes, shared, "train.resume=true")
    assert [line["step"] for line in log(shared)] == [1, 2, 3, 4, 5, 6]


def test_when_a_rank_dies_the_others_end_with_its_error(scenes: Path, tmp_path: Path) -> None:
    """No picture can be read: each rank that finds out ends, and none waits for another."""
    data = miniature.write_scenes(tmp_path / "scenes")
    for image in (data / "images" / "train").iterdir():
        image.write_bytes(b"no image")
    began = time.monotonic()
    done = torchrun(2, "train", "demo", *miniature.demo_overrides(data, tmp_path / "run"))
    assert done.returncode != 0
    assert "cannot be read" in done.stderr
    assert time.monotonic() - began < 90


@pytest.mark.parametrize("size", [2, 7])
def test_a_batch_that_cannot_be_shared_evenly_is_refused(size: int, scenes: Path, tmp_path: Path) -> None:
    done = torchrun(3, "train", "demo", *miniature.demo_overrides(scenes, tmp_path / "run", f"train.batch_size={size}"))
    assert done.returncode != 0
    assert f"train.batch_size: {size} pairs cannot be shared evenly among 3 processes; set it to" in done.stderr
