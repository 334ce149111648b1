"""Masked views in the losses: a view that hides an entity is a hard negative of the text that names it.

Views are further keys of a level (`sentence_view_relation`, `span_view_relation`), or are ranked below their image here
(`ranking_loss`).

    B pairs    K spans per sentence    R regions per image    V views per image    D features
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from spanbox.losses.kernel import WHOLE_SHARE, Share, Total, alone, mean_over_counted
from spanbox.losses.relations import hidden_from_spans, linked_regions, view_sentence
from spanbox.settings import Settings
from spanbox.structures import Features, Targets


class ViewLossSettings(Settings):
    """Use of the masked views, if the data has any. docs/mathematics.md has the formulas."""

    form: Literal["candidate", "margin", "none"] = Field(
        "candidate",
        description="views that hide an entity are: candidate: negatives in the loss of the level; margin: ranked "
        "below the whole image by a separate loss term; none: no view is used",
    )
    positives: bool = Field(True, description="views that keep all entities of a sentence are its positives")
    margin: float = Field(
        0.2, ge=0, le=2, description="form=margin only: required lead of the image, as a difference of cosines"
    )
    weight: float = Field(1.0, ge=0, description="form=margin only: weight of the term in the total loss")
    gate: bool = Field(False, description="form=margin only: learn a weight for each view")

    @property
    def negatives(self) -> bool:
        """Whether views that hide an entity are negatives in the losses of the levels."""
        return self.form == "candidate"

    @property
    def join_images(self) -> bool:
        """Whether the coarse level uses views."""
        return self.form == "candidate" or (self.form == "margin" and self.positives)

    @property
    def ranked(self) -> bool:
        """Whether there is a separate loss term for views."""
        return self.form == "margin" and self.weight > 0

    @property
    def used(self) -> bool:
        """Whether any loss uses views."""
        return self.join_images or self.ranked

    @model_validator(mode="after")
    def _meaningful(self) -> "ViewLossSettings":
        if self.gate and not self.ranked:
            raise ValueError(
                "gate applies to form=margin only: use that form with a weight above 0, or set gate to false"
            )
        return self


class Gate(nn.Module):
    """Learned weight of each view for each text: `sigmoid(w . [view; text] + b)`, divided by its mean.

    The mean of the weights is 1, so closing all gates does not lower the loss. Features get no gradient from the gate.
    All weights are 1 at the start.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.of_view = nn.Parameter(torch.zeros(dim))
        self.of_text = nn.Parameter(torch.zeros(dim))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, views: Tensor, texts: Tensor, used: Tensor) -> Tensor:
        """Weights (B, K, V) of views (B, V, D) for texts (B, K, D), with a mean of 1 over the used ones."""
        logits = (views.detach() @ self.of_view)[:, None, :] + (texts.detach() @ self.of_text)[:, :, None] + self.bias
        # A softmax of logarithms, because the mean of the gates may underflow.
        log_gates = torch.where(used, F.logsigmoid(logits), torch.finfo(logits.dtype).min)
        return used.sum() * log_gates.flatten().softmax(dim=0).reshape(log_gates.shape)


def ranking_loss(
    queries: Tensor,
    best: Tensor,
    views: Tensor,
    hides: Tensor,
    margin: float,
    weights: Tensor | None = None,
    total: Total = alone,
) -> Tensor:
    """Mean of `relu(margin - best + similarity to the view)` over the views that hide an entity; 0 if there are none.

    Args:
        queries: texts (B, K, D).
        best: similarity (B, K) of each text with its image or its best region.
        views: (B, V, D).
        hides: (B, K, V) bool.
        margin: required lead of `best`.
        weights: of the terms (B, K, V), by a gate.
        total: sums a number over the ranks, if each has other pairs; the result is this rank's share.
    """
    terms = (margin - best[:, :, None] + queries @ views.transpose(1, 2)).relu()
    if weights is not None:
        terms = weights * terms
    return mean_over_counted(torch.where(hides, terms, 0.0), hides, total)


def sentence_ranking(
    features: Features, targets: Targets, settings: ViewLossSettings, gate: Gate | None, share: Share = WHOLE_SHARE
) -> Tensor:
    """`ranking_loss` of the sentences: the whole image above its views that hide an entity."""
    text, hides = features.text[:, None], (view_sentence(targets) == -1)[:, None, :]
    own = features[share.pairs]
    best = (own.text * own.image).sum(dim=1, keepdim=True)
    return _own_ranking(features, text, best, hides, settings, gate, share)


def span_ranking(
    features: Features, targets: Targets, settings: ViewLossSettings, gate: Gate | None, share: Share = WHOLE_SHARE
) -> Tensor:
    """`ranking_loss` of the spans: the best region of a span above the views that hide its entity."""
    own = features[share.pairs]
    cosines = own.spans @ own.regions.transpose(1, 2)
    linked = torch.where(linked_regions(targets[share.pairs]), cosines, -1.0)
    best = F.pad(linked, (0, 1), value=-1.0).amax(dim=2)  # padded, so that amax has a region
    return _own_ranking(features, features.spans, best, hidden_from_spans(targets), settings, gate, share)


def _own_ranking(
    features: Features,
    texts: Tensor,
    best: Tensor,
    hides: Tensor,
    settings: ViewLossSettings,
    gate: Gate | None,
    share: Share,
) -> Tensor:
    """`ranking_loss` of this rank's pairs. `best` is of these, `texts` and `hides` are of all pairs, since the gate
    divides by the mean over all."""
    own, views = share.pairs, features.views
    assert views is not None
    weights = gate(views, texts, hides)[own] if gate else None
    return ranking_loss(texts[own], best, views[own], hides[own], settings.margin, weights, share.total)
