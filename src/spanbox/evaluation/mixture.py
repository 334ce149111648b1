"""Two-component mixtures of scores: the probability that each item is right, without a threshold set by hand.

The scores of items made wrong on purpose give the null distribution. The p-value of an item is the share of them that
score at least as high: uniform for wrong items, near 0 for right ones. The share of wrong items follows from the number
of large p-values, the density of all p-values from their distribution function, and both give the probability that an
item is wrong (its local false discovery rate).

Sources: Storey, A direct approach to false discovery rates, 2002, eq. 6 (share of nulls); Grenander, 1956 (decreasing
density as the slope of the least concave majorant); Efron et al., 2001 (local false discovery rate).

    n items    m scores of wrong items
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LARGE = 0.5  # p-values above it come from wrong items, as few right ones score below the median of the wrong
ITERATIONS = 200

Floats = NDArray[np.float64]


def p_values(scores: Floats, wrong: Floats) -> Floats:
    """The share of the scores of wrong items (m,) that are at least as high as each score, of any shape."""
    ordered = np.sort(wrong)
    at_least = len(ordered) - np.searchsorted(ordered, scores, side="left")
    p: Floats = (1 + at_least) / (1 + len(ordered))
    return p


class Mixture(NamedTuple):
    """A fitted mixture of p-values."""

    wrong: float  # share of the wrong items
    edges: Floats  # (k + 1,): of the steps of the density, from 0 to 1
    density: Floats  # (k,): of all p-values, decreasing

    def at(self, p: Floats) -> Floats:
        """Density (n,) of all p-values at some."""
        step = np.clip(np.searchsorted(self.edges, p, side="left") - 1, 0, len(self.density) - 1)
        found: Floats = self.density[step]
        return found

    def right(self, p: Floats) -> Floats:
        """Probability (n,) that each item is right."""
        found: Floats = 1 - np.minimum(1.0, self.wrong / np.maximum(self.at(p), self.wrong + 1e-12))
        return found

    def likelihood_ratio(self, p: Floats) -> Floats:
        """How many times more often right items have such p-values (n,) than wrong ones."""
        found: Floats = np.maximum(0.0, self.at(p) - self.wrong) / max(1 - self.wrong, 1e-12)
        return found


def fit_mixture(p: Floats) -> Mixture:
    """The mixture of p-values (n,); without any, every item counts as right."""
    if not len(p):
        return Mixture(0.0, np.array([0.0, 1.0]), np.array([1.0]))
    wrong = min(1.0, float((p > LARGE).sum() + 1) / (len(p) * (1 - LARGE)))
    x, counts = np.unique(p, return_counts=True)
    x, y = np.r_[0.0, x, 1.0], np.r_[0.0, np.cumsum(counts) / len(p), 1.0]
    hull = [0]
    for place in range(1, len(x)):
        if x[place] == x[hull[-1]]:
            continue
        while len(hull) > 1 and _slope(x, y, hull[-1], place) >= _slope(x, y, hull[-2], hull[-1]):
            hull.pop()
        hull.append(place)
    return Mixture(wrong, x[hull], np.diff(y[hull]) / np.diff(x[hull]))


def _slope(x: Floats, y: Floats, first: int, last: int) -> float:
    return float((y[last] - y[first]) / (x[last] - x[first]))


class Choice(NamedTuple):
    """Probabilities for each item that its present candidate, another one, or none is right."""

    present: Floats  # (n,): its present candidate; 0 if it has none
    others: Floats  # (n, c): each other candidate, 0 on padding
    nobody: Floats  # (n,)


def choose(present: Floats | None, others: Floats, candidates: NDArray[np.bool_]) -> Choice:
    """The probability that the present candidate, one of the others, or none is right.

    At most one candidate of an item is right. The shares of the three cases are estimated from all items by expectation
    maximisation; within the second, every other candidate is equally probable before its score is seen.

    Args:
        present: (n,) likelihood ratio of the present candidate; None if no item has one.
        others: (n, c) likelihood ratios of the others.
        candidates: (n, c), False on padding.
    """
    number = candidates.sum(axis=1)
    own = np.zeros(len(others)) if present is None else present
    mean = np.where(candidates, others, 0.0).sum(axis=1) / np.maximum(number, 1)
    shares = np.array([0.0 if present is None else 0.5, 0.25, 0.25])
    weights = np.column_stack([own, mean, np.ones(len(others))])
    for _ in range(ITERATIONS if len(others) else 0):
        cases = weights * shares
        new = (cases / cases.sum(axis=1, keepdims=True)).mean(axis=0)
        if np.abs(new - shares).max() < 1e-9:
            break
        shares = new
    cases = weights * shares
    total = cases.sum(axis=1)
    each = np.where(candidates, others, 0.0) * (shares[1] / (np.maximum(number, 1) * total))[:, None]
    return Choice(cases[:, 0] / total, each, cases[:, 2] / total)
