"""Choice of the negatives of a row: all, a random sample in each step, or the most similar ones.

The choice removes candidates from a `Relation` by the similarities of whole rows, before the losses in the strips of
`blocks.py`. It has no gradient. Rows and columns choose separately.

    B pairs    K queries per pair, Q = B*K rows    R keys per pair, M = B*R columns    q rows of a block of pairs
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from spanbox.losses.relations import WHOLE, BlockRelation, Relation, RowRelation
from spanbox.settings import Settings


class NegativeSettings(Settings):
    """The negatives of a level. docs/mathematics.md has the rules."""

    per_anchor: int | None = Field(None, ge=1, description="maximum number of negatives per row; null: all")
    choice: Literal["random", "hardest"] = Field(
        "random", description="random: a new sample in each step; hardest: those with the highest similarity"
    )
    start: float = Field(
        0.0, ge=0, le=1, description="share of the run after which the choice starts; until then all negatives are used"
    )
    false_negative_margin: float | None = Field(
        None,
        gt=0,
        le=1,
        description="skip negatives above this fraction of the best positive's similarity; published value 0.95",
    )

    @property
    def used(self) -> bool:
        """Whether negatives are selected at any time."""
        return self.per_anchor is not None or self.false_negative_margin is not None

    def used_at(self, done: float) -> bool:
        """Whether negatives are selected after the share `done` of the run."""
        return self.used and done >= self.start

    @model_validator(mode="after")
    def _meaningful(self) -> "NegativeSettings":
        if self.choice == "hardest" and self.per_anchor is None:
            raise ValueError("choice=hardest needs per_anchor, the number of negatives to choose")
        if self.start and not self.used:
            raise ValueError(
                "start has no effect without per_anchor or false_negative_margin: set one of them, or remove start"
            )
        return self


def selected(
    settings: NegativeSettings,
    generator: torch.Generator,
    relation: BlockRelation,
    queries: Sequence[int],
    keys: Sequence[int],
    device: torch.device,
) -> RowRelation:
    """`relation` with only the selected negatives among the candidates.

    Args:
        generator: on the CPU, in the same state on every rank; advanced by a random choice.
        relation: of any block.
        queries, keys: (B, K) and (B, R).
    """
    order = random_order(generator, queries, keys, device) if settings.choice == "random" else _by_similarity

    def row_relation(rows: slice, cosines: Tensor) -> Relation:
        everything = relation(rows, WHOLE)
        positives, negatives = everything.positives, everything.negatives
        if settings.false_negative_margin is not None:
            negatives &= ~likely_positives(cosines, positives, settings.false_negative_margin)
        if settings.per_anchor is not None:
            negatives = highest(order(rows, cosines), negatives, settings.per_anchor)
        return everything._replace(candidates=positives | negatives)

    return row_relation


def likely_positives(cosines: Tensor, positives: Tensor, margin: float) -> Tensor:
    """Columns (q, M) bool that are more similar to a row than `margin` times its most similar positive.

    Rows whose best positive is not above 0, or that have none, give no such columns: an untrained positive is not a
    usable reference.

    Source: Moreira et al., NV-Retriever, 2024, TopK-PercPos.
    """
    padded = F.pad(torch.where(positives, cosines, 0.0), (0, 1))  # so that amax has a column
    best = padded.amax(dim=1, keepdim=True)
    return (best > 0) & (cosines > margin * best)


def highest(order: Tensor, allowed: Tensor, most: int) -> Tensor:
    """The `most` allowed columns (q, M) bool of each row with the highest `order`, or all if there are fewer."""
    limits = torch.finfo(order.dtype) if order.is_floating_point() else torch.iinfo(order.dtype)
    columns = torch.where(allowed, order, limits.min).topk(min(most, order.shape[1]), dim=1).indices
    return torch.zeros_like(allowed).scatter_(1, columns, True) & allowed


Order = Callable[[slice, Tensor], Tensor]
"""Maps a block of pairs and its similarities (q, M) to the values (q, M) that columns are ranked by."""


def _by_similarity(rows: slice, cosines: Tensor) -> Tensor:
    return cosines


def random_order(
    generator: torch.Generator, queries: Sequence[int], keys: Sequence[int], device: torch.device
) -> Order:
    """Rank columns by the product, modulo 2^64, of a random number per row and one per column.

    The choice is the same for strips of any size, in the backward pass and on any device, and needs no matrix of random
    numbers.

    Args:
        queries, keys: (B, K) and (B, R).
    """
    row_numbers, column_numbers = (
        torch.randint(-(2**63), 2**63 - 1, tuple(shape), generator=generator).to(device) for shape in (queries, keys)
    )
    return lambda rows, _: row_numbers[rows].flatten()[:, None] * column_numbers.flatten()
