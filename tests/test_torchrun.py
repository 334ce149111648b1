"""Runs of several processes, started as a user starts them: by `torchrun`, on the processors of this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import miniature
from spanbox.wiring import train

pytestmark = pytest.mark.slow
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.write_scenes(tmp_path_factory.mktemp("scenes"), languages=("en", "zh"))


def torchrun(ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*TORCHRUN, str(ranks), "-m", "spanbox", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120)


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


def test_ranks_end_early_together(scenes: Path, tmp_path: Path) -> None:
    """What does not learn is at its best in the first validation."""
    still = ["train.optimiser.lr=1e-12", "train.validate_every=1", "train.patience=2"]
    printed = train_on(2, scenes, tmp_path / "run", *still)
    assert [line["step"] for line in log(tmp_path / "run", "validation")] == [1, 2, 3]
    assert [line["step"] for line in log(tmp_path / "run", "early stop")] == [3]
    assert printed.count("the run ends here (train.patience)") == 1


def test_when_a_rank_is_killed_the_others_end(scenes: Path, tmp_path: Path) -> None:
    """Within a minute, and with the signal that killed it on the output."""
    run = tmp_path / "run"
    overrides = miniature.demo_overrides(scenes, run, "data.val=null", "train.steps=100000")
    process = subprocess.Popen(
        [*TORCHRUN, "2", "-m", "spanbox", "train", "demo", *overrides],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    try:
        deadline = time.monotonic() + 60
        while not (run / "log.jsonl").is_file() or not log(run):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        killed = time.monotonic()
        os.kill(process_of_rank(1, process.pid), signal.SIGKILL)
        _, printed = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0
    assert "Signal 9 (SIGKILL)" in printed
    assert time.monotonic() - killed < 60


def process_of_rank(rank: int, parent: int) -> int:
    """The child of a `torchrun` that has this rank."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status, environment = (folder / "status").read_text(), (folder / "environ").read_bytes()
        except OSError:  # it has ended meanwhile
            continue
        if f"PPid:\t{parent}\n" in status and f"\0RANK={rank}\0".encode() in b"\0" + environment:
            return int(folder.name)
    raise AssertionError(f"no process of rank {rank}")


def test_when_a_rank_fails_its_error_is_reported(scenes: Path, tmp_path: Path) -> None:
    """No picture can be read: each rank that finds out ends, and none waits for another."""
    data = miniature.write_scenes(tmp_path / "scenes")
    for image in (data / "images" / "train").iterdir():
        image.write_bytes(b"no image")
    began = time.monotonic()
    done = torchrun(2, "train", "demo", *miniature.demo_overrides(data, tmp_path / "run"))
    assert done.returncode != 0
    assert "cannot be read" in done.stderr
    assert time.monotonic() - began < 90


def test_a_batch_that_cannot_be_shared_evenly_is_refused(scenes: Path, tmp_path: Path) -> None:
    done = torchrun(3, "train", "demo", *miniature.demo_overrides(scenes, tmp_path / "run", "train.batch_size=2"))
    assert done.returncode != 0
    assert "train.batch_size: 2 pairs cannot be shared evenly among 3 processes; set it to 3" in done.stderr


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_mine_what_one_mines(parallel: str, scenes: Path, tmp_path: Path) -> None:
    mining = ["data.mining.every=0.5", "data.mining.count=3"]
    train(miniature.demo_config(scenes, tmp_path / "alone", *mining))
    train_on(2, scenes, tmp_path / "shared", f"train.parallel={parallel}", "train.chunk_size=2", *mining)
    assert losses(tmp_path / "shared") == pytest.approx(losses(tmp_path / "alone"), rel=1e-4)
    mined = [sorted(path.name for path in (tmp_path / run / "neighbours").iterdir()) for run in ("alone", "shared")]
    assert mined[0] == mined[1] != []
