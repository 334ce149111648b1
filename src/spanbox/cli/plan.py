"""`spanbox plan`: predicted memory of a training step, and the faster precision on a CPU."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from spanbox.terminal import print_figures

if TYPE_CHECKING:
    from spanbox.engine.memory import StepMemory

BATCH_SIZES = [2**power for power in range(4, 13)]  # 16 to 4096
MIB, GIB = 2**20, 2**30


def plan(
    config: Annotated[str, typer.Argument(help="a recipe (demo, gmner, pairs, published) or a YAML file")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings, for example train.memory_gb=8")
    ] = None,
) -> None:
    """Predict which batch and chunk sizes fit into memory; on a CPU, time both precisions.

    Measures small chunks on the device of the training; loads the towers but no data:

        spanbox plan gmner model.text.path=DIR model.vision.path=DIR train.memory_gb=8
    """
    from spanbox.config import load_config
    from spanbox.engine.device import precision_name
    from spanbox.wiring import plan as make_plan

    made = make_plan(load_config(config, overrides or []))
    print(f"{made.parameters / 1e6:.1f} M parameters, {made.trained / 1e6:.1f} M of them trained; on {made.device}")
    print_figures(_costs(made.plain, made.checkpointed))
    print_figures(_batches(made.plain, made.checkpointed, made.budget))
    print("text, image: the largest chunks, in texts and images; *: with gradient checkpointing")
    print("losses, whole (all in one chunk), peak: predicted memory in GiB; peaks include 10 % for the allocator")
    if made.seconds:
        print(times(made.seconds, precision_name(made.precision)))


def _costs(plain: "StepMemory", checkpointed: "StepMemory") -> Table:
    table = Table(title="memory on the device, in MiB")
    for heading in ("", "exact", "with checkpointing"):
        table.add_column(heading, justify="right" if heading else "left")
    columns = [_parts(memory) for memory in (plain, checkpointed)]
    for label in columns[0]:
        table.add_row(label, *(f"{column[label] / MIB:,.2f}" for column in columns))
    return table


def _parts(memory: "StepMemory") -> dict[str, int]:
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimiser state": memory.optimiser,
        "states and features of a pair": memory.pair,
    }
    for name, tower in memory.towers.items():
        parts[f"activations of a row ({name}, {tower.rows:g} per pair)"] = tower.chunk.row
        parts[f"fixed part of a chunk ({name})"] = tower.besides
    return parts


def _batches(plain: "StepMemory", checkpointed: "StepMemory", budget: int) -> Table:
    table = Table(title=f"exact batches in {budget / GIB:.1f} GiB (train.memory_gb)")
    towers = list(plain.towers)
    for heading in ("batch", "losses", "whole", *towers, "peak", *(f"{name} *" for name in towers), "peak *"):
        table.add_column(heading, justify="right")
    whole = dict.fromkeys(towers, sys.maxsize)
    for size in BATCH_SIZES:
        chunks = []
        for memory in (plain, checkpointed):
            chosen = memory.chunk_sizes(size, budget)
            fitting = [*(str(chosen[name]) for name in towers), _gib(memory.peak(size, chosen))] if chosen else []
            chunks += fitting or ["none fits", *[""] * len(towers)]
        table.add_row(str(size), _gib(plain.losses(size)), _gib(plain.peak(size, whole)), *chunks)
    return table


def times(seconds: dict[str, float], chosen: str) -> str:
    """One line: time of the towers in each precision, the run's precision, and a faster one if there is one."""
    from spanbox.engine.speed import clearly_faster

    plain, short, faster = seconds["float32"], seconds["bfloat16"], clearly_faster(seconds)
    advice = "" if faster == chosen else f"; {faster} is faster on this CPU: train.precision={faster}"
    return (
        f"towers, forward and backward: {1000 * plain:,.1f} ms a pair in float32, {1000 * short:,.1f} ms in bfloat16 "
        f"({short / plain:.2f}x); trained in {chosen}{advice}"
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"
