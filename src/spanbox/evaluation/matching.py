"""Entity-object matching: does a span find the region that shows it?

Measured twice: among the regions of its own image, as in grounding, and among those of the whole set, as in search.
Queries are the spans with a linked region. Rules of ranking and ties: `ranking`.

Suffixes of names:  Q queries    S spans    M regions of the set    R regions of one pair, padded    D features
"""

from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor

from spanbox.evaluation.extract import FeatureBank
from spanbox.evaluation.outcomes import Outcome, ranking_outcomes
from spanbox.evaluation.own_image import OwnImage, found_within
from spanbox.evaluation.ranking import BLOCK_ELEMENTS, Index, Places, Relevance, rank_in_blocks
from spanbox.geometry import box_area
from spanbox.metric_names import SIZES, WITHIN
from spanbox.progress import StartProgress, hidden

ACROSS = "matching.across_set"

CANDIDATES = {"2": (2, 2), "3-5": (3, 5), "6+": (6, 2**31)}
"""Number of regions in the image: from, to. A single one cannot be missed."""


def within_image_outcomes(
    own: OwnImage, entity_types: Sequence[str | None] | None = None, ambiguous: Tensor | None = None
) -> dict[str, Outcome]:
    """Whether linked spans find a region that shows them among the regions of their own pair.

    Keys: `matching.within_image` (R@1), `.r5` and, of the R@1 of some of the spans, `.hard` (those that can go wrong:
    not every region of the image is right), `.type.T`, `.size.S`, `.candidates.C` and, where some are ambiguous,
    `.links.ambiguous` (any of their boxes is right) and `.links.certain`.

    Args:
        entity_types: (S,) type of each span of the bank; None where it is unknown.
        ambiguous: (S,) bool, spans for which it is unknown which of several boxes is meant.
    """
    queries = own.of_spans(own.has_box_S)
    first = found_within(queries, queries.linked_SR, 1)
    outcomes = {WITHIN: first, f"{WITHIN}.r5": found_within(queries, queries.linked_SR, 5)}
    groups = [iter([("hard", _can_go_wrong(queries))]), _by_size(queries), _by_candidates(queries)]
    if entity_types is not None:
        groups.append(_by_type([entity_types[span] for span in own.has_box_S.nonzero()[:, 0].tolist()]))
    if ambiguous is not None:
        groups.append(_by_ambiguity(ambiguous[own.has_box_S]))
    return outcomes | {f"{WITHIN}.{name}": first.of_queries(chosen) for name, chosen in chain(*groups)}


def within_image_facts(own: OwnImage) -> dict[str, float]:
    """Difficulty of the task on this data: `.mean_candidates` of a linked span, and `.trivial`, the share of the spans
    whose candidates are all right."""
    queries = own.of_spans(own.has_box_S)
    return {
        f"{WITHIN}.mean_candidates": float(queries.candidates_SR.sum(dim=1).double().mean()),
        f"{WITHIN}.trivial": float((~_can_go_wrong(queries)).double().mean()),
    }


def across_set_outcomes(
    bank: FeatureBank,
    *,
    device: torch.device | str = "cpu",
    block_elements: int = BLOCK_ELEMENTS,
    progress: StartProgress = hidden,
) -> dict[str, Outcome]:
    """Ranks of the right regions among all regions of the set, for each linked span.

    Right are the regions linked to any span of the same identity, its own among them. Regions that other pairs of the
    same group repeat take no part: the same box of the same image, under a caption that calls it by another name, would
    tie with the right one.
    Keys under `matching.across_set`: `.r1 .r5 .r10 .median_rank .mean_rank .map`. The baseline of `.r1` answers every
    span with the region that is right most often.
    """
    query_Q = bank.links[:, 0].bincount().nonzero()[:, 0]
    shown = torch.unique(torch.stack([bank.span_identity[bank.links[:, 0]], bank.links[:, 1]]), dim=1).contiguous()
    relevance = _same_identity(bank, query_Q, shown, device)
    ranking = rank_in_blocks(
        bank.spans[query_Q],
        bank.regions,
        relevance,
        device=device,
        block_elements=block_elements,
        progress=progress,
        label="entity to object",
    )
    image_Q = bank.group[bank.span_pair[query_Q]]
    return ranking_outcomes(ACROSS, ranking, image_Q, {1: _most_frequent(bank.span_identity[query_Q], shown)})


def _can_go_wrong(own: OwnImage) -> Tensor:
    return (own.candidates_SR & ~own.linked_SR).any(dim=1)


def _by_size(own: OwnImage) -> Iterator[tuple[str, Tensor]]:
    """By the largest box of an entity."""
    area_S = box_area(own.boxes_SR4).masked_fill(~own.linked_SR, 0.0).amax(dim=1)
    for name, (low, high) in SIZES.items():
        yield f"size.{name}", (area_S >= low) & (area_S < high)


def _by_candidates(own: OwnImage) -> Iterator[tuple[str, Tensor]]:
    count_S = own.candidates_SR.sum(dim=1)
    for name, (low, high) in CANDIDATES.items():
        yield f"candidates.{name}", (count_S >= low) & (count_S <= high)


def _by_type(types: Sequence[str | None]) -> Iterator[tuple[str, Tensor]]:
    """One mask at a time: there may be thousands of types."""
    number_of = {name: number for number, name in enumerate(sorted({name for name in types if name is not None}))}
    type_S = torch.tensor([-1 if name is None else number_of[name] for name in types])
    for name, number in number_of.items():
        yield f"type.{name}", type_S == number


def _by_ambiguity(ambiguous_S: Tensor) -> Iterator[tuple[str, Tensor]]:
    if ambiguous_S.any():
        yield "links.ambiguous", ambiguous_S
        yield "links.certain", ~ambiguous_S


def _same_identity(bank: FeatureBank, query_Q: Tensor, shown: Tensor, device: torch.device | str) -> Relevance:
    """Relevance of regions by identity; `shown` (2, E): distinct identities, each with a region that shows it."""
    pair_Q, pair_M = bank.span_pair[query_Q].to(device), bank.region_pair.to(device)
    identity_Q, group = bank.span_identity[query_Q].to(device), bank.group.to(device)
    of_identity, of_group = Index(*shown.to(device)), Index(group[pair_M])

    def relevance(rows: slice) -> tuple[Places, Places]:
        right = of_identity.places(identity_Q[rows])
        same_image = of_group.places(group[pair_Q[rows]])
        repeated = pair_Q[rows][same_image.row] != pair_M[same_image.column]
        repeated &= ~torch.isin(_flat(same_image, len(pair_M)), _flat(right, len(pair_M)))
        return right, Places(same_image.row[repeated], same_image.column[repeated])

    return relevance


def _flat(places: Places, width: int) -> Tensor:
    return places.row * width + places.column


def _most_frequent(identity_Q: Tensor, shown: Tensor) -> Tensor:
    """Mask (Q,) of the queries for which the region that is right most often is right."""
    identities, count = torch.unique(identity_Q, return_counts=True)
    queries_E = count[torch.searchsorted(identities, shown[0])]
    region = shown[1].bincount(weights=queries_E.double()).argmax()
    return torch.isin(identity_Q, shown[0, shown[1] == region])
