"""The loss kernel: statistics of each row of logits, on which the losses are formulas, and the mean over the rows.

`relations.py` determines the positives; `blocks.py` takes the statistics from the whole matrix or adds them up over
tiles; `formulas.py` has the losses.

    Q queries (rows)    N candidates (columns)
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spanbox.losses.relations import WHOLE, Relation, strongest
from spanbox.structures import at_least_float32

Total = Callable[[Tensor], Tensor]
"""Sums a detached number over the ranks."""


def alone(own: Tensor) -> Tensor:
    """The `Total` of one rank."""
    return own


class Share(NamedTuple):
    """The rows that a rank computes: the queries of its own pairs, in both directions, against the keys of all.

    The ranks' shares of a loss, and of every gradient, add up to those of the whole.
    """

    pairs: slice = WHOLE  # this rank's pairs among those of all ranks
    ranks: int = 1  # how many share the pairs
    total: Total = alone


WHOLE_SHARE = Share()

RowLosses = tuple[Tensor, Tensor]
"""Loss of each row (Q,), 0 for rows that do not count, and the rows that count (Q,) bool. With weights of positives the
second is float: the weight of the row in the mean, that of its strongest positive, or 0 if it does not count."""


class Statistics(NamedTuple):
    """Statistics of each row (Q,) that the losses are computed from.

    A mass is a log-sum-exp. An empty row has the mass finfo.min, not -inf, so that differences of masses and their
    gradients are never NaN.

    With weights, a positive of weight w counts w / w_max, where w_max is the weight of the strongest of its row.
    """

    positive_mass: Tensor  # of the positives
    negative_mass: Tensor  # of the negatives: candidates that are not positives
    positive_sum: Tensor  # sum of the logits of the positives
    positive_count: Tensor  # int64; float with weights
    weight: Tensor | None = None  # w_max, 0 without a positive; None without weights

    def of_rows(self, rows: slice) -> "Statistics":
        """The statistics of some rows, as views."""
        return Statistics(
            self.positive_mass[rows],
            self.negative_mass[rows],
            self.positive_sum[rows],
            self.positive_count[rows],
            None if self.weight is None else self.weight[rows],
        )

    def relative_to_strongest(self) -> "Statistics":
        """Statistics rescaled so that the strongest positive of a row has weight 1. Add up parts before, not after."""
        if self.weight is None:
            return self
        best = torch.where(self.weight > 0, self.weight, 1.0)
        return self._replace(
            positive_mass=self.positive_mass - best.log(),
            positive_sum=self.positive_sum / best,
            positive_count=self.positive_count / best,
        )


def row_statistics(logits: Tensor, relation: Relation) -> Statistics:
    """Statistics of each row of logits (Q, N), similarity divided by temperature. Half precision becomes float32."""
    logits = at_least_float32(logits)
    mass, of_logits, count, weight = positive_statistics(logits, relation.positives, relation.weight)
    negative_mass = log_mass(logits, relation.negatives)
    return Statistics(mass, negative_mass, of_logits, count, weight).relative_to_strongest()


def positive_statistics(
    logits: Tensor, positives: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Mass, sum, count and largest weight (Q,) of the positives, in which each counts with its weight."""
    if weight is None:
        return log_mass(logits, positives), torch.where(positives, logits, 0.0).sum(dim=1), positives.sum(dim=1), None
    weight = torch.where(positives, weight.to(logits.dtype), 0.0)
    mass = log_mass(with_weight(logits, weight), positives)
    return mass, (weight * logits).sum(dim=1), weight.sum(dim=1), strongest(weight, positives)


def with_weight(logits: Tensor, weight: Tensor | None) -> Tensor:
    """Logits whose exponentials are multiplied by `weight`, if any."""
    return logits if weight is None else logits + weight.to(logits.dtype).log()


def counted_rows(loss: Tensor, counted: Tensor, weight: Tensor | None) -> RowLosses:
    """`RowLosses` from a loss (Q,), the rows that count (Q,) bool, and the weight (Q,) of their strongest positives."""
    return torch.where(counted, loss, 0.0), counted if weight is None else counted * weight


def mean_over_counted(row_loss: Tensor, counted: Tensor, total: Total = alone) -> Tensor:
    """Mean over the rows that count, weighted if `counted` is float (`RowLosses`); 0 with zero gradient if none does.

    Args:
        total: sums a number over the ranks, if each has other rows; the result is this rank's share of the mean.
    """
    if counted.is_floating_point():
        row_loss = counted * row_loss
    number = total(counted.sum())
    return row_loss.sum() / torch.where(number > 0, number, 1)


def log_mass(logits: Tensor, mask: Tensor) -> Tensor:
    """Log-sum-exp of each row (Q,) over the entries in `mask`, with first derivatives."""
    mass: Tensor = _LogMass.apply(logits, mask)  # type: ignore[no-untyped-call]
    return mass


def log_mass_gradient(logits: Tensor, mask: Tensor, mass: Tensor, grad_mass: Tensor) -> Tensor:
    """Gradient of the logits (Q, N) from the gradient of the mass of each row (Q,).

    The logits may be a part of the rows that the mass belongs to.
    """
    return torch.where(mask, _exp_(logits - mass[:, None]).mul_(grad_mass[:, None]), 0.0)


class _LogMass(torch.autograd.Function):
    """Masked `logsumexp` that saves only its inputs for the backward pass; empty rows give finfo.min, not NaN."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, mask: Tensor) -> Tensor:
        lowest = torch.finfo(logits.dtype).min
        if not logits.numel():
            mass = logits.new_full((len(logits),), lowest)
        else:
            allowed = torch.where(mask, logits, lowest)
            largest = allowed.amax(dim=1)
            mass = _exp_(allowed.sub_(largest[:, None])).sum(dim=1).log_().add_(largest)
        ctx.save_for_backward(logits, mask, mass)
        return mass

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_mass: Tensor) -> tuple[Tensor, None]:
        logits, mask, mass = ctx.saved_tensors
        return log_mass_gradient(logits, mask, mass, grad_mass), None


def _exp_(values: Tensor) -> Tensor:
    """In-place `exp` by base 2: on the CPU `torch.exp` is ten times slower on underflow, as at masked entries."""
    return values.mul_(1 / math.log(2)).exp2_()
