"""The cost of masked views: a training step with none, then with more of them, left out by the tower or filled.

    python benchmarks/views.py                  small towers, for a CPU
    python benchmarks/views.py --size base      BERT-base and ViT-B/16 at 224 px, for a GPU
    python benchmarks/views.py --size base --pairs 2 --operations [--tokens 64]
                                                counts operations, which does not depend on the machine

The steps run in turn on the same batch; the table gives the median of each, and its ratio to the step without views. On
a CPU one thread runs, and its CPU time is counted, which other work on the machine changes little. The operations
are those of matrix products and convolutions, nearly all there are. `published.py` compares with the published method.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hardware import describe
from spanbox.structures import Batch
from workload import SIZES, TOKENS, make_batch, make_model, make_trainer

RATIO = 0.75
COUNTS = (1, 3, 7, 15)

Steps = dict[str, Callable[[], object]]


def with_views(batch: Batch, count: int, grid: int, *, filled: bool) -> Batch:
    """The batch with `count` views an image that hide three quarters, all of them against their sentence."""
    pairs, side = len(batch), batch.pixels.shape[-1]
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(pairs, count, grid**2, generator=generator).argsort(dim=2)
    views = batch.pixels[:, None].expand(pairs, count, 3, side, side)
    return replace(
        batch,
        view_hidden=(order >= round((1 - RATIO) * grid**2)).reshape(pairs, count, grid, grid),
        view_sentence=-torch.ones(pairs, count, dtype=torch.int8),
        view_spans=-torch.ones(pairs, count, batch.span_identity.shape[1], dtype=torch.int8),
        view_pixels=views.contiguous() if filled else None,
    )


def seconds_of(steps: Steps, rounds: int, *, on_cpu: bool) -> dict[str, float]:
    """The median of each step; the first round is a warm-up."""
    clock = time.process_time if on_cpu else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            start = clock()
            step()
            if not on_cpu:
                torch.cuda.synchronize()
            if number:
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def operations_of(steps: Steps) -> dict[str, float]:
    """Floating point operations of each step, in units of 10^9."""
    counts = {}
    for name, step in steps.items():
        # The fused attention of a CPU is not counted, its matrix products are.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            step()
        counts[name] = counter.get_total_flops() / 1e9
    return counts


def print_costs(steps: Steps, arguments: argparse.Namespace, tokens: int) -> None:
    """A table of the steps, each against the first."""
    if arguments.operations:
        costs, unit, how = operations_of(steps), "10^9 operations", "counted"
    else:
        costs = seconds_of(steps, arguments.rounds, on_cpu=arguments.device == "cpu")
        unit, how = "seconds", f"median of {arguments.rounds} rounds"
    first = next(iter(costs))
    print(f"{describe()}; {arguments.size} towers, {arguments.pairs} pairs of {tokens} tokens, {how}\n")
    print(f"| step | {unit} | against {first} |\n|---|---:|---:|")
    for name, cost in costs.items():
        print(f"| {name} | {cost:.2f} | {cost / costs[first]:.2f}x |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="tokens of a sentence")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--operations", action="store_true", help="count operations instead of seconds")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    model = make_model(arguments.size)
    side, grid = model.vision.image_size, model.vision.image_size // model.vision.stride
    batch = make_batch(arguments.pairs, side, tokens=arguments.tokens)
    settings = {"device": arguments.device, "batch_size": arguments.pairs, "chunk_size": arguments.pairs}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trainer = make_trainer(model, folder, **settings)
        left_out = {count: with_views(batch, count, grid, filled=False) for count in COUNTS}
        filled = {count: with_views(batch, count, grid, filled=True) for count in COUNTS}
        steps: Steps = {"no views": lambda: trainer.train_step(batch, [])}
        for count in COUNTS:
            steps[f"{count} left out"] = lambda count=count: trainer.train_step(left_out[count], [])
            steps[f"{count} filled"] = lambda count=count: trainer.train_step(filled[count], [])
        print_costs(steps, arguments, arguments.tokens)


if __name__ == "__main__":
    main()
