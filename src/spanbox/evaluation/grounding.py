"""Grounding over proposals: does the region that a span scores highest lie where the entity is?

Softer than matching: a region need not be linked to the span, it only has to lie over one of the entity's boxes. The
candidates are the regions of the image, the boxes of its entities among them, so that these figures are comparable
between models and not with those of detectors that propose boxes of their own.

    S spans    R regions of one pair, padded
"""

from collections.abc import Callable

from torch import Tensor

from spanbox.evaluation.outcomes import Outcome
from spanbox.evaluation.own_image import OwnImage, found_within
from spanbox.evaluation.ranking import blocks
from spanbox.geometry import box_iou

LEAST_IOU = 0.5
PAIRS_AT_ONCE = 2**20
"""Pairs of boxes that are compared at a time."""


def grounding_outcomes(own: OwnImage) -> dict[str, Outcome]:
    """Of linked spans, whether the best region of the image overlaps one of the entity's boxes by an IoU of 0.5 or more
    (`grounding.accuracy`), and whether its centre lies in one (`grounding.pointing`, the pointing game).

    Where several regions score highest, all of them have to. A linked region always does. The baseline is the largest
    box. The pointing game is that of Zhang et al., Top-down Neural Attention by Excitation Backprop, 2016, without its
    tolerance of 15 pixels; it points at the centre of a region where theirs points at the maximum of a map.
    """
    asked = own.of_spans(own.has_box_S)
    return {
        "grounding.accuracy": found_within(asked, _near_own_box(asked, _overlaps), 1),
        "grounding.pointing": found_within(asked, _near_own_box(asked, _has_centre_in), 1),
    }


def _near_own_box(own: OwnImage, lies_over: Callable[[Tensor], Tensor]) -> Tensor:
    """Which regions (S, R) lie over one of the span's own boxes."""
    near_SR = own.linked_SR.clone()
    for rows in blocks(len(near_SR), near_SR.shape[1] ** 2, PAIRS_AT_ONCE):
        near_SR[rows] |= (lies_over(own.boxes_SR4[rows]) & own.linked_SR[rows, None]).any(dim=2)
    return near_SR & own.candidates_SR


def _overlaps(boxes: Tensor) -> Tensor:
    """Which boxes (S, R, R) overlap which of their image."""
    return box_iou(boxes, boxes) >= LEAST_IOU


def _has_centre_in(boxes: Tensor) -> Tensor:
    """Which boxes (S, R, R) have their centre in which of their image, its edge included."""
    centre = ((boxes[..., :2] + boxes[..., 2:]) / 2)[:, :, None]
    return ((centre >= boxes[:, None, :, :2]) & (centre <= boxes[:, None, :, 2:])).all(dim=3)
