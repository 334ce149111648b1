"""Retrieval in two stages: the towers propose the first K candidates, fused scores re-order them.

The other candidates keep their order behind them. Rules of ranking and ties: `ranking`. Beside each recall stands the
difference to that of the towers alone, paired by query.

Suffixes of names:  Q queries    N pairs    G images, one per group    K proposed candidates
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from spanbox.evaluation.extract import FeatureBank
from spanbox.evaluation.outcomes import Figure, Outcome, ranking_outcomes
from spanbox.evaluation.own_image import OwnImage, found_within
from spanbox.evaluation.ranking import RECALL_DEPTHS, Relevance, Rescore, nan_last, rank_in_blocks, same_id
from spanbox.evaluation.retrieval import first_of_each_group
from spanbox.intervals import paired_difference
from spanbox.progress import StartProgress, hidden

RERANKED = 64
"""Default number of candidates that the towers propose."""
QUERIES_AT_ONCE = 32

PairScores = Callable[[Tensor, Tensor], Tensor]
"""Maps places (n,) of sentences and of images in a bank to fused scores (n,) in [-1, 1]."""

IN_CONTEXT = "matching.in_context"


def reranked_outcomes(
    bank: FeatureBank,
    scores: PairScores,
    most: int = RERANKED,
    *,
    device: torch.device | str = "cpu",
    progress: StartProgress = hidden,
) -> dict[str, Outcome]:
    """Outcomes of both directions, `retrieval.i2t.reranked` and `retrieval.t2i.reranked`, with the keys of retrieval.

    Args:
        most: K; of a smaller set all candidates.
        device: where similarities are computed.
    """
    first_G = first_of_each_group(bank.group)
    sentences = _Side(bank.text, bank.group, torch.arange(len(bank)))
    images = _Side(bank.image[first_G], bank.group[first_G], first_G)
    outcomes: dict[str, Outcome] = {}
    for name, queries, candidates, of_places, label in (
        ("i2t", images, sentences, _turned(scores), "re-ranking sentences"),
        ("t2i", sentences, images, scores, "re-ranking images"),
    ):
        relevance = same_id(queries.group.to(device), candidates.group.to(device))
        ranking = rank_in_blocks(
            queries.features,
            candidates.features,
            relevance,
            device=device,
            block_elements=QUERIES_AT_ONCE * len(candidates.features),
            progress=progress,
            label=label,
            rescore=_rescoring(of_places, queries.places, candidates.places, relevance, most),
        )
        outcomes |= ranking_outcomes(f"retrieval.{name}.reranked", ranking, queries.group)
    return outcomes


class _Side(NamedTuple):
    """Sentences or images, as queries or as candidates."""

    features: Tensor
    group: Tensor
    places: Tensor  # in the bank


def in_context_outcomes(own: OwnImage) -> dict[str, Outcome]:
    """Whether linked spans find their region within the image, by scores after attention within their own pair.

    Keys: `matching.in_context` (R@1) and `.r5`.
    """
    queries = own.of_spans(own.has_box_S)
    return {
        IN_CONTEXT: found_within(queries, queries.linked_SR, 1),
        f"{IN_CONTEXT}.r5": found_within(queries, queries.linked_SR, 5),
    }


def gains(outcomes: Mapping[str, Outcome]) -> dict[str, Figure]:
    """Differences of fused recalls to those of the towers, paired by query: NAME.gain."""
    pairs = {f"retrieval.{way}.reranked.r{k}": f"retrieval.{way}.r{k}" for way in ("i2t", "t2i") for k in RECALL_DEPTHS}
    pairs[IN_CONTEXT] = "matching.within_image"
    figures = {}
    for name, towers in pairs.items():
        if name in outcomes and len(outcomes[name]):
            fused = outcomes[name]
            value, interval = paired_difference(fused.values, outcomes[towers].values, fused.image, rates=True)
            figures[f"{name}.gain"] = Figure(value, len(fused), interval)
    return figures


def _turned(scores: PairScores) -> PairScores:
    return lambda images, sentences: scores(sentences, images)


def _rescoring(
    scores: PairScores, query_places: Tensor, candidate_places: Tensor, relevance: Relevance, most: int
) -> Rescore:
    """Replaces the similarities of the first candidates of each query by larger numbers, in the order of the fused
    scores. Of candidates that tie for the last places the wrong ones come first.

    Args:
        scores: of places of queries and of candidates.
    """

    def rescore(rows: slice, similarity_QN: Tensor) -> Tensor:
        similarity_QN = nan_last(similarity_QN)
        order_QN = similarity_QN.clamp(min=torch.finfo(similarity_QN.dtype).min)
        right, _ = relevance(rows)
        behind = order_QN.new_tensor(-torch.inf)
        order_QN[right] = order_QN[right].nextafter(behind)
        proposed_QK = order_QN.topk(min(most, order_QN.shape[1]), dim=1).indices
        queries = query_places[rows][:, None].expand(proposed_QK.shape).flatten()
        candidates = candidate_places[proposed_QK.cpu()].flatten()
        fused_QK = scores(queries, candidates).to(similarity_QN).reshape(proposed_QK.shape)
        return similarity_QN.scatter(1, proposed_QK, nan_last(fused_QK).clamp(min=-1.0) + 4.0)

    return rescore
