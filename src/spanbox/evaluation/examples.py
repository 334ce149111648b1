"""Examples of an evaluation for the report: retrievals, matches, and the similarities of a small batch.

Everything here is an index into a feature bank; `wiring/artefacts.py` writes it with the ids of the records. Examples
are spread over the images: no image comes twice before each has come once. Free choices (among equal ranks, which right
matches) are drawn from a seed, so that two reports of one evaluation show the same.

    N pairs    S spans    M regions    Q queries    C candidates
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from spanbox.evaluation.extract import FeatureBank
from spanbox.evaluation.own_image import score_own_image
from spanbox.evaluation.ranking import nan_last, ranks, similarity
from spanbox.evaluation.retrieval import first_of_each_group

Kind = Literal["best", "median", "worst"]
Direction = Literal["i2t", "t2i"]
KINDS: tuple[Kind, ...] = get_args(Kind)
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)

FOUND = 5
"""Candidates shown of a retrieval, the best."""
BATCH_PAIRS = 16
"""Pairs of the similarity matrices."""
MATCH_REGIONS = 500
"""Regions of a match, the best; the best one that shows the span is there in any case."""
BATCH_SPANS = 32
"""Spans of the similarity matrix of the fine level, at most."""
SPAN_REGIONS = 16
"""Regions that may show a span of that matrix; spans with more would fill it."""


class Scored(NamedTuple):
    """A candidate and its score."""

    candidate: int  # index of a pair or of a region
    score: float
    right: bool


class RetrievalExample(NamedTuple):
    """A query and its best candidates: indices of pairs, for their sentences or their images by direction."""

    kind: Kind
    query: int  # index of a pair
    rank: int
    right: Scored  # the best of those that are right
    found: list[Scored]  # best first; among equal scores the wrong ones, as in the rank


class MatchingExample(NamedTuple):
    """A span and the regions of its image."""

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
    linked: Tensor  # (K, R) bool: this region shows this span
    same_identity: Tensor  # (K, R) bool: this region shows another span of the same identity, which is right as well


def pick_by_rank(ranks_Q: Tensor, image_Q: Tensor, count: int, seed: int = 0) -> dict[Kind, list[int]]:
    """`count` queries each of the best, the median and the worst rank, no query twice; fewer where there are few.

    Args:
        ranks_Q: (Q,), from 1; 0 is no query.
        image_Q: (Q,) the same number for queries of one image.
        count: of each kind.
        seed: decides among equal ranks.
    """
    shuffled = np.random.default_rng(seed).permutation(len(ranks_Q))
    by_rank = shuffled[np.argsort(ranks_Q.numpy()[shuffled], kind="stable")]
    order = by_rank[int((ranks_Q == 0).sum()) :].tolist()
    place, image = {query: index for index, query in enumerate(order)}, image_Q.tolist()
    count = min(count, max(1, len(order) // len(KINDS)))
    best = _one_per_image(order, image)[:count]
    left = [query for query in order if query not in best]
    worst = _one_per_image(left[::-1], image)[:count]
    middle = (len(order) - 1) / 2
    central = sorted((query for query in left if query not in worst), key=lambda query: abs(place[query] - middle))
    picked = {"best": best, "median": _one_per_image(central, image)[:count], "worst": worst[::-1]}
    sorted_by_rank: dict[Kind, list[int]] = {kind: sorted(picked[kind], key=place.__getitem__) for kind in KINDS}
    return sorted_by_rank | {"worst": sorted_by_rank["worst"][::-1]}


def _one_per_image(order: Sequence[int], image: Sequence[int]) -> list[int]:
    """The indices of `order`, the first of each image before the second of any."""
    seen: Counter[int] = Counter()
    turns = []
    for index in order:
        turns.append((seen[image[index]], index))
        seen[image[index]] += 1
    return [index for _, index in sorted(turns, key=lambda turn: turn[0])]


def retrieval_examples(
    bank: FeatureBank, direction: Direction, ranks_Q: Tensor, count: int, seed: int = 0
) -> list[RetrievalExample]:
    """Best, median and worst retrievals from images to texts (`i2t`) or from texts to images (`t2i`).

    Args:
        bank: a candidate is right if it has the group of the query. The image of a group is that of its first pair.
        direction: `i2t` or `t2i`.
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
    for kind, chosen in pick_by_rank(ranks_Q, bank.group[query_Q], count, seed).items():
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
    """`count` wrong matches, those with the highest scores first, then `count` right ones, drawn at random.

    Only spans for which some region of the image is wrong.
    """
    if not len(bank.links):
        return []
    own = score_own_image(bank)
    image = own.image_S.tolist()
    can_fail_S = own.has_box_S & (own.candidates_SR & ~own.linked_SR).any(dim=1)
    right_S = ranks(own.scores_SR, own.linked_SR, own.candidates_SR) == 1
    top_S = own.ranked_SR.amax(dim=1)
    wrong = (can_fail_S & ~right_S).nonzero()[:, 0]
    right = (can_fail_S & right_S).nonzero()[:, 0]
    most_confident = wrong[top_S[wrong].argsort(descending=True, stable=True)]
    drawn = right[torch.from_numpy(np.random.default_rng(seed).permutation(len(right)))]
    chosen = [_one_per_image(order.tolist(), image)[:count] for order in (most_confident, drawn)]
    return [_match(bank, span) for spans in chosen for span in spans]


def similarity_example(bank: FeatureBank, seed: int = 0) -> SimilarityExample:
    """A batch of pairs of different images, those with linked spans first, drawn from a seed.

    Right are the regions that the loss takes as positives: those linked to the span or to a span of its identity.
    """
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
    spans, number = torch.unique(bank.links[in_batch, 0], return_counts=True)
    spans = spans[number <= SPAN_REGIONS][:BATCH_SPANS]
    links = bank.links[in_batch & torch.isin(bank.links[:, 0], spans)]
    regions = links[:, 1].bincount().nonzero()[:, 0]
    span_L, region_L = bank.links[torch.isin(bank.links[:, 1], regions)].unbind(dim=1)
    of_region_LR = (region_L[:, None] == regions).float()
    linked = (spans[:, None] == span_L).float() @ of_region_LR > 0
    identity = bank.span_identity
    shows_identity = (identity[spans, None] == identity[span_L]).float() @ of_region_LR > 0
    return SimilarityExample(
        pairs=pairs,
        coarse=similarity(bank.text[pairs], bank.image[pairs]),
        spans=spans,
        regions=regions,
        fine=similarity(bank.spans[spans], bank.regions[regions]),
        linked=linked,
        same_identity=shows_identity & ~linked,
    )


def _match(bank: FeatureBank, span: int) -> MatchingExample:
    regions = (bank.region_pair == bank.span_pair[span]).nonzero()[:, 0]
    scores = similarity(bank.spans[span][None], bank.regions[regions])[0]
    linked = torch.isin(regions, bank.links[bank.links[:, 0] == span, 1])
    best, others = _best_first(scores, linked).tensor_split([MATCH_REGIONS])
    shown = torch.cat([best, others[linked[others]][:1]])
    candidates = [_scored(regions, scores, linked, place) for place in shown]
    return MatchingExample(span, candidates[0].right, candidates)


def _best_first(scores: Tensor, right: Tensor) -> Tensor:
    """Order of candidates (C,): highest score first, NaN last, among equal ones the wrong ones first."""
    scores, wrong_first = nan_last(scores), right.int().argsort(stable=True)
    return wrong_first[scores[wrong_first].argsort(descending=True, stable=True)]


def _scored(index: Tensor, scores: Tensor, right: Tensor, place: Tensor) -> Scored:
    return Scored(int(index[place]), float(scores[place]), bool(right[place]))
