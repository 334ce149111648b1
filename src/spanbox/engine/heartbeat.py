"""The heartbeats of the ranks of a run: a rank that is silent for too long is named, and the run ends.

A collective operation waits for every rank, so one that is stopped, cut off from the network or stuck in the kernel
would hold the others for hours. Each rank counts up in the store that the ranks share, from a separate thread, and
watches the others. A rank that is merely busy, for example with a validation, goes on counting.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from torch.distributed.distributed_c10d import Store

DONE = "done"
EXIT_CODE = 2


class Heartbeat:
    """Beats for this rank and watches the others, from `start` to `stop`.

    Args:
        store: shared by the ranks, by a connection that only this thread uses.
        rank: of this process.
        world_size: number of ranks.
        timeout: seconds of silence after which the run ends.
        end: ends this process with a message; a test gives another one.
    """

    LONGEST_INTERVAL = 5.0  # seconds

    def __init__(
        self,
        store: Store,
        rank: int,
        world_size: int,
        timeout: float,
        end: Callable[[str], object] | None = None,
    ) -> None:
        self._store = store
        self._rank = rank
        self._others = [other for other in range(world_size) if other != rank]
        self._timeout = timeout
        self._interval = min(self.LONGEST_INTERVAL, timeout / 4)
        self._end = end or _end_process
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._store.set(_key(rank), "0")
        self._store.set(f"{_key(rank)}/process", json.dumps([socket.gethostname(), os.getppid(), os.getpid()]))

    def start(self) -> None:
        """Begin to beat and watch. Every rank has made its heartbeat before."""
        self._thread.start()

    def stop(self) -> None:
        """End the heartbeat of this rank, so that the others do not wait for it."""
        if self._thread.is_alive():
            self._stopped.set()
            self._thread.join(self._timeout)

    def _run(self) -> None:
        seen = dict.fromkeys(self._others, "")
        since = dict.fromkeys(self._others, time.monotonic())
        keys = [_key(other) for other in self._others]
        beat = 0
        while not self._stopped.wait(self._interval):
            beat += 1
            try:
                self._store.set(_key(self._rank), str(beat))
                for other, value in zip(self._others, self._store.multi_get(keys), strict=True):
                    found = value.decode()
                    if found != seen[other] or found == DONE:
                        seen[other], since[other] = found, time.monotonic()
            except RuntimeError:  # the store is gone, and with it the process that holds it: the run is ending
                return
            silent = [other for other in self._others if time.monotonic() - since[other] > self._timeout]
            if silent:
                self._give_up(silent)
                return
        with suppress(RuntimeError):
            self._store.set(_key(self._rank), DONE)

    def _give_up(self, silent: list[int]) -> None:
        speaks = min(other for other in (self._rank, *self._others) if other not in silent) == self._rank
        if speaks:
            for rank in silent:
                self._kill_sibling(rank)
        names = ", ".join(f"rank {rank} on {self._process(rank)[0]}" for rank in silent)
        self._end(
            f"spanbox: {names} has not answered for {self._timeout:g} s (train.rank_timeout); the run ends. Find out "
            "what stopped it, then go on from the last checkpoint with --resume"
            if speaks
            else ""
        )

    def _process(self, rank: int) -> tuple[str, int, int]:
        """Host, parent and id of a rank's process."""
        host, parent, own = json.loads(self._store.get(f"{_key(rank)}/process"))
        return host, parent, own

    def _kill_sibling(self, rank: int) -> None:
        """Kill a rank of the same launcher: stopped, it would hold its GPU, and the launcher for half a minute."""
        host, parent, process = self._process(rank)
        if (host, parent) == (socket.gethostname(), os.getppid()):
            os.kill(process, signal.SIGKILL)


def _key(rank: int) -> str:
    return f"heartbeat/{rank}"


def _end_process(message: str) -> NoReturn:
    """End this process: its main thread waits inside a collective operation, which nothing interrupts."""
    if message:
        print(message, file=sys.stderr, flush=True)
    os._exit(EXIT_CODE)
