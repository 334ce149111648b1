"""Bootstrap intervals: what they are made of, when there is none, and how often they cover the truth."""

import numpy as np
import pytest

from spanbox.evaluation.outcomes import weighted_median
from spanbox.intervals import (
    Interval,
    bootstrap_mean,
    bootstrap_means,
    bootstrap_ratio,
    bootstrap_statistic,
    paired_difference,
    percentile_interval,
    resamples,
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
    assert bootstrap_ratio(VALUES, np.ones(60), IMAGE) == pytest.approx(expected)
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
    assert bootstrap_ratio(VALUES, VALUES, image) is None
    assert bootstrap_statistic(lambda counts: 1.0, image) is None
    assert paired_difference(VALUES, VALUES, image) == (0.0, None)


def test_a_single_query_and_none() -> None:
    assert bootstrap_mean(np.array([1.0]), np.array([3])) is None
    assert bootstrap_mean(np.zeros(0), np.zeros(0, dtype=np.int64)) is None


def test_constant_values_have_an_interval_without_width() -> None:
    assert bootstrap_mean(np.ones(60), IMAGE) == Interval(1.0, 1.0)
    assert bootstrap_mean(np.zeros(60, dtype=bool), IMAGE) == Interval(0.0, 0.0)


def test_a_ratio_of_nothing_has_no_interval() -> None:
    assert bootstrap_ratio(np.zeros(60), np.zeros(60), IMAGE) is None


def test_draws_without_a_figure_are_left_out() -> None:
    assert percentile_interval(np.array([np.nan, 2.0, 2.0])) == Interval(2.0, 2.0)
    assert percentile_interval(np.array([np.nan])) is None


def test_a_paired_difference_is_surer_than_either_mean() -> None:
    value, interval = paired_difference(VALUES + 0.01, VALUES, IMAGE)
    assert value == pytest.approx(0.01)
    assert interval == pytest.approx((0.01, 0.01))


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
@pytest.mark.parametrize("kind", ["mean", "ratio", "median", "difference"])
def test_intervals_cover_the_truth_about_as_often_as_they_say(kind: str) -> None:
    """95 % intervals of 300 simulated sets each."""
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(300):
        values, image, truth = clustered(generator)
        if kind == "mean":
            interval = bootstrap_mean(values, image, rounds=500)
        elif kind == "ratio":  # the recall of queries of which half count
            counts = generator.random(len(values)) < 0.5
            interval = bootstrap_ratio(values * counts, counts, image, rounds=500)
        elif kind == "median":  # of a skewed number that images differ in
            depth = generator.exponential(size=60)[image] + generator.exponential(size=len(image))
            truth, order = 1.67834699, depth.argsort()  # median of the sum of two exponentials
            ascending = depth[order]
            interval = bootstrap_statistic(
                lambda counts, a=ascending: weighted_median(a, counts), image[order], rounds=500
            )
        else:
            other = (generator.random(len(values)) < 0.3) * values  # finds 30 % of what the first one finds
            interval, truth = paired_difference(values, other, image, rounds=500)[1], 0.7 * truth
        assert interval is not None
        covered += interval.low <= truth <= interval.high
    assert 0.90 <= covered / 300 <= 0.98


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
