"""The loss kernel: a few statistics of each row of logits, and the losses, which are formulas on them.

Every kind of negative and every pairing of features only builds the masks that it takes. The statistics are taken from
a whole matrix here, or tile by tile in `tiled.py` where a matrix would be too large; the formulas do not know which.

    Q queries (rows)    N candidates (columns)
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class Statistics(NamedTuple):
    """What the losses need to know of each row (Q,).

    A mass is the log of a sum of exponentials. Of no logits at all it is the lowest number of its type, not -inf, so
    that differences of masses, and their gradients, are never nan.
    """

    positive_mass: Tensor  # of the logits of the positives
    negative_mass: Tensor  # of the logits of the negatives: the candidates that are not positives
    positive_sum: Tensor  # of the logits of the positives, without exponential
    positive_count: Tensor  # int64


def row_statistics(logits: Tensor, positives: Tensor, candidates: Tensor) -> Statistics:
    """Statistics of each row, from what `info_nce` takes. Those of the columns come from the transposed matrices."""
    logits = at_least_float32(logits)
    return Statistics(
        log_mass(logits, positives),
        log_mass(logits, candidates & ~positives),
        torch.where(positives, logits, 0.0).sum(dim=1),
        positives.sum(dim=1),
    )


def info_nce(logits: Tensor, positives: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """InfoNCE of each row over its own set of positives and candidates.

    `-log( sum over positives of exp(logit) / sum over positives and candidates of exp(logit) )`: with one positive the
    usual cross-entropy, with several the row asks that they hold the mass together.

    Args:
        logits: (Q, N), similarity over temperature. Half precision is raised to float32.
        positives: (Q, N) bool.
        candidates: (Q, N) bool, what the positives are contrasted with. Positives take part whether set here or not.

    Returns:
        Loss of each row (Q,), 0 where a row has no positive, and which rows count (Q,) bool.

    Source: van den Oord et al., 2018, eq. 4; several positives as in Miech et al., MIL-NCE, 2020, eq. 1.
    """
    return info_nce_of(row_statistics(logits, positives, candidates))


def info_nce_of(rows: Statistics) -> tuple[Tensor, Tensor]:
    """`info_nce` from the statistics of the rows: `log(exp(P) + exp(N)) - P`, P and N the masses of a row."""
    counted = rows.positive_count > 0
    return torch.where(counted, -F.logsigmoid(rows.positive_mass - rows.negative_mass), 0.0), counted


def mean_over_counted(row_loss: Tensor, counted: Tensor) -> Tensor:
    """Mean over the rows that count; 0, with a gradient of 0, when there are none."""
    return row_loss.sum() / counted.sum().clamp(min=1)


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision raised to float32."""
    return values if values.dtype == torch.float64 else values.float()


def log_mass(logits: Tensor, mask: Tensor) -> Tensor:
    """Log of the sum of the exponentials of what `mask` allows of each row (Q,), with first derivatives."""
    mass: Tensor = _LogMass.apply(logits, mask)  # type: ignore[no-untyped-call]
    return mass


def log_mass_gradient(logits: Tensor, mask: Tensor, mass: Tensor, of_mass: Tensor) -> Tensor:
    """Gradient at the logits (Q, N) from the gradient at the mass of each row (Q,).

    The mass may be that of a longer row, of which these logits are a part.
    """
    return torch.where(mask, _exp_(logits - mass[:, None]).mul_(of_mass[:, None]), 0.0)


class _LogMass(torch.autograd.Function):
    """`logsumexp` over a mask: holds no more than its input, and rows without anything do not make nan."""

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
    def backward(ctx: Any, of_mass: Tensor) -> tuple[Tensor, None]:
        logits, mask, mass = ctx.saved_tensors
        return log_mass_gradient(logits, mask, mass, of_mass), None


def _exp_(values: Tensor) -> Tensor:
    """`exp` in place, by base 2: on a processor `torch.exp` is ten times slower where it underflows, as masks do."""
    return values.mul_(1 / math.log(2)).exp2_()
