"""Pooling of the token states of a span and of the bins of a box into one state.

Token states come from the text tower, bins from `geometry.roi_align` on the grid of the vision tower.

    B pairs    K spans    R regions    T tokens    o bins per axis    H width
"""

from typing import Literal, assert_never

import torch
from torch import Tensor

from spanbox.structures import at_least_float32

PartPool = Literal["mean", "max", "both"]
"""How the tokens of a span or the bins of a region become one state."""


def pooled_width(width: int, kind: PartPool) -> int:
    """Width of a pooled state: `both` concatenates the mean and the maximum."""
    return 2 * width if kind == "both" else width


def pooled_alone(states: Tensor, kind: PartPool) -> Tensor:
    """States (..., H) of tokens or bins, each pooled by itself: (..., H), or (..., 2H) for "both"."""
    return torch.cat([states, states], dim=-1) if kind == "both" else states


def pool_spans(tokens: Tensor, span_tokens: Tensor, kind: PartPool) -> Tensor:
    """Pool the token states of each span.

    Args:
        tokens: (B, T, H), finite everywhere, padding included.
        span_tokens: (B, K, T) bool, this token belongs to this span.
        kind: "mean", "max" (each dimension by itself), or "both" side by side, the mean first.

    Returns:
        (B, K, H), or (B, K, 2H) for "both". A span without tokens gives zeros without gradient.
    """
    match kind:
        case "mean":
            return _span_mean(tokens, span_tokens)
        case "max":
            return _span_max(tokens, span_tokens)
        case "both":
            return torch.cat([_span_mean(tokens, span_tokens), _span_max(tokens, span_tokens)], dim=-1)
        case _:
            assert_never(kind)


def pool_regions(grid_bins: Tensor, kind: PartPool) -> Tensor:
    """Pool the bins of each region.

    Args:
        grid_bins: (B, R, o, o, H), from `roi_align`.
        kind: as in `pool_spans`.

    Returns:
        (B, R, H), or (B, R, 2H) for "both".
    """
    match kind:
        case "mean":
            return grid_bins.mean(dim=(2, 3))
        case "max":
            return grid_bins.amax(dim=(2, 3))
        case "both":
            return torch.cat([grid_bins.mean(dim=(2, 3)), grid_bins.amax(dim=(2, 3))], dim=-1)
        case _:
            assert_never(kind)


def _span_mean(tokens: Tensor, span_tokens: Tensor) -> Tensor:
    wide = at_least_float32(tokens)
    members = span_tokens.to(wide.dtype)
    weights = members / members.sum(dim=-1, keepdim=True).clamp(min=1)
    with torch.autocast(tokens.device.type, enabled=False):  # bfloat16 would round the weights: 1/3 to 0.334
        return (weights @ wide).to(tokens.dtype)


def _span_max(tokens: Tensor, span_tokens: Tensor) -> Tensor:
    candidates = tokens[:, None].masked_fill(~span_tokens[..., None], float("-inf"))  # (B, K, T, H)
    empty = ~span_tokens.any(dim=-1, keepdim=True)
    return candidates.amax(dim=2).masked_fill(empty, 0.0)
