"""`spanbox evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from spanbox.cli.show import print_incidents, print_metrics

MOST_EXAMPLES = 250  # of each kind; four times as many matches, the most that a report reads


def evaluate(
    model: Annotated[Path, typer.Argument(help="a run folder (its best checkpoint) or a checkpoint folder")],
    data: Annotated[Path, typer.Option("--data", help="manifest of the pairs to evaluate on")],
    threshold_from: Annotated[
        Path | None,
        typer.Option(
            metavar="VAL.jsonl",
            help="manifest used to choose the visibility threshold, never the one that is evaluated; default: the "
            "run's data.val, if it exists",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="folder for metrics.json and evaluation/ instead of the run's; a FILE.json holds the metrics alone",
        ),
    ] = None,
    examples: Annotated[
        int,
        typer.Option(
            min=0, max=MOST_EXAMPLES, help="examples of each kind (best, median, worst) for the report; 0: none"
        ),
    ] = 4,
    occlusion: Annotated[int, typer.Option(min=0, help="entities in the occlusion test; 0: no test")] = 500,
    rerank: Annotated[
        int,
        typer.Option(
            min=0, metavar="K", help="candidates that the towers propose and a model with fusion re-ranks; 0: none"
        ),
    ] = 64,
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT.jsonl",
            help="also write the region that the model gives every entity, chosen among the manifest's `objects`; "
            "spans and types are the manifest's, so `spanbox score` reports EEG with gold spans alone",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
) -> None:
    """Evaluate a trained model: retrieval in both directions, entity-object matching and more (docs/evaluation.md).

    Each metric has its chance level; ties count against the model. Without boxes in the data there is retrieval only.
    Features are kept in evaluation/ and used again by the next evaluation of the same pairs:

        spanbox evaluate runs/demo --data runs/demo-data/test.jsonl
    """
    from spanbox.wiring import EvaluationOptions, evaluate_to_folder

    options = EvaluationOptions(threshold_from, examples, occlusion, rerank, predictions)
    result, path = evaluate_to_folder(model, data, out, options, device)
    print_metrics(result.metrics, f"{result.checkpoint} on {data}")
    print_incidents(result.incidents)
    print(f"written to {path}" + (f" and {predictions}" if predictions else ""))
