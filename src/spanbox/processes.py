"""Processes that end with the one that started them.

`Jobs` runs commands of spanbox in separate processes. After an error no further one starts. When the process that
started them is stopped by Ctrl-C or SIGTERM, so are they, and a training saves a checkpoint first. When it is killed,
their standard input closes, and they stop as well.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from ctypes import CDLL
from functools import partial
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import IO, Self, TypeVar

from spanbox.errors import TrainingError
from spanbox.files import explained

PR_SET_PDEATHSIG = 1  # of Linux's prctl(2): the signal that a process gets when its parent dies
IS_JOB = "SPANBOX_IS_JOB"  # environment variable of a job, which its own processes do not get

Item = TypeVar("Item")
Result = TypeVar("Result")


def end_with_parent(parent: int) -> None:
    """Let Linux kill this worker process when its parent dies."""
    if sys.platform == "linux":
        CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before
            os._exit(1)


def end_with_starter() -> None:
    """If this process is a job, stop it as by SIGTERM when the process that started it is gone."""

    def wait() -> None:
        os.read(0, 1)  # ends when the other side of the pipe is closed
        os.kill(os.getpid(), signal.SIGTERM)

    if os.environ.pop(IS_JOB, ""):
        Thread(target=wait, daemon=True).start()


def available_cores() -> int:
    """Cores that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of_each(at_once: int) -> int:
    """Threads of each of several jobs at a time: its share of the cores, and at most OMP_NUM_THREADS if that is set."""
    share, given = max(1, available_cores() // at_once), os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(given)) if given.isdecimal() and int(given) else share


class Jobs:
    """Commands of spanbox in separate processes, several at a time.

    Leaving the block waits for those that run. If the block ends by Ctrl-C or SIGTERM, they are stopped first.

    Args:
        at_once: jobs at the same time, which share the cores.
    """

    def __init__(self, at_once: int) -> None:
        self._pool = ThreadPoolExecutor(at_once)
        self._threads = threads_of_each(at_once)
        self._running: set[subprocess.Popen[bytes]] = set()
        self._ended, self._stopped = Event(), Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if kind is not None and not issubclass(kind, Exception):
            self._stopped.set()
            for process in list(self._running):
                process.terminate()
        self._pool.shutdown(cancel_futures=True)

    def map(self, job: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Results of a function for each item, in their order. After one that fails no further one begins."""
        return self._pool.map(partial(self._unless_ended, job), items)

    def run(self, name: str, commands: Sequence[Sequence[str]], output: Path) -> None:
        """Run commands one after the other.

        Args:
            name: of the job, for the message of an error.
            commands: their arguments.
            output: file for their output.

        Raises:
            TrainingError: one failed.
            OutputError: the file cannot be written.
        """
        with explained(output), output.open("wb") as file:
            for command in commands:
                if self._call(command, file):
                    raise TrainingError(f"{name}: `spanbox {command[0]}` failed, see {output}")

    def _unless_ended(self, job: Callable[[Item], Result], item: Item) -> Result:
        if self._ended.is_set():
            raise CancelledError
        try:
            return job(item)
        except BaseException:
            self._ended.set()  # here, so that this thread begins no other before the main thread wakes
            raise

    def _call(self, command: Sequence[str], file: IO[bytes]) -> int:
        environment = os.environ | {"OMP_NUM_THREADS": str(self._threads), IS_JOB: "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "spanbox", *command],
            stdin=subprocess.PIPE,  # see `end_with_starter`
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            process_group=0,  # Ctrl-C is for the process that started it, which stops it
        )
        with process:
            self._running.add(process)
            if self._stopped.is_set():  # after the others were
                process.terminate()
            process.wait()
            self._running.discard(process)
        return process.returncode
