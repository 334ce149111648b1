"""`spanbox train`."""

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from spanbox.cli.show import print_incident_counts, print_metrics

if TYPE_CHECKING:
    from spanbox.wiring import Trained

STOPPED = 130  # exit code of an interrupted run


def train(
    config: Annotated[str, typer.Argument(help="a recipe (demo, gmner, pairs, published) or a YAML file")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="config values, for example train.batch_size=256"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue from the last checkpoint in run.dir")] = False,
) -> None:
    """Train both encoders with a recipe or a config file.

    Ctrl-C finishes the current step, saves a checkpoint and stops. `--resume` continues with the same result as an
    uninterrupted run:

        spanbox train gmner data.train=train.jsonl data.val=val.jsonl run.dir=runs/first

        spanbox train runs/first/config.yaml --resume

    On several GPUs or machines (docs/large_batches.md):

        torchrun --nproc-per-node 8 -m spanbox train gmner ...
    """
    # Imported here because PyTorch takes seconds to load, which `--help` does not need.
    from spanbox.config import load_config
    from spanbox.wiring import train as train_run

    resolved = load_config(config, [*(overrides or []), *(["train.resume=true"] if resume else [])])
    trained = train_run(resolved)
    exit_unless_finished(trained, ["train", str(trained.run_dir / "config.yaml"), "--resume"])
    print_incident_counts(trained.incidents)
    if trained.best:
        print_metrics(trained.best, f"best checkpoint, on {resolved.data.val}", "validation.json in its folder")
    print(f"run folder: {trained.run_dir}")


def exit_unless_finished(trained: "Trained", again: Sequence[str]) -> None:
    """End a process other than the main one, and a run that was stopped, naming the command to continue with.

    Args:
        again: the arguments of that command.
    """
    if trained.is_main and trained.finished:
        return
    if trained.is_main:
        command = shlex.join(["spanbox", *again])
        print(f"stopped after step {trained.step}; a checkpoint is saved. Continue with:\n  {command}", file=sys.stderr)
    raise typer.Exit(0 if trained.finished else STOPPED)
