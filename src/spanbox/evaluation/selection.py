"""Selection of the best checkpoint by a metric or a weighted sum of metrics (`train.best_metric`).

An unknown name is refused before training, as is a metric that the validation data or the model cannot give: matching
without boxes, the entities of a type or size that no entity with a box has, uniformity over a single image, matching in
context without fusion.

    K spans and R regions of a pair
"""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

import torch
from torch import Tensor

from spanbox.errors import ConfigError
from spanbox.evaluation.matching import ACROSS, CANDIDATES, within_image_outcomes
from spanbox.evaluation.own_image import OwnImage
from spanbox.evaluation.presence import AUC
from spanbox.evaluation.ranking import RECALL_DEPTHS
from spanbox.evaluation.reranking import IN_CONTEXT
from spanbox.metric_names import ANNOTATIONS, SIZES, WITHIN, better_direction
from spanbox.structures import NAMED_ONLY, SHOWN

KEY = "train.best_metric"

BestMetric = str | dict[str, float]
"""The name of a metric, or the weights of several."""

_RANKING = (*(f"r{k}" for k in RECALL_DEPTHS), "map", "median_rank", "mean_rank")
_PARTS = ("r5", "hard", *(f"size.{size}" for size in SIZES), *(f"candidates.{number}" for number in CANDIDATES))
_LINKS = {name: f"{WITHIN}.links.{name}" for name in ("ambiguous", "certain")}
_EMBEDDING = {"coarse": ("sentences", "images"), "fine": ("spans", "regions")}
_NEED_BOXES = ("matching.", "grounding.", "embedding.fine.")

UNIFORMITY = {kind: f"embedding.{level}.uniformity.{kind}" for level, kinds in _EMBEDDING.items() for kind in kinds}
"""Uniformity of each kind of features, measured where they are of several images."""

SELECTABLE = (
    *(f"{family}.{name}" for family in ("retrieval.i2t", "retrieval.t2i") for name in _RANKING),
    WITHIN,
    *(f"{WITHIN}.{part}" for part in _PARTS),
    *_LINKS.values(),
    *(f"{ACROSS}.{name}" for name in _RANKING),
    IN_CONTEXT,
    "grounding.accuracy",
    "grounding.pointing",
    AUC,
    *(f"embedding.{level}.alignment" for level in _EMBEDDING),
    *UNIFORMITY.values(),
)
"""Metrics that can select the best checkpoint; for their sign see `better_direction`."""

BY_TYPE = f"{WITHIN}.type."
"""Prefix of the metrics of one entity type; the types depend on the data."""

KINDS = {SHOWN: "shown entities in images with boxes", NAMED_ONLY: "named entities in images with boxes"}
"""What the AUC of presence compares."""

AMBIGUITY = {True: "ambiguous entities with boxes", False: "entities with boxes that are not ambiguous"}
"""What the parts of matching by ambiguity compare."""


def check_selectable(best_metric: BestMetric) -> None:
    """Check before training that `best_metric` can select a checkpoint.

    Raises:
        ConfigError: no metric, an unknown metric (with the nearest known one), or weights that are all 0.
    """
    weights = _weights(best_metric)
    if not any(weights.values()):
        raise ConfigError("train.best_metric: all weights are 0; write NAME, or {NAME: weight, NAME: weight}")
    for name in weights:
        if name not in SELECTABLE and not name.startswith(BY_TYPE):
            nearest = get_close_matches(name, SELECTABLE, n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"{KEY}: {name!r} cannot choose a checkpoint. Did you mean {nearest!r}? {_known(SELECTABLE)}"
            )


def counted_in_pair(
    regions: Tensor, links: Tensor, shown: Sequence[int], types: Sequence[str | None], ambiguous: Sequence[bool]
) -> set[str]:
    """The matching metrics that a pair contributes to: names of those within the image, of `KINDS` and of `AMBIGUITY`.

    Args:
        regions: (R, 4), normalised.
        links: (K, R) bool.
        shown: K, SHOWN, NAMED_ONLY or NOT_KNOWN.
        types: K, of the entities; None where it is unknown.
        ambiguous: K, whether it is unknown which of the boxes of an entity is meant.
    """
    if not len(regions):
        return set()
    kinds = {KINDS[state] for state in shown if state in KINDS}
    if not links.any():
        return kinds
    kinds |= {AMBIGUITY[ambiguous[span]] for span in links.any(dim=1).nonzero()[:, 0].tolist()}
    spans = len(links)
    boxes = regions.expand(spans, -1, -1)
    own = OwnImage(torch.zeros(links.shape), torch.ones_like(links), links, boxes, torch.zeros(spans).long())
    return kinds | {name for name, outcome in within_image_outcomes(own, types).items() if len(outcome)}


def check_measurable(best_metric: BestMetric, counted: Iterable[str], *, in_context: bool) -> None:
    """Check before training that the validation data and the model give `best_metric`.

    Args:
        best_metric: one that `check_selectable` lets pass.
        counted: the names that the pairs contribute, see `counted_in_pair`, and the `UNIFORMITY` of each kind of
            features that at least two images have. Read as far as needed.
        in_context: whether the model matches entities and boxes in context.

    Raises:
        ConfigError: they do not.
    """
    names = _weights(best_metric)
    if IN_CONTEXT in names and not in_context:
        raise ConfigError(
            f"{KEY}: {IN_CONTEXT!r} needs model.fusion.kind=gated or cross_attention, and loss.fine.weight and "
            f"loss.fusion.parts_weight above 0; set them, or choose {WITHIN!r}"
        )
    needs = {name: _needs(name) for name in names}
    found = _read_until(set[str]().union(*needs.values()), counted)
    for name, needed in needs.items():
        if not needed <= found:
            raise ConfigError(f"{KEY}: {_not_measured(name, needed, found)}")


def _read_until(needed: set[str], counted: Iterable[str]) -> set[str]:
    """What counts in the data, read up to where all that is needed was found."""
    found = set[str]()
    for name in counted if needed else ():
        found.add(name)
        if needed <= found:
            break
    return found


def _not_measured(name: str, needed: set[str], found: set[str]) -> str:
    """Why a metric cannot be measured on data in which `found` counts, and what can."""
    if name.startswith(_NEED_BOXES) and WITHIN not in found:
        return _no_boxes(name, [other for other in SELECTABLE if not other.startswith(_NEED_BOXES)])
    if name.startswith(BY_TYPE):
        types = ", ".join(sorted(one.removeprefix(BY_TYPE) for one in found if one.startswith(BY_TYPE))) or "none"
        return f"no entity with a box has the type {name.removeprefix(BY_TYPE)!r} in data.val. Types there: {types}"
    if name in UNIFORMITY.values():
        kind = name.rpartition(".")[2]
        return (
            f"{name!r} compares {kind} of different images, and data.val has only those of one image; add pairs of "
            "other images, or choose another metric, such as 'retrieval.t2i.r1'"
        )
    missing = "" if needed == {name} else f" (there are no {' and no '.join(sorted(needed - found))})"
    measured = [other for other in SELECTABLE if other.startswith(WITHIN) and _needs(other) <= found]
    return f"no entity of data.val counts for {name!r}{missing}; choose another, such as {', '.join(measured)}"


def _needs(name: str) -> set[str]:
    """The names, as in `check_measurable`, that some pair must contribute for a metric to be measured."""
    if name == AUC:
        return set(KINDS.values())
    if name == _LINKS["ambiguous"]:
        return {AMBIGUITY[True]}
    if name == _LINKS["certain"]:  # absent without ambiguous entities
        return set(AMBIGUITY.values())
    if name.startswith(WITHIN):
        return {name}
    of_boxes = {WITHIN} if name.startswith(_NEED_BOXES) else set()
    return of_boxes | ({name} & set(UNIFORMITY.values()))


def selection_value(metrics: Mapping[str, float], best_metric: BestMetric) -> float:
    """The value that selects the best checkpoint; larger is better. A single metric whose smaller values are better is
    negated; in a weighted sum the weights set the sign.

    Raises:
        ConfigError: a metric was not measured.
    """
    if isinstance(best_metric, str):
        return better_direction(best_metric) * metric_value(metrics, best_metric)
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


def _known(names: Iterable[str]) -> str:
    return f"Known: {', '.join(names)}"
