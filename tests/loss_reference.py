"""Slow loops of the losses: row by row, one similarity after the other; differentiable."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def info_nce(logits: Tensor, positives: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Row by row, one exponential after the other; differentiable. For logits that `exp` can bear."""
    losses, counted = [], []
    for row, positive_row, candidate_row in zip(logits, positives.tolist(), candidates.tolist(), strict=True):
        positive_mass, total_mass = logits.new_zeros(()), logits.new_zeros(())
        for logit, positive, candidate in zip(row, positive_row, candidate_row, strict=True):
            positive_mass = positive_mass + logit.exp() * positive
            total_mass = total_mass + logit.exp() * (positive or candidate)
        counted.append(any(positive_row))
        losses.append(-(positive_mass / total_mass).log() if counted[-1] else row.sum() * 0)
    return torch.stack(losses), torch.tensor(counted)


RowLoss = Callable[[list[Tensor], list[Tensor], list[float]], Tensor | None]
"""From the similarities of the positives and of the negatives of one row, and the relative weights of the positives;
None where the row does not count."""


def row_losses(
    row_loss: RowLoss, cosines: Tensor, positives: Tensor, candidates: Tensor, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Row by row; differentiable. With weights the second are those of the rows, 0 where a row does not count."""
    losses, counted = [], []
    weights = torch.ones(cosines.shape) if weight is None else weight
    for row, *kinds in zip(cosines, positives.tolist(), candidates.tolist(), weights.tolist(), strict=True):
        entries = list(zip(row, *kinds, strict=True))
        right = [(cosine, strength) for cosine, positive, _, strength in entries if positive and strength > 0]
        wrong = [cosine for cosine, positive, candidate, _ in entries if candidate and not positive]
        best = max((strength for _, strength in right), default=0.0)
        relative = [strength / best for _, strength in right]
        loss = row_loss([cosine for cosine, _ in right], wrong, relative) if right else None
        losses.append(row.sum() * 0 if loss is None else loss)
        counted.append((loss is not None) * best)
    stacked = torch.tensor(counted, dtype=cosines.dtype)
    return torch.stack(losses), stacked if weight is not None else stacked > 0


def total(values: Iterable[Tensor]) -> Tensor:
    return sum(values, start=torch.zeros((), dtype=torch.float64))


def weighted(values: Iterable[Tensor], weights: list[float]) -> list[Tensor]:
    return [weight * value for value, weight in zip(values, weights, strict=True)]


def plain_info_nce(right: list[Tensor], wrong: list[Tensor], relative: list[float], scale: Tensor) -> Tensor:
    masses = weighted([(scale * cosine).exp() for cosine in right], relative)
    return -(total(masses) / total([*masses, *((scale * cosine).exp() for cosine in wrong)])).log()


def sup_con(right: list[Tensor], wrong: list[Tensor], relative: list[float], scale: Tensor) -> Tensor:
    """The mean over the positives of the cross-entropy of each."""
    masses = weighted([(scale * cosine).exp() for cosine in right], relative)
    everything = total([*masses, *((scale * cosine).exp() for cosine in wrong)])
    return total(weighted([-((scale * cosine).exp() / everything).log() for cosine in right], relative)) / sum(relative)


def decoupled(right: list[Tensor], wrong: list[Tensor], relative: list[float], scale: Tensor) -> Tensor | None:
    if not wrong:
        return None
    negatives = total((scale * cosine).exp() for cosine in wrong)
    return total(weighted([-((scale * cosine).exp() / negatives).log() for cosine in right], relative)) / sum(relative)


def sigmoid(right: list[Tensor], wrong: list[Tensor], relative: list[float], scale: Tensor, bias: Tensor) -> Tensor:
    yes = [1 / (1 + (-(scale * cosine + bias)).exp()) for cosine in right]
    no = [1 / (1 + (scale * cosine + bias).exp()) for cosine in wrong]
    return total([*weighted([-probability.log() for probability in yes], relative), *(-one.log() for one in no)])


def arc_face(right: list[Tensor], wrong: list[Tensor], relative: list[float], scale: Tensor, margin: float) -> Tensor:
    def moved(cosine: Tensor) -> Tensor:
        angle = cosine.acos()
        return (angle + margin).cos() if angle + margin < math.pi else angle.cos() - margin * math.sin(margin)

    return plain_info_nce([moved(cosine) for cosine in right], wrong, relative, scale)


def hardness_weighted(
    right: list[Tensor], wrong: list[Tensor], relative: list[float], scale: Tensor, beta: float
) -> Tensor:
    hardness = [(beta * scale * cosine).exp() for cosine in wrong]
    weights = [len(wrong) * one / total(hardness) for one in hardness]
    positives = total(weighted([(scale * cosine).exp() for cosine in right], relative))
    negatives = total(weight * (scale * cosine).exp() for weight, cosine in zip(weights, wrong, strict=True))
    return -(positives / (positives + negatives)).log()


def row_statistics(logits: Tensor, positives: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Row by row: mass of the positives, mass of the negatives, sum and number of the positives; differentiable."""

    def mass(values: list[Tensor]) -> Tensor:
        if not values:
            return logits.new_tensor(torch.finfo(logits.dtype).min)
        return sum((value.exp() for value in values), start=logits.new_zeros(())).log()

    positive_masses, negative_masses, sums, counts = [], [], [], []
    for row, positive_row, candidate_row in zip(logits, positives.tolist(), candidates.tolist(), strict=True):
        right = [logit for logit, positive in zip(row, positive_row, strict=True) if positive]
        kinds = zip(row, positive_row, candidate_row, strict=True)
        wrong = [logit for logit, positive, candidate in kinds if candidate and not positive]
        positive_masses.append(mass(right))
        negative_masses.append(mass(wrong))
        sums.append(sum(right, start=logits.new_zeros(())))
        counts.append(len(right))
    if not counts:
        return logits.new_zeros(0), logits.new_zeros(0), logits.new_zeros(0), torch.zeros(0, dtype=torch.int64)
    return torch.stack(positive_masses), torch.stack(negative_masses), torch.stack(sums), torch.tensor(counts)


def ranking_loss(
    comparisons: list[tuple[Tensor, Tensor, Tensor]],
    margin: float,
    gate: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Mean of what each comparison lacks of the margin, gates of (view, text) over their mean; 0 of none."""
    if not comparisons:
        return total([])
    gates = [gate(view.detach(), text.detach()) if gate else torch.ones(()) for text, _, view in comparisons]
    mean = sum(gates) / len(gates)
    lacking = [(margin - best + text @ view).clamp(min=0) for text, best, view in comparisons]
    return total(gate / mean * one for gate, one in zip(gates, lacking, strict=True)) / len(comparisons)


def selected_negatives(
    order: list[float],
    cosines: list[float],
    positives: list[bool],
    candidates: list[bool],
    most: int | None,
    margin: float | None,
) -> list[bool]:
    """The negatives of one row that are left: none that may be a positive, and of these the first by `order`."""
    left = [j for j in range(len(order)) if candidates[j] and not positives[j]]
    best = max((cosines[j] for j in range(len(order)) if positives[j]), default=0.0)
    if margin is not None and best > 0:
        left = [j for j in left if cosines[j] <= margin * best]
    if most is not None:
        left = sorted(left, key=lambda j: order[j], reverse=True)[:most]
    return [j in left for j in range(len(order))]
