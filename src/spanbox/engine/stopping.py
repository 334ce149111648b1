"""Graceful shutdown: a first SIGINT or SIGTERM lets the current step finish, a second one interrupts at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether a signal to stop the run has arrived.

    Attributes:
        received: set by a signal to this process.
    """

    def __init__(self) -> None:
        self.received = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Context in which SIGINT and SIGTERM set `received`; a second signal raises KeyboardInterrupt."""

        def receive(number: int, frame: FrameType | None) -> None:
            if self.received:
                raise KeyboardInterrupt
            self.received = True

        handlers = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
