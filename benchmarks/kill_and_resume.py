"""Kills runs in several ways at random moments, resumes them, and compares their logs with an uninterrupted run's.

    python benchmarks/kill_and_resume.py --kills 50

A run is in order when it ends after the kill, leaves no process, and, resumed, logs the same losses bit for bit.
"""

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from hardware import describe
from spanbox.data.demo import DemoSettings, write_demo

STEPS = 30
TIME_OUT = 120.0  # seconds for anything
LARGEST_FILE = 50_000  # bytes: between the log and the weights of a checkpoint
SMALL = [
    "model.dim=16",
    "model.text.architecture.vocab_size=256",
    *(
        f"model.{tower}.architecture.{key}"
        for tower in ("text", "vision")
        for key in ("hidden_size=32", "num_hidden_layers=1", "intermediate_size=48", "hidden_dropout_prob=0.2")
    ),
    *("model.vision.architecture.image_size=48", "model.vision.architecture.patch_size=16"),
    *("train.batch_size=8", f"train.steps={STEPS}", "train.log_every=1", "train.save_every=4", "data.val=null"),
    *("train.device=cpu", "data.views.count=2", "data.views.fill=drop"),
]
WAYS = ("kill", "group terminated", "worker killed", "disk full", "rank killed")


def command(data: Path, run: Path, *more: str, ranks: int = 1) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    overrides = [f"data.train={data}/train.jsonl", f"run.dir={run}", *SMALL, *more]
    return [sys.executable, *launcher, "-m", "spanbox", "train", "demo", *overrides]


def losses(run: Path) -> dict[int, float]:
    lines = (json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").split("\n") if line)
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


def start(arguments: list[str], *, disk_full: bool = False) -> subprocess.Popen[bytes]:
    def limit() -> None:
        if disk_full:
            resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))

    return subprocess.Popen(
        arguments,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=limit,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def children(parent: int) -> list[int]:
    tasks = Path(f"/proc/{parent}/task").glob("*/children")
    return [int(number) for task in tasks for number in task.read_text().split()]


def living(run: Path) -> list[int]:
    """Processes with the run's folder in their command line, zombies left out."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str(run).encode() not in (folder / "cmdline").read_bytes():
                continue
            if (folder / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(int(folder.name))
        except OSError:  # it has ended meanwhile
            continue
    return [number for number in found if number != os.getpid()]


def ranks_of(way: str) -> int:
    return 2 if way == "rank killed" else 1


def interrupt(way: str, data: Path, run: Path, moment: int) -> str:
    """Start a run, interrupt it when it has logged `moment` steps, and wait for its end. Returns a fault or ''."""
    workers = 0 if way in ("disk full", "rank killed") else 2
    arguments = command(data, run, f"data.workers={workers}", ranks=ranks_of(way))
    process = start(arguments, disk_full=way == "disk full")
    if way != "disk full":
        log = run / "log.jsonl"
        while process.poll() is None and not (log.is_file() and log.read_bytes().count(b"\n") >= moment):
            time.sleep(0.01)
        victims = children(process.pid)
        if way == "kill":
            process.kill()
        elif way == "group terminated":
            os.killpg(process.pid, signal.SIGTERM)
        elif victims:
            os.kill(random.choice(victims), signal.SIGKILL)
    try:
        printed = process.communicate(timeout=TIME_OUT)[1].decode()
    except subprocess.TimeoutExpired:
        return "hangs"
    if "Traceback" in printed and way != "rank killed":  # torchrun itself prints one
        print(printed, file=sys.stderr)
        return "traceback"
    deadline = time.monotonic() + TIME_OUT
    while living(run):
        if time.monotonic() > deadline:
            return "leaves a process"
        time.sleep(0.1)
    return ""


def resumed(way: str, data: Path, run: Path, expected: dict[int, float]) -> str:
    more = ("train.resume=true",) if (run / "checkpoints").is_dir() and any(run.glob("checkpoints/step-*")) else ()
    overwrite = () if more else ("run.overwrite=true",)
    process = start(command(data, run, *more, *overwrite, ranks=ranks_of(way)))
    printed = process.communicate(timeout=TIME_OUT)[1].decode()
    if process.returncode:
        return f"not resumed: {printed.strip().splitlines()[-1]}"
    return "" if losses(run) == expected else "another trajectory"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    outcomes: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_demo(data, {"train": 64}, DemoSettings(concepts=20, size=64))
        expected = {}
        for ranks in (1, 2):  # dropout is drawn for each rank
            whole = Path(folder) / f"whole-{ranks}"
            assert start(command(data, whole, ranks=ranks)).wait() == 0
            expected[ranks] = losses(whole)
        for number in range(arguments.kills):
            way = WAYS[number % len(WAYS)]
            run = Path(folder) / f"run-{number}"
            fault = interrupt(way, data, run, random.randrange(1, STEPS - 1))
            fault = fault or resumed(way, data, run, expected[ranks_of(way)])
            outcomes[way, fault or "resumed"] += 1
            print(f"{number + 1}/{arguments.kills} {way}: {fault or 'resumed'}", file=sys.stderr)
    print(describe())
    print("| interrupted by | result | runs |\n|---|---|---:|")
    for (way, result), count in sorted(outcomes.items()):
        print(f"| {way} | {result} | {count} |")


if __name__ == "__main__":
    main()
