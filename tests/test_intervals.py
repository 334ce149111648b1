"""Intervals: exact values, agreement with plain loops, cases without one, and how often they cover the truth."""

import numpy as np
import pytest

from spanbox.evaluation.outcomes import weighted_median
from spanbox.intervals import (
    Z,
    bootstrap_mean,
    bootstrap_means,
    bootstrap_statistic,
    paired_difference,
    percentile_interval,
    rate_interval,
    ratio_interval,
    resamples,
    wilson_interval,
)

RNG = np.random.default_rng(0)
VALUES = RNG.random(60)
IMAGE = RNG.integers(0, 20, 60)


def test_a_draw_has_as_many_images_as_there_are() -> None:
    counts = np.concatenate(list(resamples(7, rounds=50)))
    assert counts.shape == (50, 7)
    assert (counts.sum(axis=1) == 7).all()


def test_draws_do_not_depend_on_how_many_are_made_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(resamples(7, rounds=50)))
    monkeypatch.setattr("spanbox.intervals.DRAWS_AT_ONCE", 21)
    assert np.array_equal(np.concatenate(list(resamples(7, rounds=50))), whole)


def test_the_interval_of_a_mean_equals_the_plain_loop() -> None:
    """Draw images, put the values of all their queries together, take the mean."""
    images = np.unique(IMAGE)
    means = []
    for counts in np.concatenate(list(resamples(len(images)))):
        drawn = [VALUES[image == IMAGE] for image, count in zip(images, counts, strict=True) for _ in range(count)]
        means.append(np.concatenate(drawn).mean())
    assert bootstrap_mean(VALUES, IMAGE) == pytest.approx(percentile_interval(np.array(means)))


def test_all_ways_to_a_mean_agree() -> None:
    expected = bootstrap_mean(VALUES, IMAGE)
    assert bootstrap_means(np.stack([1 - VALUES, VALUES], axis=1), IMAGE)[1] == pytest.approx(expected)
    assert bootstrap_statistic(lambda counts: counts @ VALUES / counts.sum(), IMAGE) == pytest.approx(expected)
    assert paired_difference(VALUES, np.zeros(60), IMAGE)[1] == pytest.approx(expected)


def test_the_same_every_time_and_another_with_another_seed() -> None:
    assert bootstrap_mean(VALUES, IMAGE) == bootstrap_mean(VALUES, IMAGE)
    assert bootstrap_mean(VALUES, IMAGE) != bootstrap_mean(VALUES, IMAGE, seed=1)


def test_names_of_images_do_not_matter() -> None:
    assert bootstrap_mean(VALUES, IMAGE) == bootstrap_mean(VALUES, 1000 * IMAGE - 2**60)


def test_queries_of_one_image_count_as_one_draw() -> None:
    """The same values, each ten times: surer as queries of their own, no surer as queries of the same image."""
    once = bootstrap_mean(VALUES, np.arange(60))
    tenfold, image = np.repeat(VALUES, 10), np.repeat(np.arange(60), 10)
    assert once is not None
    assert bootstrap_mean(tenfold, image) == pytest.approx(once)
    alone = bootstrap_mean(tenfold, np.arange(600))
    assert alone is not None
    assert alone.high - alone.low < 0.5 * (once.high - once.low)


def test_a_single_image_has_no_interval() -> None:
    image = np.zeros(60, dtype=np.int64)
    assert bootstrap_mean(VALUES, image) is None
    assert rate_interval(VALUES, image) is None
    assert ratio_interval(VALUES, VALUES, image) is None
    assert bootstrap_statistic(lambda counts: 1.0, image) is None
    assert paired_difference(VALUES, VALUES, image) == (0.0, None)
    assert paired_difference(VALUES, VALUES, image, rates=True) == (0.0, None)


def test_a_single_query_and_none() -> None:
    for interval in (bootstrap_mean, rate_interval):
        assert interval(np.array([1.0]), np.array([3])) is None
        assert interval(np.zeros(0), np.zeros(0, dtype=np.int64)) is None


def test_draws_that_agree_are_no_interval() -> None:
    assert bootstrap_mean(np.full(60, 0.1), IMAGE) is None
    assert percentile_interval(np.array([2.0, 2.0])) is None


@pytest.mark.parametrize(
    ("share", "count", "low", "high"),
    [  # Brown, Cai and DasGupta, 2001, and by hand: n / (n + z^2) at 1
        (1.0, 5, 0.5655, 1.0),
        (1.0, 10, 0.7225, 1.0),
        (0.0, 10, 0.0, 0.2775),
        (0.5, 10, 0.2366, 0.7634),
        (0.9, 10, 0.5958, 0.9821),
        (0.81, 263, 0.7584, 0.8527),
    ],
)
def test_the_wilson_interval(share: float, count: float, low: float, high: float) -> None:
    assert wilson_interval(share, count) == pytest.approx((low, high), abs=2e-3 if count == 263 else 5e-5)


@pytest.mark.parametrize("images", [2, 3, 5, 10, 40])
@pytest.mark.parametrize("queries", [1, 6])
def test_all_right_and_all_wrong_are_no_surer_than_their_images(images: int, queries: int) -> None:
    """Queries of one image may all fail together, so six of them count as one."""
    image = np.repeat(np.arange(images), queries)
    right, wrong = rate_interval(np.ones(len(image)), image), rate_interval(np.zeros(len(image), dtype=bool), image)
    assert right == pytest.approx((images / (images + Z * Z), 1.0))
    assert wrong == pytest.approx((0.0, Z * Z / (images + Z * Z)))
    assert right is not None
    assert right.high == 1.0
    assert wrong is not None
    assert wrong.low == 0.0


def test_a_large_image_does_not_count_as_many() -> None:
    interval = rate_interval(np.ones(101), np.array([0] * 100 + [1]))
    assert interval is not None
    assert interval.low < 0.25


@pytest.mark.parametrize("right", range(11))
def test_one_query_an_image_has_the_plain_wilson_interval(right: int) -> None:
    values = np.arange(10) < right
    assert rate_interval(values, np.arange(10)) == pytest.approx(wilson_interval(right / 10, 10))


def test_one_failure_is_no_surer_than_none() -> None:
    """The lower bound does not jump up, though only one image shows how much images differ."""
    image = np.repeat(np.arange(40), 5)
    lows = []
    for failures in range(4):
        values = np.ones(200)
        values[:failures] = 0
        interval = rate_interval(values, image)
        assert interval is not None
        lows.append(interval.low)
    assert lows[1:] == sorted(lows[1:], reverse=True)
    assert lows[1] < lows[0] + 0.003


def test_a_rate_is_a_ratio_and_a_difference_of_rates_lies_within_one() -> None:
    expected = rate_interval(VALUES, IMAGE)
    assert ratio_interval(VALUES, np.ones(60), IMAGE) == pytest.approx(expected)
    assert ratio_interval(VALUES / 2, np.full(60, 0.5), IMAGE) == pytest.approx(expected)
    assert expected is not None
    low, high = expected
    assert ratio_interval(2 * VALUES - 1, np.ones(60), IMAGE, low=-1) == pytest.approx((2 * low - 1, 2 * high - 1))


def test_a_large_set_has_the_same_interval_by_bootstrap() -> None:
    generator = np.random.default_rng(1)
    image = np.repeat(np.arange(400), generator.integers(1, 6, size=400))
    values = generator.random(len(image)) < generator.random(400)[image]
    assert rate_interval(values, image) == pytest.approx(bootstrap_mean(values, image), abs=4e-3)


def test_images_without_a_denominator_take_no_part() -> None:
    counts, image = np.array([1, 1, 1, 0, 0, 0]), np.arange(6)
    assert ratio_interval(counts, counts, image) == pytest.approx(wilson_interval(1.0, 3))
    assert ratio_interval(np.zeros(60), np.zeros(60), IMAGE) is None
    assert ratio_interval(counts, counts * (image < 1), image) is None


def test_equal_runs_may_still_differ() -> None:
    """No query of 30 images differs: up to about 2 of 30 may, to either side."""
    value, interval = paired_difference(np.ones(30), np.ones(30), np.arange(30), rates=True)
    assert value == 0
    assert interval is not None
    assert interval.low == pytest.approx(-interval.high)
    assert 1.8 / 30 < interval.high < 2.2 / 30


def test_draws_without_a_figure_are_left_out() -> None:
    assert percentile_interval(np.array([np.nan, 2.0, 3.0])) == percentile_interval(np.array([2.0, 3.0]))
    assert percentile_interval(np.array([np.nan])) is None


def test_a_paired_difference_is_surer_than_either_mean() -> None:
    value, interval = paired_difference(VALUES + 0.01 * RNG.random(60), VALUES, IMAGE)
    alone = bootstrap_mean(VALUES, IMAGE)
    assert interval is not None
    assert alone is not None
    assert 0 < interval.low < value < interval.high < 0.01
    assert interval.high - interval.low < 0.1 * (alone.high - alone.low)


def test_a_paired_difference_of_other_queries_is_refused() -> None:
    with pytest.raises(ValueError, match="same queries"):
        paired_difference(VALUES, VALUES[1:], IMAGE)


@pytest.mark.parametrize("counts", [[1, 1, 1], [0, 2, 1], [3, 0, 0], [1, 0, 1], [2, 2, 0]])
def test_the_weighted_median_is_that_of_the_repeated_values(counts: list[int]) -> None:
    values = np.array([1.0, 2.0, 5.0])
    assert weighted_median(values, np.array(counts)) == np.median(np.repeat(values, counts))


def clustered(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """Hits of 1 to 9 queries of each of 60 images, whose difficulty differs much, and their mean over all images."""
    difficulty = generator.beta(1.2, 0.8, size=60)
    image = np.repeat(np.arange(60), generator.integers(1, 10, size=60))
    return (generator.random(len(image)) < difficulty[image]).astype(np.float64), image, 1.2 / 2.0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mean", "rate", "ratio", "median", "difference"])
def test_intervals_cover_the_truth_about_as_often_as_they_say(kind: str) -> None:
    """95 % intervals of 300 simulated sets each."""
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(300):
        values, image, truth = clustered(generator)
        if kind == "mean":
            interval = bootstrap_mean(values, image, rounds=500)
        elif kind == "rate":
            interval = rate_interval(values, image)
        elif kind == "ratio":  # the recall of queries of which half count
            counts = generator.random(len(values)) < 0.5
            interval = ratio_interval(values * counts, counts, image)
        elif kind == "median":  # of a skewed number that images differ in
            depth = generator.exponential(size=60)[image] + generator.exponential(size=len(image))
            truth, order = 1.67834699, depth.argsort()  # median of the sum of two exponentials
            ascending = depth[order]
            interval = bootstrap_statistic(
                lambda counts, a=ascending: weighted_median(a, counts), image[order], rounds=500
            )
        else:
            other = (generator.random(len(values)) < 0.3) * values  # finds 30 % of what the first one finds
            interval, truth = paired_difference(values, other, image, rates=True)[1], 0.7 * truth
        assert interval is not None
        covered += interval.low <= truth <= interval.high
    assert 0.90 <= covered / 300 <= 0.985


@pytest.mark.slow
def test_intervals_that_take_queries_for_independent_would_not() -> None:
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(300):
        values, _, truth = clustered(generator)
        interval = bootstrap_mean(values, np.arange(len(values)), rounds=500)
        assert interval is not None
        covered += interval.low <= truth <= interval.high
    assert covered / 300 < 0.85


@pytest.mark.slow
@pytest.mark.parametrize("images", [3, 5, 10, 30])
@pytest.mark.parametrize("truth", [0.02, 0.1, 0.5, 0.9, 0.98])
@pytest.mark.parametrize("alike", [0.0, 0.3, 0.9])
def test_intervals_of_rates_cover_the_truth_near_0_and_1_and_with_few_images(
    images: int, truth: float, alike: float
) -> None:
    """250 simulated sets each, of 1 to 9 queries an image that are `alike` (their intraclass correlation).

    The bootstrap covers 2 % at 0.02 with 3 images, since all queries fail in most sets.
    """
    generator = np.random.default_rng(images)
    covered = 0
    for _ in range(250):
        spread = (1 - alike) / alike if alike else 1e6
        difficulty = generator.beta(truth * spread, (1 - truth) * spread, size=images)
        image = np.repeat(np.arange(images), generator.integers(1, 10, size=images))
        interval = rate_interval(generator.random(len(image)) < difficulty[image], image)
        assert interval is not None
        covered += interval.low <= truth <= interval.high
    assert covered / 250 >= 0.90


@pytest.mark.parametrize("changed", [0.0, 0.02, 0.2])
def test_intervals_of_differences_cover_the_truth_where_few_queries_change(changed: float) -> None:
    """250 simulated sets of 40 images: `changed` of the queries become right."""
    generator = np.random.default_rng(7)
    covered = 0
    for _ in range(250):
        image = np.repeat(np.arange(40), generator.integers(1, 6, size=40))
        draw = generator.random(len(image))
        _, interval = paired_difference(draw < 0.6 + changed, draw < 0.6, image, rates=True)
        assert interval is not None
        covered += interval.low <= changed <= interval.high
    assert covered / 250 >= 0.93
