"""Outcomes become figures, figures become names."""

import numpy as np
import pytest
import torch

from spanbox.evaluation.outcomes import Figure, Outcome, figures_of
from spanbox.intervals import Interval, bootstrap_mean, bootstrap_statistic, rate_interval

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
    assert figure.interval == pytest.approx(rate_interval(HITS.numpy(), IMAGE.numpy()))


def test_only_rates_have_the_interval_of_a_rate() -> None:
    ranks = torch.arange(1, 41)
    figure = figures_of({"retrieval.i2t.mean_rank": Outcome.of(ranks, IMAGE)})["retrieval.i2t.mean_rank"]
    assert figure.interval == pytest.approx(bootstrap_mean(ranks.numpy(), IMAGE.numpy()))
    first = figures_of({"retrieval.i2t.mean_rank": Outcome.of(torch.ones(40), IMAGE)})["retrieval.i2t.mean_rank"]
    assert (first.value, first.interval) == (1.0, None)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_rate_of_0_or_1_has_an_interval_with_width(value: float) -> None:
    (figure,) = figures_of({"retrieval.i2t.r1": Outcome.of(torch.full((40,), value), IMAGE)}).values()
    assert figure.interval is not None
    assert figure.interval.high - figure.interval.low == pytest.approx(0.1611, abs=1e-4)  # of 20 images
    assert value in figure.interval


def test_a_median() -> None:
    ranks = torch.arange(1, 41) ** 2
    (figure,) = figures_of({"m": Outcome.of(ranks, IMAGE, summary="median")}).values()
    assert figure.value == (20**2 + 21**2) / 2
    repeated = bootstrap_statistic(lambda counts: float(np.median(np.repeat(ranks.numpy(), counts))), IMAGE.numpy())
    assert figure.interval == pytest.approx(repeated)


@pytest.mark.parametrize(("images", "expected"), [(5, None), (6, (1.0, 1.0))])
def test_the_median_of_few_images_has_no_interval(images: int, expected: tuple[float, float] | None) -> None:
    ranks = Outcome.of(torch.ones(2 * images), torch.arange(2 * images) // 2, summary="median")
    assert figures_of({"m": ranks})["m"].interval == expected


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
