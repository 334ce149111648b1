"""The loss kernel: statistics of each row of logits, and InfoNCE as a formula on them.

Other modules build the masks of positives and candidates. The statistics come from the whole matrix here, or from tiles
(`tiled.py`) when the matrix is too large; the formulas are the same.

    Q queries (rows)    N candidates (columns)
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class Statistics(NamedTuple):
    """Statistics of each row (Q,) that the losses are computed from.

    A mass is a log-sum-exp. An empty row has the mass finfo.min, not -inf, so that differences of masses and their
    gradients are never NaN.
    """

    positive_mass: Tensor  # of the positives
    negative_mass: Tensor  # of the negatives: candidates that are not positives
    positive_sum: Tensor  # sum of the logits of the positives
    positive_count: Tensor  # int64


def row_statistics(logits: Tensor, positives: Tensor, candidates: Tensor) -> Statistics:
    """Statistics of each row; arguments as for `info_nce`. Pass transposed matrices for the columns."""
    logits = at_least_float32(logits)
    return Statistics(
        log_mass(logits, positives),
        log_mass(logits, candidates & ~positives),
        torch.where(positives, logits, 0.0).sum(dim=1),
        positives.sum(dim=1),
    )


def info_nce(logits: Tensor, positives: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """InfoNCE of each row over its own set of positives and candidates.

    `-log( sum over positives of exp(logit) / sum over positives and candidates of exp(logit) )`. With one positive this
    is the cross-entropy; several positives share the probability.

    Args:
        logits: (Q, N), similarity divided by temperature. Half precision is converted to float32.
        positives: (Q, N) bool.
        candidates: (Q, N) bool, entries of the denominator. Positives are always included.

    Returns:
        Loss of each row (Q,), 0 for a row without a positive, and the rows that count (Q,) bool.

    Source: van den Oord et al., 2018, eq. 4; several positives as in Miech et al., MIL-NCE, 2020, eq. 1.
    """
    return info_nce_of(row_statistics(logits, positives, candidates))


def info_nce_of(rows: Statistics) -> tuple[Tensor, Tensor]:
    """`info_nce` from row statistics: `log(exp(P) + exp(N)) - P`, with the masses P of positives, N of negatives."""
    counted = rows.positive_count > 0
    return torch.where(counted, -F.logsigmoid(rows.positive_mass - rows.negative_mass), 0.0), counted


def mean_over_counted(row_loss: Tensor, counted: Tensor) -> Tensor:
    """Mean over the rows that count; 0 with zero gradient if there are none."""
    return row_loss.sum() / counted.sum().clamp(min=1)


def at_least_float32(values: Tensor) -> Tensor:
    """Convert half precision to float32."""
    return values if values.dtype == torch.float64 else values.float()


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
