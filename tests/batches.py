"""Batches for the tests of the losses: ids and links are what counts, the rest is filled with zeros."""

from dataclasses import replace

import torch
from torch import Tensor

from spanbox.losses.objective import Objective
from spanbox.structures import PADDING_ID, Batch, Features


def batch_of(
    *,
    span_identity: Tensor,
    region_valid: Tensor,
    links: Tensor,
    group: Tensor,
    wording: Tensor | None = None,
    boxes: Tensor | None = None,
    view_sentence: Tensor | None = None,
    view_spans: Tensor | None = None,
) -> Batch:
    """A batch with these ids and links. Shapes as in `Batch`; by default all sentences differ and no boxes overlap."""
    pairs, spans, regions = links.shape
    return Batch(
        pixels=torch.zeros(pairs, 3, 1, 1, dtype=torch.uint8),
        token_ids=torch.zeros(pairs, 1, dtype=torch.int64),
        token_mask=torch.ones(pairs, 1, dtype=torch.bool),
        span_tokens=torch.ones(pairs, spans, 1, dtype=torch.bool),
        span_entity=torch.arange(spans).where(span_identity != PADDING_ID, PADDING_ID),
        span_shown=links.any(dim=2).to(torch.int8),
        place=torch.arange(pairs),
        span_identity=span_identity,
        regions=torch.zeros(pairs, regions, 4) if boxes is None else boxes,
        region_valid=region_valid,
        links=links,
        group=group,
        sample=torch.arange(pairs),
        wording=torch.arange(pairs) if wording is None else wording,
        view_sentence=view_sentence,
        view_spans=view_spans,
    )


def make_batch(
    identities: list[list[int]],
    regions: list[int],
    links: list[tuple[int, int, int]],
    group: list[int] | None = None,
) -> Batch:
    """A batch padded to its longest lists.

    Args:
        identities: identity of each span of each pair.
        regions: how many regions each pair has.
        links: (pair, span, region).
        group: of each pair; by default every pair shows an image of its own.
    """
    pairs, most_spans, most_regions = len(identities), max(map(len, identities)), max(regions)
    link_mask = torch.zeros(pairs, most_spans, most_regions, dtype=torch.bool)
    for link in links:
        link_mask[link] = True
    padded = [row + [PADDING_ID] * (most_spans - len(row)) for row in identities]
    return batch_of(
        span_identity=torch.tensor(padded, dtype=torch.int64),
        region_valid=torch.arange(most_regions) < torch.tensor(regions)[:, None],
        links=link_mask,
        group=torch.tensor(group) if group else torch.arange(pairs),
    )


def random_batch(
    seed: int,
    *,
    pairs: int | None = None,
    spans: int | None = None,
    regions: int | None = None,
    views: int | None = None,
) -> Batch:
    """Few groups, wordings and identities, so that they repeat; boxes that overlap; padding anywhere; links of padding
    too, and views of what has no region, which must not count. Without views unless their number is given."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    pairs = int(draw(1, 6)) if pairs is None else pairs
    spans = int(draw(0, 4)) if spans is None else spans
    regions = int(draw(0, 4)) if regions is None else regions
    identity = draw(0, 4, pairs, spans)
    region_valid = draw(0, 4, pairs, regions) > 0
    links = draw(0, 3, pairs, spans, regions) == 0
    group = draw(0, 3, pairs)
    corners = draw(0, 5, pairs, regions, 2, 2) / 4  # of a coarse grid, where an overlap of exactly one half is common
    return batch_of(
        span_identity=torch.where(identity == 0, PADDING_ID, identity),
        region_valid=region_valid,
        links=links,
        group=group,
        boxes=torch.cat([corners.amin(dim=2), corners.amax(dim=2)], dim=2),
        wording=draw(0, 4, pairs),
        view_sentence=None if views is None else draw(-1, 2, pairs, views).to(torch.int8),
        view_spans=None if views is None else draw(-1, 2, pairs, views, spans).to(torch.int8),
    )


def with_relevance(batch: Batch, seed: int = 0) -> Batch:
    """The batch with random relevance of its pairs and links, of which some are 0."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randint(0, 5, shape, generator=generator) / 4

    return replace(batch, relevance=draw(len(batch)), link_relevance=draw(*batch.links.shape))


def assert_all_gradients_are_finite(objective: Objective, features: Features, batch: Batch) -> None:
    """The loss is finite, and every learned parameter and feature has a finite gradient."""
    losses = objective(features, batch)
    losses.total.backward()
    assert losses.total.isfinite()
    for tensor in (*objective.parameters(), *features.tensors()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
