"""Time and memory of the coarse loss, forwards and backwards, with the whole matrix of logits and tile by tile.

    python benchmarks/tiled_loss.py [--pairs 4096 8192 16384 32768] [--threads 1] [--rounds 3]

Every measurement runs in a separate process: memory is the peak of the process less the peak before the loss, features
of 256 numbers excluded. What would not fit into the free memory is extrapolated from the row above it, and marked.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

import torch

from hardware import describe
from spanbox.losses import blocks, objective
from spanbox.structures import Features, Targets

WIDTH = 256
LIMITS = {"plain": sys.maxsize, "tiled": 0}  # the number of logits above which tiles are taken
ROOM = 0.75  # of the free memory, which a measurement may take
MIB = 2**20


class Cost(NamedTuple):
    seconds: float
    mib: float
    extrapolated: bool = False

    def scaled(self, factor: float) -> "Cost":
        return Cost(self.seconds * factor, self.mib * factor, True)


def make_inputs(pairs: int) -> tuple[Features, Targets]:
    """Random unit features of sentences and images, each pair with a different image."""

    def unit(*shape: int) -> torch.Tensor:
        features = torch.randn(*shape, WIDTH)
        features /= features.norm(dim=-1, keepdim=True)
        return features.requires_grad_()

    return Features(unit(pairs), unit(pairs), unit(pairs, 0), unit(pairs, 0)), Targets(
        group=torch.arange(pairs),
        sample=torch.arange(pairs),
        wording=torch.arange(pairs),
        span_identity=torch.zeros(pairs, 0, dtype=torch.int64),
        regions=torch.zeros(pairs, 0, 4),
        region_valid=torch.zeros(pairs, 0, dtype=torch.bool),
        links=torch.zeros(pairs, 0, 0, dtype=torch.bool),
    )


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(variant: str, pairs: int, rounds: int) -> Cost:
    """Median seconds and peak memory of the loss in this process."""
    torch.manual_seed(0)
    blocks.MOST_LOGITS = LIMITS[variant]
    loss = objective.Objective(objective.LossSettings(fine=objective.LevelSettings(weight=0.0)))
    loss(*make_inputs(64)).total.backward()  # threads and work space of the libraries
    features, targets = make_inputs(pairs)
    before, seconds = peak_mib(), []
    for _ in range(rounds):
        start = time.perf_counter()
        loss(features, targets).total.backward()
        seconds.append(time.perf_counter() - start)
    return Cost(statistics.median(seconds), peak_mib() - before)


def measure_apart(variant: str, pairs: int, rounds: int, threads: int) -> Cost:
    """`measure` in a separate process."""
    command = [sys.executable, __file__, "--variant", variant, "--pairs", str(pairs), "--rounds", str(rounds)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    answer = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return Cost(*json.loads(answer.stdout))


def free_mib() -> float:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / MIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[4096, 8192, 16384, 32768])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variant", choices=LIMITS, help="measure this one here, for the first of --pairs")
    arguments = parser.parse_args()
    if arguments.variant:
        print(json.dumps(measure(arguments.variant, arguments.pairs[0], arguments.rounds)))
        return
    print(f"{describe()}; {WIDTH} features, threads: {arguments.threads}, median of {arguments.rounds} rounds\n")
    print("| pairs | plain, s | tiled, s | time | plain, MiB | tiled, MiB | memory |\n|" + "---:|" * 7)
    last: tuple[int, Cost] | None = None
    for pairs in arguments.pairs:
        expected = last and last[1].scaled((pairs / last[0]) ** 2)
        plain = (
            expected
            if expected and expected.mib > ROOM * free_mib()
            else measure_apart("plain", pairs, arguments.rounds, arguments.threads)
        )
        last = pairs, plain
        tiled = measure_apart("tiled", pairs, arguments.rounds, arguments.threads)
        mark = " (extrapolated)" if plain.extrapolated else ""
        print(
            f"| {pairs:,} | {plain.seconds:.2f}{mark} | {tiled.seconds:.2f} | {tiled.seconds / plain.seconds:.2f}x "
            f"| {plain.mib:,.0f}{mark} | {tiled.mib:,.0f} | 1/{plain.mib / tiled.mib:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
