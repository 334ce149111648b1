"""Entity-object matching: does a span find the region that shows it?

Asked twice: among the regions of its own image, as in grounding, and among those of the whole set, as in search. Apart
from that: does the best score in the image tell the entities that are shown from those that are not?

Only spans with a linked region ask. A data set without any link has no fine metrics: they are absent, not zero.

Suffixes of names:  Q queries    S spans    M regions of the set    R regions of one pair, padded    D features
"""

from collections import defaultdict
from typing import NamedTuple

import torch
from torch import Tensor

from spanbox.evaluation.extract import FeatureBank
from spanbox.evaluation.retrieval import (
    BLOCK_ELEMENTS,
    Relevance,
    blocks,
    chance_first,
    nan_last,
    rank_in_blocks,
    ranking_metrics,
    ranks,
    recall_at,
    similarity,
)


class OwnImage(NamedTuple):
    """Each span of the set beside the regions of its own pair."""

    scores_SR: Tensor  # float32
    candidates_SR: Tensor  # bool, False on padding
    linked_SR: Tensor  # bool


def matching_metrics(bank: FeatureBank, *, block_elements: int = BLOCK_ELEMENTS) -> dict[str, float]:
    """Matching within the image, across the set, and of entities without a box; empty where nothing is linked."""
    if len(bank.links) == 0:
        return {}
    own = score_own_image(bank, block_elements)
    return (
        within_image_metrics(own) | across_set_metrics(bank, block_elements=block_elements) | without_box_metrics(own)
    )


def within_image_metrics(own: OwnImage) -> dict[str, float]:
    """R@1 of linked spans among the regions of their own pair, ties against the model.

    Keys under `matching.within_image`: itself (the R@1), `.count`, `.chance`, `.candidates` (mean number), `.trivial`
    (share of queries that cannot go wrong, because every candidate is right) and, over the other queries, `.hard`,
    `.hard.count`, `.hard.chance`; these three are absent where every query is trivial.
    """
    asks_S = own.linked_SR.any(dim=1)
    linked_QR, candidates_QR = own.linked_SR[asks_S], own.candidates_SR[asks_S]
    ranks_Q = ranks(own.scores_SR[asks_S], linked_QR, candidates_QR)
    chance_Q = chance_first(linked_QR, candidates_QR)
    hard_Q = (candidates_QR & ~linked_QR).any(dim=1)
    prefix = "matching.within_image"
    metrics: dict[str, float] = {
        prefix: recall_at(ranks_Q, 1),
        f"{prefix}.count": len(ranks_Q),
        f"{prefix}.chance": float(chance_Q.mean()),
        f"{prefix}.candidates": float(candidates_QR.sum(dim=1).double().mean()),
        f"{prefix}.trivial": float((~hard_Q).double().mean()),
    }
    if hard_Q.any():
        metrics |= {
            f"{prefix}.hard": recall_at(ranks_Q[hard_Q], 1),
            f"{prefix}.hard.count": int(hard_Q.sum()),
            f"{prefix}.hard.chance": float(chance_Q[hard_Q].mean()),
        }
    return metrics


def across_set_metrics(bank: FeatureBank, *, block_elements: int = BLOCK_ELEMENTS) -> dict[str, float]:
    """Rank of the right regions among all regions of the set, for each linked span.

    Right are the regions linked to any span of the same identity, its own among them. Regions that other pairs of the
    same group repeat are no negatives: the same box of the same image, under a caption that calls it by another name,
    would tie with the right one.
    Keys under `matching.across_set`: `.r1 .r5 .r10 .median_rank .count .chance_r1`.
    """
    asks_Q = bank.links[:, 0].bincount().nonzero()[:, 0]
    ranking = rank_in_blocks(bank.spans[asks_Q], bank.regions, _same_identity(bank, asks_Q), block_elements)
    return ranking_metrics("matching.across_set", ranking)


def without_box_metrics(own: OwnImage) -> dict[str, float]:
    """How well the best region score within the image tells entities with a box from those without.

    Keys: `matching.without_box.count` and, where there are both kinds, `matching.without_box.auc`. An entity whose
    image has no region at all has no score: it is in the count and not in the AUC.
    """
    has_box_S = own.linked_SR.any(dim=1)
    best_S = nan_last(own.scores_SR).masked_fill(~own.candidates_SR, -torch.inf).amax(dim=1)
    scored_without_S = ~has_box_S & own.candidates_SR.any(dim=1)
    metrics: dict[str, float] = {"matching.without_box.count": int((~has_box_S).sum())}
    if has_box_S.any() and scored_without_S.any():
        metrics["matching.without_box.auc"] = area_under_curve(best_S[has_box_S], best_S[scored_without_S])
    return metrics


def area_under_curve(positive: Tensor, negative: Tensor) -> float:
    """Probability that a score of `positive` (P,) exceeds one of `negative` (N,), ties half. Neither may be empty.

    The Mann-Whitney statistic by ranks: exact, in O(P + N) memory.
    """
    ascending = negative.sort().values
    below = torch.searchsorted(ascending, positive, side="left")
    below_or_equal = torch.searchsorted(ascending, positive, side="right")
    return int((below + below_or_equal).sum()) / (2 * len(positive) * len(negative))


def score_own_image(bank: FeatureBank, block_elements: int = BLOCK_ELEMENTS) -> OwnImage:
    """Scores of every span with the regions of its own pair, gathering at most `block_elements` features at a time."""
    slot_M, regions_of_pair = _regions_by_pair(bank)
    own_SR = regions_of_pair[bank.span_pair]
    linked_SR = torch.zeros(own_SR.shape, dtype=torch.bool)
    linked_SR[bank.links[:, 0], slot_M[bank.links[:, 1]]] = True
    scores_SR = torch.empty(own_SR.shape)
    for rows in blocks(len(own_SR), own_SR.shape[1] * bank.regions.shape[1], block_elements):
        regions_QRD = bank.regions[own_SR[rows].clamp(min=0)]
        scores_SR[rows] = similarity(bank.spans[rows, None], regions_QRD)[:, 0]
    return OwnImage(scores_SR, own_SR >= 0, linked_SR)


def _regions_by_pair(bank: FeatureBank) -> tuple[Tensor, Tensor]:
    """Place (M,) of each region among those of its pair, and the regions (pairs, R) of each pair, -1 for padding."""
    count = bank.region_pair.bincount(minlength=len(bank))
    order = bank.region_pair.argsort(stable=True)
    start = count.cumsum(0) - count
    slot_M = torch.empty_like(order)
    slot_M[order] = torch.arange(len(order)) - start[bank.region_pair[order]]
    regions_of_pair = torch.full((len(bank), int(count.max())), -1)
    regions_of_pair[bank.region_pair, slot_M] = torch.arange(len(order))
    return slot_M, regions_of_pair


def _same_identity(bank: FeatureBank, asks_Q: Tensor) -> Relevance:
    regions_by_identity = _regions_by_identity(bank)
    identity_Q, pair_Q = bank.span_identity[asks_Q], bank.span_pair[asks_Q]
    group_Q, group_M = bank.group[pair_Q], bank.group[bank.region_pair]

    def relevance(rows: slice) -> tuple[Tensor, Tensor]:
        repeated_QM = (group_Q[rows, None] == group_M) & (pair_Q[rows, None] != bank.region_pair)
        positives_QM = torch.zeros_like(repeated_QM)
        for row, identity in enumerate(identity_Q[rows].tolist()):
            positives_QM[row, regions_by_identity[identity]] = True
        return positives_QM, positives_QM | ~repeated_QM

    return relevance


def _regions_by_identity(bank: FeatureBank) -> dict[int, Tensor]:
    """The regions that are linked to a span of each identity."""
    regions = defaultdict[int, list[int]](list)
    for identity, region in zip(bank.span_identity[bank.links[:, 0]].tolist(), bank.links[:, 1].tolist(), strict=True):
        regions[identity].append(region)
    return {identity: torch.tensor(indices) for identity, indices in regions.items()}
