"""The loss kernel. Every kind of negative and every pairing of features only builds the masks that it takes.

Q queries (rows)    N candidates (columns)
"""

import torch
from torch import Tensor


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
    logits = logits if logits.dtype == torch.float64 else logits.float()
    counted = positives.any(dim=1)
    # A row that does not count keeps all its logits, so that its unused value and gradient stay finite.
    left_out = counted[:, None]
    positive_mass = logits.masked_fill(left_out & ~positives, -torch.inf).logsumexp(dim=1)
    total_mass = logits.masked_fill(left_out & ~(positives | candidates), -torch.inf).logsumexp(dim=1)
    return torch.where(counted, total_mass - positive_mass, 0.0), counted


def mean_over_counted(row_loss: Tensor, counted: Tensor) -> Tensor:
    """Mean over the rows that count; 0, with a gradient of 0, when there are none."""
    return row_loss.sum() / counted.sum().clamp(min=1)
