"""Row and column statistics of a matrix of logits, computed in tiles without the full matrix.

The forward pass keeps a running log-sum-exp per row and column; the backward pass computes each tile again. Memory
grows linearly with the batch. Each tile serves its rows and its columns, so both directions take one pass. The losses
are the formulas of `contrastive.py`.

    B pairs    K queries per pair, Q = B*K rows    R keys per pair, M = B*R columns    D features

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
"""Maps b pairs of queries and c pairs of keys (slices) to positives and candidates, both (b*K, c*R) bool."""


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
        queries: (B, K, D). Half precision is converted to float32.
        keys: (B, R, D) of the same type.
        scale: scalar, 1 / temperature.
        masks: positives and candidates of any block.
        tile_pairs: pairs per side of a tile; the last ones may have fewer.
        column_masks: the masks for the columns, if their candidates differ from those of the rows.
    """
    scaled = scale * at_least_float32(queries)
    values = _TiledStatistics.apply(scaled, at_least_float32(keys), masks, column_masks, tile_pairs)  # type: ignore[no-untyped-call]
    return Statistics(*values[:4]), Statistics(*values[4:])


class _Tile(NamedTuple):
    """A block of the matrix: q rows, m columns."""

    rows: slice  # of the Q
    columns: slice  # of the M
    logits: Tensor  # (q, m)
    positives: Tensor | None  # (q, m) bool; None if the tile has none, as most tiles of a large batch
    negatives: Tensor  # (q, m) bool, for the rows
    column_negatives: Tensor  # (q, m) bool, for the columns

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
    """Maps scaled queries and keys to the fields of both `Statistics`, rows first."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        masks: BlockMasks,
        column_masks: BlockMasks | None,
        tile_pairs: int,
    ) -> tuple[Tensor, ...]:
        rows, columns = _empty_statistics(queries), _empty_statistics(keys)
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
        grad_queries, grad_keys = torch.zeros_like(flat_queries), torch.zeros_like(flat_keys)
        for tile in _tiles(queries, keys, *ctx.tiling):
            grad_logits = _gradient(tile, masses[:2], gradients[:3])
            grad_logits += _gradient(tile.transposed(), masses[2:], gradients[4:7]).T
            grad_queries[tile.rows] += grad_logits @ flat_keys[tile.columns]
            grad_keys[tile.columns] += grad_logits.T @ flat_queries[tile.rows]
        return grad_queries.reshape(queries.shape), grad_keys.reshape(keys.shape), None, None, None


def _empty_statistics(features: Tensor) -> Statistics:
    """Statistics of empty rows or columns, before the first tile."""
    number = features.shape[:2].numel()
    lowest = torch.finfo(features.dtype).min
    return Statistics(
        features.new_full((number,), lowest),
        features.new_full((number,), lowest),
        features.new_zeros(number),
        features.new_zeros(number, dtype=torch.int64),
    )


def _add(total: Statistics, tile: _Tile) -> None:
    """Add the rows of a tile to the running statistics, in place."""
    here = Statistics(*(values[tile.rows] for values in total))
    torch.logaddexp(here.negative_mass, log_mass(tile.logits, tile.negatives), out=here.negative_mass)
    if tile.positives is not None:
        torch.logaddexp(here.positive_mass, log_mass(tile.logits, tile.positives), out=here.positive_mass)
        here.positive_sum.add_(torch.where(tile.positives, tile.logits, 0.0).sum(dim=1))
        here.positive_count.add_(tile.positives.sum(dim=1))


def _gradient(tile: _Tile, masses: Sequence[Tensor], grads: Sequence[Tensor]) -> Tensor:
    """Gradient of the logits of a tile from the gradients of the masses and sums of its rows."""
    (positive_mass, negative_mass), (grad_positive, grad_negative, grad_sum) = (
        [values[tile.rows] for values in group] for group in (masses, grads)
    )
    gradient = log_mass_gradient(tile.logits, tile.negatives, negative_mass, grad_negative)
    if tile.positives is not None:
        gradient += log_mass_gradient(tile.logits, tile.positives, positive_mass, grad_positive)
        gradient += torch.where(tile.positives, grad_sum[:, None], 0.0)
    return gradient
