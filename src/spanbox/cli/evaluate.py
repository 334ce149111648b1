"""`spanbox evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from spanbox.cli.show import print_incidents, print_metrics


def evaluate(
    model: Annotated[Path, typer.Argument(help="a run folder (its best checkpoint) or a checkpoint folder")],
    data: Annotated[Path, typer.Option("--data", help="manifest of the pairs to evaluate on")],
    out: Annotated[Path | None, typer.Option("--out", help="JSON file; default: metrics.json in the folder")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
) -> None:
    """Retrieval both ways and entity-object matching of a trained model.

    Ties count against the model; chance stands beside each figure. Without boxes in the data there is retrieval only:

        spanbox evaluate runs/demo --data runs/demo-data/test.jsonl
    """
    from spanbox.wiring import evaluate_checkpoint

    result = evaluate_checkpoint(model, data, device)
    path = out or model / "metrics.json"
    result.write(path)
    print_metrics(result.metrics, f"{result.checkpoint} on {data}")
    print_incidents(result.incidents)
    print(f"written to {path}")
