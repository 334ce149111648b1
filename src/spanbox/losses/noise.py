"""Leaves links that are probably wrong out of the fine level while training, by the size of their losses.

Networks fit the majority of the data before they fit single wrong labels, so that after a warm-up the links with
the largest losses are wrong more often than others. A link is kept if both levels agree on it: neither its own loss nor
that of its pair is among the largest of the batch. Off by default.

Source: Han et al., Co-teaching, 2018, section 3 (small-loss instances); here one model and two levels.

    B pairs    K spans per sentence    R regions per image
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from spanbox.losses.kernel import log_mass
from spanbox.losses.relations import WHOLE, BlockRelation, linked_regions, sentence_image_relation, span_region_relation
from spanbox.settings import Settings
from spanbox.structures import Features, Targets

PAIRS_AT_ONCE = 64


class NoiseSettings(Settings):
    kind: Literal["none", "small_loss"] = Field(
        "none", description="small_loss: leave out links with the largest losses of the batch"
    )
    share: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="share of the links with the largest losses that each level leaves out after the warm-up",
    )
    warm_up: float = Field(0.3, ge=0, lt=1, description="share of the run over which the left-out share grows from 0")


def with_agreed_links(
    features: Features, targets: Targets, settings: NoiseSettings, scales: dict[str, Tensor], done: float
) -> Targets:
    """The targets in which links that the levels do not agree on have the relevance 0.

    Depends on the features and targets of the whole batch alone, so that chunks and ranks come to the same.

    Args:
        features, targets: of all pairs, also those of other ranks.
        scales: 1 / temperature of `coarse` and `fine`.
        done: finished share of the run; the share left out grows from 0 to `share` during the warm-up.
    """
    share = settings.share * (min(1.0, done / settings.warm_up) if settings.warm_up else 1.0)
    linked = linked_regions(targets)
    if targets.link_relevance is not None:
        linked &= targets.link_relevance > 0
    if settings.kind == "none" or not share or not linked.any():
        return targets
    with torch.no_grad():
        links = link_losses(features, targets, scales["fine"])
        pairs = pair_losses(features, targets, scales["coarse"])
        of_pairs = pairs[:, None, None].expand_as(links)
        agreed = linked & _below(links, linked, share) & _below(of_pairs, linked, share)
        relevance = linked.to(links.dtype) if targets.link_relevance is None else targets.link_relevance
        return replace(targets, link_relevance=torch.where(agreed | ~linked, relevance, 0.0))


def link_losses(features: Features, targets: Targets, scale: Tensor) -> Tensor:
    """(B, K, R): InfoNCE of each link alone, of its span against the negatives of the span; 0 without a link."""
    linked = linked_regions(targets)
    losses = features.spans.new_zeros(linked.shape)

    keys = features.regions.flatten(0, 1)
    for rows, mass in _negative_masses(features.spans, keys, partial(span_region_relation, targets), scale):
        own = scale * features.spans[rows] @ features.regions[rows].mT  # (b, K, R)
        mass = mass.reshape(own.shape[:2])[:, :, None]
        losses[rows] = torch.where(linked[rows], -F.logsigmoid(own - mass), 0.0)
    return losses


def pair_losses(features: Features, targets: Targets, scale: Tensor) -> Tensor:
    """(B,): InfoNCE of each sentence with its own image against the negatives of the sentence."""

    losses = []
    relation = partial(sentence_image_relation, targets)
    for rows, mass in _negative_masses(features.text[:, None], features.image, relation, scale):
        own = scale * (features.text[rows] * features.image[rows]).sum(dim=1)
        losses.append(-F.logsigmoid(own - mass))
    return torch.cat(losses)


def _negative_masses(
    queries: Tensor, keys: Tensor, relation: BlockRelation, scale: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of pairs, with the mass (b * K,) of the negatives of each query (B, K, D) among all keys (m, D)."""
    for start in range(0, len(queries), PAIRS_AT_ONCE):
        rows = slice(start, min(start + PAIRS_AT_ONCE, len(queries)))
        logits = scale * queries[rows].flatten(0, 1) @ keys.T
        yield rows, log_mass(logits, relation(rows, WHOLE).negatives)


def _below(losses: Tensor, linked: Tensor, share: float) -> Tensor:
    """Mask of the losses up to the quantile `1 - share` of the losses of the links."""
    return losses <= torch.quantile(losses[linked].double(), 1 - share)
