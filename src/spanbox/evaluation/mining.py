"""Hard negatives of a whole corpus: for each pair the wrong pairs that its features come nearest to.

In a batch drawn at random most negatives are easy. What is found here, once before training or every so many epochs, is
kept as neighbours of each pair (`data/neighbours.py`), and the sampler puts a pair and some of them into one batch.

A search asks with the features of one kind for those of its counterpart: sentences for images, images for sentences,
spans for regions, regions for spans. Its answer is pairs: two pairs are as near as the nearest of their features.
The search is exact, tile by tile, so that memory grows with the corpus and not with its square; its time still does
(`evaluation/approximate.py` is for where that is too long).

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
"""What asks, by the name of the choice."""

TILE_ELEMENTS = 2**22
"""Similarities that are held at a time, 4 bytes each; sorting them takes some more."""

OnSearched = Callable[[int], None]
"""Called with the number of pairs that were asked for so far, each counted once for every kind that asks."""


@dataclass(frozen=True)
class Search:
    """Queries and keys in the order of their pairs, and what each of them names or shows."""

    queries: Tensor  # (Q, D)
    query_pair: Tensor  # (Q,) int64, ascending
    query_identity: Tensor  # (2, E) int64: a query, an identity that it names or shows; queries ascend
    positive: Tensor  # (Q,) similarity of each query to its own positive, the best where it has several
    keys: Tensor  # (N, D)
    key_pair: Tensor  # (N,) int64, ascending
    key_identity: Tensor  # (2, E) int64: a key, an identity that it names or shows; keys ascend

    def to(self, device: torch.device | str) -> "Search":
        return replace(self, **{name: tensor.to(device) for name, tensor in vars(self).items()})


class Nearest(NamedTuple):
    """The nearest wrong pairs of each pair, nearest first."""

    pairs: Tensor  # (P, count) int64, -1 where there are no more
    scores: Tensor  # (P, count), -inf where there are no more


class MeanSimilarity(NamedTuple):
    """How hard what a search found is: the nearer the two, the harder."""

    positive: float  # of the queries to their own positives
    negative: float  # of what was found


class NearestWrong(Protocol):
    """Finds the nearest wrong pairs of each pair: `nearest_wrong` says what the arguments mean."""

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
    """Neighbours of all pairs of a bank, and how hard they are."""

    neighbours: Tensor  # (P, count) int64, hardest first, -1 where there are no more
    similarity: dict[Kind, MeanSimilarity]  # without the kinds that had nothing to ask or found nothing

    @property
    def short(self) -> float:
        """Share of the pairs that have fewer neighbours than asked for."""
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
    """For each pair the `count` wrong pairs that its queries come nearest to, false negatives left out.

    Left out are pairs that share an id (the pair itself, the same image, the same sentence), keys that show what the
    query names, and with a `margin` those that are suspiciously near.

    Args:
        search: on the device where the similarities are computed.
        pair_ids: (P,) int64 each; pairs that share any of these ids are no negatives of each other.
        margin: keys that are nearer than `margin` times the query's own positive are left out, 0.95 in the source
            (TopK-PercPos of Moreira et al., NV-Retriever, 2024). None: all are kept.
        tile_elements: similarities that are held at a time; more only where one pair against one pair has more.
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
    """The hard neighbours of every pair. Several kinds take turns: the nearest of each, then the second of each, ...

    Similarities of different kinds are not compared: words are nearer to boxes than sentences to images, or further.

    Args:
        count: neighbours of a pair, at most.
        by: what asks; pairs without spans or boxes are asked for by the other kinds alone.
        margin: as in `nearest_wrong`.
        device: where the similarities are computed.
        find: what finds the nearest wrong pairs of one kind, `nearest_wrong` or another one of its form.
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
            on_searched=on_searched and partial(_tell, on_searched, turn * len(bank)),
        )
        found.append(nearest.pairs.cpu())
        scores = nearest.scores[nearest.pairs >= 0]
        if len(scores):
            similarity[kind] = MeanSimilarity(float(search.positive.mean()), float(scores.mean()))
    return Mined(take_turns(found), similarity)


def make_search(bank: FeatureBank, kind: Kind) -> Search:
    """What features of this kind ask, and for what. Spans and regions of the bank stand in the order of their pairs.

    Only spans with a region ask, and regions with a span, as in the loss; all are answers.
    """
    if kind in ("spans", "regions"):
        return _fine_search(bank, kind == "spans")
    pair, no_identity = torch.arange(len(bank)), torch.zeros(2, 0, dtype=torch.int64)
    queries, keys = (bank.text, bank.image) if kind == "sentences" else (bank.image, bank.text)
    positive = (bank.text * bank.image).sum(dim=1)
    return Search(queries, pair, no_identity, positive, keys, pair, no_identity)


def take_turns(found: Sequence[Tensor]) -> Tensor:
    """Several lists of neighbours (P, count), -1 where there are no more, as one of the same shape.

    The first of each list, then the second of each, and so on; each neighbour once.
    """
    count = found[0].shape[1]
    turns = torch.stack(list(found), dim=2).flatten(1)
    # A stable sort puts equal neighbours side by side, the first of them before the others.
    ascending, order = turns.sort(dim=1, stable=True)
    again = torch.zeros_like(turns, dtype=torch.bool)
    again.scatter_(1, order[:, 1:], ascending[:, 1:] == ascending[:, :-1])
    turns = turns.masked_fill(again, -1)
    to_front = (turns < 0).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
    return turns.gather(1, to_front)


def _tell(on_searched: OnSearched, before: int, done: int) -> None:
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


def _fine_search(bank: FeatureBank, spans_ask: bool) -> Search:
    linked_span, linked_region = bank.links.T.contiguous()
    linked_identity = bank.span_identity[linked_span]
    similarity = (bank.spans[linked_span] * bank.regions[linked_region]).sum(dim=1)
    shown = _entries(linked_region, linked_identity)
    named = _entries(torch.arange(len(bank.spans)), bank.span_identity)
    sides = [(bank.spans, bank.span_pair, named), (bank.regions, bank.region_pair, shown)]
    (queries, query_pair, _), (keys, key_pair, key_identity) = sides if spans_ask else reversed(sides)
    linked_query = linked_span if spans_ask else linked_region
    asks = linked_query.bincount().nonzero()[:, 0]
    query_of_link = torch.searchsorted(asks, linked_query)
    positive = torch.full((len(asks),), -torch.inf, dtype=similarity.dtype)
    positive.scatter_reduce_(0, query_of_link, similarity, "amax")
    query_identity = _entries(query_of_link, linked_identity)
    return Search(queries[asks], query_pair[asks], query_identity, positive, keys, key_pair, key_identity)


def _entries(item: Tensor, identity: Tensor) -> Tensor:
    """(2, E): items, ascending, and an identity of each."""
    return torch.stack([item, identity])[:, item.argsort(stable=True)]


def _nearest_of_rows(
    search: Search, pair_ids: Sequence[Tensor], rows: slice, tiles: Sequence[slice], count: int, margin: float | None
) -> Nearest:
    """The nearest wrong pairs of the pairs of `rows`: the best so far against the pairs of one tile after another."""
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
    """(R, C): the best similarity of a row's queries to a column's keys; -inf where none counts."""
    queries, queries_of_pair = _items_of(search.query_pair, rows, pairs)
    keys, keys_of_pair = _items_of(search.key_pair, columns, pairs)
    scores_QN = search.queries[queries] @ search.keys[keys].T
    torch.nan_to_num_(scores_QN, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    scores_QN[_same_identity(search, queries, keys)] = -torch.inf
    if margin is not None:
        scores_QN.masked_fill_(scores_QN > margin * search.positive[queries, None], -torch.inf)
    scores_RN = _best_of_segments(scores_QN, queries_of_pair)
    return _best_of_segments(scores_RN.T, keys_of_pair).T.contiguous()


def _items_of(pair: Tensor, wanted: slice, pairs: int) -> tuple[slice, Tensor]:
    """Which items, whose pairs ascend, belong to the wanted pairs, and how many of them to each."""
    edges = torch.arange(wanted.start, min(wanted.stop, pairs) + 1, device=pair.device)
    starts = torch.searchsorted(pair, edges)
    return slice(int(starts[0]), int(starts[-1])), starts.diff()


def _same_identity(search: Search, queries: slice, keys: slice) -> tuple[Tensor, Tensor]:
    """Rows and columns, within the tile, where the query names what the key shows."""
    queries_named, keys_shown = _within(search.query_identity, queries), _within(search.key_identity, keys)
    entry, key = Index(keys_shown[1], keys_shown[0]).places(queries_named[1])
    return queries_named[0, entry] - queries.start, key - keys.start


def _within(entries: Tensor, items: slice) -> Tensor:
    """The entries (2, E) of these items."""
    edges = torch.tensor([items.start, items.stop], device=entries.device)
    start, stop = torch.searchsorted(entries[0], edges).tolist()
    return entries[:, start:stop]


def _best_of_segments(scores: Tensor, lengths: Tensor) -> Tensor:
    """The largest of each of consecutive groups of rows; -inf for a group of none."""
    if bool((lengths == 1).all()):
        return scores
    return torch.segment_reduce(scores.contiguous(), "max", lengths=lengths, axis=0, initial=-torch.inf)


def _most_of_a_pair(pair: Tensor) -> int:
    return int(pair.bincount().max()) if len(pair) else 1
