"""Which negatives a row is contrasted with: all of them, some drawn anew in each step, or those that are most similar.

Selection narrows the candidates that `positives.py` allows, once the similarities of whole rows are known, so it stands
between the masks and the losses of `strips.py`. It has no gradient. Rows and columns select for themselves.

    B pairs    K queries a pair, Q = B*K rows    R keys a pair, M = B*R columns    q rows of some pairs
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from spanbox.losses.positives import WHOLE
from spanbox.losses.strips import RowMasks
from spanbox.losses.tiled import BlockMasks
from spanbox.settings import Settings


class NegativeSettings(Settings):
    """Which negatives of a level are used. docs/mathematics.md has the rules."""

    per_anchor: int | None = Field(None, ge=1, description="most negatives a row is contrasted with; null for all")
    choice: Literal["random", "hardest"] = Field(
        "random", description="which ones: drawn anew in each step, or those with the highest similarity"
    )
    start: float = Field(0.0, ge=0, le=1, description="share of the run before which all negatives are used")
    false_negative_margin: float | None = Field(
        None,
        gt=0,
        le=1,
        description="leave out negatives more similar than this share of the best positive's; published 0.95",
    )

    @property
    def used(self) -> bool:
        """Whether negatives are selected at any time."""
        return self.per_anchor is not None or self.false_negative_margin is not None

    def used_at(self, done: float) -> bool:
        """Whether negatives are selected when the share `done` of the run is done."""
        return self.used and done >= self.start

    @model_validator(mode="after")
    def _meaningful(self) -> "NegativeSettings":
        if self.choice == "hardest" and self.per_anchor is None:
            raise ValueError("choice=hardest needs per_anchor, the number of negatives to choose")
        if self.start and not self.used:
            raise ValueError(
                "start means nothing without per_anchor or false_negative_margin: set one, or leave it out"
            )
        return self


def selected(
    settings: NegativeSettings, generator: torch.Generator, masks: BlockMasks, queries: Tensor, keys: Tensor
) -> RowMasks:
    """`masks` with no more than the selected negatives among the candidates.

    Args:
        generator: of the processor, and in the same state on every rank; advanced by a random choice.
        masks: positives and candidates of any block.
        queries: (B, K, D) and
        keys: (B, R, D), for their shapes and device.
    """
    order = _random_order(generator, queries, keys) if settings.choice == "random" else _by_similarity

    def row_masks(rows: slice, cosines: Tensor) -> tuple[Tensor, Tensor]:
        positives, candidates = masks(rows, WHOLE)
        negatives = candidates & ~positives
        if settings.false_negative_margin is not None:
            negatives &= ~likely_positives(cosines, positives, settings.false_negative_margin)
        if settings.per_anchor is not None:
            negatives = highest(order(rows, cosines), negatives, settings.per_anchor)
        return positives, positives | negatives

    return row_masks


def likely_positives(cosines: Tensor, positives: Tensor, margin: float) -> Tensor:
    """Columns (q, M) bool that are more similar to a row than `margin` times its most similar positive.

    Where that positive's similarity is not above 0, or there is none, there are no such columns: what has not been
    learned yet is no measure.

    Source: Moreira et al., NV-Retriever, 2024, TopK-PercPos.
    """
    best = F.pad(torch.where(positives, cosines, 0.0), (0, 1)).amax(dim=1, keepdim=True)  # never of no column
    return (best > 0) & (cosines > margin * best)


def highest(order: Tensor, allowed: Tensor, most: int) -> Tensor:
    """The `most` columns (q, M) bool of each row that stand highest in `order`, or all that are allowed if fewer."""
    limits = torch.finfo(order.dtype) if order.is_floating_point() else torch.iinfo(order.dtype)
    columns = torch.where(allowed, order, limits.min).topk(min(most, order.shape[1]), dim=1).indices
    return torch.zeros_like(allowed).scatter_(1, columns, True) & allowed


Order = Callable[[slice, Tensor], Tensor]
"""What the columns (q, M) of the rows of some pairs are chosen by, from their similarities (q, M)."""


def _by_similarity(rows: slice, cosines: Tensor) -> Tensor:
    return cosines


def _random_order(generator: torch.Generator, queries: Tensor, keys: Tensor) -> Order:
    """Every row and every column has a random number, and their products, which overflow, order a row's columns.

    So strips of any size, their backward passes and devices of any kind choose alike, and no matrix is held for it.
    """
    of_rows, of_columns = (
        torch.randint(-(2**63), 2**63 - 1, features.shape[:2], generator=generator).to(features.device)
        for features in (queries, keys)
    )
    return lambda rows, _: of_rows[rows].flatten()[:, None] * of_columns.flatten()
