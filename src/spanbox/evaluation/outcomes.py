"""Outcomes (the value of each query) and figures (a metric with its interval, chance level and baseline).

Intervals, paired differences between runs and breakdowns are computed from outcomes, so that each metric has one
definition.

    Q queries
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from torch import Tensor

from spanbox.evaluation.ranking import (
    RECALL_DEPTHS,
    Ranking,
    chance_average_precision,
    chance_rank,
    chance_within,
)
from spanbox.intervals import (
    FloatArray,
    IntArray,
    Interval,
    bootstrap_means,
    bootstrap_statistic,
    rate_interval,
)
from spanbox.metric_names import is_rate

Summary = Literal["mean", "median"]

IMAGES_OF_A_MEDIAN = 6
"""Fewest images for the interval of a median: the values of n images enclose it in 1 - 2 / 2^n of samples."""


@dataclass(frozen=True)
class Figure:
    """A metric as it is reported. Parts that do not exist for it are None."""

    value: float
    count: int  # of queries
    interval: Interval | None = None
    chance: float | None = None  # mean value of a random order
    baseline: float | None = None  # value of a trivial rule

    def named(self, name: str) -> dict[str, float]:
        """NAME, NAME.low, NAME.high, NAME.chance, NAME.baseline and NAME.count, those that exist."""
        parts = {
            name: self.value,
            f"{name}.low": self.interval and self.interval.low,
            f"{name}.high": self.interval and self.interval.high,
            f"{name}.chance": self.chance,
            f"{name}.baseline": self.baseline,
            f"{name}.count": self.count,
        }
        return {key: value for key, value in parts.items() if value is not None}


@dataclass(frozen=True)
class Outcome:
    """The values of a metric for each query."""

    values: FloatArray  # (Q,)
    image: IntArray  # (Q,) hash of the query's image
    chance: FloatArray | None = None  # (Q,)
    baseline: FloatArray | None = None  # (Q,)
    summary: Summary = "mean"

    @classmethod
    def of(
        cls,
        values: Tensor,
        image: Tensor,
        chance: Tensor | None = None,
        baseline: Tensor | None = None,
        summary: Summary = "mean",
    ) -> "Outcome":
        """From tensors (Q,) of any number type."""
        return cls(
            values.double().numpy(),
            image.numpy(),
            None if chance is None else chance.double().numpy(),
            None if baseline is None else baseline.double().numpy(),
            summary,
        )

    def __len__(self) -> int:
        return len(self.values)

    def of_queries(self, chosen: Tensor) -> "Outcome":
        """The outcome restricted to the queries of a mask (Q,) bool."""
        mask = chosen.numpy()
        return replace(
            self,
            values=self.values[mask],
            image=self.image[mask],
            chance=None if self.chance is None else self.chance[mask],
            baseline=None if self.baseline is None else self.baseline[mask],
        )


def ranking_outcomes(
    prefix: str, ranking: Ranking, image: Tensor, baseline: Mapping[int, Tensor] | None = None
) -> dict[str, Outcome]:
    """Recall at each depth, median and mean rank of the best right candidate, and mean average precision.

    Keys under `prefix`: `.r1 .r5 .r10 .median_rank .mean_rank .map`. Queries without a right candidate do not count.

    Args:
        image: (Q,) hash of the image of each query.
        baseline: (Q,) whether a trivial rule finds a right candidate, for each depth.
    """
    counts = ranking.right > 0
    best, right, candidates = ranking.best[counts], ranking.right[counts], ranking.candidates[counts]
    image, baseline = image[counts], {depth: found[counts] for depth, found in (baseline or {}).items()}
    recalls = {
        f"{prefix}.r{depth}": Outcome.of(
            best <= depth, image, chance_within(depth, right, candidates), baseline.get(depth)
        )
        for depth in RECALL_DEPTHS
    }
    precision = ranking.average_precision[counts]
    return recalls | {
        f"{prefix}.median_rank": Outcome.of(best, image, summary="median"),
        f"{prefix}.mean_rank": Outcome.of(best, image, chance_rank(right, candidates)),
        f"{prefix}.map": Outcome.of(precision, image, chance_average_precision(right, candidates)),
    }


def figures_of(outcomes: Mapping[str, Outcome], *, intervals: bool = True) -> dict[str, Figure]:
    """The figure of each outcome; those without a query are left out.

    Args:
        outcomes: by the name of the metric; names decide which values are rates in [0, 1].
        intervals: whether figures have intervals, which takes 1,000 draws for each set of images.
    """
    outcomes = {name: outcome for name, outcome in outcomes.items() if len(outcome)}
    interval = _intervals_of(outcomes) if intervals else {}
    return {
        name: Figure(
            value=_summarise(outcome),
            count=len(outcome),
            interval=interval.get(name),
            chance=None if outcome.chance is None else float(outcome.chance.mean()),
            baseline=None if outcome.baseline is None else float(outcome.baseline.mean()),
        )
        for name, outcome in outcomes.items()
    }


def weighted_median(ascending: FloatArray, counts: IntArray) -> float:
    """Median of values that count more than once or not at all, between the two middle ones of an even number."""
    reached = counts.cumsum()
    last = int(reached[-1]) - 1
    return float(ascending[np.searchsorted(reached, [last // 2, (last + 1) // 2], side="right")].mean())


def _summarise(outcome: Outcome) -> float:
    return float(outcome.values.mean() if outcome.summary == "mean" else np.median(outcome.values))


def _intervals_of(outcomes: Mapping[str, Outcome]) -> dict[str, Interval | None]:
    """The interval of each outcome. Bootstrapped means over queries of the same images share their draws."""
    found: dict[str, Interval | None] = {}
    same_images: dict[bytes, list[str]] = {}
    for name, outcome in outcomes.items():
        if outcome.summary == "median":
            found[name] = _median_interval(outcome)
        elif is_rate(name):
            found[name] = rate_interval(outcome.values, outcome.image)
        else:
            same_images.setdefault(outcome.image.tobytes(), []).append(name)
    for names in same_images.values():
        values = np.stack([outcomes[name].values for name in names], axis=1)
        found |= zip(names, bootstrap_means(values, outcomes[names[0]].image), strict=True)
    return found


def _median_interval(outcome: Outcome) -> Interval | None:
    """The interval of a median. Its width may be 0, for example if nearly all ranks are 1."""
    if len(np.unique(outcome.image)) < IMAGES_OF_A_MEDIAN:
        return None
    order = outcome.values.argsort(kind="stable")
    ascending, median = outcome.values[order], _summarise(outcome)
    interval = bootstrap_statistic(lambda counts: weighted_median(ascending, counts), outcome.image[order])
    return interval or Interval(median, median)
