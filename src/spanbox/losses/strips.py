"""Losses that need whole rows of a matrix that is too large to be held: strip by strip, forwards and backwards.

A strip of rows is computed, reduced to the losses of its rows, and computed once more for its gradient. So memory is
that of one strip, as with the tiles of `tiled.py`; unlike there, rows and columns need a pass each.

    B pairs    K queries a pair, Q = B*K rows    R keys a pair, M = B*R columns    D features
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
"""Positives and candidates, both (q, M) bool, of the rows of some pairs, from their similarities (q, M), detached."""

LossOfRows = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From similarities, positives and candidates of some rows, to their losses and which of them count."""


def row_losses(
    queries: Tensor, keys: Tensor, masks: RowMasks, loss: LossOfRows, learned: Sequence[Tensor], strip_pairs: int
) -> tuple[Tensor, Tensor]:
    """Loss of each row (Q,) of `queries @ keys.T`, and which rows count (Q,) bool, with first derivatives.

    Args:
        queries: (B, K, D). Half precision is raised to float32.
        keys: (B, R, D) of the same type.
        masks: positives and candidates of any rows; asked again in the backward pass, and to answer the same.
        learned: what else `loss` computes with and may have a gradient.
        strip_pairs: how many pairs of queries a strip has; the last one may have fewer.
    """
    queries, keys = at_least_float32(queries), at_least_float32(keys)
    if strip_pairs >= len(queries):
        cosines = queries.flatten(0, 1) @ keys.flatten(0, 1).T
        return loss(cosines, *masks(WHOLE, cosines.detach()))
    learned = [value for value in learned if value.requires_grad]
    losses: tuple[Tensor, Tensor] = _RowLosses.apply(queries, keys, masks, loss, strip_pairs, *learned)  # type: ignore[no-untyped-call]
    return losses


def whole_rows(masks: BlockMasks) -> RowMasks:
    """The masks of whole rows, whatever the similarities."""
    return lambda rows, _: masks(rows, WHOLE)


def transposed(masks: BlockMasks) -> BlockMasks:
    """The masks of the same matrix with rows and columns exchanged."""

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
    def backward(ctx: Any, of_losses: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, *learned = ctx.saved_tensors
        flat_keys = keys.flatten(0, 1)
        of_losses = of_losses.reshape(queries.shape[:2])
        of_queries, of_keys = torch.zeros_like(queries), torch.zeros_like(flat_keys)
        of_learned = [torch.zeros_like(value) for value in learned]
        for rows in _strips(len(queries), ctx.strip_pairs):
            own = queries[rows].flatten(0, 1)
            cosines = own @ flat_keys.T
            row_masks = ctx.masks(rows, cosines)
            with torch.enable_grad():
                losses, _ = ctx.loss(cosines.requires_grad_(), *row_masks)
            of_cosines, *shares = torch.autograd.grad(losses, [cosines, *learned], of_losses[rows].flatten())
            of_queries[rows] = (of_cosines @ flat_keys).unflatten(0, queries[rows].shape[:2])
            of_keys.addmm_(of_cosines.T, own)
            for value, share in zip(of_learned, shares, strict=True):
                value += share
        return of_queries, of_keys.reshape(keys.shape), None, None, None, *of_learned
