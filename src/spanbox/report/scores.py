"""Flat metrics as scores: a value with its interval, what chance and the trivial baseline reach, and how many queries.

retrieval.i2t.r1: 0.86    retrieval.i2t.r1.low: 0.83    retrieval.i2t.r1.chance: 0.002    ...
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from spanbox.intervals import Interval, paired_difference
from spanbox.metric_names import ANNOTATIONS, WITHIN, is_part, is_rate
from spanbox.report.reading import Run

HEADLINE = {
    "coarse": ("retrieval.i2t.r1", "retrieval.t2i.r1"),
    "fine": ("matching.within_image", "matching.across_set.r1", "matching.presence.auc"),
}
"""What tells most of each level."""

_SMALLER_IS_BETTER = ("median_rank", "mean_rank", "alignment", "uniformity")
_NO_DIRECTION = ("mean_candidates", "candidates", "count", "threshold", "trivial", "elsewhere", "modality_gap")


@dataclass(frozen=True)
class Score:
    """One metric with all that stands beside it; None where it was not measured."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    baseline: float | None = None
    count: float | None = None

    @property
    def floor(self) -> float | None:
        """What is reached without looking at the pair: chance or the trivial baseline, whichever is more."""
        return max((value for value in (self.chance, self.baseline) if value is not None), default=None)

    @property
    def is_above_floor(self) -> bool | None:
        """Whether the whole interval lies above it; None where either is unknown."""
        return None if self.low is None or self.floor is None else self.low > self.floor


@dataclass(frozen=True)
class Difference:
    """How far a run's score is from the first run's."""

    value: float
    interval: Interval | None  # None: the runs have no outcomes of the same queries
    is_better: bool | None  # None: it may be chance, or the metric has no better side


def parse_scores(metrics: Mapping[str, float]) -> dict[str, Score]:
    """Scores by name. Knows the older form too, in which chance and count stood beside a family of metrics."""
    return {
        name: Score(
            name,
            value,
            low=metrics.get(f"{name}.low"),
            high=metrics.get(f"{name}.high"),
            chance=metrics.get(f"{name}.chance", _beside(metrics, name, "chance_")),
            baseline=metrics.get(f"{name}.baseline"),
            count=metrics.get(f"{name}.count", metrics.get(f"{name.rpartition('.')[0]}.count")),
        )
        for name, value in metrics.items()
        if not _is_annotation(name, metrics)
    }


def headline(scores: Mapping[str, Score], level: str) -> list[Score]:
    """The scores that tell most of a level; none where the data has no boxes."""
    return [scores[name] for name in HEADLINE[level] if name in scores]


def breakdown(scores: Mapping[str, Score], kind: str) -> list[tuple[str, Score]]:
    """Groups of entities with their score, weakest first."""
    prefix = f"{WITHIN}.{kind}."
    groups = [(name.removeprefix(prefix), score) for name, score in scores.items() if name.startswith(prefix)]
    return sorted(groups, key=lambda pair: pair[1].value)


def difference(run: Run, first: Run, name: str) -> Difference | None:
    """The difference of a run to the first one; None where both were not measured on the same data.

    With the outcomes of the same queries in the same order it has an interval, paired by image.
    """
    if name not in run.metrics or name not in first.metrics:
        return None
    ours, theirs = run.outcomes.get(name), first.outcomes.get(name)
    if ours is None or theirs is None or not np.array_equal(ours.image, theirs.image):
        return Difference(run.metrics[name] - first.metrics[name], None, None) if run.data == first.data else None
    rates = is_rate(name) and all(bool(((one.values >= 0) & (one.values <= 1)).all()) for one in (ours, theirs))
    value, interval = paired_difference(ours.values, theirs.values, ours.image, rates=rates)
    return Difference(value, interval, interval and _is_better(name, interval))


def _is_better(name: str, interval: Interval) -> bool | None:
    parts = [] if is_part(name) else name.split(".")
    if interval.low <= 0 <= interval.high or any(part in _NO_DIRECTION for part in parts):
        return None
    return (interval.low > 0) != any(part in _SMALLER_IS_BETTER for part in parts)


def _is_annotation(name: str, metrics: Mapping[str, float]) -> bool:
    family, _, last = name.rpartition(".")
    if last.startswith("chance_"):
        return True
    has_members = any(key.startswith(f"{family}.") and key.rpartition(".")[2] not in ANNOTATIONS for key in metrics)
    return last in ANNOTATIONS and (family in metrics or has_members)


def _beside(metrics: Mapping[str, float], name: str, prefix: str) -> float | None:
    family, _, last = name.rpartition(".")
    return metrics.get(f"{family}.{prefix}{last}")
