"""What masked views of the images are for: the view that hides what is named is the hardest negative that there is.

A view says of a sentence, and of each of its spans, that it keeps (1) or hides (-1) what is named, or neither (0). Such
views join the keys of a level (`sentence_view_masks`, `span_view_masks`), or are ranked below the image that they were
made from (`ranking_loss`). A view meets the texts of its own pair alone: being masked shall give nothing away.

    B pairs    K spans a sentence    R regions an image    V views an image    D features
    b pairs of the rows    c pairs of the columns
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
    """What masked views are used for, when the data has any. docs/mathematics.md has the formulas."""

    form: Literal["candidate", "margin", "none"] = Field(
        "candidate",
        description="views that hide what is named are: further negatives of it in the level's loss (candidate), "
        "ranked below the whole image by a term of their own (margin), or not used, nor any other view (none)",
    )
    positives: bool = Field(True, description="views that keep all that a sentence names are positives of it")
    margin: float = Field(0.2, ge=0, le=2, description="margin alone: by how much, as a cosine, the image has to lead")
    weight: float = Field(1.0, ge=0, description="margin alone: weight of the term in the total")
    gate: bool = Field(False, description="margin alone: learn which views to rely on")

    @property
    def negatives(self) -> bool:
        """Whether views that hide what is named are negatives in the losses of the levels."""
        return self.form == "candidate"

    @property
    def join_images(self) -> bool:
        """Whether the coarse level has use for views."""
        return self.form == "candidate" or (self.form == "margin" and self.positives)

    @property
    def ranked(self) -> bool:
        """Whether views have a term of their own."""
        return self.form == "margin" and self.weight > 0

    @model_validator(mode="after")
    def _meaningful(self) -> "ViewLossSettings":
        if self.gate and not self.ranked:
            raise ValueError("gate weighs the terms of form=margin: take that form with a weight, or set gate to false")
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

    - A sentence's own views are positives if they keep what it names, negatives if they hide it, else nothing.
    - Views of other pairs are not contrasted with a sentence.

    Args:
        rows, columns: as in `sentence_image_masks`.
        of_columns: the candidates of the columns instead. There a view that keeps what is named is a query among the
            sentences, contrasted with those that its image is contrasted with. One that hides it has no positive.
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

    A span that has a region is contrasted with the views of its own image that hide what it names. No view is a
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
    """(B, K, V) bool: the views that hide what a span names, of spans that have a region."""
    assert targets.view_spans is not None, "features of views come with what they mean"
    has_region = linked_regions(targets).any(dim=2)
    return (targets.view_spans == -1).transpose(1, 2) & has_region[:, :, None]


class Gate(nn.Module):
    """How much to rely on each view for each text: `sigmoid(w . [view; text] + b)`, over its mean.

    The weights have a mean of 1, so closing all gates gains nothing. Features get no gradient from them. At the start
    all weights are 1.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.of_view = nn.Parameter(torch.zeros(dim))
        self.of_text = nn.Parameter(torch.zeros(dim))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, views: Tensor, texts: Tensor, used: Tensor) -> Tensor:
        """Weights (B, K, V) of views (B, V, D) for texts (B, K, D), with a mean of 1 over those that are used."""
        logits = (views.detach() @ self.of_view)[:, None, :] + (texts.detach() @ self.of_text)[:, :, None] + self.bias
        # As a softmax of logarithms, because gates that close together would leave nothing to divide by.
        log_gates = torch.where(used, F.logsigmoid(logits), torch.finfo(logits.dtype).min)
        return used.sum() * log_gates.flatten().softmax(dim=0).reshape(log_gates.shape)


def ranking_loss(
    queries: Tensor, best: Tensor, views: Tensor, hides: Tensor, margin: float, gate: Gate | None
) -> Tensor:
    """Mean of `relu(margin - best + similarity to the view)` over the views that hide what a text names; 0 of none.

    Args:
        queries: texts (B, K, D).
        best: similarity (B, K) of each text to what shows it.
        views: (B, V, D).
        hides: (B, K, V) bool.
        margin: by how much `best` has to be ahead.
        gate: weights of the terms, if they are learned.
    """
    terms = (margin - best[:, :, None] + queries @ views.transpose(1, 2)).relu()
    if gate:
        terms = gate(views, queries, hides) * terms
    return mean_over_counted(torch.where(hides, terms, 0.0), hides)


def sentence_ranking(features: Features, targets: Targets, settings: ViewLossSettings, gate: Gate | None) -> Tensor:
    """`ranking_loss` of the sentences: the whole image ahead of its views that hide something that is named."""
    assert features.views is not None
    best = (features.text * features.image).sum(dim=1, keepdim=True)
    hides = (_view_sentence(targets) == -1)[:, None, :]
    return ranking_loss(features.text[:, None], best, features.views, hides, settings.margin, gate)


def span_ranking(features: Features, targets: Targets, settings: ViewLossSettings, gate: Gate | None) -> Tensor:
    """`ranking_loss` of the spans: the best of a span's own regions ahead of the views that hide what it names."""
    assert features.views is not None
    cosines = features.spans @ features.regions.transpose(1, 2)
    linked = torch.where(linked_regions(targets), cosines, -1.0)
    best = F.pad(linked, (0, 1), value=-1.0).amax(dim=2)  # never of no region
    return ranking_loss(features.spans, best, features.views, hidden_from_spans(targets), settings.margin, gate)


def _sentence_meaning(targets: Targets, settings: ViewLossSettings, columns: slice) -> tuple[Tensor, Tensor]:
    """Views (c, V) bool that keep what their sentence names, and that hide some of it, as far as they are used."""
    meaning = _view_sentence(targets)[columns]
    nothing = torch.zeros_like(meaning, dtype=torch.bool)
    return meaning == 1 if settings.positives else nothing, meaning == -1 if settings.negatives else nothing


def _view_sentence(targets: Targets) -> Tensor:
    assert targets.view_sentence is not None, "features of views come with what they mean"
    return targets.view_sentence
