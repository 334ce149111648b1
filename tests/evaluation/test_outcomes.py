"""Outcomes become figures, figures become names."""

import numpy as np
import pytest
import torch

from spanbox.evaluation.outcomes import Figure, Outcome, figures_of
from spanbox.intervals import Interval, bootstrap_mean, bootstrap_statistic

IMAGE = torch.arange(40) // 2
HITS = torch.arange(40) % 3 == 0


def test_names_of_a_figure() -> None:
    figure = Figure(0.5, 40, Interval(0.4, 0.6), chance=0.1, baseline=0.0)
    names = {"m": 0.5, "m.low": 0.4, "m.high": 0.6, "m.chance": 0.1, "m.baseline": 0.0, "m.count": 40}
    assert figure.named("m") == names
    assert Figure(0.5, 40).named("m") == {"m": 0.5, "m.count": 40}
    assert Figure(0.5, 40, Interval(0.0, 0.0)).named("m")["m.low"] == 0.0


def test_a_figure_is_the_mean_of_each_part() -> None:
    outcome = Outcome.of(HITS, IMAGE, chance=torch.full((40,), 0.25), baseline=~HITS)
    (figure,) = figures_of({"m": outcome}).values()
    assert (figure.value, figure.count) == (14 / 40, 40)
    assert (figure.chance, figure.baseline) == (0.25, 26 / 40)
    assert figure.interval == pytest.approx(bootstrap_mean(HITS.numpy(), IMAGE.numpy()))


def test_a_median() -> None:
    ranks = torch.arange(1, 41) ** 2
    (figure,) = figures_of({"m": Outcome.of(ranks, IMAGE, summary="median")}).values()
    assert figure.value == (20**2 + 21**2) / 2
    repeated = bootstrap_statistic(lambda counts: float(np.median(np.repeat(ranks.numpy(), counts))), IMAGE.numpy())
    assert figure.interval == pytest.approx(repeated)


def test_intervals_do_not_depend_on_what_else_is_measured() -> None:
    outcomes = {
        "one": Outcome.of(HITS, IMAGE),
        "same images": Outcome.of(~HITS, IMAGE),
        "others": Outcome.of(HITS, torch.arange(40)),
    }
    together = figures_of(outcomes)
    for name, outcome in outcomes.items():
        assert together[name].interval == pytest.approx(figures_of({name: outcome})[name].interval)


def test_some_of_the_queries() -> None:
    part = Outcome.of(HITS, IMAGE, chance=IMAGE, baseline=~HITS).of_queries(HITS)
    assert part.values.tolist() == [1.0] * 14
    assert part.image.tolist() == IMAGE[HITS].tolist()
    assert part.chance is not None
    assert part.chance.tolist() == IMAGE[HITS].tolist()
    assert part.baseline is not None
    assert part.baseline.tolist() == [0.0] * 14


def test_an_outcome_of_no_query_is_absent() -> None:
    assert figures_of({"m": Outcome.of(HITS, IMAGE).of_queries(HITS & ~HITS)}) == {}


def test_a_single_image_has_a_figure_and_no_interval() -> None:
    (figure,) = figures_of({"m": Outcome.of(HITS, torch.zeros_like(IMAGE))}).values()
    assert figure.interval is None
    assert set(figure.named("m")) == {"m", "m.count"}


def test_without_intervals() -> None:
    assert figures_of({"m": Outcome.of(HITS, IMAGE)}, intervals=False)["m"].interval is None
