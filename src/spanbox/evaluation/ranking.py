"""Ranks of the right candidates of each query, and their expected values in a random order.

Ties count against the model: a right candidate ranks below every wrong one with the same score, so collapsed features
rank last instead of by the order of the candidates. Ties among right candidates have no effect. NaN and minus infinity
are the lowest scores and tie.

The similarity matrix is computed in blocks of queries and never stored. Right candidates are lists of places, not
masks, and ranks are counts of scores, so nothing is sorted.

Suffixes of names:  Q queries    N candidates    D features    E entries    P right candidates of a query, padded
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from spanbox.progress import StartProgress, hidden
from spanbox.structures import place_in_row

BLOCK_ELEMENTS = 2**25
"""Entries of the similarity matrix in memory at a time, 4 bytes each; counting takes up to 8 more bytes each."""

RECALL_DEPTHS = (1, 5, 10)

_LEAST = torch.finfo(torch.float32).min
"""Replaces NaN and minus infinity: above the excluded candidates only."""
_EULER = 0.5772156649015329
_COMPARED = 4
"""Up to this number of right candidates, comparing with each is faster than a binary search."""


class Places(NamedTuple):
    """Entries of a matrix, in ascending order of rows."""

    row: Tensor  # (E,) int64
    column: Tensor  # (E,) int64


Relevance = Callable[[slice], tuple[Places, Places]]
"""Maps a slice of queries to the places of right and of excluded candidates; rows count from the start of the slice."""


Rescore = Callable[[slice, Tensor], Tensor]
"""Maps a slice of queries and their scores (Q, N) to other scores."""


class Ranking(NamedTuple):
    """Results of each query. `best` and `average_precision` are 0 for queries without a right candidate."""

    best: Tensor  # (Q,) int64, rank of the best right candidate, from 1
    average_precision: Tensor  # (Q,) float64
    right: Tensor  # (Q,) int64, number of right candidates
    candidates: Tensor  # (Q,) int64, number of candidates without the excluded ones


class Index:
    """Lookup of the places of ids by binary search.

    Args:
        ids: (N,) int64, the ids to search in.
        column: (N,) the value returned for each place; default: the index of the place.
    """

    def __init__(self, ids: Tensor, column: Tensor | None = None) -> None:
        self._ids, order = ids.sort(stable=True)
        self._column = order if column is None else column[order]

    def places(self, query_ids_Q: Tensor) -> Places:
        """The columns with the id of each query (Q,), query by query."""
        start_Q, end_Q = (torch.searchsorted(self._ids, query_ids_Q, side=side) for side in ("left", "right"))
        count_Q = end_Q - start_Q
        row_E = torch.repeat_interleave(torch.arange(len(query_ids_Q), device=query_ids_Q.device), count_Q)
        return Places(row_E, self._column[start_Q[row_E] + place_in_row(row_E, count_Q)])


def same_id(query_ids_Q: Tensor, ids_N: Tensor) -> Relevance:
    """Relevance by id: candidates with the id of the query are right; none is excluded."""
    index = Index(ids_N)

    def relevance(rows: slice) -> tuple[Places, Places]:
        return index.places(query_ids_Q[rows]), no_places(query_ids_Q.device)

    return relevance


def no_places(device: torch.device | str = "cpu") -> Places:
    nothing = torch.zeros(0, dtype=torch.int64, device=device)
    return Places(nothing, nothing)


def ranks(scores_QN: Tensor, right_QN: Tensor, candidates_QN: Tensor | None = None) -> Tensor:
    """Rank (Q,) int64 of the best right candidate of each row; 0 for a row without one.

    Args:
        scores_QN: higher is better.
        right_QN: bool.
        candidates_QN: bool, default: all. Right candidates outside this mask do not count.
    """
    if candidates_QN is None:
        candidates_QN = torch.ones_like(right_QN)
    right, excluded = (Places(*mask.nonzero(as_tuple=True)) for mask in (right_QN & candidates_QN, ~candidates_QN))
    return rank_right(scores_QN.float().clone(), right, excluded).best


def rank_right(scores_QN: Tensor, right: Places, excluded: Places) -> Ranking:
    """Ranks and average precisions of a block of queries. Overwrites the scores.

    Average precision is the mean over the right candidates of the precision at the rank of each.
    """
    queries, candidates = scores_QN.shape
    count_Q = right.row.bincount(minlength=queries)
    excluded_Q = excluded.row.bincount(minlength=queries)
    torch.nan_to_num_(scores_QN, nan=_LEAST, neginf=_LEAST, posinf=torch.finfo(torch.float32).max)
    # Ascending thresholds; the padding after the last right candidate of a row is infinite.
    thresholds_QP = scores_QN.new_full((queries, int(count_Q.max()) if queries else 0), torch.inf)
    thresholds_QP[right.row, place_in_row(right.row, count_Q)] = scores_QN[right]
    thresholds_QP = thresholds_QP.sort(dim=1).values
    # Below every threshold, so that only wrong candidates are counted.
    scores_QN[right] = scores_QN[excluded] = -torch.inf
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
    rescore: Rescore | None = None,
) -> Ranking:
    """Rank all candidates for each query, with at most `block_elements` scores (at least one query's) in memory.

    Args:
        relevance: returns places on `device`.
        device: for similarities, counts and all candidates; must support float64.
        progress, label: progress display.
        rescore: gives the scores that are ranked, from those of the features.
    """
    candidates_ND = candidates_ND.to(device)
    parts = []
    with progress(label, len(queries_QD)) as shown:
        for rows in blocks(len(queries_QD), len(candidates_ND), block_elements):
            scores_QN = similarity(queries_QD[rows].to(device), candidates_ND)
            if rescore is not None:
                scores_QN = rescore(rows, scores_QN)
            parts.append(rank_right(scores_QN, *relevance(rows)))
            shown.update(min(rows.stop, len(queries_QD)))
    return Ranking(*(torch.cat(column).cpu() for column in zip(_no_queries(device), *parts, strict=True)))


def similarity(queries_QD: Tensor, candidates_ND: Tensor) -> Tensor:
    """Dot products (Q, N) float32 that are equal for equal candidates.

    The order of the sum in a float32 matrix product depends on the column and on the block size, so equal candidates
    can differ by a rounding error, which breaks ties at random. Sums in float64, rounded to float32, keep ties. Wide
    matrices are converted in pieces.
    """
    queries_QD = queries_QD.double()
    scores_QN = torch.empty(len(queries_QD), len(candidates_ND), device=queries_QD.device)
    for columns in blocks(len(candidates_ND), max(queries_QD.shape), BLOCK_ELEMENTS // 8):
        scores_QN[:, columns] = queries_QD @ candidates_ND[columns].double().T
    return scores_QN


def chance_within(depth: int, right_Q: Tensor, candidates_Q: Tensor) -> Tensor:
    """Probability (Q,) float64 that a random order has a right candidate among the first `depth`."""
    missed_Q = torch.ones(len(right_Q), dtype=torch.float64)
    for place in range(depth):
        left_Q = candidates_Q - place
        missed_Q *= (left_Q - right_Q).clamp(min=0) / left_Q.clamp(min=1).double()
    return torch.where(right_Q > 0, 1 - missed_Q, 0.0)


def chance_rank(right_Q: Tensor, candidates_Q: Tensor) -> Tensor:
    """Expected rank (Q,) float64 of the best right candidate in a random order."""
    return (candidates_Q + 1) / (right_Q + 1).double()


def chance_average_precision(right_Q: Tensor, candidates_Q: Tensor) -> Tensor:
    """Expected average precision (Q,) float64 of a random order, for at least one right candidate.

    Place i has a right candidate with probability m / N, and then (i - 1) (m - 1) / (N - 1) right candidates before it
    are expected: the mean over i of (1 + (i - 1) (m - 1) / (N - 1)) / i.
    """
    right_Q, candidates_Q = right_Q.double(), candidates_Q.double()
    harmonic_Q = torch.digamma(candidates_Q + 1) + _EULER
    others_Q = (right_Q - 1) / (candidates_Q - 1).clamp(min=1)
    return (harmonic_Q + others_Q * (candidates_Q - harmonic_Q)) / candidates_Q


def nan_last(scores: Tensor) -> Tensor:
    """Scores of any shape with NaN replaced by -inf."""
    return scores.masked_fill(scores.isnan(), -torch.inf)


def blocks(rows: int, row_elements: int, block_elements: int) -> Iterator[slice]:
    """Slices of `rows` rows of `row_elements` each, with at most `block_elements` elements or one row."""
    size = max(1, block_elements // max(1, row_elements))
    for start in range(0, rows, size):
        yield slice(start, start + size)


def _count_reaching(scores_QN: Tensor, thresholds_QP: Tensor) -> Tensor:
    """Number (Q, P) int64 of scores of each row that reach each of its thresholds, which ascend."""
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


def _no_queries(device: torch.device | str) -> Ranking:
    nothing = torch.zeros(0, dtype=torch.int64, device=device)
    return Ranking(nothing, nothing.double(), nothing, nothing)
