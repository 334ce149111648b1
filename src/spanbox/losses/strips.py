"""Losses on whole rows of a similarity matrix, computed in strips of rows to save memory.

The forward pass reduces each strip to the losses of its rows; the backward pass computes the strip again for the
gradient. Only one strip is in memory at a time. Unlike the tiles of `tiled.py`, rows and columns need a pass each.

    B pairs    K queries per pair, Q = B*K rows    R keys per pair, M = B*R columns    D features
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spanbox.losses.contrastive import at_least_float32
from spanbox.losses.positives import WHOLE
from spanbox.losses.tiled import BlockMasks

RowMasks = Callable[[slice, Tensor], tuple[Tensor, Tensor]]
"""Maps a block of pairs and its detached similarities (q, M) to positives and candidates (q, M) bool."""

LossOfRows = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Maps similarities, positives and candidates of some rows to their losses and the rows that count."""


def row_losses(
    queries: Tensor, keys: Tensor, masks: RowMasks, loss: LossOfRows, learned: Sequence[Tensor], strip_pairs: int
) -> tuple[Tensor, Tensor]:
    """Loss of each row (Q,) of `queries @ keys.T` and the rows that count (Q,) bool, with first derivatives.

    Args:
        queries: (B, K, D). Half precision is converted to float32.
        keys: (B, R, D) of the same type.
        masks: positives and candidates of a block of rows; called again in the backward pass, so must be deterministic.
        learned: other inputs of `loss` that may need a gradient.
        strip_pairs: pairs of queries per strip; the last strip may have fewer.
    """
    queries, keys = at_least_float32(queries), at_least_float32(keys)
    if strip_pairs >= len(queries):
        cosines = queries.flatten(0, 1) @ keys.flatten(0, 1).T
        return loss(cosines, *masks(WHOLE, cosines.detach()))
    learned = [value for value in learned if value.requires_grad]
    losses: tuple[Tensor, Tensor] = _RowLosses.apply(queries, keys, masks, loss, strip_pairs, *learned)  # type: ignore[no-untyped-call]
    return losses


def whole_rows(masks: BlockMasks) -> RowMasks:
    """Masks of whole rows that do not depend on the similarities."""
    return lambda rows, _: masks(rows, WHOLE)


def transposed(masks: BlockMasks) -> BlockMasks:
    """Masks of the transposed matrix."""

    def exchanged(rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        positives, candidates = masks(columns, rows)
        return positives.T, candidates.T

    return exchanged


def _strips(pairs: int, strip_pairs: int) -> Iterator[slice]:
    return (slice(start, min(start + strip_pairs, pairs)) for start in range(0, pairs, strip_pairs))


class _RowLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, masks: RowMasks, loss: LossOfRows, strip_pairs: int, *learned: Tensor
    ) -> tuple[Tensor, Tensor]:
        flat_keys, parts = keys.flatten(0, 1), []
        for rows in _strips(len(queries), strip_pairs):
            cosines = queries[rows].flatten(0, 1) @ flat_keys.T
            parts.append(loss(cosines, *masks(rows, cosines)))
        losses, counted = (torch.cat(part) for part in zip(*parts, strict=True))
        ctx.masks, ctx.loss, ctx.strip_pairs = masks, loss, strip_pairs
        ctx.save_for_backward(queries, keys, *learned)
        ctx.mark_non_differentiable(counted)
        return losses, counted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_losses: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, *learned = ctx.saved_tensors
        flat_keys = keys.flatten(0, 1)
        grad_losses = grad_losses.reshape(queries.shape[:2])
        grad_queries, grad_keys = torch.zeros_like(queries), torch.zeros_like(flat_keys)
        grad_learned = [torch.zeros_like(value) for value in learned]
        for rows in _strips(len(queries), ctx.strip_pairs):
            own = queries[rows].flatten(0, 1)
            cosines = own @ flat_keys.T
            row_masks = ctx.masks(rows, cosines)
            with torch.enable_grad():
                losses, _ = ctx.loss(cosines.requires_grad_(), *row_masks)
            grad_cosines, *gradients = torch.autograd.grad(losses, [cosines, *learned], grad_losses[rows].flatten())
            grad_queries[rows] = (grad_cosines @ flat_keys).unflatten(0, queries[rows].shape[:2])
            grad_keys.addmm_(grad_cosines.T, own)
            for value, gradient in zip(grad_learned, gradients, strict=True):
                value += gradient
        return grad_queries, grad_keys.reshape(keys.shape), None, None, None, *grad_learned
