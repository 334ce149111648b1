"""Hard-negative mining: for each pair, the most similar wrong pairs of the whole data set.

Most negatives of a random batch are easy. Mining runs once before training or every few epochs; the neighbours of each
pair are stored (`data/neighbours.py`), and the sampler puts a pair and some of its neighbours into one batch.

Features of one kind are the queries for those of another: sentences for images, images for sentences, spans for
regions, regions for spans. The similarity of two pairs is the largest of their features. The search is exact and runs
in tiles, so memory grows linearly with the data set; its time grows with the square (see `evaluation/approximate.py`).

Suffixes of shapes:  P pairs    R pairs of a tile's rows    C pairs of its columns    Q queries    N keys    D features
                    E entries of items and identities
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from spanbox.data.neighbours import By
from spanbox.evaluation.extract import FeatureBank
from spanbox.evaluation.ranking import Index, blocks

Kind = Literal["sentences", "images", "spans", "regions"]

KINDS: Mapping[By, tuple[Kind, ...]] = {
    "sentences": ("sentences",),
    "images": ("images",),
    "spans": ("spans",),
    "regions": ("regions",),
    "coarse": ("sentences", "images"),
    "fine": ("spans", "regions"),
    "both": ("sentences", "images", "spans", "regions"),
}
"""Kinds of features that are queries, by the value of `by`."""

TILE_ELEMENTS = 2**22
"""Similarities in memory at a time, 4 bytes each, without the memory for sorting."""

OnSearched = Callable[[int], None]
"""Called with the number of pairs searched so far, counted once per kind of query."""


@dataclass(frozen=True)
class Search:
    """Queries and keys in the order of their pairs, with the identities of each."""

    queries: Tensor  # (Q, D)
    query_pair: Tensor  # (Q,) int64, ascending
    query_identity: Tensor  # (2, E) int64: query and identity; queries ascend
    positive: Tensor  # (Q,) similarity of each query with its best positive
    keys: Tensor  # (N, D)
    key_pair: Tensor  # (N,) int64, ascending
    key_identity: Tensor  # (2, E) int64: key and identity; keys ascend

    def to(self, device: torch.device | str) -> "Search":
        return replace(self, **{name: tensor.to(device) for name, tensor in vars(self).items()})

    def highest_wrong(self, margin: float) -> Tensor:
        """The similarity (Q,) above which a key may be right: `margin` times that of the query's positive.

        Infinite where that is not above 0: an untrained positive is not a usable reference, as in `likely_positives`.
        """
        return torch.where(self.positive > 0, margin * self.positive, torch.inf)


class Nearest(NamedTuple):
    """The nearest wrong pairs of each pair, nearest first."""

    pairs: Tensor  # (P, count) int64, -1 for none
    scores: Tensor  # (P, count), -inf for none


class MeanSimilarity(NamedTuple):
    """Mean similarities of a search; the closer the two, the harder the negatives."""

    positive: float  # of the queries with their own positives
    negative: float  # of the queries with the pairs found


class NearestWrong(Protocol):
    """Interface of the searches; arguments as for `nearest_wrong`."""

    def __call__(
        self,
        search: Search,
        pair_ids: Sequence[Tensor],
        *,
        count: int,
        margin: float | None,
        on_searched: OnSearched | None,
    ) -> Nearest: ...


@dataclass(frozen=True)
class Mined:
    """Neighbours of all pairs of a bank, with their mean similarities."""

    neighbours: Tensor  # (P, count) int64, hardest first, -1 for none
    similarity: dict[Kind, MeanSimilarity]  # only kinds with queries and results

    @property
    def short(self) -> float:
        """Share of the pairs with fewer neighbours than requested."""
        return float((self.neighbours < 0).any(dim=1).double().mean())


def nearest_wrong(
    search: Search,
    pair_ids: Sequence[Tensor],
    *,
    count: int,
    margin: float | None = None,
    tile_elements: int = TILE_ELEMENTS,
    on_searched: OnSearched | None = None,
) -> Nearest:
    """For each pair, the `count` most similar wrong pairs, without false negatives.

    Skipped are pairs that share an id (the pair itself, the same image, the same sentence), keys with an identity of
    the query, and with `margin` keys that are nearly as similar as the positive.

    Args:
        search: on the device that computes the similarities.
        pair_ids: (P,) int64 each; pairs that share any of these ids are not negatives of each other.
        margin: skip keys above this fraction of the positive's similarity, if that is above 0; 0.95 in the source
            (TopK-PercPos of Moreira et al., NV-Retriever, 2024). None: keep all.
        tile_elements: similarities in memory at a time; exceeded only if two single pairs have more.
    """
    pairs = len(pair_ids[0])
    nearest = []
    side = int(tile_elements**0.5)
    tiles = list(blocks(pairs, _most_of_a_pair(search.key_pair), side))
    for rows in blocks(pairs, _most_of_a_pair(search.query_pair), side):
        nearest.append(_nearest_of_rows(search, pair_ids, rows, tiles, count, margin))
        if on_searched:
            on_searched(min(rows.stop, pairs))
    return Nearest(torch.cat([part.pairs for part in nearest]), torch.cat([part.scores for part in nearest]))


def mine_neighbours(
    bank: FeatureBank,
    *,
    count: int,
    by: By = "both",
    margin: float | None = None,
    device: torch.device | str = "cpu",
    find: NearestWrong = nearest_wrong,
    on_searched: OnSearched | None = None,
) -> Mined:
    """The hard neighbours of every pair. Several kinds alternate: the nearest of each, then the second of each, ...

    Similarities of different kinds are not compared, because their scales differ.

    Args:
        count: maximum number of neighbours per pair.
        by: kinds of features that are queries; pairs without spans or boxes use the other kinds only.
        margin: as in `nearest_wrong`.
        device: computes the similarities.
        find: search for one kind, such as `nearest_wrong`.
    """
    bank = _in_order_of_pairs(bank)
    pair_ids = (bank.group.to(device), bank.wording.to(device))
    found: list[Tensor] = []
    similarity: dict[Kind, MeanSimilarity] = {}
    for turn, kind in enumerate(KINDS[by]):
        search = make_search(bank, kind).to(device)
        nearest = find(
            search,
            pair_ids,
            count=count,
            margin=margin,
            on_searched=on_searched and partial(_report, on_searched, turn * len(bank)),
        )
        found.append(nearest.pairs.cpu())
        scores = nearest.scores[nearest.pairs >= 0]
        if len(scores):
            similarity[kind] = MeanSimilarity(float(search.positive.mean()), float(scores.mean()))
    return Mined(interleave(found), similarity)


def make_search(bank: FeatureBank, kind: Kind) -> Search:
    """Queries of this kind and their keys. Spans and regions of the bank must be in the order of their pairs.

    Queries are only spans with a region and regions with a span, as in the loss; keys are all.
    """
    if kind in ("spans", "regions"):
        return _fine_search(bank, kind == "spans")
    pair, no_identity = torch.arange(len(bank)), torch.zeros(2, 0, dtype=torch.int64)
    queries, keys = (bank.text, bank.image) if kind == "sentences" else (bank.image, bank.text)
    positive = (bank.text * bank.image).sum(dim=1)
    return Search(queries, pair, no_identity, positive, keys, pair, no_identity)


def interleave(found: Sequence[Tensor]) -> Tensor:
    """Merge lists of neighbours (P, count), -1 for none, into one list of the same shape.

    The first of each list, then the second of each, and so on, without repetitions.
    """
    count = found[0].shape[1]
    merged = torch.stack(list(found), dim=2).flatten(1)
    # A stable sort makes equal neighbours adjacent, in their original order.
    ascending, order = merged.sort(dim=1, stable=True)
    repeated = torch.zeros_like(merged, dtype=torch.bool)
    repeated.scatter_(1, order[:, 1:], ascending[:, 1:] == ascending[:, :-1])
    merged = merged.masked_fill(repeated, -1)
    order_of_kept = (merged < 0).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
    return merged.gather(1, order_of_kept)


def _report(on_searched: OnSearched, before: int, done: int) -> None:
    on_searched(before + done)


def _in_order_of_pairs(bank: FeatureBank) -> FeatureBank:
    """The bank with its spans and regions sorted by pair."""
    spans, regions = bank.span_pair.argsort(stable=True), bank.region_pair.argsort(stable=True)
    new_span, new_region = torch.empty_like(spans), torch.empty_like(regions)
    new_span[spans] = torch.arange(len(spans))
    new_region[regions] = torch.arange(len(regions))
    return replace(
        bank,
        spans=bank.spans[spans],
        span_pair=bank.span_pair[spans],
        span_identity=bank.span_identity[spans],
        regions=bank.regions[regions],
        region_pair=bank.region_pair[regions],
        links=torch.stack([new_span[bank.links[:, 0]], new_region[bank.links[:, 1]]], dim=1),
    )


def _fine_search(bank: FeatureBank, spans_are_queries: bool) -> Search:
    linked_span, linked_region = bank.links.T.contiguous()
    linked_identity = bank.span_identity[linked_span]
    similarity = (bank.spans[linked_span] * bank.regions[linked_region]).sum(dim=1)
    shown = _entries(linked_region, linked_identity)
    named = _entries(torch.arange(len(bank.spans)), bank.span_identity)
    sides = [(bank.spans, bank.span_pair, named), (bank.regions, bank.region_pair, shown)]
    (queries, query_pair, _), (keys, key_pair, key_identity) = sides if spans_are_queries else reversed(sides)
    linked_query = linked_span if spans_are_queries else linked_region
    anchors = linked_query.bincount().nonzero()[:, 0]
    query_of_link = torch.searchsorted(anchors, linked_query)
    positive = torch.full((len(anchors),), -torch.inf, dtype=similarity.dtype)
    positive.scatter_reduce_(0, query_of_link, similarity, "amax")
    query_identity = _entries(query_of_link, linked_identity)
    return Search(queries[anchors], query_pair[anchors], query_identity, positive, keys, key_pair, key_identity)


def _entries(item: Tensor, identity: Tensor) -> Tensor:
    """(2, E): items, ascending, and an identity of each."""
    return torch.stack([item, identity])[:, item.argsort(stable=True)]


def _nearest_of_rows(
    search: Search, pair_ids: Sequence[Tensor], rows: slice, tiles: Sequence[slice], count: int, margin: float | None
) -> Nearest:
    """The nearest wrong pairs of the pairs in `rows`: a running top-k over the tiles."""
    height, pairs = len(pair_ids[0][rows]), len(pair_ids[0])
    device = search.queries.device
    best = Nearest(
        torch.full((height, count), -1, device=device),
        torch.full((height, count), -torch.inf, dtype=search.queries.dtype, device=device),
    )
    for columns in tiles:
        scores_RC = _score_pairs(search, rows, columns, pairs, margin)
        for ids in pair_ids:
            scores_RC.masked_fill_(ids[rows, None] == ids[None, columns], -torch.inf)
        tile_scores, place = scores_RC.topk(min(count, scores_RC.shape[1]))
        scores, kept = torch.cat([best.scores, tile_scores], dim=1).topk(count)
        best = Nearest(torch.cat([best.pairs, columns.start + place], dim=1).gather(1, kept), scores)
    return best._replace(pairs=best.pairs.masked_fill(best.scores == -torch.inf, -1))


def _score_pairs(search: Search, rows: slice, columns: slice, pairs: int, margin: float | None) -> Tensor:
    """(R, C): largest similarity of the queries of a row with the keys of a column; -inf if all are skipped."""
    queries, queries_of_pair = _items_of(search.query_pair, rows, pairs)
    keys, keys_of_pair = _items_of(search.key_pair, columns, pairs)
    scores_QN = search.queries[queries] @ search.keys[keys].T
    torch.nan_to_num_(scores_QN, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    scores_QN[_same_identity(search, queries, keys)] = -torch.inf
    if margin is not None:
        scores_QN.masked_fill_(scores_QN > search.highest_wrong(margin)[queries, None], -torch.inf)
    scores_RN = _best_of_segments(scores_QN, queries_of_pair)
    return _best_of_segments(scores_RN.T, keys_of_pair).T.contiguous()


def _items_of(pair: Tensor, wanted: slice, pairs: int) -> tuple[slice, Tensor]:
    """The items of the wanted pairs, as a slice, and their number per pair; `pair` ascends."""
    edges = torch.arange(wanted.start, min(wanted.stop, pairs) + 1, device=pair.device)
    starts = torch.searchsorted(pair, edges)
    return slice(int(starts[0]), int(starts[-1])), starts.diff()


def _same_identity(search: Search, queries: slice, keys: slice) -> tuple[Tensor, Tensor]:
    """Rows and columns, within the tile, where query and key share an identity."""
    queries_named, keys_shown = _within(search.query_identity, queries), _within(search.key_identity, keys)
    entry, key = Index(keys_shown[1], keys_shown[0]).places(queries_named[1])
    return queries_named[0, entry] - queries.start, key - keys.start


def _within(entries: Tensor, items: slice) -> Tensor:
    """The entries (2, E) of these items."""
    edges = torch.tensor([items.start, items.stop], device=entries.device)
    start, stop = torch.searchsorted(entries[0], edges).tolist()
    return entries[:, start:stop]


def _best_of_segments(scores: Tensor, lengths: Tensor) -> Tensor:
    """Maximum over consecutive groups of rows; -inf for an empty group."""
    if bool((lengths == 1).all()):
        return scores
    return torch.segment_reduce(scores.contiguous(), "max", lengths=lengths, axis=0, initial=-torch.inf)


def _most_of_a_pair(pair: Tensor) -> int:
    return int(pair.bincount().max()) if len(pair) else 1
