"""Hard negatives of a corpus that is too large to compare all with all: most of the nearest wrong pairs, much sooner.

The same question and the same form of answer as `nearest_wrong` (`evaluation/mining.py`), whose time grows with the
square of the corpus. Here keys lie in cells around centroids, and a query meets the keys of those cells alone that it
comes nearest to (an inverted file: Sivic and Zisserman, Video Google, 2003; by faiss: Douze et al., The Faiss library,
2024). What it meets is compared exactly; what lies in other cells is missed.

False negatives can only be left out of what was found, so more candidates are asked for than neighbours are wanted, and
many more for a query that finds too few wrong pairs among them.

Suffixes of shapes:  Q queries    N keys    D features    K candidates of a query    E entries
"""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from spanbox.errors import ConfigError
from spanbox.evaluation.mining import Nearest, OnSearched, Search
from spanbox.evaluation.ranking import blocks

FLAT_BELOW = 10_000
"""Keys below which there are no cells: to compare them all takes a second or two."""

CELLS_PER_ROOT = 4
"""Cells for each unit of the root of the number of keys: 4 to 16 in faiss's "Guidelines to choose an index"."""

LEAST_POINTS, MOST_POINTS = 39, 64
"""Keys of a cell that its centroid is learned from: faiss warns below 39, its guidelines ask for 30 to 256."""

PROBES_PER_ROOT = 2
"""Cells that a query meets, for each unit of the root of the number of cells, so that it meets a smaller share of a
larger corpus. Chosen on the features of `benchmarks/mining.py`, which shows what is lost."""

DEPTH = 64
"""Candidates of a query, at least; four for each neighbour that is wanted, where that is more."""

WIDER = 8
"""How many times as many cells and candidates a query gets that has found too few wrong pairs."""

CANDIDATES = 2**21
"""Candidates that are held at a time; each takes some 100 bytes on the way."""


def import_faiss() -> Any:
    """The module faiss, which is optional.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise ConfigError(
            'the approximate search needs faiss, which is not installed: pip install "spanbox[faiss]"; or choose the '
            "exact search"
        ) from None
    return faiss


def nearest_wrong_approximately(
    search: Search,
    pair_ids: Sequence[Tensor],
    *,
    count: int,
    margin: float | None = None,
    probes: int | None = None,
    flat_below: int = FLAT_BELOW,
    on_searched: OnSearched | None = None,
) -> Nearest:
    """For each pair the `count` wrong pairs that its queries come nearest to, among those that they meet.

    It runs on the CPU and holds a copy of the keys. The centroids have a fixed seed, and threads share out queries, so
    that the same is found every time.

    Args:
        search, pair_ids, count, margin, on_searched: as in `nearest_wrong`.
        probes: cells that a query meets; None: by the number of cells (`PROBES_PER_ROOT`). With all of them the answer
            is that of `nearest_wrong`, unless hundreds of the keys nearest to a query are false negatives or belong to
            a few pairs.
        flat_below: fewer keys than this have no cells; a query meets all of them.

    Raises:
        ConfigError: faiss is not installed.
    """
    search, pair_ids = search.to("cpu"), [ids.cpu() for ids in pair_ids]
    candidates = _Candidates(search, pair_ids, margin, flat_below)
    queries, depth = _of_numbers(search.queries), max(DEPTH, 4 * count)
    probes = probes or math.ceil(PROBES_PER_ROOT * math.sqrt(candidates.cells))
    found = candidates.wrong_pairs(queries, count, depth, probes, on_searched)
    if not candidates.are_all(depth, probes):
        short = (found.pairs < 0).any(dim=1)
        again = candidates.wrong_pairs(queries[short], count, WIDER * depth, WIDER * probes)
        found.pairs[short], found.scores[short] = again
    if on_searched:
        on_searched(len(pair_ids[0]))
    return _best_of_rows(search.query_pair[queries], found.pairs, found.scores, len(pair_ids[0]), count)


class _Candidates:
    """The keys that come nearest to a query, and the wrong pairs that they belong to."""

    def __init__(self, search: Search, pair_ids: Sequence[Tensor], margin: float | None, flat_below: int) -> None:
        self._faiss = import_faiss()
        self._search = search
        self._highest = None if margin is None else margin * search.positive
        named = _columns(search.query_identity, len(search.queries), absent=-1)
        shown = _columns(search.key_identity, len(search.keys), absent=-2)
        self._ids = [(ids[search.query_pair], ids[search.key_pair]) for ids in pair_ids]  # of queries, of keys
        self._ids += product(named, shown)
        self._keys = _of_numbers(search.keys)
        self.cells = _cell_count(len(self._keys), flat_below)
        self._index = self._make_index(_array(search.keys[self._keys]))

    def are_all(self, depth: int, probes: int) -> bool:
        """Whether so many candidates from so many cells are all the keys there are."""
        return depth >= len(self._keys) and probes >= self.cells

    def wrong_pairs(
        self, queries: Tensor, count: int, depth: int, probes: int, on_searched: OnSearched | None = None
    ) -> Nearest:
        """The `count` nearest wrong pairs of each query, from the `depth` nearest keys that it meets."""
        depth = min(depth, len(self._keys))
        found = _nothing(len(queries), count)
        for rows in blocks(len(queries) if depth else 0, depth, CANDIDATES):
            query_Q = queries[rows]
            scores_QK, key_QK = self._nearest(query_Q, depth, probes)
            scores_QK[self._may_be_right(query_Q, key_QK, scores_QK)] = -torch.inf
            pair_QK = self._search.key_pair[key_QK]
            found.pairs[rows], found.scores[rows] = _best_of_rows(
                torch.arange(len(query_Q)), pair_QK, scores_QK, len(query_Q), count
            )
            if on_searched:
                on_searched(int(self._search.query_pair[query_Q[-1]]))
        return found

    def _make_index(self, keys_ND: Any) -> Any:
        width = keys_ND.shape[1]
        index = flat = self._faiss.IndexFlatIP(width)
        if self.cells > 1:
            index = self._faiss.IndexIVFFlat(flat, width, self.cells, self._faiss.METRIC_INNER_PRODUCT)
            index.cp.max_points_per_centroid = MOST_POINTS
            index.train(keys_ND)
        index.add(keys_ND)
        return index

    def _nearest(self, query_Q: Tensor, depth: int, probes: int) -> tuple[Tensor, Tensor]:
        """Similarities (Q, K), -inf where no more keys are met, and the keys."""
        parameters = self._faiss.SearchParametersIVF(nprobe=min(probes, self.cells))  # a flat index reads none of it
        found = self._index.search(_array(self._search.queries[query_Q]), depth, params=parameters)
        scores_QK, place_QK = map(torch.from_numpy, found)
        return scores_QK.masked_fill_(place_QK < 0, -torch.inf), self._keys[place_QK]

    def _may_be_right(self, query_Q: Tensor, key_QK: Tensor, scores_QK: Tensor) -> Tensor:
        right_QK = torch.zeros_like(key_QK, dtype=torch.bool)
        for of_query, of_key in self._ids:
            right_QK |= of_query[query_Q, None] == of_key[key_QK]
        if self._highest is not None:
            right_QK |= scores_QK > self._highest[query_Q, None]
        return right_QK


def _cell_count(keys: int, flat_below: int) -> int:
    """Cells for so many keys; one where all are to be compared."""
    if keys < flat_below:
        return 1
    return max(1, min(int(CELLS_PER_ROOT * math.sqrt(keys)), keys // LEAST_POINTS))


def _best_of_rows(row: Tensor, pairs: Tensor, scores: Tensor, rows: int, count: int) -> Nearest:
    """The `count` nearest of the pairs that were found for each row; each pair once, by its best score.

    Args:
        row: (L,) int64, the row that each line of `pairs` was found for.
        pairs: (L, K) int64.
        scores: (L, K), -inf where there is nothing.
    """
    line, place = (scores > -torch.inf).nonzero(as_tuple=True)
    scores, others = scores[line, place], int(pairs.max()) + 1 if pairs.numel() else 1
    both, entry = torch.unique(row[line] * others + pairs[line, place], return_inverse=True)
    best = torch.full((len(both),), -torch.inf).scatter_reduce_(0, entry, scores, "amax")
    order = best.argsort(descending=True, stable=True)
    order = order[(both[order] // others).argsort(stable=True)]
    row_E, pair_E, score_E = both[order] // others, both[order] % others, best[order]
    per_row = row_E.bincount(minlength=rows)
    place_E = torch.arange(len(row_E)) - (per_row.cumsum(0) - per_row)[row_E]
    kept = place_E < count
    found = _nothing(rows, count)
    found.pairs[row_E[kept], place_E[kept]] = pair_E[kept]
    found.scores[row_E[kept], place_E[kept]] = score_E[kept]
    return found


def _nothing(rows: int, count: int) -> Nearest:
    return Nearest(torch.full((rows, count), -1), torch.full((rows, count), -torch.inf))


def _of_numbers(features: Tensor) -> Tensor:
    """Places, ascending, of the features that are numbers: NaN compares with nothing."""
    return features.isfinite().all(dim=1).nonzero()[:, 0]


def _columns(entries: Tensor, items: int, *, absent: int) -> Tensor:
    """Entries (2, E), items ascending, as a table: the first entry of each item, then the second, `absent` for none."""
    item, value = entries
    per_item = item.bincount(minlength=items)
    place = torch.arange(len(item)) - (per_item.cumsum(0) - per_item)[item]
    table = torch.full((int(place.max()) + 1 if len(place) else 0, items), absent)
    table[place, item] = value
    return table


def _array(features: Tensor) -> Any:
    return features.float().contiguous().numpy()
