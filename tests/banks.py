"""Feature banks for the tests of evaluation, small enough to work out by hand or random and full of ties."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from spanbox.evaluation.extract import FeatureBank
from spanbox.structures import NAMED_ONLY, SHOWN


def make_bank(
    *,
    text: Tensor | None = None,
    image: Tensor | None = None,
    group: list[int] | None = None,
    wording: list[int] | None = None,
    spans: Tensor | None = None,
    span_pair: tuple[int, ...] = (),
    span_identity: tuple[int, ...] = (),
    span_entity: tuple[int, ...] | None = None,
    span_shown: tuple[int, ...] | None = None,
    regions: Tensor | None = None,
    region_pair: tuple[int, ...] = (),
    region_box: Tensor | None = None,
    links: tuple[tuple[int, int], ...] = (),
    pairs: int = 1,
) -> FeatureBank:
    """A bank of what is given; the rest is empty, and every pair a group and a wording of its own."""
    text = torch.eye(pairs) if text is None else text
    return FeatureBank(
        text=text,
        image=text if image is None else image,
        group=torch.arange(len(text)) if group is None else torch.tensor(group),
        sample=torch.arange(len(text)),
        place=torch.arange(len(text)),
        wording=torch.arange(len(text)) if wording is None else torch.tensor(wording),
        spans=torch.zeros(0, text.shape[1]) if spans is None else spans,
        span_pair=torch.tensor(span_pair, dtype=torch.int64),
        span_identity=torch.tensor(span_identity, dtype=torch.int64),
        span_entity=torch.arange(len(span_pair)) if span_entity is None else torch.tensor(span_entity),
        span_shown=has_link(len(span_pair), links)
        if span_shown is None
        else torch.tensor(span_shown, dtype=torch.int8),
        regions=torch.zeros(0, text.shape[1]) if regions is None else regions,
        region_pair=torch.tensor(region_pair, dtype=torch.int64),
        region_box=strips(len(region_pair)) if region_box is None else region_box,
        links=torch.tensor(links, dtype=torch.int64).reshape(-1, 2),
    )


def has_link(spans: int, links: Iterable[Sequence[int]]) -> Tensor:
    """SHOWN for the spans with a link, NAMED_ONLY for the others."""
    linked = {link[0] for link in links}
    return torch.tensor([SHOWN if span in linked else NAMED_ONLY for span in range(spans)], dtype=torch.int8)


def strips(count: int) -> Tensor:
    """Boxes (count, 4) side by side, of the image's height."""
    edges = torch.arange(count + 1) / max(count, 1)
    return torch.stack([edges[:-1], torch.zeros(count), edges[1:], torch.ones(count)], dim=1)


def random_bank(seed: int, *, pairs: int = 7, features: int = 3) -> FeatureBank:
    """Features of small whole numbers, so that sums are exact and ties frequent; groups, wordings, identities repeat.

    Some pairs have no span, some no region, some spans no link; spans and regions are not in the order of pairs.
    """
    generator = torch.Generator().manual_seed(seed)

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=generator)

    def feature_rows(rows: int) -> Tensor:
        return integers(4, rows, features).float() - 1.5

    span_pair, region_pair = integers(pairs, 2 * pairs), integers(pairs, 3 * pairs)
    corners = integers(5, 3 * pairs, 2, 2).float() / 4  # of a coarse grid: an IoU of one half and no area are common
    linked = (span_pair[:, None] == region_pair) & (integers(2, 2 * pairs, 3 * pairs) == 0)
    return FeatureBank(
        text=feature_rows(pairs),
        image=feature_rows(pairs),
        group=integers(pairs, pairs),
        sample=torch.arange(pairs),
        place=torch.arange(pairs),
        spans=feature_rows(2 * pairs),
        span_pair=span_pair,
        span_identity=integers(pairs, 2 * pairs),
        span_entity=torch.arange(2 * pairs),
        span_shown=has_link(2 * pairs, linked.nonzero().tolist()),
        regions=feature_rows(3 * pairs),
        region_pair=region_pair,
        region_box=torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1),
        links=linked.nonzero(),
        wording=integers(pairs, pairs),
    )
