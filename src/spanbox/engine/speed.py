"""Time of the towers in each precision that a run can choose, and the choice on a CPU."""

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from spanbox.engine.device import PRECISIONS, cpu_computes_in_bfloat16
from spanbox.engine.distributed import Ranks
from spanbox.engine.random_state import RandomState
from spanbox.engine.task import Forward, Task, clear_gradients

CLEARLY_FASTER = 0.9  # of the time in float32; less gain is not worth the rounding
WORTH_MEASURING = 10_000_000  # parameters; towers of a tenth of these gained nothing
LONG_ENOUGH = 0.2  # seconds of a pass; in shorter ones fixed costs per call count too much
MOST_PAIRS = 64
ROUNDS = 3


def faster_on_cpu(task: Task, example: Callable[[int], Any], ranks: Ranks) -> torch.dtype:
    """The precision in which the towers are clearly faster on this CPU, the same on all ranks.

    Args:
        task: its model is in training mode, on the CPU, without gradients.
        example: a batch of the given number of pairs of maximal size.
        ranks: the processes that train together.
    """
    if not all(ranks.everyones([can_gain_on_cpu(task)])):
        return torch.float32
    seconds = seconds_per_pair(task, torch.device("cpu"), example)
    seconds = dict(zip(seconds, ranks.largest(*seconds.values()), strict=True))
    chosen = clearly_faster(seconds)
    if ranks.is_main:
        ratio = seconds["bfloat16"] / seconds["float32"]
        print(f"training in {chosen}: bfloat16 takes {ratio:.2f}x of the time of float32 on this CPU", file=sys.stderr)
    return PRECISIONS[chosen]


def can_gain_on_cpu(task: Task) -> bool:
    """Whether bfloat16 may be faster on this CPU: it has instructions for it, and the model is not small."""
    large = sum(parameter.numel() for parameter in task.model.parameters()) >= WORTH_MEASURING
    return large and cpu_computes_in_bfloat16()


def clearly_faster(seconds: Mapping[str, float]) -> str:
    """bfloat16 if it takes clearly less time, else float32. `seconds` are those of `seconds_per_pair`."""
    return "bfloat16" if seconds["bfloat16"] < CLEARLY_FASTER * seconds["float32"] else "float32"


def seconds_per_pair(task: Task, device: torch.device, example: Callable[[int], Any]) -> dict[str, float]:
    """Seconds of a forward and a backward pass of all towers per pair, by precision.

    Medians of passes in turn, over as many pairs as keep the towers busy for a while. One chunk of so many rows stands
    for all rows of its group, such as the crops. Leaves no gradient and restores the random state.

    Args:
        task: its model is in training mode, on `device`, without gradients.
        example: a batch of the given number of pairs of maximal size.
    """
    forwards = {name: Forward(task, device, precision) for name, precision in PRECISIONS.items()}
    pairs = 1
    with RandomState.capture().replayed():
        while pairs < MOST_PAIRS and _seconds(forwards["float32"], example(pairs), pairs).spent < LONG_ENOUGH:
            pairs *= 2
        batch = example(pairs)
        _seconds(forwards["bfloat16"], batch, pairs)  # the first pass in a precision prepares its kernels
        rounds = [
            {name: _seconds(forward, batch, pairs).of_batch for name, forward in forwards.items()}
            for _ in range(ROUNDS)
        ]
    return {name: statistics.median(one[name] for one in rounds) / pairs for name in PRECISIONS}


class _Seconds(NamedTuple):
    spent: float
    of_batch: float  # with all chunks of each group


def _seconds(forward: Forward, batch: Any, chunk_size: int) -> _Seconds:
    """Time of a pass over one chunk of each group of rows."""
    spent = of_batch = 0.0
    for name, groups in forward.task.inputs(batch).rows.items():
        for rows in groups:
            chunk = rows[:chunk_size]
            start = time.perf_counter()
            forward.measured_pass(name, chunk)
            took = time.perf_counter() - start
            spent += took
            of_batch += took * len(rows) / len(chunk)
    clear_gradients(forward.task)
    return _Seconds(spent, of_batch)
