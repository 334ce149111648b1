"""All metrics of a feature bank under flat, dotted names; their table for the terminal; looking one up by name.

The names are an interface: the config chooses a checkpoint by one, the log and `metrics.json` hold them.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from rich.table import Table

from spanbox.errors import ConfigError
from spanbox.evaluation.extract import FeatureBank
from spanbox.evaluation.matching import matching_metrics
from spanbox.evaluation.retrieval import RECALL_DEPTHS, retrieval_metrics

RATES = frozenset({*(f"r{k}" for k in RECALL_DEPTHS), "within_image", "hard", "trivial", "auc"})
"""Last parts of the names whose values lie in [0, 1] and read best as percentages."""

ANNOTATIONS = frozenset({"count", "chance", "chance_r1"})
"""Last parts of the names that belong beside another metric, not in a row of their own."""


SELECTABLE = (
    *(f"{family}.r{k}" for family in ("retrieval.i2t", "retrieval.t2i", "matching.across_set") for k in RECALL_DEPTHS),
    "matching.within_image",
    "matching.within_image.hard",
    "matching.without_box.auc",
)
"""Metrics that can choose the best checkpoint: larger is better."""


def evaluate(bank: FeatureBank) -> dict[str, float]:
    """Every metric that the data allows: retrieval always, matching where spans are linked to regions."""
    return retrieval_metrics(bank) | matching_metrics(bank)


def metric_value(metrics: Mapping[str, float], name: str) -> float:
    """The metric called `name`.

    Raises:
        ConfigError: there is none; names the nearest one.
    """
    if name in metrics:
        return metrics[name]
    known = sorted(metrics)
    if name.startswith("matching.") and not any(key.startswith("matching.") for key in known):
        raise ConfigError(
            f"metric {name!r} needs entities with boxes, and the evaluation data has none. "
            f"Add boxes, or choose one of: {', '.join(known)}"
        )
    nearest = get_close_matches(name, known, n=1)
    suggestion = f"Did you mean {nearest[0]!r}? " if nearest else ""
    raise ConfigError(f"unknown metric {name!r}. {suggestion}{_known(known)}")


def check_selectable(name: str, key: str) -> None:
    """Refuse, before anything is trained, a metric that cannot choose a checkpoint.

    Raises:
        ConfigError: it does not exist, or larger is not better; names the nearest one.
    """
    if name not in SELECTABLE:
        nearest = get_close_matches(name, SELECTABLE, n=1, cutoff=0.0)[0]
        raise ConfigError(f"{key}: {name!r} cannot choose a checkpoint. Did you mean {nearest!r}? {_known(SELECTABLE)}")


def metrics_table(metrics: Mapping[str, float], title: str | None = None) -> Table:
    """The metrics for the terminal: value (rates in percent), what chance would reach, and over how many queries."""
    table = Table(title=title)
    table.add_column("metric")
    for heading in ("value", "chance", "count"):
        table.add_column(heading, justify="right")
    for name in metrics:
        family, _, last = name.rpartition(".")
        if last not in ANNOTATIONS:
            value, chance, count = metrics[name], _chance_of(metrics, name), _count_of(metrics, name)
            table.add_row(name, _shown(name, value), _percent(chance), "" if count is None else f"{count:,.0f}")
        elif last == "count" and not _is_shown_beside_a_metric(metrics, family):
            table.add_row(name, f"{metrics[name]:,.0f}", "", "")
    return table


def _known(names: Iterable[str]) -> str:
    return f"Known: {', '.join(names)}"


def _chance_of(metrics: Mapping[str, float], name: str) -> float | None:
    family, _, last = name.rpartition(".")
    return metrics.get(f"{name}.chance", metrics.get(f"{family}.chance_{last}"))


def _count_of(metrics: Mapping[str, float], name: str) -> float | None:
    family, _, _ = name.rpartition(".")
    return metrics.get(f"{name}.count", metrics.get(f"{family}.count"))


def _is_shown_beside_a_metric(metrics: Mapping[str, float], family: str) -> bool:
    members = (name.rpartition(".") for name in metrics)
    return family in metrics or any(parent == family and last not in ANNOTATIONS for parent, _, last in members)


def _shown(name: str, value: float) -> str:
    return _percent(value) if name.rpartition(".")[2] in RATES else f"{value:,.1f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
