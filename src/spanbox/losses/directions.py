"""The loss of a level: the mean of its two directions, computed on the whole matrix, in tiles or in strips.

The choice depends on the size of the matrix and on the loss; value and gradient are the same.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from spanbox.losses.contrastive import Statistics, mean_over_counted, row_statistics
from spanbox.losses.contrasts import Contrast
from spanbox.losses.positives import WHOLE
from spanbox.losses.strips import RowMasks, row_losses, transposed, whole_rows
from spanbox.losses.tiled import BlockMasks, tiled_statistics
from spanbox.losses.variants import RowLoss, Rows, StatisticsLoss

MOST_LOGITS = 2**21  # of a matrix in memory, 8 MiB in float32; from 2**22 on, tiles are as fast
TILE_SIDE = 1024  # logits; from 256 to 1536 equally fast on a CPU, slower above
STRIP_LOGITS = 2**20  # fastest on a CPU; strips of 2**23 take twice as long

Selection = Callable[[BlockMasks, Tensor, Tensor], RowMasks]
"""Maps masks, queries and keys to masks with fewer candidates, chosen by the similarities of whole rows."""


def both_directions(
    contrast: Contrast,
    loss: StatisticsLoss | RowLoss,
    scale: Tensor,
    options: Mapping[str, Any],
    selection: Selection | None = None,
) -> Tensor:
    """Mean of the loss of the queries against the keys and that of the keys against the queries.

    Args:
        scale: scalar, 1 / temperature.
        options: further arguments of the loss.
        selection: choice of negatives, if not all are used.
    """
    if isinstance(loss, StatisticsLoss) and selection is None:
        forward, backward = (loss.formula(statistics) for statistics in _statistics(contrast, scale))
    else:
        forward, backward = _in_strips(contrast, loss, scale, options, selection)
    return (mean_over_counted(*forward) + mean_over_counted(*backward)) / 2


def _statistics(contrast: Contrast, scale: Tensor) -> tuple[Statistics, Statistics]:
    """Statistics of the rows and of the columns, from the whole matrix or from tiles."""
    queries, keys, masks, column_masks = contrast
    if queries.shape[:2].numel() * keys.shape[:2].numel() > MOST_LOGITS:
        tile_pairs = max(1, TILE_SIDE // max(queries.shape[1], keys.shape[1]))
        return tiled_statistics(queries, keys, scale, masks, tile_pairs, column_masks)
    logits = (scale * queries.flatten(0, 1)) @ keys.flatten(0, 1).T
    positives, candidates = masks(WHOLE, WHOLE)
    of_columns = column_masks(WHOLE, WHOLE)[1] if column_masks else candidates
    return row_statistics(logits, positives, candidates), row_statistics(logits.T, positives.T, of_columns.T)


def _in_strips(
    contrast: Contrast,
    loss: StatisticsLoss | RowLoss,
    scale: Tensor,
    options: Mapping[str, Any],
    selection: Selection | None,
) -> list[Rows]:
    """Losses of the rows and of the columns, computed on whole rows."""

    def of_rows(cosines: Tensor, positives: Tensor, candidates: Tensor) -> Rows:
        return loss.function(cosines, scale, positives, candidates, **options)

    queries, keys, masks, column_masks = contrast
    learned = [scale, *(value for value in options.values() if isinstance(value, Tensor))]
    logits_of_a_pair = queries.shape[1] * keys.shape[:2].numel()  # the same in both directions
    strip_pairs = max(1, STRIP_LOGITS // max(1, logits_of_a_pair))
    sides = [(queries, keys, masks), (keys, queries, transposed(column_masks or masks))]
    return [
        row_losses(
            rows,
            columns,
            selection(block_masks, rows, columns) if selection else whole_rows(block_masks),
            of_rows,
            learned,
            strip_pairs,
        )
        for rows, columns, block_masks in sides
    ]
