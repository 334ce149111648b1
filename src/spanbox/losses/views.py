"""Masked views in the losses: a view that hides an entity is a hard negative of the text that names it.

For the sentence and for each span, a view keeps (1) or hides (-1) the named entities, or neither (0). Views are further
keys of a level (`sentence_view_masks`, `span_view_masks`), or are ranked below their image (`ranking_loss`). A view is
contrasted only with the texts of its own pair, so that masking is not a cue.

    B pairs    K spans per sentence    R regions per image    V views per image    D features
    b pairs in the rows    c pairs in the columns
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from spanbox.losses.contrastive import mean_over_counted
from spanbox.losses.positives import WHOLE, linked_regions, same_pair, sentence_image_masks, span_region_masks
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

    @model_validator(mode="after")
    def _meaningful(self) -> "ViewLossSettings":
        if self.gate and not self.ranked:
            raise ValueError(
                "gate applies to form=margin only: use that form with a weight above 0, or set gate to false"
            )
        return self


def sentence_view_masks(
    targets: Targets,
    settings: ViewLossSettings,
    rows: slice = WHOLE,
    columns: slice = WHOLE,
    *,
    of_columns: bool = False,
) -> tuple[Tensor, Tensor]:
    """Positives and candidates (b, c*(1+V)) bool between the sentences of some pairs and the images of others, each
    followed by its views. Images as in `sentence_image_masks`.

    - Own views of a sentence are positives if they keep its entities, negatives if they hide one, else left out.
    - Views of other pairs are left out.

    Args:
        rows, columns: as in `sentence_image_masks`.
        of_columns: return the candidates for the columns as queries. There a view that keeps the entities has the same
            candidates as its image; a view that hides one has no positive.
    """
    positives, candidates = sentence_image_masks(targets, rows, columns)
    keeps, hides = _sentence_meaning(targets, settings, columns)
    own = same_pair(targets, rows, columns)[:, :, None]
    view_positives = own & keeps
    view_candidates = view_positives | (own & hides)
    if of_columns:
        view_candidates |= (candidates & ~positives)[:, :, None] & keeps
    return (
        torch.cat([positives[:, :, None], view_positives], dim=2).flatten(1),
        torch.cat([candidates[:, :, None], view_candidates], dim=2).flatten(1),
    )


def span_view_masks(targets: Targets, rows: slice = WHOLE, columns: slice = WHOLE) -> tuple[Tensor, Tensor]:
    """Positives and candidates (b*K, c*(R+V)) bool between the spans of some pairs and the regions of others, each
    image's followed by its views. Regions as in `span_region_masks`.

    Views of the own image that hide a span's entity are negatives of the span, if it has a region. No view is a
    positive of a span.
    """
    hides = hidden_from_spans(targets[rows])[:, :, None, :]  # (b, K, 1, V)
    negatives = (same_pair(targets, rows, columns)[:, None, :, None] & hides).flatten(0, 1)
    spans, images, regions = *negatives.shape[:2], targets.links.shape[2]
    positives, candidates = (mask.reshape(spans, images, regions) for mask in span_region_masks(targets, rows, columns))
    return (
        torch.cat([positives, torch.zeros_like(negatives)], dim=2).flatten(1),
        torch.cat([candidates, negatives], dim=2).flatten(1),
    )


def hidden_from_spans(targets: Targets) -> Tensor:
    """(B, K, V) bool: views that hide the entity of a span, for spans with a region."""
    assert targets.view_spans is not None, "features of views need view_spans"
    has_region = linked_regions(targets).any(dim=2)
    return (targets.view_spans == -1).transpose(1, 2) & has_region[:, :, None]


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
    queries: Tensor, best: Tensor, views: Tensor, hides: Tensor, margin: float, gate: Gate | None
) -> Tensor:
    """Mean of `relu(margin - best + similarity to the view)` over the views that hide an entity; 0 if there are none.

    Args:
        queries: texts (B, K, D).
        best: similarity (B, K) of each text with its image or its best region.
        views: (B, V, D).
        hides: (B, K, V) bool.
        margin: required lead of `best`.
        gate: learned weights of the terms, if used.
    """
    terms = (margin - best[:, :, None] + queries @ views.transpose(1, 2)).relu()
    if gate:
        terms = gate(views, queries, hides) * terms
    return mean_over_counted(torch.where(hides, terms, 0.0), hides)


def sentence_ranking(features: Features, targets: Targets, settings: ViewLossSettings, gate: Gate | None) -> Tensor:
    """`ranking_loss` of the sentences: the whole image above its views that hide an entity."""
    assert features.views is not None
    best = (features.text * features.image).sum(dim=1, keepdim=True)
    hides = (_view_sentence(targets) == -1)[:, None, :]
    return ranking_loss(features.text[:, None], best, features.views, hides, settings.margin, gate)


def span_ranking(features: Features, targets: Targets, settings: ViewLossSettings, gate: Gate | None) -> Tensor:
    """`ranking_loss` of the spans: the best region of a span above the views that hide its entity."""
    assert features.views is not None
    cosines = features.spans @ features.regions.transpose(1, 2)
    linked = torch.where(linked_regions(targets), cosines, -1.0)
    best = F.pad(linked, (0, 1), value=-1.0).amax(dim=2)  # padded, so that amax has a region
    return ranking_loss(features.spans, best, features.views, hidden_from_spans(targets), settings.margin, gate)


def _sentence_meaning(targets: Targets, settings: ViewLossSettings, columns: slice) -> tuple[Tensor, Tensor]:
    """Views (c, V) bool that keep all entities of their sentence, and views that hide one; all False if not used."""
    meaning = _view_sentence(targets)[columns]
    nothing = torch.zeros_like(meaning, dtype=torch.bool)
    return meaning == 1 if settings.positives else nothing, meaning == -1 if settings.negatives else nothing


def _view_sentence(targets: Targets) -> Tensor:
    assert targets.view_sentence is not None, "features of views need view_sentence"
    return targets.view_sentence
