"""The losses by name: formulas on row statistics, or functions of whole rows of similarities.

Each gives `RowLosses`: the loss of each row and the rows that count. docs/mathematics.md has all formulas.

    Q queries (rows)    N candidates (columns)
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbox.losses.kernel import RowLosses, Statistics, counted_rows, log_mass, row_statistics, with_weight
from spanbox.losses.relations import Relation

LossName = Literal["info_nce", "sup_con", "decoupled", "sigmoid", "arc_face", "hardness_weighted"]


def info_nce(logits: Tensor, relation: Relation) -> RowLosses:
    """InfoNCE of each row over its own set of positives and candidates.

    `-log( sum over positives of exp(logit) / sum over positives and candidates of exp(logit) )`. With one positive this
    is the cross-entropy; several positives share the probability. Rows without a positive do not count.

    Args:
        logits: (Q, N), similarity divided by temperature. Half precision is converted to float32.
        relation: of the rows to the columns.

    Source: van den Oord et al., 2018, eq. 4; several positives as in Miech et al., MIL-NCE, 2020, eq. 1.
    """
    return info_nce_of(row_statistics(logits, relation))


def info_nce_of(rows: Statistics) -> RowLosses:
    """`info_nce` from row statistics: `log(exp(P) + exp(N)) - P`, with the masses P of positives, N of negatives."""
    loss = -F.logsigmoid(rows.positive_mass - rows.negative_mass)
    return counted_rows(loss, rows.positive_count > 0, rows.weight)


def sup_con_of(rows: Statistics) -> RowLosses:
    """Supervised contrastive loss: `log(exp(P) + exp(N)) - S / n`, with the sum S of the logits of n positives.

    The mean of one cross-entropy per positive, so all positives are pulled; InfoNCE is satisfied with the nearest.

    Source: Khosla et al., 2020, eq. 2 (the mean over positives outside of the logarithm).
    """
    loss = torch.logaddexp(rows.positive_mass, rows.negative_mass) - _mean_positive(rows)
    return counted_rows(loss, rows.positive_count > 0, rows.weight)


def decoupled_of(rows: Statistics) -> RowLosses:
    """Decoupled contrastive loss: `N - S / n`, without positives in the denominator. It can be negative.

    The gradient does not shrink for rows that are already right. Rows without negatives do not count.

    Source: Yeh et al., Decoupled Contrastive Learning, 2022, the loss L_DC of section 3; the mean over several
    positives as in `sup_con_of`.
    """
    has_negatives = rows.negative_mass > torch.finfo(rows.negative_mass.dtype).min
    counted = (rows.positive_count > 0) & has_negatives
    return counted_rows(rows.negative_mass - _mean_positive(rows), counted, rows.weight)


def _mean_positive(rows: Statistics) -> Tensor:
    return rows.positive_sum / rows.positive_count.clamp(min=1)


def sigmoid(cosines: Tensor, scale: Tensor, relation: Relation, *, bias: Tensor) -> RowLosses:
    """Sigmoid loss: a binary classification of every entry by `scale * cosine + bias`.

    Summed over the row, since the source divides by the number of rows, not of entries. Rows without a positive do not
    count.

    Args:
        cosines: (Q, N) float32 or wider.
        scale: scalar, 1 / temperature.
        relation: of the rows to the columns. With weights, each positive's term is multiplied by its relative weight.
        bias: scalar.

    Source: Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023, section 3.2 and algorithm 1.
    """
    positives, candidates, _ = relation
    logits = scale * cosines + bias
    cells = -F.logsigmoid(torch.where(positives, logits, -logits))
    weight = relation.relative_weight()
    if weight is not None:
        cells = torch.where(positives, weight.to(cells.dtype) * cells, cells)
    loss = torch.where(positives | candidates, cells, 0.0).sum(dim=1)
    return counted_rows(loss, positives.any(dim=1), relation.strongest())


def arc_face(cosines: Tensor, scale: Tensor, relation: Relation, *, margin: float) -> RowLosses:
    """InfoNCE with `margin` radians added to the angle of each positive.

    Args: as for `sigmoid`.

    Source: Deng et al., ArcFace, 2019, eq. 3.
    """
    return info_nce(scale * torch.where(relation.positives, with_margin(cosines, margin), cosines), relation)


def with_margin(cosines: Tensor, margin: float) -> Tensor:
    """`cos(angle + margin)`, or `cos(angle) - margin * sin(margin)` where the sum exceeds 180 degrees, as in the
    authors' code."""
    sines = (1 - cosines**2).clamp(min=torch.finfo(cosines.dtype).eps).sqrt()  # the root has no derivative at 0
    moved = cosines * math.cos(margin) - sines * math.sin(margin)
    return torch.where(cosines > -math.cos(margin), moved, cosines - margin * math.sin(margin))


def hardness_weighted(cosines: Tensor, scale: Tensor, relation: Relation, *, beta: float) -> RowLosses:
    """InfoNCE with negatives weighted by `exp(beta * logit)`, normalised to a mean of 1 per row.

    With weights w of n negatives the sum of `w * exp(logit)` is `n * sum(exp((1 + beta) * logit)) / sum(exp(beta *
    logit))`, so its logarithm is a difference of masses. The gradient passes through the weights, as in the authors'
    code. Their correction for false negatives is omitted, because ids identify them here.

    Args: as for `sigmoid`.

    Source: Robinson et al., Contrastive Learning with Hard Negative Samples, 2021, section 3, importance sampling.
    """
    logits, negatives = scale * cosines, relation.negatives
    number = negatives.sum(dim=1).to(logits.dtype)
    weighted = log_mass((1 + beta) * logits, negatives) - log_mass(beta * logits, negatives) + number.clamp(min=1).log()
    negative_mass = torch.where(number > 0, weighted, torch.finfo(logits.dtype).min)
    positive_mass = log_mass(with_weight(logits, relation.relative_weight()), relation.positives)
    loss = -F.logsigmoid(positive_mass - negative_mass)
    return counted_rows(loss, relation.positives.any(dim=1), relation.strongest())


@dataclass(frozen=True, kw_only=True)
class Loss:
    """An entry of the table of losses.

    Attributes:
        rows: `rows(cosines, scale, relation, **options)`, the loss on the similarities (Q, N) of whole rows.
        formula: the same from row statistics, if the loss depends only on these. Then it can be computed in tiles.
        summary, source: text for `spanbox losses`.
        temperature: initial temperature if the config gives none.
        options: further settings of this loss with their published values.
    """

    rows: Callable[..., RowLosses]
    formula: Callable[[Statistics], RowLosses] | None = None
    summary: str
    source: str
    temperature: float = 0.07
    options: Mapping[str, float] = field(default_factory=dict)


def _of_statistics(formula: Callable[[Statistics], RowLosses], *, summary: str, source: str) -> Loss:
    def rows(cosines: Tensor, scale: Tensor, relation: Relation) -> RowLosses:
        return formula(row_statistics(scale * cosines, relation))

    return Loss(rows=rows, formula=formula, summary=summary, source=source)


LOSSES: dict[str, Loss] = {
    "info_nce": _of_statistics(
        info_nce_of,
        summary="softmax over candidates; several positives share the probability",
        source="van den Oord et al., 2018, eq. 4; Miech et al., 2020, eq. 1",
    ),
    "sup_con": _of_statistics(
        sup_con_of,
        summary="supervised contrastive: mean of one cross-entropy per positive",
        source="Khosla et al., 2020, eq. 2",
    ),
    "decoupled": _of_statistics(
        decoupled_of,
        summary="sup_con without positives in the denominator",
        source="Yeh et al., 2022, section 3",
    ),
    "sigmoid": Loss(
        rows=sigmoid,
        summary="binary classification of every entry as positive or negative",
        source="Zhai et al., 2023, section 3.2",
        temperature=0.1,
        options={"bias": -10.0},
    ),
    "arc_face": Loss(
        rows=arc_face,
        summary="info_nce with an additive angular margin for positives",
        source="Deng et al., 2019, eq. 3",
        options={"margin": 0.5},
    ),
    "hardness_weighted": Loss(
        rows=hardness_weighted,
        summary="info_nce with negatives weighted by similarity",
        source="Robinson et al., 2021, section 3",
        options={"beta": 1.0},
    ),
}
