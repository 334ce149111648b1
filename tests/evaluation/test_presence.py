"""Entities with an object against entities without: tables worked out by hand and plain loops."""

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import metric_reference
from banks import make_bank, random_bank
from spanbox.evaluation.extract import FeatureBank
from spanbox.evaluation.own_image import score_own_image
from spanbox.evaluation.presence import _auc_interval, choose_threshold, placements, presence_figures
from spanbox.intervals import wilson_interval
from spanbox.structures import NAMED_ONLY, NOT_KNOWN, SHOWN


def presence_metrics(bank: FeatureBank, threshold: float | None = None) -> dict[str, float]:
    figures, facts = presence_figures(score_own_image(bank), bank.span_shown, threshold=threshold, intervals=False)
    return facts | {key: value for name, figure in figures.items() for key, value in figure.named(name).items()}


@pytest.mark.parametrize("seed", range(20))
def test_presence_equals_the_plain_loop(seed: int) -> None:
    bank = random_bank(seed)
    expected = metric_reference.matching_metrics(bank, threshold=0.5)
    expected = {name: value for name, value in expected.items() if name.startswith("matching.presence.")}
    assert presence_metrics(bank, threshold=0.5) == pytest.approx(expected)


def test_entities_without_a_box_worked_out_by_hand() -> None:
    # With a box: best scores 3 and 1. Without: 1 and -1, and one in an image without any region.
    metrics = presence_metrics(
        make_bank(
            pairs=3,
            spans=torch.tensor([[3.0], [1.0], [1.0], [-1.0], [9.0]]),
            span_pair=(0, 1, 0, 1, 2),
            span_identity=(1, 2, 3, 4, 5),
            regions=torch.ones(2, 1),
            region_pair=(0, 1),
            links=((0, 0), (1, 1)),
        )
    )
    assert metrics["matching.presence.count"] == 3
    assert metrics["matching.presence.auc"] == (1 + 1 + 0.5 + 1) / 4


def test_entities_without_a_box_only_in_images_without_regions_have_no_auc() -> None:
    metrics = presence_metrics(
        make_bank(
            pairs=2,
            spans=torch.ones(2, 1),
            span_pair=(0, 1),
            span_identity=(1, 2),
            regions=torch.ones(1, 1),
            region_pair=(0,),
            links=((0, 0),),
        )
    )
    assert metrics["matching.presence.count"] == 1
    assert "matching.presence.auc" not in metrics


SCORES = st.lists(st.sampled_from([-1.0, 0.0, 0.25, 2.0, -math.inf, math.inf]), min_size=1, max_size=12)


@given(SCORES, SCORES)
@settings(max_examples=100, deadline=None)
def test_placements_equal_the_plain_loop(positive: list[float], negative: list[float]) -> None:
    is_positive = np.arange(len(positive) + len(negative)) < len(positive)
    shares = placements(np.array(positive + negative), is_positive)
    for kind in (is_positive, ~is_positive):
        assert shares[kind].mean() == pytest.approx(metric_reference.auc(positive, negative))
    for score, share in zip(positive, shares, strict=False):
        assert share == pytest.approx(metric_reference.auc([score], negative))


def scored(scores: list[float], has_box: list[bool]) -> FeatureBank:
    """A span an image with these best scores."""
    pairs = len(scores)
    return make_bank(
        pairs=pairs,
        spans=torch.tensor(scores)[:, None],
        span_pair=tuple(range(pairs)),
        span_identity=tuple(range(pairs)),
        regions=torch.ones(pairs, 1),
        region_pair=tuple(range(pairs)),
        links=tuple((span, span) for span in range(pairs) if has_box[span]),
    )


def test_the_decision_worked_out_by_hand() -> None:
    # Decided to have an object: 3, 2 and 1, of which 3 and 1 do; 0 does, too.
    bank = scored([3.0, 2.0, 1.0, 0.0, -1.0], [True, False, True, True, False])
    metrics = presence_metrics(bank, threshold=1.0)
    assert metrics["matching.presence.f1"] == pytest.approx(2 * 2 / (3 + 3))
    assert metrics["matching.presence.f1.baseline"] == pytest.approx(2 * 3 / (5 + 3))
    assert metrics["matching.presence.f1.count"] == 5
    assert metrics["matching.presence.threshold"] == 1.0


def test_no_threshold_no_decision() -> None:
    assert not any(".f1" in name or "threshold" in name for name in presence_metrics(scored([1.0], [True])))


def test_the_threshold_of_a_table_worked_out_by_hand() -> None:
    # From 3 on: 2/4. From 2: 2/5. From 1: 4/6. From 0: 6/7. From -1: 6/8.
    assert choose_threshold(scored([3.0, 2.0, 1.0, 0.0, -1.0], [True, False, True, True, False])) == 0.0


def test_equal_scores_are_decided_alike() -> None:
    # Between the two of score 1 there is no threshold; from 1 on: 4/4.
    assert choose_threshold(scored([2.0, 1.0, 1.0], [True, False, True])) == 1.0
    assert choose_threshold(scored([2.0, 1.0, 1.0, 1.0], [True, False, False, True])) == 2.0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_no_other_threshold_is_better(seed: int) -> None:
    bank = random_bank(seed)
    chosen = choose_threshold(bank)
    assert chosen is not None
    best = presence_metrics(bank, threshold=chosen)["matching.presence.f1"]
    for other in torch.arange(-10, 40) / 4:
        assert presence_metrics(bank, threshold=float(other))["matching.presence.f1"] <= best


@pytest.mark.parametrize("kind", [True, False])
def test_one_kind_only(kind: bool) -> None:
    """There is nothing to separate, so nothing is reported and no threshold chosen."""
    bank = scored([3.0, 1.0], [kind, kind])
    assert choose_threshold(bank) is None
    assert presence_metrics(bank, threshold=1.0) == {}


def test_spans_of_which_nothing_is_known_are_left_out() -> None:
    """Their boxes were cut or lie outside the image: they are neither shown nor named only."""
    bank = scored([3.0, 2.0, 1.0, 0.0], [True, False, False, False])
    bank = replace(bank, span_shown=torch.tensor([SHOWN, NOT_KNOWN, NAMED_ONLY, NOT_KNOWN], dtype=torch.int8))
    without = scored([3.0, 1.0], [True, False])
    assert presence_metrics(bank, threshold=1.0) == presence_metrics(without, threshold=1.0)
    assert choose_threshold(bank) == choose_threshold(without) == 3.0
    nothing = replace(bank, span_shown=torch.tensor([SHOWN, NOT_KNOWN, NOT_KNOWN, NOT_KNOWN], dtype=torch.int8))
    assert presence_metrics(nothing, threshold=1.0) == {}


def test_scores_that_are_nan_decide_nothing() -> None:
    assert choose_threshold(scored([math.nan, 1.0], [True, False])) is None
    assert choose_threshold(scored([math.nan, 1.0, 0.0], [True, True, False])) == 1.0
    metrics = presence_metrics(scored([math.nan, 1.0], [True, False]), threshold=0.0)
    assert metrics["matching.presence.f1"] == 0.0
    assert metrics["matching.presence.auc"] == 0.0


def test_nothing_decided_and_an_interval() -> None:
    bank = scored([1.0, 0.0, 1.0], [True, False, True])
    figures, _ = presence_figures(score_own_image(bank), bank.span_shown, threshold=9.0)
    assert figures["matching.presence.f1"].value == 0.0
    interval = figures["matching.presence.f1"].interval
    assert interval is not None
    assert interval.low == 0.0 < interval.high


def test_intervals_of_both_figures() -> None:
    bank = random_bank(3, pairs=60)
    figures, _ = presence_figures(score_own_image(bank), bank.span_shown, threshold=0.5)
    for name in ("auc", "f1"):
        figure = figures[f"matching.presence.{name}"]
        assert figure.interval is not None
        assert figure.interval.low < figure.value < figure.interval.high


def test_a_perfect_area_is_no_surer_than_the_images_of_the_rarer_kind() -> None:
    bank = scored([1.0] * 5 + [0.0] * 40, [True] * 5 + [False] * 40)
    figures, _ = presence_figures(score_own_image(bank), bank.span_shown)
    auc = figures["matching.presence.auc"]
    assert auc.value == 1.0
    assert auc.interval is not None
    assert wilson_interval(1.0, 4).low < auc.interval.low < wilson_interval(1.0, 7).low
    assert auc.interval.high == 1.0


@pytest.mark.parametrize("alike", [0.0, 0.6])
@pytest.mark.parametrize("apart", [0.0, 2.0, 3.5])
def test_intervals_of_the_area_cover_the_truth(apart: float, alike: float) -> None:
    """100 simulated sets of 15 images with 1 to 7 spans, whose scores are `alike`. The bootstrap covers 58 % at 3.5."""
    generator = np.random.default_rng(3)
    truth, covered = NormalDist().cdf(apart / math.sqrt(2)), 0
    for _ in range(100):
        image = np.repeat(np.arange(15), generator.integers(1, 8, size=15))
        positive = generator.random(len(image)) < 0.7
        noise = math.sqrt(1 - alike) * generator.normal(size=len(image))
        score = apart * positive + noise + math.sqrt(alike) * generator.normal(size=15)[image]
        interval = _auc_interval(placements(score, positive), positive, image)
        assert interval is not None
        covered += interval.low <= truth <= interval.high
    assert covered >= 93
