"""Approximate hard-negative mining with faiss, for data sets that are too large for the exact search.

Same arguments and results as `nearest_wrong` (`evaluation/mining.py`), whose time grows with the square of the data
set. Keys are assigned to cells around centroids, and a query is compared only with the keys of the nearest cells
(inverted file: Sivic and Zisserman, Video Google, 2003; faiss: Douze et al., The Faiss library, 2024). Keys in other
cells are missed.

False negatives are removed from the results, so the search requests more candidates than neighbours, and many more for
queries with too few wrong pairs.

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
from spanbox.structures import place_in_row

FLAT_BELOW = 10_000
"""Below this number of keys all are compared, which takes a second or two."""

CELLS_PER_ROOT = 4
"""Cells per square root of the number of keys: 4 to 16 in faiss's "Guidelines to choose an index"."""

LEAST_POINTS, MOST_POINTS = 39, 64
"""Training keys per centroid: faiss warns below 39, its guidelines recommend 30 to 256."""

PROBES_PER_ROOT = 2
"""Probed cells per square root of the number of cells, so that the share of a larger data set is smaller. Chosen on the
features of `benchmarks/mining.py`, which measures the recall."""

DEPTH = 64
"""Minimum number of candidates per query; at least four per requested neighbour."""

WIDER = 8
"""Factor for cells and candidates of a query that has too few wrong pairs."""

CANDIDATES = 2**21
"""Candidates in memory at a time; each takes about 100 bytes."""


def import_faiss() -> Any:
    """Import the optional module faiss.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise ConfigError(
            'the approximate search needs faiss, which is not installed: pip install "spanbox[faiss]"; or use the '
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
    """For each pair, the `count` most similar wrong pairs in the probed cells.

    Runs on the CPU with a copy of the keys. The result is deterministic: centroids have a fixed seed, and threads
    divide the queries.

    Args:
        search, pair_ids, count, margin, on_searched: as in `nearest_wrong`.
        probes: cells per query; None: by the number of cells (`PROBES_PER_ROOT`). With all cells the result is that of
            `nearest_wrong`, unless hundreds of the nearest keys are false negatives or belong to a few pairs.
        flat_below: below this number of keys, a query is compared with all.

    Raises:
        ConfigError: faiss is not installed.
    """
    search, pair_ids = search.to("cpu"), [ids.cpu() for ids in pair_ids]
    candidates = _Candidates(search, pair_ids, margin, flat_below)
    queries, depth = _finite(search.queries), max(DEPTH, 4 * count)
    probes = probes or math.ceil(PROBES_PER_ROOT * math.sqrt(candidates.cells))
    found = candidates.wrong_pairs(queries, count, depth, probes, on_searched)
    if not candidates.are_all(depth, probes):
        short = (found.pairs < 0).any(dim=1)
        wider = candidates.wrong_pairs(queries[short], count, WIDER * depth, WIDER * probes)
        found.pairs[short], found.scores[short] = wider
    if on_searched:
        on_searched(len(pair_ids[0]))
    return _best_of_rows(search.query_pair[queries], found.pairs, found.scores, len(pair_ids[0]), count)


class _Candidates:
    """The index of the keys, and the search for wrong pairs in it."""

    def __init__(self, search: Search, pair_ids: Sequence[Tensor], margin: float | None, flat_below: int) -> None:
        self._faiss = import_faiss()
        self._search = search
        self._highest = None if margin is None else search.highest_wrong(margin)
        named = _columns(search.query_identity, len(search.queries), absent=-1)
        shown = _columns(search.key_identity, len(search.keys), absent=-2)
        self._ids = [(ids[search.query_pair], ids[search.key_pair]) for ids in pair_ids]  # of queries, of keys
        self._ids += product(named, shown)
        self._keys = _finite(search.keys)
        self.cells = _cell_count(len(self._keys), flat_below)
        self._index = self._make_index(_array(search.keys[self._keys]))

    def are_all(self, depth: int, probes: int) -> bool:
        """Whether `depth` candidates from `probes` cells are all keys."""
        return depth >= len(self._keys) and probes >= self.cells

    def wrong_pairs(
        self, queries: Tensor, count: int, depth: int, probes: int, on_searched: OnSearched | None = None
    ) -> Nearest:
        """The `count` nearest wrong pairs of each query among its `depth` nearest keys."""
        depth = min(depth, len(self._keys))
        found = _no_pairs(len(queries), count)
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
        """Similarities (Q, K), -inf for none, and the keys."""
        parameters = self._faiss.SearchParametersIVF(nprobe=min(probes, self.cells))  # ignored by a flat index
        found = self._index.search(_array(self._search.queries[query_Q]), depth, params=parameters)
        scores_QK, place_QK = map(torch.from_numpy, found)
        return scores_QK.masked_fill_(place_QK < 0, -torch.inf), self._keys[place_QK]

    def _may_be_right(self, query_Q: Tensor, key_QK: Tensor, scores_QK: Tensor) -> Tensor:
        right_QK = torch.zeros_like(key_QK, dtype=torch.bool)
        for query_ids, key_ids in self._ids:
            right_QK |= query_ids[query_Q, None] == key_ids[key_QK]
        if self._highest is not None:
            right_QK |= scores_QK > self._highest[query_Q, None]
        return right_QK


def _cell_count(keys: int, flat_below: int) -> int:
    """Number of cells; 1 if all keys are compared."""
    if keys < flat_below:
        return 1
    return max(1, min(int(CELLS_PER_ROOT * math.sqrt(keys)), keys // LEAST_POINTS))


def _best_of_rows(row: Tensor, pairs: Tensor, scores: Tensor, rows: int, count: int) -> Nearest:
    """The `count` nearest pairs of each row; each pair once, with its best score.

    Args:
        row: (L,) int64, the row of each line of `pairs`.
        pairs: (L, K) int64.
        scores: (L, K), -inf for none.
    """
    line, place = (scores > -torch.inf).nonzero(as_tuple=True)
    scores, others = scores[line, place], int(pairs.max()) + 1 if pairs.numel() else 1
    both, entry = torch.unique(row[line] * others + pairs[line, place], return_inverse=True)
    best = torch.full((len(both),), -torch.inf).scatter_reduce_(0, entry, scores, "amax")
    order = best.argsort(descending=True, stable=True)
    order = order[(both[order] // others).argsort(stable=True)]
    row_E, pair_E, score_E = both[order] // others, both[order] % others, best[order]
    place_E = place_in_row(row_E, row_E.bincount(minlength=rows))
    kept = place_E < count
    found = _no_pairs(rows, count)
    found.pairs[row_E[kept], place_E[kept]] = pair_E[kept]
    found.scores[row_E[kept], place_E[kept]] = score_E[kept]
    return found


def _no_pairs(rows: int, count: int) -> Nearest:
    return Nearest(torch.full((rows, count), -1), torch.full((rows, count), -torch.inf))


def _finite(features: Tensor) -> Tensor:
    """Indices, ascending, of the finite features."""
    return features.isfinite().all(dim=1).nonzero()[:, 0]


def _columns(entries: Tensor, items: int, *, absent: int) -> Tensor:
    """Entries (2, E), items ascending, as a table: row i has the i-th entry of each item, `absent` for none."""
    item, value = entries
    place = place_in_row(item, item.bincount(minlength=items))
    table = torch.full((int(place.max()) + 1 if len(place) else 0, items), absent)
    table[place, item] = value
    return table


def _array(features: Tensor) -> Any:
    return features.float().contiguous().numpy()
