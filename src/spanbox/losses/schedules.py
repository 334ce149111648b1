"""Values that change over a run, temperatures and weights of levels: functions of how much of it is done."""

import math
from collections.abc import Callable

CURVES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: done,
    "cosine": lambda done: (1 - math.cos(math.pi * done)) / 2,  # slow at both ends
}
"""Share of the way from the first value to the last, when a share of the run is done."""


def scheduled(schedule: str, start: float, end: float | None, done: float) -> float:
    """The value when the share `done` of the run is done; at the end, and past it, `end`. Without an end, `start`.

    Args:
        schedule: a name in `CURVES`; of no matter without an end.
    """
    return start if end is None else start + (end - start) * CURVES[schedule](min(1.0, done))
