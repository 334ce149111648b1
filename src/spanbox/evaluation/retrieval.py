"""Retrieval between sentences and images, and the ranking that every metric of this package rests on.

Ties count against the model: features that have collapsed to a point must look as bad as they are, not as good as the
order of the candidates happens to be.

Suffixes of names:  Q queries    N candidates    D features    G images, one a group
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from spanbox.evaluation.extract import FeatureBank

BLOCK_ELEMENTS = 2**24
"""Entries of the similarity matrix that are held at a time; 8 bytes each, and some more for the masks."""

RECALL_DEPTHS = (1, 5, 10)

Relevance = Callable[[slice], tuple[Tensor, Tensor]]
"""For a slice of the queries: which candidates are right, and which take part at all, both (Q, N) bool."""


class Ranking(NamedTuple):
    """What the metrics need to know of each query."""

    ranks: Tensor  # (Q,) int64, of the best positive, from 1; 0 where there is none
    chance: Tensor  # (Q,) float64, probability that a random order puts a positive first


def ranks(scores_QN: Tensor, positives_QN: Tensor, candidates_QN: Tensor | None = None) -> Tensor:
    """Rank (Q,) int64 of the best positive of each row: 1 + the negatives that score as high or higher.

    NaN scores rank last. A row without a positive gets 0 and is left out by `recall_at` and `median_rank`.

    Args:
        scores_QN: higher is better.
        positives_QN: bool.
        candidates_QN: bool, what takes part; everything where it is not given. Positives outside it do not count.
    """
    if scores_QN.shape[1] == 0:
        return torch.zeros(len(scores_QN), dtype=torch.int64)
    if candidates_QN is None:
        candidates_QN = torch.ones_like(positives_QN)
    scores_QN = nan_last(scores_QN)
    positives_QN = positives_QN & candidates_QN
    best_Q1 = scores_QN.masked_fill(~positives_QN, -torch.inf).amax(dim=1, keepdim=True)
    above_Q = ((scores_QN >= best_Q1) & candidates_QN & ~positives_QN).sum(dim=1)
    return torch.where(positives_QN.any(dim=1), 1 + above_Q, 0)


def recall_at(ranks: Tensor, k: int) -> float:
    """Share of the counted queries whose best positive is among the first `k`; NaN where none counts."""
    return float((ranks[ranks > 0] <= k).double().mean())


def median_rank(ranks: Tensor) -> float:
    """Median of the counted ranks, between the two middle ones where their number is even; NaN where none counts."""
    counted = ranks[ranks > 0].double().sort().values
    middle = counted[(len(counted) - 1) // 2 : len(counted) // 2 + 1]
    return float(middle.mean())


def retrieval_metrics(bank: FeatureBank, *, block_elements: int = BLOCK_ELEMENTS) -> dict[str, float]:
    """Recall and median rank from images to texts (`retrieval.i2t`) and from texts to images (`retrieval.t2i`).

    Pairs of one group show one image, which enters once, by its first pair. An image is found when any of its texts is.
    Keys of each direction: `.r1 .r5 .r10 .median_rank .count .chance_r1`.
    """
    first_G = _first_of_each_group(bank.group)
    images_GD, group_G = bank.image[first_G], bank.group[first_G]
    to_text = rank_in_blocks(images_GD, bank.text, _same_group(group_G, bank.group), block_elements)
    to_image = rank_in_blocks(bank.text, images_GD, _same_group(bank.group, group_G), block_elements)
    return ranking_metrics("retrieval.i2t", to_text) | ranking_metrics("retrieval.t2i", to_image)


def rank_in_blocks(
    queries_QD: Tensor, candidates_ND: Tensor, relevance: Relevance, block_elements: int = BLOCK_ELEMENTS
) -> Ranking:
    """Rank all candidates for each query, holding at most `block_elements` scores (at least one query's) at a time."""
    candidates_ND = candidates_ND.double()
    all_ranks, all_chances = [], []
    for rows in blocks(len(queries_QD), len(candidates_ND), block_elements):
        scores_QN = similarity(queries_QD[rows], candidates_ND)
        positives_QN, candidates_QN = relevance(rows)
        all_ranks.append(ranks(scores_QN, positives_QN, candidates_QN))
        all_chances.append(chance_first(positives_QN, candidates_QN))
    if not all_ranks:
        return Ranking(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64))
    return Ranking(torch.cat(all_ranks), torch.cat(all_chances))


def ranking_metrics(prefix: str, ranking: Ranking) -> dict[str, float]:
    """`.r1 .r5 .r10 .median_rank .count .chance_r1` under `prefix`; nothing where no query counts."""
    counted = ranking.ranks > 0
    if not counted.any():
        return {}
    recalls = {f"{prefix}.r{k}": recall_at(ranking.ranks, k) for k in RECALL_DEPTHS}
    return recalls | {
        f"{prefix}.median_rank": median_rank(ranking.ranks),
        f"{prefix}.count": int(counted.sum()),
        f"{prefix}.chance_r1": float(ranking.chance[counted].mean()),
    }


def similarity(queries_D: Tensor, candidates_D: Tensor) -> Tensor:
    """Dot products (..., Q, N) float32 of (..., Q, D) and (..., N, D), the same wherever a candidate stands.

    The kernels of a matrix product sum in an order that depends on the column and on the size of the block, so that
    equal candidates get scores one rounding error apart and a tie is broken by accident. Summed in float64 and rounded
    to float32, ties stay ties.
    """
    return (queries_D.double() @ candidates_D.double().mT).float()


def chance_first(positives_QN: Tensor, candidates_QN: Tensor) -> Tensor:
    """Probability (Q,) float64 that a random order of the candidates puts a positive first; 0 without candidates."""
    return (positives_QN & candidates_QN).sum(dim=1) / candidates_QN.sum(dim=1).clamp(min=1).double()


def nan_last(scores: Tensor) -> Tensor:
    """Scores of any shape with -inf for NaN, which compares with nothing."""
    return scores.masked_fill(scores.isnan(), -torch.inf)


def blocks(rows: int, row_elements: int, block_elements: int) -> Iterator[slice]:
    """Slices of `rows` rows of `row_elements` each, with at most `block_elements` elements or one row."""
    size = max(1, block_elements // max(1, row_elements))
    for start in range(0, rows, size):
        yield slice(start, start + size)


def _same_group(group_Q: Tensor, group_N: Tensor) -> Relevance:
    def relevance(rows: slice) -> tuple[Tensor, Tensor]:
        positives_QN = group_Q[rows, None] == group_N
        return positives_QN, torch.ones_like(positives_QN)

    return relevance


def _first_of_each_group(group_N: Tensor) -> Tensor:
    """Index (G,) of the first pair of each group, in the order of the pairs."""
    # A stable sort keeps the order of the pairs within a group, so that its first one starts its run.
    order = group_N.argsort(stable=True)
    starts_run = torch.ones(len(order), dtype=torch.bool)
    starts_run[1:] = group_N[order][1:] != group_N[order][:-1]
    return order[starts_run].sort().values
