"""95 % intervals of metrics over queries that share images.

Queries of one image are not independent: a sentence about it, its entities and its boxes succeed and fail together. So
the unit is the image, and all queries of an image count together.

Rates and ratios (recall, precision, F1, AUC, differences of rates): the Wilson score interval (1927) with the effective
number of queries, that is their number over the design effect (Kish, Survey Sampling, 1965; Korn & Graubard, 1998).
The design effect is the variance between images over that of independent queries. It is estimated with two images
added, one all right and one all wrong, as Agresti & Coull (1998) add successes and failures. So the interval keeps a
width where all queries came out alike: of 10 images, all right, it is 72 % to 100 %.

Other statistics (ranks, distances): the percentile bootstrap over images (Efron & Tibshirani, An Introduction to
the Bootstrap, 1993, chapters 8 and 13). Images are drawn with replacement, as many as there are, 1,000 times. Where
all draws agree there is no interval: agreement of the draws is not certainty. Draws depend on the number of images and
on the seed only.

A single image has no interval.

    Q queries    I images    C columns
"""

import math
from collections.abc import Callable, Iterator
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Numbers = NDArray[Any]
"""Booleans, integers or floats."""

ROUNDS = 1000
LEVEL = 0.95
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
SEED = 0
DRAWS_AT_ONCE = 2**22
"""Images drawn at a time, 16 bytes each."""


class Interval(NamedTuple):
    """Bounds that contain the true value in 95 of 100 samples."""

    low: float
    high: float


def wilson_interval(share: float, count: float) -> Interval:
    """The Wilson score interval of a share of `count` independent queries; `count` may be a fraction."""
    spread = Z * Z / count
    centre = share + spread / 2
    half = Z * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    low, high = (centre - half) / (1 + spread), (centre + half) / (1 + spread)
    return Interval(0.0 if share == 0 else max(0.0, low), 1.0 if share == 1 else min(1.0, high))


def rate_interval(values: Numbers, image: IntArray) -> Interval | None:
    """The interval of the mean of `values` (Q,) in [0, 1]; see `ratio_interval`."""
    return ratio_interval(values, np.ones(len(values)), image)


def ratio_interval(
    numerator: Numbers,
    denominator: Numbers,
    image: IntArray,
    *,
    low: float = 0.0,
    added: float = 1.0,
) -> Interval | None:
    """The interval of sum(numerator) / sum(denominator), both (Q,): a rate, precision, recall, F1.

    Args:
        denominator: not negative.
        image: (Q,) the same number for queries of the same image.
        low: smallest possible ratio of a query; the largest is 1.
        added: size of the images that are added at either end, relative to the image of an average query.

    Returns:
        None where fewer than two images have a denominator above 0.
    """
    _, image_of = np.unique(image, return_inverse=True)
    sums = np.bincount(image_of, weights=numerator)
    sizes: FloatArray = np.bincount(image_of, weights=denominator).astype(np.float64)
    sums, sizes = sums[sizes > 0], sizes[sizes > 0]
    if len(sizes) < 2:
        return None
    successes, size = (sums - low * sizes) / (1 - low), sizes.sum()
    share = min(1.0, max(0.0, float(successes.sum() / size)))
    interval = wilson_interval(share, float(size) / _design_effect(successes, sizes, added))
    return Interval(*(low + (1 - low) * bound for bound in interval))


def effective_count(values: Numbers, image: IntArray, *, added: float = 1.0) -> float:
    """Number of independent queries whose mean would be as certain as that of `values` (Q,); see `ratio_interval`."""
    _, image_of = np.unique(image, return_inverse=True)
    sums: FloatArray = np.bincount(image_of, weights=values).astype(np.float64)
    return len(values) / _design_effect(sums, np.bincount(image_of).astype(np.float64), added)


def _design_effect(successes: FloatArray, sizes: FloatArray, added: float) -> float:
    """Variance of a ratio of sums over images over its variance for independent queries, with two images added.

    1 for single queries that are right or wrong, the number of queries of an image where they always agree.

    Args:
        successes: (I,) sum of the numerator, between 0 and `sizes`.
        sizes: (I,) sum of the denominator, above 0.
    """
    extra = added * float(sizes @ sizes / sizes.sum())
    successes, sizes = np.append(successes, [0.0, extra]), np.append(sizes, [extra, extra])
    share = successes.sum() / sizes.sum()
    between_images = np.square(successes - share * sizes).sum() / sizes.sum() ** 2
    return float(between_images / (share * (1 - share) / sizes.sum()))


def bootstrap_mean(values: Numbers, image: IntArray, *, rounds: int = ROUNDS, seed: int = SEED) -> Interval | None:
    """The interval of the mean of `values` (Q,) of any size; see `bootstrap_means`."""
    return bootstrap_means(values[:, None], image, rounds=rounds, seed=seed)[0]


def bootstrap_means(
    values: Numbers, image: IntArray, *, rounds: int = ROUNDS, seed: int = SEED
) -> list[Interval | None]:
    """The interval of the mean of each column of `values` (Q, C), with the same draws.

    Args:
        image: (Q,) the same number for queries of the same image.

    Returns:
        None for each column of which all draws agree, or of fewer than two images.
    """
    images, image_of = np.unique(image, return_inverse=True)
    if len(images) < 2:
        return [None] * values.shape[1]
    columns = np.concatenate([values, np.ones((len(values), 1))], axis=1, dtype=np.float64)
    sums = np.stack([np.bincount(image_of, weights=column, minlength=len(images)) for column in columns.T], axis=1)
    drawn = np.concatenate([block @ sums for block in resamples(len(images), rounds, seed)])
    return [percentile_interval(column / drawn[:, -1]) for column in drawn[:, :-1].T]


def bootstrap_statistic(
    statistic: Callable[[IntArray], float], image: IntArray, *, rounds: int = ROUNDS, seed: int = SEED
) -> Interval | None:
    """The interval of any statistic of the queries, None where all draws agree.

    Args:
        statistic: its value when each query counts as often as the given (Q,) states; NaN where it is undefined.
        image: (Q,) as in `bootstrap_means`.
    """
    images, image_of = np.unique(image, return_inverse=True)
    if len(images) < 2:
        return None
    draws = resamples(len(images), rounds, seed)
    return percentile_interval(np.array([statistic(counts[image_of]) for block in draws for counts in block]))


def paired_difference(
    values: Numbers, others: Numbers, image: IntArray, *, rates: bool = False, rounds: int = ROUNDS, seed: int = SEED
) -> tuple[float, Interval | None]:
    """Mean of `values` (Q,) minus mean of `others` (Q,), of the same queries in the same order, and its interval.

    Paired, since two models find the same queries hard: the interval is narrower than that of two separate sets.

    Args:
        rates: all values are in [0, 1], so that differences are in [-1, 1]; otherwise they are bootstrapped.
            The images added at -1 and 1 have the variance of a single one: which of the two is not known.

    Raises:
        ValueError: the two are not of the same queries.
    """
    if not values.shape == others.shape == image.shape:
        raise ValueError(f"paired values are of the same queries, not of {len(values)}, {len(others)}, {len(image)}")
    difference = values.astype(np.float64) - others.astype(np.float64)
    if rates:
        interval = ratio_interval(difference, np.ones(len(difference)), image, low=-1.0, added=math.sqrt(0.5))
    else:
        interval = bootstrap_mean(difference, image, rounds=rounds, seed=seed)
    return float(difference.mean()), interval


def resamples(images: int, rounds: int = ROUNDS, seed: int = SEED) -> Iterator[IntArray]:
    """How often each of the images is drawn: blocks of (rounds of this block, I) that make up `rounds` rounds."""
    generator = np.random.default_rng(seed)
    size = max(1, DRAWS_AT_ONCE // max(1, images))
    for start in range(0, rounds, size):
        block = min(size, rounds - start)
        drawn = generator.integers(images, size=(block, images)) + images * np.arange(block)[:, None]
        yield np.bincount(drawn.ravel(), minlength=block * images).reshape(block, images)


def percentile_interval(draws: FloatArray) -> Interval | None:
    """The middle 95 % of the draws, without those that are NaN; None where none is left or all are equal."""
    draws = draws[~np.isnan(draws)]
    if len(draws) == 0 or np.ptp(draws) <= 1e-12 * np.abs(draws).max():
        return None
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))
