"""The loss of a level: the mean of its two directions, from blocks of its similarity matrix that fit into memory.

- A loss that is a formula on row statistics takes them from the whole matrix or, above MOST_LOGITS, adds them up over
  tiles. Each tile serves its rows and its columns, so both directions take one pass.
- Other losses, and those of selected negatives, are computed on whole rows, in strips of rows, once per direction.
- Of several ranks each computes the rows of its own pairs, then the columns of its own pairs, in one of these ways.

The forward pass reduces each tile or strip to numbers per row; the backward pass computes it again. Memory grows
linearly with the batch; value and gradient are those of the whole matrix.

    B pairs    K queries per pair    R keys per pair    D features
    b own pairs of this rank, of which Q = b*K rows and M = b*R columns

Source: the tiles and the running log-sum-exp of Cheng et al., Breaking the Memory Barrier (Inf-CL), 2024, section 3.1.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from spanbox.losses.formulas import Loss
from spanbox.losses.kernel import (
    WHOLE_SHARE,
    RowLosses,
    Share,
    Statistics,
    log_mass,
    log_mass_gradient,
    mean_over_counted,
    positive_statistics,
    row_statistics,
    with_weight,
)
from spanbox.losses.levels import Contrast
from spanbox.losses.relations import WHOLE, BlockRelation, Relation, RowRelation
from spanbox.structures import at_least_float32

MOST_LOGITS = 2**21  # of a matrix in memory, 8 MiB in float32; from 2**22 on, tiles are as fast
TILE_SIDE = 1024  # logits; from 256 to 1536 equally fast on a CPU, slower above
STRIP_LOGITS = 2**20  # fastest on a CPU; strips of 2**23 take twice as long

Selection = Callable[[BlockRelation, Sequence[int], Sequence[int], torch.device], RowRelation]
"""Maps a relation of queries (B, K) and keys (B, R) to one with fewer candidates, chosen by the similarities of whole
rows on the device."""

LossOfRows = Callable[[Tensor, Relation], RowLosses]
"""Maps the similarities (q, m) of some rows to their losses."""


def both_directions(
    contrast: Contrast,
    loss: Loss,
    scale: Tensor,
    options: Mapping[str, Any],
    selection: Selection | None = None,
    share: Share = WHOLE_SHARE,
) -> Tensor:
    """Mean of the loss of the queries against the keys and that of the keys against the queries.

    Args:
        scale: scalar, 1 / temperature.
        options: further arguments of the loss.
        selection: choice of negatives, if not all are used.
        share: the rows that this rank computes, if there are several; the result is its share of the mean.
    """
    if loss.formula and selection is None:
        directions = [loss.formula(statistics) for statistics in _statistics(contrast, scale, share)]
    else:
        sides = (contrast, contrast.transposed())
        directions = [_in_strips(side, loss, scale, options, selection, share.pairs) for side in sides]
    forward, backward = (mean_over_counted(*rows, share.total) for rows in directions)
    return (forward + backward) / 2


def _statistics(contrast: Contrast, scale: Tensor, share: Share) -> list[Statistics]:
    """Statistics of the rows (Q,) and of the columns (M,) of this rank's pairs."""
    if share.ranks == 1:
        return _statistics_of(contrast, scale, WHOLE, both=True)
    sides = (contrast, contrast.transposed())
    return [statistics for side in sides for statistics in _statistics_of(side, scale, share.pairs, both=False)]


def _statistics_of(contrast: Contrast, scale: Tensor, pairs: slice, *, both: bool) -> list[Statistics]:
    """Statistics of the rows of some pairs and, if `both`, of the columns, from the whole matrix or from tiles."""
    queries, keys, relation, column_relation = contrast
    if queries[pairs].shape[:2].numel() * keys.shape[:2].numel() > MOST_LOGITS:
        tile_pairs = max(1, TILE_SIDE // max(queries.shape[1], keys.shape[1]))
        return tiled_statistics(contrast, scale, tile_pairs, pairs, both=both)
    logits = (scale * queries[pairs].flatten(0, 1)) @ keys.flatten(0, 1).T
    of_rows = relation(pairs, WHOLE)
    if not both:
        return [row_statistics(logits, of_rows)]
    of_columns = column_relation(pairs, WHOLE) if column_relation else of_rows
    return [row_statistics(logits, of_rows), row_statistics(logits.T, of_columns.transposed())]


# Tiles


def tiled_statistics(
    contrast: Contrast, scale: Tensor, tile_pairs: int, pairs: slice = WHOLE, *, both: bool = True
) -> list[Statistics]:
    """Statistics of the rows (Q,) of `scale * queries @ keys.T` and, if `both`, of the columns; with first derivatives.

    Half precision is converted to float32.

    Args:
        tile_pairs: pairs per side of a tile; the last ones may have fewer.
        pairs: those whose queries are the rows.
    """
    queries, keys, relation, column_relation = contrast
    scaled = scale * at_least_float32(queries)
    tiling = _Tiling(relation, column_relation, pairs, tile_pairs, both)
    values = _TiledStatistics.apply(scaled, at_least_float32(keys), tiling)  # type: ignore[no-untyped-call]
    starts = range(0, len(values), _FIELDS)
    return [Statistics(*values[start : start + _FIELDS]).relative_to_strongest() for start in starts]


_FIELDS = len(Statistics._fields)
_NOWHERE = slice(0, 0)


class _Tile(NamedTuple):
    """A block of the matrix, q rows and m columns, as part of the rows or of the columns whose statistics are taken."""

    rows: slice  # its rows among those
    logits: Tensor  # (q, m)
    positives: Tensor | None  # (q, m) bool; None if the tile has none, as most tiles of a large batch
    negatives: Tensor  # (q, m) bool
    weight: Tensor | None  # of the positives


class _Tiling(NamedTuple):
    """How a matrix is cut into tiles."""

    relation: BlockRelation
    column_relation: BlockRelation | None
    pairs: slice  # of the queries
    tile_pairs: int
    both: bool  # also as parts of the columns

    def tiles(self, queries: Tensor, keys: Tensor) -> Iterator[tuple[slice, slice, list[_Tile]]]:
        """Pairs of queries and of keys of each block, and the block as part of the rows and, if `both`, the columns."""
        row_blocks = list(blocks_of(self.pairs, len(queries), self.tile_pairs))
        column_blocks = list(blocks_of(WHOLE, len(keys), self.tile_pairs))
        for rows, columns in itertools.product(row_blocks, column_blocks):
            relation = self.relation(rows, columns)
            negatives, weight = relation.negatives, relation.weight
            logits = queries[rows].flatten(0, 1) @ keys[columns].flatten(0, 1).T
            some = relation.positives if relation.positives.count_nonzero() else None
            tiles = [_Tile(_rows_of(rows, row_blocks[0], queries), logits, some, negatives, weight)]
            if self.both:
                other = self.column_relation(rows, columns).negatives if self.column_relation else negatives
                here = _rows_of(columns, column_blocks[0], keys)
                tiles.append(_Tile(here, logits.T, _turned(some), other.T, _turned(weight)))
            yield rows, columns, tiles


class _TiledStatistics(torch.autograd.Function):
    """Maps scaled queries and keys to the fields of the `Statistics` of rows and, if `both`, of columns."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, tiling: _Tiling) -> tuple[Tensor | None, ...]:
        weighted = tiling.relation(_NOWHERE, _NOWHERE).weight is not None
        sides = [queries[tiling.pairs], keys] if tiling.both else [queries[tiling.pairs]]
        totals = [_empty_statistics(side, weighted) for side in sides]
        for _, _, tiles in tiling.tiles(queries, keys):
            for total, tile in zip(totals, tiles, strict=True):
                _add(total, tile)
        ctx.tiling = tiling
        ctx.save_for_backward(queries, keys, *(mass for total in totals for mass in total[:2]))
        ctx.mark_non_differentiable(*(value for total in totals for value in total[3:] if value is not None))
        return tuple(value for total in totals for value in total)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, *masses = ctx.saved_tensors
        grad_queries, grad_keys = torch.zeros_like(queries), torch.zeros_like(keys)
        for rows, columns, tiles in ctx.tiling.tiles(queries, keys):
            grad_logits = _gradient(tiles[0], masses[:2], gradients[:3])
            if len(tiles) == 2:
                grad_logits += _gradient(tiles[1], masses[2:], gradients[_FIELDS : _FIELDS + 3]).T
            grad_queries[rows] += (grad_logits @ keys[columns].flatten(0, 1)).reshape(queries[rows].shape)
            grad_keys[columns] += (grad_logits.T @ queries[rows].flatten(0, 1)).reshape(keys[columns].shape)
        return grad_queries, grad_keys, None


def _empty_statistics(features: Tensor, weighted: bool) -> Statistics:
    """Statistics of empty rows or columns, before the first tile."""
    number = features.shape[:2].numel()
    lowest = torch.finfo(features.dtype).min
    return Statistics(
        features.new_full((number,), lowest),
        features.new_full((number,), lowest),
        features.new_zeros(number),
        features.new_zeros(number, dtype=None if weighted else torch.int64),
        features.new_zeros(number) if weighted else None,
    )


def _add(total: Statistics, tile: _Tile) -> None:
    """Add a tile to the running statistics of its rows, in place. A positive counts with its weight."""
    here = total.of_rows(tile.rows)
    torch.logaddexp(here.negative_mass, log_mass(tile.logits, tile.negatives), out=here.negative_mass)
    if tile.positives is not None:
        mass, logits, count, weight = positive_statistics(tile.logits, tile.positives, tile.weight)
        torch.logaddexp(here.positive_mass, mass, out=here.positive_mass)
        here.positive_sum.add_(logits)
        here.positive_count.add_(count)
        if here.weight is not None and weight is not None:
            torch.maximum(here.weight, weight, out=here.weight)


def _gradient(tile: _Tile, masses: Sequence[Tensor], grads: Sequence[Tensor]) -> Tensor:
    """Gradient of the logits of a tile from the gradients of the masses and sums of its rows."""
    (positive_mass, negative_mass), (grad_positive, grad_negative, grad_sum) = (
        [values[tile.rows] for values in group] for group in (masses, grads)
    )
    gradient = log_mass_gradient(tile.logits, tile.negatives, negative_mass, grad_negative)
    if tile.positives is not None:
        logits = with_weight(tile.logits, tile.weight)
        gradient += log_mass_gradient(logits, tile.positives, positive_mass, grad_positive)
        of_sum = grad_sum[:, None] if tile.weight is None else grad_sum[:, None] * tile.weight
        gradient += torch.where(tile.positives, of_sum, 0.0)
    return gradient


# Strips


def _in_strips(
    contrast: Contrast,
    loss: Loss,
    scale: Tensor,
    options: Mapping[str, Any],
    selection: Selection | None,
    pairs: slice,
) -> RowLosses:
    """Losses of the rows of some pairs, computed on whole rows."""

    def of_rows(cosines: Tensor, relation: Relation) -> RowLosses:
        return loss.rows(cosines, scale, relation, **options)

    queries, keys, relation, _ = contrast
    strip_pairs = max(1, STRIP_LOGITS // max(1, queries.shape[1] * keys.shape[:2].numel()))
    row_relation = whole_rows(relation)
    if selection:
        row_relation = selection(relation, queries.shape[:2], keys.shape[:2], queries.device)
    return row_losses(queries, keys, row_relation, of_rows, strip_pairs, pairs)


def row_losses(
    queries: Tensor,
    keys: Tensor,
    relation: RowRelation,
    loss: LossOfRows,
    strip_pairs: int,
    pairs: slice = WHOLE,
) -> RowLosses:
    """`RowLosses` (Q,) of the loss on `queries @ keys.T`.

    Args:
        queries: (B, K, D). Half precision is converted to float32.
        keys: (B, R, D) of the same type.
        relation: of a block of rows; called again in the backward pass, so must be deterministic.
        strip_pairs: pairs of queries per strip; the last strip may have fewer.
        pairs: those whose queries are the rows.
    """
    own, flat_keys = at_least_float32(queries[pairs]), at_least_float32(keys).flatten(0, 1)

    def strip(rows: slice, own: Tensor) -> RowLosses:
        cosines = own.flatten(0, 1) @ flat_keys.T
        return loss(cosines, relation(rows, cosines.detach()))

    if strip_pairs >= len(own):
        return strip(pairs, own)
    parts = zip(blocks_of(pairs, len(queries), strip_pairs), torch.split(own, strip_pairs), strict=True)
    return cat_rows([recomputed(strip, *part) for part in parts])


def recomputed(strip: Callable[..., RowLosses], *inputs: Any) -> RowLosses:
    """`strip(*inputs)`, whose activations are computed again in the backward pass."""
    rows: RowLosses = checkpoint(strip, *inputs, use_reentrant=False, preserve_rng_state=False)
    return rows


def cat_rows(parts: Iterable[RowLosses]) -> RowLosses:
    losses, counted = (torch.cat(part) for part in zip(*parts, strict=True))
    return losses, counted


def whole_rows(relation: BlockRelation) -> RowRelation:
    """The relation of whole rows, which does not depend on the similarities."""
    return lambda rows, _: relation(rows, WHOLE)


def _turned(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.T


def blocks_of(pairs: slice, number: int, size: int) -> Iterator[slice]:
    """Consecutive blocks of at most `size` of the `pairs` of a batch of `number`."""
    start, stop, _ = pairs.indices(number)
    return (slice(first, min(first + size, stop)) for first in range(start, stop, size))


def _rows_of(pairs: slice, first: slice, features: Tensor) -> slice:
    """The rows of some pairs, counted from those of the first block."""
    per_pair = features.shape[1]
    return slice((pairs.start - first.start) * per_pair, (pairs.stop - first.start) * per_pair)
