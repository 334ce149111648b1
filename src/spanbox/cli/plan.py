"""`spanbox plan`: predicted memory of a training step."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from spanbox.terminal import make_console

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
    """Predict which batch and chunk sizes fit into memory.

    Measures small chunks on the device of the training; loads the towers but no data:

        spanbox plan gmner model.text.path=DIR model.vision.path=DIR train.memory_gb=8
    """
    from spanbox.config import load_config
    from spanbox.wiring import plan as make_plan

    made = make_plan(load_config(config, overrides or []))
    print(f"{made.parameters / 1e6:.1f} M parameters, {made.trained / 1e6:.1f} M of them trained; on {made.device}")
    console = make_console()
    console.print(_costs(made.plain, made.checkpointed))
    console.print(_batches(made.plain, made.checkpointed, made.budget))
    print('peaks are predicted, with 10 % for the allocator; "whole": one chunk; "*": with gradient checkpointing')


def _costs(plain: "StepMemory", checkpointed: "StepMemory") -> Table:
    table = Table(title="memory on the device, in MiB")
    for heading in ("", "exact", "with checkpointing"):
        table.add_column(heading, justify="right" if heading else "left")
    for label, part in {
        "weights": "weights",
        "gradients": "gradients",
        "optimiser state": "optimiser",
        "activations of a pair": "pair",
        "of a chunk besides, temporary gradients included": "chunk",
        "features of a pair": "features",
    }.items():
        table.add_row(label, *(f"{getattr(memory, part) / MIB:,.2f}" for memory in (plain, checkpointed)))
    return table


def _batches(plain: "StepMemory", checkpointed: "StepMemory", budget: int) -> Table:
    table = Table(title=f"exact batches in {budget / GIB:.1f} GiB (train.memory_gb)")
    for heading in ("batch", "losses", "whole", "chunk", "peak", "chunk *", "peak *"):
        table.add_column(heading, justify="right")
    for size in BATCH_SIZES:
        chunks = []
        for memory in (plain, checkpointed):
            chunk = memory.largest_chunk(size, budget)
            chunks += [str(chunk), _gib(memory.peak(size, chunk))] if chunk else ["none fits", ""]
        table.add_row(str(size), _gib(plain.losses(size)), _gib(plain.peak(size, size)), *chunks)
    return table


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"
