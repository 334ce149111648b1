"""Scores of each span with the regions of its own image, the basis of all metrics within an image.

Suffixes of names:  S spans    M regions of the set    R regions of one pair, padded
"""

from typing import NamedTuple

import torch
from torch import Tensor

from spanbox.evaluation.extract import FeatureBank
from spanbox.evaluation.outcomes import Outcome
from spanbox.evaluation.ranking import blocks, chance_within, nan_last, ranks
from spanbox.geometry import box_area
from spanbox.structures import place_in_row

FEATURES_AT_ONCE = 2**24
"""Numbers gathered at a time, 8 bytes each."""


class OwnImage(NamedTuple):
    """Spans and the regions of their own pairs."""

    scores_SR: Tensor  # float32
    candidates_SR: Tensor  # bool, False on padding
    linked_SR: Tensor  # bool
    boxes_SR4: Tensor  # float32, normalised; 0 on padding
    image_S: Tensor  # int64, hash of the span's image

    @property
    def has_box_S(self) -> Tensor:
        """Mask of the spans with a linked region."""
        return self.linked_SR.any(dim=1)

    @property
    def ranked_SR(self) -> Tensor:
        """The scores that the best region is chosen by: -inf where they are NaN, and on padding."""
        return nan_last(self.scores_SR).masked_fill(~self.candidates_SR, -torch.inf)

    def of_spans(self, chosen_S: Tensor) -> "OwnImage":
        """Select spans by a mask."""
        return OwnImage(*(tensor[chosen_S] for tensor in self))


def score_own_image(bank: FeatureBank) -> OwnImage:
    """Scores of every span with the regions of its own pair."""
    slot_M, regions_of_pair = regions_by_pair(bank)
    own_SR = regions_of_pair[bank.span_pair]
    linked_SR = torch.zeros(own_SR.shape, dtype=torch.bool)
    linked_SR[bank.links[:, 0], slot_M[bank.links[:, 1]]] = True
    scores_SR = torch.zeros(own_SR.shape)
    for rows in blocks(len(own_SR), own_SR.shape[1] * bank.spans.shape[1], FEATURES_AT_ONCE):
        spans_S1D, regions_SRD = bank.spans[rows, None].double(), bank.regions[own_SR[rows]].double()
        scores_SR[rows] = (spans_S1D @ regions_SRD.mT)[:, 0].float()
    candidates_SR = own_SR >= 0
    boxes_SR4 = bank.region_box[own_SR].masked_fill(~candidates_SR[..., None], 0.0)
    return OwnImage(scores_SR, candidates_SR, linked_SR, boxes_SR4, bank.group[bank.span_pair])


def found_within(own: OwnImage, right_SR: Tensor, depth: int) -> Outcome:
    """Whether a right region is among the first `depth` of the image, for each span. Each span needs one.

    The baseline ranks boxes by area. Ties count against both.
    """
    found, found_by_area = (
        ranks(scores_SR, right_SR, own.candidates_SR) <= depth for scores_SR in (own.scores_SR, box_area(own.boxes_SR4))
    )
    chance = chance_within(depth, right_SR.sum(dim=1), own.candidates_SR.sum(dim=1))
    return Outcome.of(found, own.image_S, chance, found_by_area)


def regions_by_pair(bank: FeatureBank) -> tuple[Tensor, Tensor]:
    """Index (M,) of each region within its pair, and the regions (pairs, R) of each pair, -1 for padding."""
    count = bank.region_pair.bincount(minlength=len(bank))
    order = bank.region_pair.argsort(stable=True)
    slot_M = torch.empty_like(order)
    slot_M[order] = place_in_row(bank.region_pair[order], count)
    regions_of_pair = torch.full((len(bank), int(count.max())), -1)
    regions_of_pair[bank.region_pair, slot_M] = torch.arange(len(order))
    return slot_M, regions_of_pair
