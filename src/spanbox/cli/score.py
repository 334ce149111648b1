"""`spanbox score`."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from spanbox.terminal import make_console, plain, print_figures

TASKS = {"gmner": "GMNER", "mner": "MNER", "eeg": "EEG", "eeg_gold_spans": "EEG, gold spans"}
MOST_TYPES = 12  # in the table; the file has all
LONGEST_LABEL = 40  # columns; longer names of types are wrapped


def score(
    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS", help="JSON Lines, one pair per line")],
    data: Annotated[Path, typer.Option("--data", help="manifest with the entities of these pairs")],
    out: Annotated[Path, typer.Option("--out", help="JSON file for all metrics")] = Path("scores.json"),
) -> None:
    """Score the predictions of any model by the official GMNER, MNER and EEG metrics.

    A line holds all predicted entities of a pair; offsets and pixels are as in the manifest, and a box of null means
    that the image does not show the entity:

        {"id": "71044", "entities": [{"start": 25, "end": 38, "type": "LOC", "box": [12.0, 30.5, 200.0, 310.0]}]}

    Example:

        spanbox score predictions.jsonl --data data/gmner/test.jsonl
    """
    from spanbox.evaluation.gmner import GOLD_SPANS, score_file
    from spanbox.files import check_no_input, check_writable_file, write_json

    check_no_input(out, [predictions, data])
    check_writable_file(out, ".json")
    scores = score_file(predictions, data)
    metrics = scores.metrics()
    print_scores(metrics, list(scores.counts), scores.notes, f"{predictions} for {data}")
    content = {"predictions": str(predictions), "data": str(data), "gold_spans": GOLD_SPANS in scores.counts, **metrics}
    write_json(out, content)
    print(f"written to {out}")


def print_scores(metrics: Mapping[str, float], rows: list[str], notes: Iterable[str], title: str) -> None:
    """Print the metrics as a table, and the remarks on them."""
    print_figures(_table(metrics, rows, title))
    console = make_console()
    for note in notes:
        console.print(plain(f"note: {note}"), soft_wrap=True)


def _table(metrics: Mapping[str, float], rows: list[str], title: str) -> Table:
    """A table with a row for each task and, unless there are many, a row for each of its types."""
    table = Table(title=plain(title), box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", overflow="fold", max_width=LONGEST_LABEL)
    for heading in ("precision", "recall", "F1", "F1, 95 %", "right", "predicted", "gold"):
        table.add_column(heading, justify="right", no_wrap=True)
    for task, name in TASKS.items():
        if task not in rows:
            continue
        types = [row for row in rows if row.startswith(f"{task}.type.")]
        for row in (task, *(types if len(types) <= MOST_TYPES else ())):
            rates = [f"{100 * metrics[f'{row}.{rate}']:.2f}" for rate in ("precision", "recall", "f1")]
            ends = [
                f"{100 * metrics[f'{row}.f1.{end}']:.1f}" for end in ("low", "high") if f"{row}.f1.{end}" in metrics
            ]
            counts = [f"{metrics[f'{row}.{count}']:,.0f}" for count in ("correct", "predicted", "gold")]
            label = Text(name, style="bold") if row == task else plain(f"  {row.partition('.type.')[2]}")
            table.add_row(label, *rates, " to ".join(ends), *counts)
    return table
