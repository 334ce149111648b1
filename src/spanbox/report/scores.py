"""Flat metrics as scores: a value with its interval, chance level, trivial baseline and number of queries.

retrieval.i2t.r1: 0.86    retrieval.i2t.r1.low: 0.83    retrieval.i2t.r1.chance: 0.002    ...
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Literal

import numpy as np

from spanbox.intervals import Interval, paired_difference
from spanbox.metric_names import ANNOTATIONS, WITHIN, better_direction, is_part, is_rate
from spanbox.report.reading import Run

HEADLINE = {
    "coarse": ("retrieval.i2t.r1", "retrieval.t2i.r1"),
    "fine": ("matching.within_image", "matching.across_set.r1", "matching.presence.auc"),
}
"""The main metrics of each level."""

LEAST_QUERIES = 20
"""Queries that a group needs to be called weak."""
SAME_CHANCE = 1e-6


@dataclass(frozen=True)
class Score:
    """One metric with its annotations; None where they were not computed."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    baseline: float | None = None
    count: float | None = None

    @property
    def floor(self) -> float | None:
        """Chance level or trivial baseline, whichever is higher."""
        return max((value for value in (self.chance, self.baseline) if value is not None), default=None)

    @property
    def against_floor(self) -> Literal["above", "overlaps", "below"] | None:
        """Where the interval lies relative to chance and baseline; None where either is unknown."""
        if self.low is None or self.high is None or self.floor is None:
            return None
        return "above" if self.low > self.floor else "below" if self.high < self.floor else "overlaps"


@dataclass(frozen=True)
class Difference:
    """A run's score minus the first run's."""

    value: float
    interval: Interval | None  # None: no mean over queries, or no outcomes of the same queries
    is_better: bool | None  # None: not distinguishable from 0, or the metric has no better direction


def parse_scores(metrics: Mapping[str, float]) -> dict[str, Score]:
    """Scores by name. A metric without its own count, such as `mean_candidates`, has the count of its family."""
    annotated = {name.rpartition(".")[0] for name in metrics if _is_suffix(name) and not is_part(name)}
    families = {
        name[:dot]
        for name in metrics
        if not _is_suffix(name)
        for dot, letter in enumerate(name)
        if letter == "." and name[:dot] in annotated
    }
    return {
        name: Score(
            name,
            value,
            low=metrics.get(f"{name}.low"),
            high=metrics.get(f"{name}.high"),
            chance=metrics.get(f"{name}.chance"),
            baseline=metrics.get(f"{name}.baseline"),
            count=metrics.get(f"{name}.count", metrics.get(f"{name.rpartition('.')[0]}.count")),
        )
        for name, value in metrics.items()
        if not _is_annotation(name, metrics, families)
    }


def headline(scores: Mapping[str, Score], level: str) -> list[Score]:
    """The main scores of a level; none of the fine level where the data has no boxes."""
    return [scores[name] for name in HEADLINE[level] if name in scores]


def breakdown(scores: Mapping[str, Score], kind: str) -> tuple[list[tuple[str, Score]], list[tuple[str, Score]]]:
    """Groups of entities with their score, lowest first: those with LEAST_QUERIES or more, and the smaller ones."""
    prefix = f"{WITHIN}.{kind}."
    found = [(name.removeprefix(prefix), score) for name, score in scores.items() if name.startswith(prefix)]
    groups = sorted(found, key=lambda pair: pair[1].value)
    large = [pair for pair in groups if (pair[1].count or 0) >= LEAST_QUERIES]
    return large, [pair for pair in groups if pair not in large]


def same_data(run: Run, first: Run) -> bool:
    """Whether both runs were evaluated on data of the same content, wherever the files are."""
    return bool(run.fingerprint) and run.fingerprint == first.fingerprint


def difference(run: Run, first: Run, name: str) -> Difference | None:
    """The difference of a run to the first one; None where the data or the candidates of the queries differ.

    Candidates differ where the chance level does: one of the runs may take more regions of an image. With the outcomes
    of the same queries in the same order the difference has an interval, paired by image.
    """
    if not same_data(run, first) or name not in run.metrics or name not in first.metrics:
        return None
    chances = [_chance_of_candidates(one, name) for one in (run, first)]
    if abs(chances[0] - chances[1]) > SAME_CHANCE:
        return None
    ours, theirs = run.outcomes.get(name), first.outcomes.get(name)
    if ours is None or theirs is None or not np.array_equal(ours.image, theirs.image) or not len(ours.image):
        return Difference(run.metrics[name] - first.metrics[name], None, None)
    rates = is_rate(name) and all(bool(((one.values >= 0) & (one.values <= 1)).all()) for one in (ours, theirs))
    value, interval = paired_difference(ours.values, theirs.values, ours.image, rates=rates)
    return Difference(value, interval, interval and _is_better(name, interval))


def _chance_of_candidates(run: Run, name: str) -> float:
    """The chance level of a metric where it depends on the number of candidates alone; otherwise 0."""
    if name.startswith("embedding."):  # that of distances depends on the features
        return 0.0
    ranking = name.replace(".median_rank", ".mean_rank")  # a median has no chance level
    return run.metrics.get(f"{ranking}.chance", 0.0)


def _is_better(name: str, interval: Interval) -> bool | None:
    direction = better_direction(name)
    if interval.low <= 0 <= interval.high or not direction:
        return None
    return (interval.low > 0) == (direction > 0)


def _is_suffix(name: str) -> bool:
    return name.rpartition(".")[2] in ANNOTATIONS


def _is_annotation(name: str, metrics: Mapping[str, float], families: Set[str]) -> bool:
    """Whether a name annotates another metric or family; a count without either is a metric itself.

    A group of a breakdown is a metric too, even with such a name: entities may have the type `low` or `count`.
    """
    family, _, last = name.rpartition(".")
    if is_part(name):
        return last in ANNOTATIONS and is_part(family) and family in metrics
    return last in ANNOTATIONS and (family in metrics or family in families)
