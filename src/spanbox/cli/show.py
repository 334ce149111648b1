"""What several verbs print."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from spanbox.terminal import make_console

if TYPE_CHECKING:  # importing it would bring PyTorch in, which takes seconds
    from spanbox.structures import Incident


def print_metrics(metrics: Mapping[str, float], title: str) -> None:
    """The metrics as a table: value, interval, chance, trivial rule, number of queries."""
    from spanbox.evaluation.evaluate import metrics_table
    from spanbox.metric_names import is_part

    make_console().print(metrics_table(metrics, title))
    if any(map(is_part, metrics)):
        print("by entity type, box size and number of candidates: metrics.json, or the report")


def print_incidents(incidents: "Sequence[Incident]") -> None:
    """What was worked around in the data, counted by kind; nothing when there was nothing."""
    if not incidents:
        return
    table = Table(title="worked around in the data")
    table.add_column("what")
    table.add_column("pairs", justify="right")
    table.add_column("for example")
    for kind in dict.fromkeys(incident.kind for incident in incidents):
        met = [incident for incident in incidents if incident.kind == kind]
        table.add_row(kind, str(len({incident.sample for incident in met})), f"{met[0].sample}: {met[0].detail}")
    make_console().print(table)
