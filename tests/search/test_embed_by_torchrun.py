"""`spanbox embed` by `torchrun`, as users start it: the file of one process, also when a rank is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import miniature
from spanbox.search.embedding import PART
from spanbox.wiring import train

PARTS = 8
DONE = 2  # parts that are finished when a rank is killed
ONE = [sys.executable, "-m", "spanbox"]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "spanbox"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
LIMIT = 240.0  # seconds, on a busy machine


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scenes = miniature.write_scenes(tmp_path_factory.mktemp("scenes"))
    return train(miniature.demo_config(scenes, tmp_path_factory.mktemp("runs") / "run", "train.steps=1")).run_dir


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV file whose last part is not full."""
    path = tmp_path_factory.mktemp("texts") / "texts.csv"
    lines = [f"a red kite above {number} boats 海上的风筝" for number in range(PARTS * PART - 100)]
    path.write_text("\n".join(["text", *lines]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def expected(run: Path, texts: Path) -> tuple[bytes, bytes]:
    """The files of one process."""
    out = texts.parent / "alone.npy"
    subprocess.run(embed(ONE, run, texts, out), env=ENVIRONMENT, check=True, capture_output=True, timeout=LIMIT)
    return content(out)


def embed(launcher: list[str], run: Path, texts: Path, out: Path) -> list[str]:
    words = ["embed", str(run), str(texts), str(out), "--what", "texts", "--column", "text", "--device", "cpu"]
    return [*launcher, *words, "--batch-size", "256"]


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A `torchrun` that does not outlive the test."""
    process = subprocess.Popen(command, env=ENVIRONMENT)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()  # torchrun ends its ranks
            process.wait()


def content(out: Path) -> tuple[bytes, bytes]:
    """The bytes of both files, once the folder of parts is gone."""
    assert not parts_of(out).exists()
    return out.read_bytes(), out.with_suffix(".items.jsonl").read_bytes()


def parts_of(out: Path) -> Path:
    return out.parent / f".{out.name}.parts"


def children(process: int) -> list[int]:
    return [int(number) for number in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def is_running(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and ") Z " not in stat.read_text()


def test_two_ranks_write_the_file_of_one(run: Path, texts: Path, expected: tuple[bytes, bytes], tmp_path: Path) -> None:
    out = tmp_path / "two.npy"
    done = subprocess.run(
        embed(TWO, run, texts, out), env=ENVIRONMENT, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("texts written to") == 1
    assert content(out) == expected


def written_at(path: Path) -> int | None:
    """None once it is gone."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def test_a_rank_that_is_killed_and_started_again(
    run: Path, texts: Path, expected: tuple[bytes, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "killed.npy"
    with started(embed(TWO, run, texts, out)) as first:
        limit = time.monotonic() + LIMIT
        while len(list(parts_of(out).glob("*.json"))) < DONE:
            assert first.poll() is None, "ended before a rank was killed"
            assert time.monotonic() < limit
            time.sleep(0.01)
        ranks = children(first.pid)
        os.kill(ranks[1], signal.SIGKILL)
        assert first.wait(LIMIT) != 0
    assert not any(is_running(rank) for rank in ranks)
    finished = {path: path.stat().st_mtime_ns for path in parts_of(out).glob("*.json")}
    assert DONE <= len(finished) < PARTS
    assert not out.exists()
    kept: set[Path] = set()
    with started(embed(TWO, run, texts, out)) as second:
        while second.poll() is None:
            kept |= {path for path, time_of_it in finished.items() if written_at(path) == time_of_it}
            time.sleep(0.05)
        assert second.returncode == 0
    assert kept == finished.keys()
    assert content(out) == expected
