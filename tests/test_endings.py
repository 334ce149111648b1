"""Every run ends, with a message and the right exit code, and leaves no process behind.

SPANBOX_REPEAT=10 runs each of these tests ten times, beside two processes that burn a core each (`make stress`): what
depends on the scheduler shows on a busy machine.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

import miniature
from command import HANGS
from spanbox.engine.checkpoint import last_checkpoint
from spanbox.wiring import train

REPEAT = int(os.environ.get("SPANBOX_REPEAT", "0"))  # 0: once, without other work beside it
SPANBOX = [sys.executable, "-m", "spanbox", "train", "demo"]
TWO_RANKS = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *SPANBOX[1:]]
ENDLESS = ["data.val=null", "train.steps=100000", "train.log_every=1", "train.save_every=2"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.parametrize("repetition", range(max(REPEAT, 1))),
    pytest.mark.usefixtures("busy_machine", "repetition"),
]
stress_only = pytest.mark.skipif(not REPEAT, reason="part of `make stress`; other tests end such a run on the way")


@pytest.fixture
def repetition(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.fixture(scope="module")
def busy_machine() -> Iterator[None]:
    """Two processes that burn a core each, when the tests are repeated."""
    burning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 if REPEAT else 0)]
    yield
    for process in burning:
        process.kill()
        process.wait()


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command in a process group of its own; what is left of its run at the end is killed."""
    started = []

    def popen(command: list[str], largest_file: int | None = None) -> subprocess.Popen[str]:
        def limit() -> None:
            if largest_file is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=limit,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"},
        )
        started.append(process)
        return process

    yield popen
    for number in processes_of(tmp_path / "run"):
        os.kill(number, signal.SIGKILL)
    for process in started:
        process.communicate()


@pytest.fixture
def start(
    launch: Callable[..., subprocess.Popen[str]], scenes: Path, tmp_path: Path
) -> Callable[..., subprocess.Popen[str]]:
    """Starts training."""

    def train(*overrides: str, command: list[str] = SPANBOX, largest_file: int | None = None) -> subprocess.Popen[str]:
        return launch([*command, *miniature.demo_overrides(scenes, tmp_path / "run", *overrides)], largest_file)

    return train


def processes_of(run: Path) -> list[int]:
    """Every living process with the run's folder in its command line: trainers, ranks and workers."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            named = str(run).encode() in (folder / "cmdline").read_bytes()
            living = (folder / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:  # it has ended meanwhile
            continue
        if named and living:
            found.append(int(folder.name))
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANGS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def wait_for_steps(run: Path, process: subprocess.Popen[str], steps: int) -> None:
    def arrived() -> bool:
        assert process.poll() is None, process.communicate()
        log = run / "log.jsonl"
        return log.is_file() and log.read_bytes().count(b"\n") >= steps

    wait_until(arrived)


def children(parent: int) -> list[int]:
    return [
        int(number)
        for task in Path(f"/proc/{parent}/task").iterdir()
        for number in (task / "children").read_text().split()
    ]


def assert_nothing_is_left(run: Path) -> None:
    wait_until(lambda: not processes_of(run))


def test_a_killed_worker_ends_the_run(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start(*ENDLESS, "data.workers=2")
    wait_for_steps(tmp_path / "run", process, 3)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    _, printed = process.communicate(timeout=HANGS)
    assert process.returncode == 2
    assert "a process that loads data ended unexpectedly" in printed
    assert "Traceback" not in printed
    assert_nothing_is_left(tmp_path / "run")


def test_workers_end_with_a_killed_run(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start(*ENDLESS, "data.workers=2")
    wait_for_steps(tmp_path / "run", process, 3)
    assert len(children(process.pid)) == 2
    process.kill()
    assert_nothing_is_left(tmp_path / "run")


def test_processes_that_draw_scenes_end_with_a_killed_one(
    tmp_path: Path, launch: Callable[..., subprocess.Popen[str]]
) -> None:
    process = launch([*SPANBOX[:3], "data", "demo", str(tmp_path / "run"), "--n", "100000"])
    wait_until(lambda: len(processes_of(tmp_path / "run")) > 1)
    process.kill()
    assert_nothing_is_left(tmp_path / "run")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_in_a_checkpoint_ends_the_run_with_the_last_one_whole(
    workers: int, scenes: Path, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """The log fits, and so did a checkpoint of the first run; the second run's files may not grow that large. Nor may
    the shared memory that a batch of a worker needs."""
    run = tmp_path / "run"
    train(miniature.demo_config(scenes, run, "train.steps=2", "train.save_every=2", "data.val=null"))
    saved = last_checkpoint(run / "checkpoints")
    assert saved is not None
    before = {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()}
    process = start(*ENDLESS, "train.resume=true", f"data.workers={workers}", largest_file=20_000)
    _, printed = process.communicate(timeout=HANGS)
    assert process.returncode == 2
    assert "cannot be written" in printed or "a process that loads data ended" in printed
    assert "Traceback" not in printed
    assert {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()} == before
    assert not list(run.rglob("*.partial"))
    assert_nothing_is_left(run)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_saves_and_ends(
    number: int, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """As terminals and job schedulers send it: to the workers too."""
    run = tmp_path / "run"
    process = start(*ENDLESS, "data.workers=2")
    wait_for_steps(run, process, 3)
    os.killpg(process.pid, number)
    _, printed = process.communicate(timeout=HANGS)
    assert process.returncode == 130
    assert "Traceback" not in printed
    last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])["step"]
    assert f"stopped after step {last}; a checkpoint is saved. Continue with:" in printed
    assert f"spanbox train {run}/config.yaml --resume" in printed
    saved = last_checkpoint(run / "checkpoints")
    assert saved is not None
    assert int(saved.resolve().name.removeprefix("step-")) == last
    assert_nothing_is_left(run)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_comparison_ends_with_its_runs(
    number: int, scenes: Path, tmp_path: Path, launch: Callable[..., subprocess.Popen[str]]
) -> None:
    """A signal to the process that started them, and to no other; they save a checkpoint."""
    out = tmp_path / "run"
    runs = [out / f"{name}-0" for name in ("a", "b")]
    overrides = miniature.demo_overrides(scenes, tmp_path, "data.val=null", "train.log_every=1")
    plan = {
        "recipe": "demo",
        "overrides": [each for each in overrides if not each.startswith(("run.dir", "train.steps"))],
        "variants": {"a": [], "b": ["loss.fine.weight=0"]},
        "seeds": [0],
        "steps": 100_000,
        "jobs": 2,
        "test": str(scenes / "test.jsonl"),
        "metrics": ["retrieval.i2t.r1"],
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    process = launch([*SPANBOX[:3], "ablate", str(tmp_path / "plan.yaml"), "--out", str(out)])
    for run in runs:
        wait_for_steps(run, process, 3)
    process.send_signal(number)
    _, printed = process.communicate(timeout=HANGS)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}[number]
    assert "Traceback" not in printed
    for run in runs:
        assert_nothing_is_left(run)
        assert last_checkpoint(run / "checkpoints") is not None
        assert "a checkpoint is saved" in (run / "output.txt").read_text()


def test_a_silent_rank_is_named(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    run = tmp_path / "run"
    process = start(*ENDLESS, "train.rank_timeout=10", command=TWO_RANKS)
    wait_for_steps(run, process, 2)
    stopped = next(number for number in children(process.pid) if b"\0RANK=1\0" in environment(number))
    os.kill(stopped, signal.SIGSTOP)
    _, printed = process.communicate(timeout=HANGS)
    assert process.returncode != 0
    assert printed.count("has not answered for 10 s (train.rank_timeout)") == 1
    assert "spanbox: rank 1 on " in printed
    assert_nothing_is_left(run)


def environment(process: int) -> bytes:
    return b"\0" + Path(f"/proc/{process}/environ").read_bytes()


def test_a_killed_rank_ends_the_others(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    run = tmp_path / "run"
    process = start(*ENDLESS, command=TWO_RANKS)
    wait_for_steps(run, process, 2)
    killed = next(number for number in children(process.pid) if b"\0RANK=1\0" in environment(number))
    os.kill(killed, signal.SIGKILL)
    _, printed = process.communicate(timeout=HANGS)
    assert process.returncode != 0
    assert "Signal 9 (SIGKILL)" in printed
    assert_nothing_is_left(run)


@stress_only
def test_ranks_that_are_done_end(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    """The process group outlives the reducer that uses it, whatever the scheduler does."""
    process = start("train.steps=3", "data.val=null", "data.workers=1", command=TWO_RANKS)
    _, printed = process.communicate(timeout=HANGS)
    assert process.returncode == 0, printed
    assert_nothing_is_left(tmp_path / "run")


@stress_only
def test_one_text_for_all_ends_the_run(
    scenes: Path, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """No pair has a negative: the loss is 0 from the first step."""
    same = scenes / "same.jsonl"
    records = [json.loads(line) for line in (scenes / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    plain = [{"id": record["id"], "image": record["image"], "text": "一张照片"} for record in records]
    same.write_text("".join(json.dumps(record) + "\n" for record in plain), encoding="utf-8")
    process = start(f"data.train={same}", "data.val=null")
    _, printed = process.communicate(timeout=HANGS)
    assert process.returncode == 2
    assert "nothing to contrast: no row of coarse and fine had both a positive and a negative" in printed
    assert_nothing_is_left(tmp_path / "run")
