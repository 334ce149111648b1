"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from spanbox.terminal import make_console

Item = TypeVar("Item")
OnProgress = Callable[[int, int], None]
"""Called with the number of items done and the number of all."""

LINE_EVERY = 10.0  # seconds between two plain lines


class Progress:
    """A context that shows the steps done and the time left.

    Args:
        label: name of the work.
        total: number of steps.
        start: number of steps done earlier.
        quiet: show nothing, as on all ranks but the main one.
        within: the progress that this one is a part of; see `part`.
    """

    def __init__(
        self, label: str, total: int, start: int = 0, *, quiet: bool = False, within: "Progress | None" = None
    ) -> None:
        self.label = label
        self.total = total
        self.start = start
        self._detail = ""
        self._within = within
        self._console: Console = within._console if within else make_console(stderr=True, quiet=quiet)
        self._bar: RichProgress | None = within._bar if within else _make_bar(self._console)
        self._began = self._last_line = time.monotonic()

    def part(self, label: str, total: int) -> "Progress":
        """Progress of a part of this work: a second bar, removed at the end, or plain lines if it takes long."""
        return Progress(label, total, within=self)

    def __enter__(self) -> Self:
        if self._bar:
            self._task = self._bar.add_task(self.label, total=self.total, completed=self.start, detail="")
            if not self._within:
                self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar and self._within:
            self._bar.remove_task(self._task)
        elif self._bar:
            self._bar.stop()

    def update(self, done: int, detail: str = "") -> None:
        """Set the number of steps done. A non-empty `detail` replaces the text at the end of the line."""
        self._detail = detail or self._detail
        if self._bar:
            self._bar.update(self._task, completed=done, detail=self._detail)
        elif time.monotonic() - self._last_line >= LINE_EVERY or (done == self.total and not self._within):
            self._plain_line(done)

    def note(self, text: str) -> None:
        """Print a permanent line."""
        self._console.print(text, soft_wrap=True)

    def _plain_line(self, done: int) -> None:
        self._last_line = time.monotonic()
        remaining = (self._last_line - self._began) / max(1, done - self.start) * (self.total - done)
        parts = (f"{self.label} {done}/{self.total}", self._detail, f"{remaining:.0f} s left" if remaining > 0 else "")
        self.note("  ".join(part for part in parts if part))


StartProgress = Callable[[str, int], Progress]
"""Makes a progress from a label and a total: `Progress`, the `part` of another progress, or `hidden`."""


def hidden(label: str, total: int) -> Progress:
    """A progress that is not shown."""
    return Progress(label, total, quiet=True)


@contextmanager
def progress_of(label: str) -> Iterator[OnProgress]:
    """A callback `(done, total)` that shows progress, for work whose total is not known before it starts."""
    with ExitStack() as stack:
        shown: Progress | None = None

        def show(done: int, total: int) -> None:
            nonlocal shown
            if shown is None:
                shown = stack.enter_context(Progress(label, total))
            shown.update(done)

        yield show


def track(items: Iterable[Item], label: str, total: int) -> Iterator[Item]:
    """Yield the items and show the progress."""
    with Progress(label, total) as progress:
        for done, item in enumerate(items, start=1):
            yield item
            progress.update(done)


def _make_bar(console: Console) -> RichProgress | None:
    """The bar; None without a terminal."""
    if not console.is_terminal or console.quiet:
        return None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return RichProgress(*columns, TextColumn("{task.fields[detail]}"), console=console)
