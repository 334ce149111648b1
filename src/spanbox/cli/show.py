"""Terminal output that several commands share."""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from rich.table import Table

from spanbox.terminal import make_console, plain, print_figures

if TYPE_CHECKING:  # importing it would bring PyTorch in, which takes seconds
    from spanbox.api import Model
    from spanbox.structures import Incident


def print_metrics(metrics: Mapping[str, float], title: str, details: str = "metrics.json, or the report") -> None:
    """Print the metrics as a table: value, interval, chance, trivial rule, queries; and where the `details` are."""
    from spanbox.evaluation.evaluate import metrics_table
    from spanbox.metric_names import is_part

    print_figures(metrics_table(metrics, plain(title)))
    if any(map(is_part, metrics)):
        print(f"by entity type, box size and number of candidates: {details}")


def print_unknown_words(model: "Model", text: str) -> None:
    """Print on stderr the words of a text that become unknown tokens, if there are any."""
    if unknown := model.unknown_words(text):
        print(f"the model's tokenizer does not know: {', '.join(unknown)}", file=sys.stderr)


def print_untrained(model: "Model", level: Literal["coarse", "fine"]) -> None:
    """Warn on stderr of features of a level that no loss trained."""
    if reason := model.untrained(level):
        print(f"{model.checkpoint}: {reason}", file=sys.stderr)


def print_incidents(incidents: "Sequence[Incident]") -> None:
    """Print the incidents in the data, counted by kind, if there are any."""
    of_kind: dict[str, list[Incident]] = {}
    for incident in incidents:
        of_kind.setdefault(incident.kind, []).append(incident)
    print_incident_counts(
        {
            kind: (len({incident.sample for incident in found}), f"{found[0].sample}: {found[0].detail}")
            for kind, found in of_kind.items()
        }
    )


def print_incident_counts(counts: Mapping[str, tuple[int, str]]) -> None:
    """Print the number of pairs with each kind of incident, and an example; nothing where there are none."""
    if not counts:
        return
    table = Table(title="incidents in the data")
    table.add_column("incident")
    table.add_column("pairs", justify="right")
    table.add_column("example")
    for kind, (pairs, example) in counts.items():
        table.add_row(plain(kind), str(pairs), plain(example))
    make_console().print(table)
