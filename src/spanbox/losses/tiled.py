"""The statistics of a matrix of logits that is too large to be held: tile by tile, forwards and backwards.

A running sum for each row and each column takes the place of the matrix, and the gradient computes each tile once more,
so memory grows with the batch and not with its square. A tile serves its rows and its columns, so both directions of a
contrastive loss cost one pass. The losses themselves are the formulas of `contrastive.py`, as for a whole matrix.

    B pairs    K queries a pair, Q = B*K rows    R keys a pair, M = B*R columns    D features

Source: the tiles and the running log-sum-exp of Cheng et al., Breaking the Memory Barrier (Inf-CL), 2024, section 3.1.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spanbox.losses.contrastive import Statistics, at_least_float32, log_mass, log_mass_gradient

BlockMasks = Callable[[slice, slice], tuple[Tensor, Tensor]]
"""Positives and candidates, both (b*K, c*R) bool, between the queries of a slice of b pairs and the keys of c pairs."""


def tiled_statistics(
    queries: Tensor,
    keys: Tensor,
    scale: Tensor,
    masks: BlockMasks,
    tile_pairs: int,
    column_masks: BlockMasks | None = None,
) -> tuple[Statistics, Statistics]:
    """Statistics of the rows (Q,) and of the columns (M,) of `scale * queries @ keys.T`, with first derivatives.

    Args:
        queries: (B, K, D). Half precision is raised to float32.
        keys: (B, R, D) of the same type.
        scale: scalar, one over the temperature.
        masks: positives and candidates of any block.
        tile_pairs: how many pairs a tile has on either side; the last ones may be smaller.
        column_masks: the same positives, and the candidates of the columns, where these differ from those of the rows.
    """
    scaled = scale * at_least_float32(queries)
    values = _TiledStatistics.apply(scaled, at_least_float32(keys), masks, column_masks, tile_pairs)  # type: ignore[no-untyped-call]
    return Statistics(*values[:4]), Statistics(*values[4:])


class _Tile(NamedTuple):
    """A block of the matrix: q rows, m columns."""

    rows: slice  # of the Q
    columns: slice  # of the M
    logits: Tensor  # (q, m)
    positives: Tensor | None  # (q, m) bool; most tiles of a large batch have none and are spared the work
    negatives: Tensor  # (q, m) bool, of the rows
    column_negatives: Tensor  # (q, m) bool

    def transposed(self) -> "_Tile":
        positives = None if self.positives is None else self.positives.T
        return _Tile(self.columns, self.rows, self.logits.T, positives, self.column_negatives.T, self.negatives.T)


def _tiles(
    queries: Tensor, keys: Tensor, masks: BlockMasks, column_masks: BlockMasks | None, tile_pairs: int
) -> Iterator[_Tile]:
    pairs, queries_per_pair, keys_per_pair = *queries.shape[:2], keys.shape[1]
    blocks = [slice(start, min(start + tile_pairs, pairs)) for start in range(0, pairs, tile_pairs)]
    for rows, columns in itertools.product(blocks, repeat=2):
        positives, candidates = masks(rows, columns)
        negatives = candidates & ~positives
        column_negatives = column_masks(rows, columns)[1] & ~positives if column_masks else negatives
        yield _Tile(
            slice(rows.start * queries_per_pair, rows.stop * queries_per_pair),
            slice(columns.start * keys_per_pair, columns.stop * keys_per_pair),
            queries[rows].flatten(0, 1) @ keys[columns].flatten(0, 1).T,
            positives if positives.count_nonzero() else None,
            negatives,
            column_negatives,
        )


class _TiledStatistics(torch.autograd.Function):
    """From queries, which hold the scale, and keys to the fields of both `Statistics`, rows first."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        masks: BlockMasks,
        column_masks: BlockMasks | None,
        tile_pairs: int,
    ) -> tuple[Tensor, ...]:
        rows, columns = _of_nothing(queries), _of_nothing(keys)
        for tile in _tiles(queries, keys, masks, column_masks, tile_pairs):
            _add(rows, tile)
            _add(columns, tile.transposed())
        ctx.tiling = masks, column_masks, tile_pairs
        ctx.save_for_backward(queries, keys, *rows[:2], *columns[:2])
        ctx.mark_non_differentiable(rows.positive_count, columns.positive_count)
        return *rows, *columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, *masses = ctx.saved_tensors
        flat_queries, flat_keys = queries.flatten(0, 1), keys.flatten(0, 1)
        of_queries, of_keys = torch.zeros_like(flat_queries), torch.zeros_like(flat_keys)
        for tile in _tiles(queries, keys, *ctx.tiling):
            of_logits = _gradient(tile, masses[:2], gradients[:3])
            of_logits += _gradient(tile.transposed(), masses[2:], gradients[4:7]).T
            of_queries[tile.rows] += of_logits @ flat_keys[tile.columns]
            of_keys[tile.columns] += of_logits.T @ flat_queries[tile.rows]
        return of_queries.reshape(queries.shape), of_keys.reshape(keys.shape), None, None, None


def _of_nothing(features: Tensor) -> Statistics:
    """Statistics of rows or columns before the first tile."""
    number = features.shape[:2].numel()
    lowest = torch.finfo(features.dtype).min
    return Statistics(
        features.new_full((number,), lowest),
        features.new_full((number,), lowest),
        features.new_zeros(number),
        features.new_zeros(number, dtype=torch.int64),
    )


def _add(total: Statistics, tile: _Tile) -> None:
    """Take the rows of a tile into the running statistics, in place."""
    here = Statistics(*(values[tile.rows] for values in total))
    torch.logaddexp(here.negative_mass, log_mass(tile.logits, tile.negatives), out=here.negative_mass)
    if tile.positives is not None:
        torch.logaddexp(here.positive_mass, log_mass(tile.logits, tile.positives), out=here.positive_mass)
        here.positive_sum.add_(torch.where(tile.positives, tile.logits, 0.0).sum(dim=1))
        here.positive_count.add_(tile.positives.sum(dim=1))


def _gradient(tile: _Tile, masses: Sequence[Tensor], of: Sequence[Tensor]) -> Tensor:
    """Gradient at the logits of a tile, from those at the masses of positives and negatives and at the sums of rows."""
    (positive_mass, negative_mass), (of_positive, of_negative, of_sum) = (
        [values[tile.rows] for values in group] for group in (masses, of)
    )
    gradient = log_mass_gradient(tile.logits, tile.negatives, negative_mass, of_negative)
    if tile.positives is not None:
        gradient += log_mass_gradient(tile.logits, tile.positives, positive_mass, of_positive)
        gradient += torch.where(tile.positives, of_sum[:, None], 0.0)
    return gradient
