"""Time of the towers in each precision that a run can choose."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from spanbox.engine.random_state import RandomState
from spanbox.engine.task import Forward, Task, parameters

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LONG_ENOUGH = 0.2  # seconds of a pass; in shorter ones what does not grow with the rows counts too much
MOST_PAIRS = 64
ROUNDS = 3


def seconds_per_pair(task: Task, device: torch.device, example: Callable[[int], Any]) -> dict[str, float]:
    """Seconds of a forward and a backward pass of all towers per pair, by precision.

    Medians of passes in turn, over as many pairs as keep the towers busy for a while. Leaves no gradient and restores
    the random state.

    Args:
        task: its model is in training mode, on `device`, without gradients.
        example: a batch of the given number of pairs of maximal size.
    """
    forwards = {name: Forward(task, device, precision) for name, precision in PRECISIONS.items()}
    pairs = 1
    with RandomState.capture().replayed():
        while pairs < MOST_PAIRS and _seconds(forwards["float32"], example(pairs)) < LONG_ENOUGH:
            pairs *= 2
        batch = example(pairs)
        _seconds(forwards["bfloat16"], batch)  # the first pass in a precision prepares its kernels
        rounds = [{name: _seconds(forward, batch) for name, forward in forwards.items()} for _ in range(ROUNDS)]
    return {name: statistics.median(one[name] for one in rounds) / pairs for name in PRECISIONS}


def _seconds(forward: Forward, batch: Any) -> float:
    start = time.perf_counter()
    for name, groups in forward.task.inputs(batch).rows.items():
        for rows in groups:
            forward.measured_pass(name, rows[:])
    for parameter in parameters(forward.task):
        parameter.grad = None
    return time.perf_counter() - start
