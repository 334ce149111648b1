"""How sure a figure is: bootstrap intervals over images.

Queries of one image are not independent: a sentence about it, its entities and its boxes succeed and fail together. So
images are drawn, with replacement and as many as there are, and all queries of an image move with it (the cluster
bootstrap; Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 8). The interval is where the middle 95 %
of the figures of 1,000 such draws lie (the percentile interval, chapter 13).

Two things it cannot do. Of a single image it says nothing: there is no interval. Of queries that all came out alike it
says that they always will: the interval has no width. Draws depend on the number of images and on the seed only.

    Q queries    I images    C columns
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Numbers = NDArray[Any]
"""Booleans, integers or floats."""

ROUNDS = 1000
LEVEL = 0.95
SEED = 0
DRAWS_AT_ONCE = 2**22
"""Images drawn at a time, 16 bytes each."""


class Interval(NamedTuple):
    """Where a figure lies, 95 times of 100."""

    low: float
    high: float


def bootstrap_mean(values: Numbers, image: IntArray, *, rounds: int = ROUNDS, seed: int = SEED) -> Interval | None:
    """The interval of the mean of `values` (Q,); see `bootstrap_means`."""
    return bootstrap_means(values[:, None], image, rounds=rounds, seed=seed)[0]


def bootstrap_means(
    values: Numbers, image: IntArray, *, rounds: int = ROUNDS, seed: int = SEED
) -> list[Interval | None]:
    """The interval of the mean of each column of `values` (Q, C), by the same draws.

    Args:
        image: (Q,) what moves together: the same number for queries of the same image.

    Returns:
        None for each column where the queries are of fewer than two images.
    """
    ones = np.ones((len(values), 1))
    sums = _resampled_sums(np.concatenate([values, ones], axis=1, dtype=np.float64), image, rounds, seed)
    if sums is None:
        return [None] * values.shape[1]
    return [percentile_interval(column / sums[:, -1]) for column in sums[:, :-1].T]


def bootstrap_ratio(
    numerator: Numbers, denominator: Numbers, image: IntArray, *, rounds: int = ROUNDS, seed: int = SEED
) -> Interval | None:
    """The interval of sum(numerator) / sum(denominator), both (Q,): precision, recall, F1.

    Draws in which the denominator is 0 are left out; None where no other is left, or of fewer than two images.
    """
    sums = _resampled_sums(np.stack([numerator, denominator], axis=1).astype(np.float64), image, rounds, seed)
    if sums is None:
        return None
    drawn = sums[:, 1] != 0
    return percentile_interval(sums[drawn, 0] / sums[drawn, 1])


def bootstrap_statistic(
    statistic: Callable[[IntArray], float], image: IntArray, *, rounds: int = ROUNDS, seed: int = SEED
) -> Interval | None:
    """The interval of any figure of the queries.

    Args:
        statistic: the figure when each query counts as often as the given (Q,) says; NaN where there is none.
        image: (Q,) as in `bootstrap_means`.
    """
    images, image_of = np.unique(image, return_inverse=True)
    if len(images) < 2:
        return None
    draws = resamples(len(images), rounds, seed)
    return percentile_interval(np.array([statistic(counts[image_of]) for block in draws for counts in block]))


def paired_difference(
    values: Numbers, others: Numbers, image: IntArray, *, rounds: int = ROUNDS, seed: int = SEED
) -> tuple[float, Interval | None]:
    """How much larger the mean of `values` (Q,) is than that of `others` (Q,), of the same queries in the same order.

    Paired, since two models find the same queries hard: the difference is surer than either mean.

    Raises:
        ValueError: the two are not of the same queries.
    """
    if not values.shape == others.shape == image.shape:
        raise ValueError(f"paired values are of the same queries, not of {len(values)}, {len(others)}, {len(image)}")
    difference = values.astype(np.float64) - others.astype(np.float64)
    return float(difference.mean()), bootstrap_mean(difference, image, rounds=rounds, seed=seed)


def resamples(images: int, rounds: int = ROUNDS, seed: int = SEED) -> Iterator[IntArray]:
    """How often each of the images is drawn: blocks of (rounds of this block, I) that make up `rounds` rounds."""
    generator = np.random.default_rng(seed)
    size = max(1, DRAWS_AT_ONCE // max(1, images))
    for start in range(0, rounds, size):
        block = min(size, rounds - start)
        drawn = generator.integers(images, size=(block, images)) + images * np.arange(block)[:, None]
        yield np.bincount(drawn.ravel(), minlength=block * images).reshape(block, images)


def percentile_interval(figures: FloatArray) -> Interval | None:
    """The middle 95 % of the figures of all rounds; those that are NaN are left out, None where no other is left."""
    figures = figures[~np.isnan(figures)]
    if len(figures) == 0:
        return None
    low, high = np.quantile(figures, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def _resampled_sums(columns: FloatArray, image: IntArray, rounds: int, seed: int) -> FloatArray | None:
    """Sums (rounds, C) of each column (Q, C) over the queries of the images drawn; None of fewer than two images."""
    images, image_of = np.unique(image, return_inverse=True)
    if len(images) < 2:
        return None
    sums = np.stack([np.bincount(image_of, weights=column, minlength=len(images)) for column in columns.T], axis=1)
    return np.concatenate([block @ sums for block in resamples(len(images), rounds, seed)])
