"""Schedules of temperatures and level weights, as functions of the finished share of the run."""

import math
from collections.abc import Callable

CURVES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: done,
    "cosine": lambda done: (1 - math.cos(math.pi * done)) / 2,  # slow at both ends
}
"""Maps the finished share of the run to the interpolation between the first and the last value."""


def scheduled(schedule: str, start: float, end: float | None, done: float) -> float:
    """The value after the share `done` of the run: from `start` to `end`, or always `start` if `end` is None.

    Args:
        schedule: a name in `CURVES`; ignored if `end` is None.
    """
    return start if end is None else start + (end - start) * CURVES[schedule](min(1.0, done))
