"""Ranks: where the right candidates of a query stand, and what a random order would do. Most metrics rest on this.

Ties count against the model: a right candidate stands behind every wrong one that scores as high, so that features that
have collapsed to a point look as bad as they are, not as good as the order of the candidates happens to be. Ties among
right candidates cost nothing. NaN scores, and those of minus infinity, are last and tie.

The matrix of similarities is never held: some queries at a time meet all candidates. Which candidates are right is a
list of places, not a mask, and ranks are counts of what scores as high, so nothing is sorted.

Suffixes of names:  Q queries    N candidates    D features    E entries    P right candidates of a query, padded
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from spanbox.progress import StartProgress, hidden

BLOCK_ELEMENTS = 2**25
"""Entries of the similarity matrix that are held at a time, 4 bytes each; counting takes up to 8 more of each."""

RECALL_DEPTHS = (1, 5, 10)

_LEAST = torch.finfo(torch.float32).min
"""What NaN and minus infinity count as: above nothing but what takes no part."""
_EULER = 0.5772156649015329
_COMPARED = 4
"""Right candidates up to which a comparison with each is faster than a search among them."""


class Places(NamedTuple):
    """Entries of a matrix, rows ascending."""

    row: Tensor  # (E,) int64
    column: Tensor  # (E,) int64


Relevance = Callable[[slice], tuple[Places, Places]]
"""For a slice of the queries: which candidates are right, and which take no part; rows count from its start."""


class Ranking(NamedTuple):
    """What the metrics need to know of each query. `best` and `average_precision` are 0 where nothing is right."""

    best: Tensor  # (Q,) int64, rank of the best right candidate, from 1
    average_precision: Tensor  # (Q,) float64
    right: Tensor  # (Q,) int64, number of right candidates
    candidates: Tensor  # (Q,) int64, number of those that take part


class Index:
    """Where each id occurs among some ids (N,): the places of ids that are asked for, without comparing all with all.

    Args:
        ids: (N,) int64.
        column: (N,) what stands at each place, its number by default.
    """

    def __init__(self, ids: Tensor, column: Tensor | None = None) -> None:
        self._ids, order = ids.sort(stable=True)
        self._column = order if column is None else column[order]

    def places(self, asked_Q: Tensor) -> Places:
        """The columns that hold each of the ids asked for (Q,), query by query."""
        start_Q, end_Q = (torch.searchsorted(self._ids, asked_Q, side=side) for side in ("left", "right"))
        count_Q = end_Q - start_Q
        row_E = torch.repeat_interleave(torch.arange(len(asked_Q), device=asked_Q.device), count_Q)
        return Places(row_E, self._column[start_Q[row_E] + _place_in_row(row_E, count_Q)])


def same_id(asked_Q: Tensor, ids_N: Tensor) -> Relevance:
    """Right are the candidates that share the query's id; all take part."""
    index = Index(ids_N)

    def relevance(rows: slice) -> tuple[Places, Places]:
        return index.places(asked_Q[rows]), no_places(asked_Q.device)

    return relevance


def no_places(device: torch.device | str = "cpu") -> Places:
    nothing = torch.zeros(0, dtype=torch.int64, device=device)
    return Places(nothing, nothing)


def ranks(scores_QN: Tensor, right_QN: Tensor, candidates_QN: Tensor | None = None) -> Tensor:
    """Rank (Q,) int64 of the best right candidate of each row, by the rules above; 0 for a row without one.

    Args:
        scores_QN: higher is better.
        right_QN: bool.
        candidates_QN: bool, what takes part; everything where it is not given. What is right outside it does not count.
    """
    if candidates_QN is None:
        candidates_QN = torch.ones_like(right_QN)
    right, excluded = (Places(*mask.nonzero(as_tuple=True)) for mask in (right_QN & candidates_QN, ~candidates_QN))
    return rank_right(scores_QN.float().clone(), right, excluded).best


def rank_right(scores_QN: Tensor, right: Places, excluded: Places) -> Ranking:
    """Ranks and average precisions of a block of queries. Overwrites the scores.

    Average precision is the mean, over the right candidates, of the share of right ones among all down to each.
    """
    queries, candidates = scores_QN.shape
    count_Q = right.row.bincount(minlength=queries)
    excluded_Q = excluded.row.bincount(minlength=queries)
    torch.nan_to_num_(scores_QN, nan=_LEAST, neginf=_LEAST, posinf=torch.finfo(torch.float32).max)
    # Thresholds ascend; what is beyond the last right candidate of a row is reached by no score.
    thresholds_QP = scores_QN.new_full((queries, int(count_Q.max()) if queries else 0), torch.inf)
    thresholds_QP[right.row, _place_in_row(right.row, count_Q)] = scores_QN[right]
    thresholds_QP = thresholds_QP.sort(dim=1).values
    scores_QN[right] = scores_QN[excluded] = -torch.inf  # below every threshold: only wrong ones are counted
    wrong_above_QP = _count_reaching(scores_QN, thresholds_QP)
    right_above_QP = (count_Q[:, None] - torch.arange(thresholds_QP.shape[1], device=count_Q.device)).clamp(min=0)
    precision_QP = right_above_QP / (right_above_QP + wrong_above_QP).clamp(min=1).double()
    best_Q = torch.zeros_like(count_Q)
    found = count_Q > 0
    best_Q[found] = 1 + wrong_above_QP[found, count_Q[found] - 1]
    return Ranking(best_Q, precision_QP.sum(dim=1) / count_Q.clamp(min=1), count_Q, candidates - excluded_Q)


def rank_in_blocks(
    queries_QD: Tensor,
    candidates_ND: Tensor,
    relevance: Relevance,
    *,
    device: torch.device | str = "cpu",
    block_elements: int = BLOCK_ELEMENTS,
    progress: StartProgress = hidden,
    label: str = "ranking",
) -> Ranking:
    """Rank all candidates for each query, holding at most `block_elements` scores (at least one query's) at a time.

    Args:
        relevance: gives places on `device`.
        device: where similarities are computed and counted. Candidates are held there; it needs float64.
        progress, label: how it is shown.
    """
    candidates_ND = candidates_ND.to(device)
    parts = []
    with progress(label, len(queries_QD)) as shown:
        for rows in blocks(len(queries_QD), len(candidates_ND), block_elements):
            parts.append(rank_right(similarity(queries_QD[rows].to(device), candidates_ND), *relevance(rows)))
            shown.update(min(rows.stop, len(queries_QD)))
    return Ranking(*(torch.cat(column).cpu() for column in zip(_no_queries(device), *parts, strict=True)))


def similarity(queries_QD: Tensor, candidates_ND: Tensor) -> Tensor:
    """Dot products (Q, N) float32, the same wherever a candidate stands.

    The kernels of a matrix product sum in an order that depends on the column and on the size of the block, so that
    equal candidates get scores one rounding error apart and a tie is broken by accident. Summed in float64 and rounded
    to float32, ties stay ties. Wide matrices are converted a piece at a time.
    """
    queries_QD = queries_QD.double()
    scores_QN = torch.empty(len(queries_QD), len(candidates_ND), device=queries_QD.device)
    for columns in blocks(len(candidates_ND), max(queries_QD.shape), BLOCK_ELEMENTS // 8):
        scores_QN[:, columns] = queries_QD @ candidates_ND[columns].double().T
    return scores_QN


def chance_within(depth: int, right_Q: Tensor, candidates_Q: Tensor) -> Tensor:
    """Probability (Q,) float64 that a random order puts a right candidate among the first `depth`."""
    missed_Q = torch.ones(len(right_Q), dtype=torch.float64)
    for place in range(depth):
        left_Q = candidates_Q - place
        missed_Q *= (left_Q - right_Q).clamp(min=0) / left_Q.clamp(min=1).double()
    return torch.where(right_Q > 0, 1 - missed_Q, 0.0)


def chance_rank(right_Q: Tensor, candidates_Q: Tensor) -> Tensor:
    """Rank (Q,) float64 of the best right candidate that is to be expected of a random order."""
    return (candidates_Q + 1) / (right_Q + 1).double()


def chance_average_precision(right_Q: Tensor, candidates_Q: Tensor) -> Tensor:
    """Average precision (Q,) float64 to be expected of a random order; at least one candidate has to be right.

    A place i holds a right candidate with probability m / N, and then (i - 1) (m - 1) / (N - 1) of those before it are
    right: the mean over i of (1 + (i - 1) (m - 1) / (N - 1)) / i.
    """
    right_Q, candidates_Q = right_Q.double(), candidates_Q.double()
    harmonic_Q = torch.digamma(candidates_Q + 1) + _EULER
    others_Q = (right_Q - 1) / (candidates_Q - 1).clamp(min=1)
    return (harmonic_Q + others_Q * (candidates_Q - harmonic_Q)) / candidates_Q


def nan_last(scores: Tensor) -> Tensor:
    """Scores of any shape with -inf for NaN, which compares with nothing."""
    return scores.masked_fill(scores.isnan(), -torch.inf)


def blocks(rows: int, row_elements: int, block_elements: int) -> Iterator[slice]:
    """Slices of `rows` rows of `row_elements` each, with at most `block_elements` elements or one row."""
    size = max(1, block_elements // max(1, row_elements))
    for start in range(0, rows, size):
        yield slice(start, start + size)


def _count_reaching(scores_QN: Tensor, thresholds_QP: Tensor) -> Tensor:
    """How many scores of its row (Q, P) int64 are at least as high as each threshold; thresholds ascend."""
    queries, most = thresholds_QP.shape
    if most <= _COMPARED:
        counts_QP = torch.zeros(queries, most, dtype=torch.int64, device=scores_QN.device)
        for place in range(most):
            counts_QP[:, place] = (scores_QN >= thresholds_QP[:, place, None]).sum(dim=1, dtype=torch.int32)
        return counts_QP
    reached_QN = torch.searchsorted(thresholds_QP, scores_QN, side="right", out_int32=True)
    reached_QN += (most + 1) * torch.arange(queries, dtype=torch.int32, device=scores_QN.device)[:, None]
    exactly_QP = reached_QN.flatten().bincount(minlength=queries * (most + 1)).reshape(queries, most + 1)[:, 1:]
    return exactly_QP.flip(1).cumsum(dim=1).flip(1)


def _place_in_row(row_E: Tensor, count_Q: Tensor) -> Tensor:
    """Which entry of its row (E,) each entry is; rows ascend and have `count_Q` entries."""
    start_Q = count_Q.cumsum(0) - count_Q
    return torch.arange(len(row_E), device=row_E.device) - start_Q[row_E]


def _no_queries(device: torch.device | str) -> Ranking:
    nothing = torch.zeros(0, dtype=torch.int64, device=device)
    return Ranking(nothing, nothing.double(), nothing, nothing)
