"""How well pairs and links agree with a model: scores of the given ones beside those of wrong ones, on both levels.

A score is compared with those of its row and of its column: some sentences and some images score high with everything.
Wrong pairs are a sentence and the image of another group; wrong links are a span and a region of an image of another
group. The scores of both levels are in units of the spread of wrong ones, so they can be added.

All regions of an image score higher with the words of its own sentence than with others, especially if the model was
trained on noisy links. So links are also compared within their pair, with the scores of the other spans of the sentence
for the same region.

Suffixes of names:  N pairs    J sampled pairs    S spans    M regions    C sampled regions
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spanbox.evaluation.extract import FeatureBank
from spanbox.evaluation.own_image import OwnImage, regions_by_pair, score_own_image
from spanbox.structures import SHOWN

SAMPLED = 256  # pairs with which each pair forms wrong pairs
NULL_SCORES = 200_000  # of wrong items that are kept
ROWS_AT_ONCE = 4096

Floats = NDArray[np.float64]


class Evidence(NamedTuple):
    """Scores of given items and of wrong ones."""

    given: Floats  # (n,)
    wrong: Floats  # (m,)


class LinkEvidence(NamedTuple):
    """Scores of spans with all regions of their own image, and of spans with regions of other images."""

    own: OwnImage
    scores_SR: Floats  # of each span with the regions of its image
    within_SR: Floats  # the same, minus the mean score of the other spans of the sentence with the region
    wrong: Floats  # (m,): of wrong links, to compare `scores_SR` with


def pair_evidence(bank: FeatureBank, seed: int, *, fine: bool = True) -> dict[bool, tuple[NDArray[np.int64], Evidence]]:
    """Scores of the pairs, by whether they have a score of the fine level too.

    A pair has one if it has an entity with a box, and others to compare it with. Wrong ones have a score of the same
    levels: an image without regions has none of the fine level, and would make every other pair look right.

    Args:
        bank: features of the pairs.
        seed: of the wrong pairs.
        fine: whether the features of spans and regions mean anything.

    Returns:
        For each of both kinds the indices of its pairs, and their scores; kinds without pairs, or without wrong ones to
        compare them with, are left out.
    """
    sampled_J = _sample(len(bank), SAMPLED, seed)
    allowed_NJ = bank.group[:, None] != bank.group[sampled_J][None, :]
    coarse = _standardised(
        (bank.text * bank.image).sum(dim=1),
        bank.text @ bank.image[sampled_J].T,
        (bank.text[sampled_J] @ bank.image.T).T,
        allowed_NJ,
        sampled_J,
    )
    usable_NJ, of_regions = torch.zeros_like(allowed_NJ), None
    if fine:
        usable_NJ, of_regions = _fine_evidence(bank, sampled_J, allowed_NJ)
    has_fine_N = usable_NJ.any(dim=1)
    result = {}
    for kind in (False, True):
        rows_N = has_fine_N == kind
        own_N, wrong_NJ = coarse
        compared_NJ = allowed_NJ
        if kind and of_regions is not None:
            own_N, wrong_NJ, compared_NJ = own_N + of_regions[0], wrong_NJ + of_regions[1], usable_NJ
        wrong = wrong_NJ[rows_N][compared_NJ[rows_N]]
        if len(wrong):
            index = rows_N.nonzero()[:, 0].numpy()
            result[kind] = (index, Evidence(_to_numpy(own_N[rows_N]), _thinned(wrong, seed)))
    return result


def link_evidence(bank: FeatureBank, seed: int) -> LinkEvidence:
    """Scores of the spans with the regions of their own image, and of wrong links, if there are any. The bank needs
    spans and regions."""
    own = score_own_image(bank)
    regions_C = _sample(len(bank.regions), SAMPLED, seed)
    spans_C = _sample(len(bank.spans), SAMPLED, seed + 1)
    of_span, of_region = bank.group[bank.span_pair], bank.group[bank.region_pair]
    other_SC = of_span[:, None] != of_region[regions_C][None, :]
    other_SC &= ~_same_identity(bank, regions_C)
    scores_SC = bank.spans @ bank.regions[regions_C].T
    row_mean, row_spread = _mean_and_spread(scores_SC, other_SC)
    other_MC = of_region[:, None] != of_span[spans_C][None, :]
    column_mean, column_spread = _mean_and_spread(bank.regions @ bank.spans[spans_C].T, other_MC)
    place_SR = regions_by_pair(bank)[1][bank.span_pair].clamp(min=0)

    def standard(scores: Tensor, columns: Tensor) -> Tensor:
        by_row = (scores - row_mean[:, None]) / row_spread[:, None]
        return (by_row + (scores - column_mean[columns]) / column_spread[columns]) / 2

    wrong = standard(scores_SC, regions_C[None, :].expand(len(bank.spans), -1))[other_SC]
    scores_SR = standard(own.scores_SR, place_SR)
    within_SR = within_pair(scores_SR, own.candidates_SR, bank.span_pair, bank.span_identity)
    return LinkEvidence(own, _to_numpy(scores_SR), _to_numpy(within_SR), _thinned(wrong, seed))


def within_pair(scores_SR: Tensor, candidates_SR: Tensor, pair_S: Tensor, identity_S: Tensor) -> Tensor:
    """Scores minus the mean score of the pair's spans of other identities with the same region.

    The mean counts that of all scores of the pair as one more, which in turn counts the mean of the set as four more:
    so a pair of one span, or of one region, has a mean too.
    """
    cells_SR = candidates_SR.double()
    scores_SR = torch.where(candidates_SR, scores_SR.double(), 0.0)
    keys_S2 = torch.stack([pair_S, identity_S], dim=1)
    entity_S = keys_S2.unique(dim=0, return_inverse=True)[1]  # type: ignore[no-untyped-call]

    def sums(values_SR: Tensor, group_S: Tensor) -> Tensor:
        groups = int(group_S.max()) + 1 if len(group_S) else 0
        return values_SR.new_zeros(groups, values_SR.shape[1]).index_add_(0, group_S, values_SR)[group_S]

    total_SR, number_SR = (sums(values, pair_S) for values in (scores_SR, cells_SR))
    overall = scores_SR.sum() / cells_SR.sum().clamp(min=1)
    mean_S1 = (total_SR.sum(dim=1, keepdim=True) + 4 * overall) / (number_SR.sum(dim=1, keepdim=True) + 4)
    others_SR, other_SR = total_SR - sums(scores_SR, entity_S), number_SR - sums(cells_SR, entity_S)
    return scores_SR - (others_SR + mean_S1) / (other_SR + 1)


def _fine_evidence(
    bank: FeatureBank, sampled_J: Tensor, allowed_NJ: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """Wrong pairs (N, J) of a sentence that has an entity with a box and an image that has regions; if there are any,
    the mean over the entities with a box of the best region, in their own and in the other images."""
    shown_S = (bank.span_shown == SHOWN).nonzero()[:, 0]
    has_regions_N = torch.zeros(len(bank), dtype=torch.bool)
    has_regions_N[bank.region_pair] = True
    has_fine_N = torch.zeros(len(bank), dtype=torch.bool)
    has_fine_N[bank.span_pair[shown_S]] = True
    has_fine_N &= has_regions_N
    usable_NJ = allowed_NJ & has_fine_N[:, None] & has_regions_N[sampled_J][None, :]
    if not usable_NJ.any():
        return usable_NJ, None
    everyone = torch.arange(len(bank))
    rows_NJ = torch.empty(len(bank), len(sampled_J))
    columns_NJ = torch.empty(len(bank), len(sampled_J))
    for start in range(0, len(bank), ROWS_AT_ONCE):
        part = everyone[start : start + ROWS_AT_ONCE]
        rows_NJ[part] = _best_regions(bank, shown_S, part, sampled_J)
        columns_NJ[part] = _best_regions(bank, shown_S, sampled_J, part).T
    own = score_own_image(bank)
    best_S = own.scores_SR.masked_fill(~own.candidates_SR, -1.0).amax(dim=1)
    number = torch.zeros(len(bank)).index_add_(0, bank.span_pair[shown_S], torch.ones(len(shown_S)))
    own_N = torch.zeros(len(bank)).index_add_(0, bank.span_pair[shown_S], best_S[shown_S]) / number.clamp(min=1)
    usable_columns_NJ = allowed_NJ & has_regions_N[:, None] & has_fine_N[sampled_J][None, :]
    return usable_NJ, _standardised(own_N, rows_NJ, columns_NJ, usable_NJ, sampled_J, usable_columns_NJ)


def _best_regions(bank: FeatureBank, shown_S: Tensor, texts: Tensor, images: Tensor) -> Tensor:
    """(texts, images): mean over the shown spans of each text of the best region of each image; 0 without spans."""
    position_text = torch.full((len(bank),), -1)
    position_text[texts] = torch.arange(len(texts))
    position_image = torch.full((len(bank),), -1)
    position_image[images] = torch.arange(len(images))
    spans = shown_S[position_text[bank.span_pair[shown_S]] >= 0]
    regions = (position_image[bank.region_pair] >= 0).nonzero()[:, 0]
    result = torch.zeros(len(texts), len(images))
    count = torch.zeros(len(texts))
    owner = position_image[bank.region_pair[regions]]
    for start in range(0, len(spans), ROWS_AT_ONCE):
        part = spans[start : start + ROWS_AT_ONCE]
        scores = bank.spans[part] @ bank.regions[regions].T
        best = torch.full((len(part), len(images)), -1.0)
        best.scatter_reduce_(1, owner.expand(len(part), -1), scores, "amax")
        rows = position_text[bank.span_pair[part]]
        result.index_add_(0, rows, best)
        count.index_add_(0, rows, torch.ones(len(part)))
    return result / count.clamp(min=1)[:, None]


def _standardised(
    own_N: Tensor,
    rows_NJ: Tensor,
    columns_NJ: Tensor,
    allowed_NJ: Tensor,
    sampled_J: Tensor,
    allowed_columns_NJ: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Own scores (N,) and wrong ones (N, J) in units of the spread of the wrong scores of their row and their column.

    Args:
        rows_NJ: scores of each sentence with the sampled images.
        columns_NJ: scores of each image with the sampled sentences.
        allowed_NJ: pairs of different groups.
    """
    row_mean, row_spread = _mean_and_spread(rows_NJ, allowed_NJ)
    columns_allowed = allowed_NJ if allowed_columns_NJ is None else allowed_columns_NJ
    column_mean, column_spread = _mean_and_spread(columns_NJ, columns_allowed)

    def standard(scores: Tensor, column: Tensor) -> Tensor:
        extra = scores.dim() - 1
        mean, spread = (value.reshape(-1, *(1,) * extra) for value in (row_mean, row_spread))
        return ((scores - mean) / spread + (scores - column_mean[column]) / column_spread[column]) / 2

    return standard(own_N, torch.arange(len(own_N))), standard(rows_NJ, sampled_J)


def _mean_and_spread(scores: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of the allowed scores of each row; rows with few of them take those of all rows."""
    number = allowed.sum(dim=1)
    kept = torch.where(allowed, scores, 0.0).double()
    overall = scores[allowed].double()
    mean_of_all = overall.mean() if len(overall) else scores.new_zeros(()).double()
    spread_of_all = overall.std() if len(overall) > 1 else scores.new_ones(()).double()
    mean = torch.where(number > 1, kept.sum(dim=1) / number.clamp(min=1), mean_of_all)
    deviation = torch.where(allowed, (scores.double() - mean[:, None]) ** 2, 0.0).sum(dim=1)
    spread = torch.where(number > 8, (deviation / (number - 1).clamp(min=1)).sqrt(), spread_of_all)
    return mean.float(), spread.clamp(min=1e-6).float()


def _same_identity(bank: FeatureBank, regions_C: Tensor) -> Tensor:
    """(S, C): whether a sampled region is linked to a span of the identity of each span."""
    same = torch.zeros(len(bank.spans), len(regions_C), dtype=torch.bool)
    position = torch.full((len(bank.regions),), -1)
    position[regions_C] = torch.arange(len(regions_C))
    sampled = position[bank.links[:, 1]] >= 0
    for span, region in bank.links[sampled].tolist():
        same[:, position[region]] |= bank.span_identity == bank.span_identity[span]
    return same


def _sample(number: int, wanted: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(number, generator=generator)[:wanted].sort().values


def _thinned(scores: Tensor, seed: int) -> Floats:
    if len(scores) > NULL_SCORES:
        scores = scores[torch.randint(len(scores), (NULL_SCORES,), generator=torch.Generator().manual_seed(seed))]
    return _to_numpy(scores)


def _to_numpy(values: Tensor) -> Floats:
    found: Floats = values.double().numpy()
    return found
