"""Runs one command on one input in a forked process, with limits, and classifies the result."""

import os
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NoReturn

REFUSED, ACCEPTED, TRACEBACK, HANG, MEMORY, OUTSIDE = OUTCOMES = (
    "refused",
    "accepted",
    "traceback",
    "hang",
    "above 1 GiB",
    "outside",
)
FAILURES = (TRACEBACK, HANG, MEMORY, OUTSIDE)

MEMORY_LIMIT = 2**30  # bytes resident, the imported libraries included
TIME_LIMIT = 60.0  # seconds, for a busy machine; most inputs take a tenth of a second
_POLL = 0.01
_CRASHED = 70  # exit code of a process that an exception ended


@dataclass(frozen=True)
class Case:
    """One input: a command, run in a folder of its own.

    Attributes:
        argv: arguments of `spanbox`.
        writes: patterns of the paths, relative to the folder, that the command may write to.
        call: runs instead of the command line.
    """

    argv: Sequence[str]
    writes: tuple[str, ...] = ("*",)
    call: Callable[[], None] | None = None


@dataclass(frozen=True)
class Result:
    outcome: str
    seconds: float
    peak: int  # bytes resident
    detail: str  # the command and the end of its output


def run_isolated(make: Callable[[Path], Case], folder: Path, time_limit: float = TIME_LIMIT) -> Result:
    """Make a case in `folder/case` and run it, both in a forked process.

    The fork shares the imported libraries with its parent, which makes thousands of inputs affordable.
    """
    case_folder = folder / "case"
    case_folder.mkdir(parents=True)
    began = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, which the child does not use
        child = os.fork()
    if child == 0:
        _run_child(make, case_folder, folder)
    status, peak, stopped = _wait(child, began + time_limit)
    seconds = time.monotonic() - began
    output = _read_end(folder / "out") + _read_end(folder / "err")
    outcome, reason = _classify(status, peak, stopped, output, bool(_read_end(folder / "err").strip()))
    outside = _read_end(folder / "outside")
    if outcome in (ACCEPTED, REFUSED) and outside:
        outcome, reason = OUTSIDE, outside
    detail = f"spanbox {_read_end(folder / 'command')}\n{reason}\n{output[-3000:]}"
    return Result(outcome, seconds, peak, detail)


def _wait(child: int, deadline: float) -> tuple[int, int, str | None]:
    """Wait status, peak memory, and the limit that the process was killed for."""
    stopped = None
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            return status, usage.ru_maxrss * 1024, stopped
        if stopped is None:
            if time.monotonic() > deadline:
                stopped = HANG
            elif _resident(child) > 2 * MEMORY_LIMIT:  # a bomb must not take the machine with it
                stopped = MEMORY
            if stopped:
                _kill_group(child)
        time.sleep(_POLL)


def _kill_group(child: int) -> None:
    for kill in (os.killpg, os.kill):
        try:
            kill(child, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _resident(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * resource.getpagesize()


def _classify(status: int, peak: int, stopped: str | None, output: str, complained: bool) -> tuple[str, str]:
    if stopped:
        return stopped, f"killed for: {stopped}"
    code = os.waitstatus_to_exitcode(status)
    if "Traceback (most recent call last)" in output or code == _CRASHED:
        return TRACEBACK, "a traceback"
    if code < 0:
        return TRACEBACK, f"ended by signal {-code}"
    if peak > MEMORY_LIMIT:
        return MEMORY, f"{peak / 2**20:.0f} MiB"
    if code in (0, 1):  # 1: `spanbox data check` found problems
        return ACCEPTED, f"exit code {code}"
    if code == 2 and complained:
        return REFUSED, "exit code 2"
    return TRACEBACK, f"exit code {code}" + ("" if complained else " without a message")


def _read_end(path: Path) -> str:
    return path.read_bytes()[-20_000:].decode(errors="replace") if path.exists() else ""


def _run_child(make: Callable[[Path], Case], case_folder: Path, folder: Path) -> NoReturn:
    os.setpgid(0, 0)
    sys.dont_write_bytecode = True
    os.chdir(case_folder)
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
    code = _CRASHED
    try:
        case = make(case_folder)
        (folder / "command").write_text(repr(list(case.argv)), encoding="utf-8")
        _watch_writes(case_folder, case.writes, folder / "outside")
        code = _call(case)
    except BaseException:  # whatever it is, it is the result
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _call(case: Case) -> int:
    from spanbox.cli.main import main

    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # both as a new process has them
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, errors="backslashreplace")  # noqa: SIM115
    sys.argv = ["spanbox", *case.argv]
    try:
        (case.call or main)()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0


def _watch_writes(case_folder: Path, allowed: tuple[str, ...], report: Path) -> None:
    """Append to `report` each path outside of `allowed` that Python opens for writing, makes, moves or removes."""
    root = os.path.realpath(case_folder)
    allowed = (*allowed, ".*.partial")  # written aside, renamed later
    descriptor = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    changing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    busy = False

    def check(path: Any) -> None:
        if isinstance(path, int):
            return
        text = os.fsdecode(path)
        parent, _, name = text.rpartition("/")
        full = f"{os.path.realpath(parent or ('/' if text.startswith('/') else '.'))}/{name}"
        if full.startswith("/dev/"):
            return
        inside = os.path.relpath(full, root)
        if inside.startswith("..") or not any(fnmatch(inside, pattern) for pattern in allowed):
            os.write(descriptor, f"{full}\n".encode(errors="replace"))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal busy
        if busy:
            return
        busy = True
        try:
            if event == "open":
                path, _, flags = arguments
                is_folder = isinstance(path, str | bytes | os.PathLike) and Path(os.fsdecode(path)).is_dir()
                if flags & changing and path is not None and not is_folder:  # a nameless file opens its folder
                    check(path)
            elif event == "os.mkdir":
                if not Path(os.fsdecode(arguments[0])).is_dir():  # or it is made where it is missing
                    check(arguments[0])
            elif event in ("os.remove", "os.rmdir", "os.truncate"):
                check(arguments[0])
            elif event in ("os.rename", "os.link"):
                check(arguments[0])
                check(arguments[1])
            elif event == "os.symlink":
                check(arguments[1])
        except (OSError, ValueError):
            pass  # a path that no file can have
        finally:
            busy = False

    sys.addaudithook(hook)
