"""Presence: entities that the image shows against entities that the text only names.

The score of a span is that of its best region within the image. Spans of which it is unknown whether the image
shows them are left out. A span whose image has no region has no score, and is left out of the AUC.

    S spans
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spanbox.evaluation.extract import FeatureBank
from spanbox.evaluation.outcomes import Figure
from spanbox.evaluation.own_image import OwnImage, score_own_image
from spanbox.intervals import FloatArray, IntArray, Interval, effective_count, ratio_interval, wilson_interval
from spanbox.structures import NOT_KNOWN, SHOWN

BoolArray = NDArray[np.bool_]

PREFIX = "matching.presence"
AUC = f"{PREFIX}.auc"
THRESHOLD = f"{PREFIX}.threshold"
"""Metric: the score from which an entity counts as shown."""


class Presence(NamedTuple):
    """Spans, whether the image shows them, and their scores."""

    has_box: Tensor  # (S,) bool: shown; otherwise named only
    score: Tensor  # (S,) float32, -inf where it is NaN or there is no region
    scored: Tensor  # (S,) bool: the image has a region
    image: Tensor  # (S,) int64

    @property
    def has_both(self) -> bool:
        """Whether there are spans of both kinds."""
        return bool(self.has_box.any() and not self.has_box.all())


def presence_figures(
    own: OwnImage, shown_S: Tensor, *, threshold: float | None = None, intervals: bool = True
) -> tuple[dict[str, Figure], dict[str, float]]:
    """How well the scores separate the spans that the image shows from those that are only named.

    Figures: `matching.presence.auc`, and `.f1` of the decision 'shown', taken where the score reaches the threshold,
    beside the F1 of deciding so for all. Facts: `.count` (spans that are only named) and `.threshold`. Nothing where
    the spans are all of one kind.

    Args:
        shown_S: (S,) SHOWN, NAMED_ONLY or NOT_KNOWN of each span.
        threshold: chosen on other data, see `choose_threshold`; None: no F1.
    """
    presence = _presence(own, shown_S)
    if not presence.has_both:
        return {}, {}
    figures, facts = {}, {f"{PREFIX}.count": float((~presence.has_box).sum())}
    if (presence.scored & presence.has_box).any() and (presence.scored & ~presence.has_box).any():
        figures[AUC] = _auc_figure(presence, intervals)
    if threshold is not None:
        figures[f"{PREFIX}.f1"] = _f1_figure(presence, threshold, intervals)
        facts[THRESHOLD] = threshold
    return figures, facts


def choose_threshold(bank: FeatureBank) -> float | None:
    """The score from which a span counts as shown: the one with the best F1 on this bank.

    One of the bank's own scores, the highest of those with equal F1. None where the spans are all of one kind, or none
    that is shown has a finite score.
    """
    if not (len(bank.spans) and len(bank.regions)):
        return None
    presence = _presence(score_own_image(bank), bank.span_shown)
    if not presence.has_both:
        return None
    descending, order = presence.score.sort(descending=True)
    found = presence.has_box[order].cumsum(0).double()
    f1 = 2 * found / (torch.arange(1, len(order) + 1) + presence.has_box.sum())
    # Equal scores share one decision, so only the last of them can be the threshold.
    decides = torch.ones(len(order), dtype=torch.bool)
    decides[:-1] = descending[1:] != descending[:-1]
    f1 = f1.masked_fill(~decides | descending.isinf(), 0.0)
    best = int(f1.argmax())
    return float(descending[best]) if f1[best] > 0 else None


def placements(score: FloatArray, positive: BoolArray) -> FloatArray:
    """For each span (S,) the share of spans of the other kind that its score is on the right side of, ties half.

    The mean over the positives, and that over the negatives, is the area under the ROC curve: the Mann-Whitney
    statistic by ranks, exact, in O(S log S).
    """
    different, place = np.unique(score, return_inverse=True)
    shares = np.empty(len(score))
    for kind in (positive, ~positive):
        others = np.bincount(place[~kind], minlength=len(different))
        below = (others.cumsum() - others / 2) / others.sum()
        shares[kind] = below[place[kind]]
    return np.where(positive, shares, 1 - shares)


def _presence(own: OwnImage, shown_S: Tensor) -> Presence:
    known_S = shown_S != NOT_KNOWN
    own = own.of_spans(known_S)
    best_S = own.ranked_SR.amax(dim=1)
    return Presence(shown_S[known_S] == SHOWN, best_S, own.candidates_SR.any(dim=1), own.image_S)


def _auc_figure(presence: Presence, intervals: bool) -> Figure:
    scored = Presence(*(tensor[presence.scored] for tensor in presence))
    score, positive, image = (tensor.numpy() for tensor in (scored.score, scored.has_box, scored.image))
    shares = placements(score, positive)
    return Figure(
        value=float(shares[positive].mean()),
        count=len(shares),
        interval=_auc_interval(shares, positive, image) if intervals else None,
        chance=0.5,
    )


def _auc_interval(shares: FloatArray, positive: BoolArray, image: IntArray) -> Interval | None:
    """The Wilson interval with the effective number of queries of both kinds (DeLong et al., 1988, clustered by image
    as in Obuchowski, 1997): variances of the mean of the placements add up."""
    if len(np.unique(image)) < 2:
        return None
    counts = [effective_count(shares[kind], image[kind], added=np.sqrt(0.5)) for kind in (positive, ~positive)]
    return wilson_interval(float(shares[positive].mean()), 1 / sum(1 / count for count in counts))


def _f1_figure(presence: Presence, threshold: float, intervals: bool) -> Figure:
    """F1 = 2 TP / (predicted + positive), a ratio of sums over the spans."""
    decided = presence.score >= threshold
    twice_right = 2 * (decided & presence.has_box).double().numpy()
    either = (decided.double() + presence.has_box.double()).numpy()
    positives, spans = int(presence.has_box.sum()), len(presence.has_box)
    return Figure(
        value=float(twice_right.sum() / either.sum()),
        count=spans,
        interval=ratio_interval(twice_right, either, presence.image.numpy()) if intervals else None,
        baseline=2 * positives / (spans + positives),
    )
