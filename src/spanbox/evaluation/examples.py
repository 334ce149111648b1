"""Which retrievals and matches of an evaluation are worth looking at. Figures say how often, examples say what.

Everything here is an index into a feature bank; `wiring/artefacts.py` writes it with the ids of the records. Choices
that are free (among equal ranks, which right matches) are drawn from a seed, so that two reports of one evaluation show
the same.

    N pairs    S spans    M regions    Q queries    C candidates
"""

from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from spanbox.evaluation.extract import FeatureBank
from spanbox.evaluation.own_image import score_own_image
from spanbox.evaluation.ranking import ranks, similarity
from spanbox.evaluation.retrieval import first_of_each_group

Kind = Literal["best", "median", "worst"]
Direction = Literal["i2t", "t2i"]
KINDS: tuple[Kind, ...] = get_args(Kind)
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)

FOUND = 5
"""Candidates shown of a retrieval, the best."""
BATCH_PAIRS = 16
"""Pairs of the similarity matrices."""
BATCH_SPANS = 32
"""Spans of the similarity matrix of the fine level, at most."""


class Scored(NamedTuple):
    """A candidate and what the model gives for it."""

    candidate: int  # index of a pair or of a region
    score: float
    right: bool


class RetrievalExample(NamedTuple):
    """A query and what was found. Pairs stand for their sentences or their images, as the direction has it."""

    kind: Kind
    query: int  # index of a pair
    rank: int
    right: Scored  # the best of those that are right
    found: list[Scored]  # best first; among equal scores the wrong ones, as in the rank


class MatchingExample(NamedTuple):
    """A span and all regions of its image."""

    span: int
    right: bool
    candidates: list[Scored]  # regions, best first


class SimilarityExample(NamedTuple):
    """The similarities of a small batch on both levels. The fine ones are empty where nothing is linked."""

    pairs: Tensor  # (B,)
    coarse: Tensor  # (B, B) sentences x images
    spans: Tensor  # (K,)
    regions: Tensor  # (R,)
    fine: Tensor  # (K, R)
    linked: Tensor  # (K, R) bool


def pick_by_rank(ranks_Q: Tensor, count: int, seed: int = 0) -> dict[Kind, list[int]]:
    """`count` queries each of the best, the median and the worst rank, no query twice; fewer where there are few.

    Args:
        ranks_Q: (Q,), from 1; 0 is no query.
        count: of each kind.
        seed: decides among equal ranks.
    """
    shuffled = np.random.default_rng(seed).permutation(len(ranks_Q))
    by_rank = shuffled[np.argsort(ranks_Q.numpy()[shuffled], kind="stable")]
    order = by_rank[int((ranks_Q == 0).sum()) :].tolist()
    count = min(count, max(1, len(order) // len(KINDS)))
    best, left = order[:count], order[count:]
    worst, left = left[::-1][:count], left[: max(0, len(left) - count)]
    middle = max(0, (len(order) - count) // 2 - count)
    return {"best": best, "median": left[middle : middle + count], "worst": worst}


def retrieval_examples(
    bank: FeatureBank, direction: Direction, ranks_Q: Tensor, count: int, seed: int = 0
) -> list[RetrievalExample]:
    """Best, median and worst retrievals from images to texts (`i2t`) or from texts to images (`t2i`).

    Args:
        bank: whose groups say what is right. An image stands for its group by its first pair.
        direction: what looks for what.
        ranks_Q: rank of the best right candidate of each query, in the order of the pairs.
        count: of each kind.
        seed: decides among equal ranks.
    """
    images = first_of_each_group(bank.group)
    sentences = torch.arange(len(bank)), bank.text
    pictures = images, bank.image[images]
    (query_Q, queries_QD), (pair_C, candidates_CD) = (
        (pictures, sentences) if direction == "i2t" else (sentences, pictures)
    )
    examples = []
    for kind, chosen in pick_by_rank(ranks_Q, count, seed).items():
        for place in chosen:
            query = int(query_Q[place])
            right_C = bank.group[pair_C] == bank.group[query]
            scores_C = similarity(queries_QD[place][None], candidates_CD)[0]
            order = _best_first(scores_C, right_C)
            found = [_scored(pair_C, scores_C, right_C, candidate) for candidate in order[:FOUND]]
            right = _scored(pair_C, scores_C, right_C, order[right_C[order]][0])
            examples.append(RetrievalExample(kind, query, int(ranks_Q[place]), right, found))
    return examples


def matching_examples(bank: FeatureBank, count: int, seed: int = 0) -> list[MatchingExample]:
    """The `count` wrong matches with the highest scores, then `count` right ones, of spans that could go wrong."""
    if not len(bank.links):
        return []
    own = score_own_image(bank)
    asks_S = own.has_box_S & (own.candidates_SR & ~own.linked_SR).any(dim=1)
    right_S = ranks(own.scores_SR, own.linked_SR, own.candidates_SR) == 1
    top_S = own.scores_SR.masked_fill(~own.candidates_SR, -torch.inf).amax(dim=1)
    wrong = (asks_S & ~right_S).nonzero()[:, 0]
    right = (asks_S & right_S).nonzero()[:, 0]
    most_confident = wrong[top_S[wrong].argsort(descending=True, stable=True)]
    drawn = right[torch.from_numpy(np.random.default_rng(seed).permutation(len(right)))]
    return [_match(bank, span) for span in [*most_confident[:count].tolist(), *drawn[:count].tolist()]]


def similarity_example(bank: FeatureBank, seed: int = 0) -> SimilarityExample:
    """A batch of pairs of different images, those with linked spans first, drawn from a seed."""
    linked_N = torch.zeros(len(bank), dtype=torch.bool)
    linked_N[bank.span_pair[bank.links[:, 0]]] = True
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(bank)))
    order = order[(~linked_N[order]).int().argsort(stable=True)]
    of_group: dict[int, int] = {}
    for pair, group in zip(order.tolist(), bank.group[order].tolist(), strict=True):
        of_group.setdefault(group, pair)
        if len(of_group) == BATCH_PAIRS:
            break
    pairs = torch.tensor(sorted(of_group.values()))
    in_batch = torch.isin(bank.span_pair[bank.links[:, 0]], pairs)
    spans = bank.links[in_batch, 0].bincount().nonzero()[:BATCH_SPANS, 0]
    links = bank.links[in_batch & torch.isin(bank.links[:, 0], spans)]
    regions = links[:, 1].bincount().nonzero()[:, 0]
    linked = ((spans[:, None] == links[:, 0]).float() @ (links[:, 1, None] == regions).float()) > 0
    return SimilarityExample(
        pairs=pairs,
        coarse=similarity(bank.text[pairs], bank.image[pairs]),
        spans=spans,
        regions=regions,
        fine=similarity(bank.spans[spans], bank.regions[regions]),
        linked=linked,
    )


def _match(bank: FeatureBank, span: int) -> MatchingExample:
    regions = (bank.region_pair == bank.span_pair[span]).nonzero()[:, 0]
    scores = similarity(bank.spans[span][None], bank.regions[regions])[0]
    linked = torch.isin(regions, bank.links[bank.links[:, 0] == span, 1])
    candidates = [_scored(regions, scores, linked, place) for place in _best_first(scores, linked)]
    return MatchingExample(span, candidates[0].right, candidates)


def _best_first(scores: Tensor, right: Tensor) -> Tensor:
    """Order of candidates (C,): highest score first, among equal ones the wrong ones first."""
    wrong_first = right.int().argsort(stable=True)
    return wrong_first[scores[wrong_first].argsort(descending=True, stable=True)]


def _scored(index: Tensor, scores: Tensor, right: Tensor, place: Tensor) -> Scored:
    return Scored(int(index[place]), float(scores[place]), bool(right[place]))
