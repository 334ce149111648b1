"""Selection of the best checkpoint by a metric or a weighted sum of metrics (`train.best_metric`).

An unknown name is refused before training, as is a metric that the validation data or the model cannot give: matching
without boxes, a type that no entity with a box has, matching in context without fusion.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from spanbox.errors import ConfigError
from spanbox.evaluation.matching import ACROSS, CANDIDATES, SIZES
from spanbox.evaluation.ranking import RECALL_DEPTHS
from spanbox.evaluation.reranking import IN_CONTEXT
from spanbox.metric_names import ANNOTATIONS, WITHIN

BestMetric = str | dict[str, float]
"""The name of a metric, or the weights of several."""

_RANKING = {**dict.fromkeys([*(f"r{k}" for k in RECALL_DEPTHS), "map"], 1), "median_rank": -1, "mean_rank": -1}
_PARTS = ("r5", "hard", *(f"size.{size}" for size in SIZES), *(f"candidates.{number}" for number in CANDIDATES))
_EMBEDDING = {"coarse": ("sentences", "images"), "fine": ("spans", "regions")}
_NEED_BOXES = ("matching.", "grounding.", "embedding.fine.")

SELECTABLE: dict[str, int] = {
    **{f"{family}.{name}": sign for family in ("retrieval.i2t", "retrieval.t2i") for name, sign in _RANKING.items()},
    WITHIN: 1,
    **{f"{WITHIN}.{part}": 1 for part in _PARTS},
    **{f"{ACROSS}.{name}": sign for name, sign in _RANKING.items()},
    IN_CONTEXT: 1,
    "grounding.accuracy": 1,
    "grounding.pointing": 1,
    "matching.presence.auc": 1,
    **{f"embedding.{level}.{name}": -1 for level in _EMBEDDING for name in ("alignment", "modality_gap")},
    **{f"embedding.{level}.uniformity.{kind}": -1 for level, kinds in _EMBEDDING.items() for kind in kinds},
}
"""Metrics that can select the best checkpoint: 1 if larger is better, -1 if smaller is."""

BY_TYPE = f"{WITHIN}.type."
"""Prefix of the metrics of one entity type; the types depend on the data. Larger is better."""


def check_selectable(best_metric: BestMetric, key: str) -> None:
    """Check before training that `best_metric` can select a checkpoint.

    Raises:
        ConfigError: no metric, an unknown metric (with the nearest known one), or weights that are all 0.
    """
    weights = _weights(best_metric)
    if not any(weights.values()):
        raise ConfigError(f"{key}: all weights are 0; write NAME, or {{NAME: weight, NAME: weight}}")
    for name in weights:
        if _sign(name) is None:
            nearest = get_close_matches(name, SELECTABLE, n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"{key}: {name!r} cannot choose a checkpoint. Did you mean {nearest!r}? {_known(SELECTABLE)}"
            )


def check_measurable(best_metric: BestMetric, key: str, shown_types: Iterable[str | None], *, in_context: bool) -> None:
    """Check before training that the validation data and the model give `best_metric`.

    Args:
        best_metric: one that `check_selectable` lets pass.
        key: its config key.
        shown_types: the type of each entity with a box. Read as far as needed.
        in_context: whether the model matches entities and boxes in context.

    Raises:
        ConfigError: they do not.
    """
    names = _weights(best_metric)
    if IN_CONTEXT in names and not in_context:
        raise ConfigError(
            f"{key}: {IN_CONTEXT!r} needs model.fusion.kind=gated or cross_attention, and loss.fine.weight and "
            f"loss.fusion.parts_weight above 0; set them, or choose {WITHIN!r}"
        )
    wanted = {name.removeprefix(BY_TYPE) for name in names if name.startswith(BY_TYPE)}
    need_boxes = [name for name in names if name.startswith(_NEED_BOXES)]
    found: set[str | None] = set()
    for shown_type in shown_types if need_boxes else ():
        found.add(shown_type)
        if wanted <= found:
            return
    if need_boxes and not found:
        others = [name for name in SELECTABLE if not name.startswith(_NEED_BOXES)]
        raise ConfigError(f"{key}: {_no_boxes(need_boxes[0], others)}")
    for missing in sorted(wanted - found):
        types = ", ".join(sorted(filter(None, found))) or "none"
        raise ConfigError(f"{key}: no entity with a box has the type {missing!r} in data.val. Types there: {types}")


def selection_value(metrics: Mapping[str, float], best_metric: BestMetric) -> float:
    """The value that selects the best checkpoint; larger is better. A single metric whose smaller values are better is
    negated; in a weighted sum the weights set the sign.

    Raises:
        ConfigError: a metric was not measured.
    """
    if isinstance(best_metric, str):
        return (_sign(best_metric) or 1) * metric_value(metrics, best_metric)
    return sum(weight * metric_value(metrics, name) for name, weight in best_metric.items())


def metric_value(metrics: Mapping[str, float], name: str) -> float:
    """The value of the metric `name`.

    Raises:
        ConfigError: it was not measured; the message has the nearest name.
    """
    if name in metrics:
        return metrics[name]
    known = sorted(metric for metric in metrics if metric.rpartition(".")[2] not in ANNOTATIONS)
    if name.startswith(_NEED_BOXES) and not any(key.startswith(_NEED_BOXES) for key in known):
        raise ConfigError(_no_boxes(name, known))
    nearest = get_close_matches(name, known, n=1)
    suggestion = f"Did you mean {nearest[0]!r}? " if nearest else ""
    raise ConfigError(f"unknown metric {name!r}. {suggestion}{_known(known)}")


def _weights(best_metric: BestMetric) -> dict[str, float]:
    return {best_metric: 1.0} if isinstance(best_metric, str) else best_metric


def _no_boxes(name: str, others: Iterable[str]) -> str:
    return (
        f"metric {name!r} needs entities with boxes, and the evaluation data has none. "
        f"Add boxes, or choose one of: {', '.join(others)}"
    )


def _sign(name: str) -> int | None:
    return 1 if name.startswith(BY_TYPE) else SELECTABLE.get(name)


def _known(names: Iterable[str]) -> str:
    return f"Known: {', '.join(names)}"
