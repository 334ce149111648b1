"""Grounding: does the best region of a span overlap a box of the entity?

Less strict than matching: the region need not be linked to the span. The candidates are the regions of the image,
including the boxes of its entities, so the metrics compare models of spanbox and not detectors.

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
"""Pairs of boxes compared at a time."""


def grounding_outcomes(own: OwnImage) -> dict[str, Outcome]:
    """For linked spans: whether the best region overlaps a box of the entity with an IoU of 0.5 or more
    (`grounding.accuracy`), and whether its centre is in one (`grounding.pointing`, the pointing game).

    If several regions have the best score, all of them must. A linked region always counts as right. The baseline is
    the largest box. The pointing game follows Zhang et al., Top-down Neural Attention by Excitation Backprop, 2016,
    without the tolerance of 15 pixels, and with the centre of a region in place of the maximum of a map.
    """
    queries = own.of_spans(own.has_box_S)
    return {
        "grounding.accuracy": found_within(queries, _near_own_box(queries, _overlaps), 1),
        "grounding.pointing": found_within(queries, _near_own_box(queries, _has_centre_in), 1),
    }


def _near_own_box(own: OwnImage, matches: Callable[[Tensor], Tensor]) -> Tensor:
    """Mask (S, R) of the regions that match a box of the span's entity."""
    near_SR = own.linked_SR.clone()
    for rows in blocks(len(near_SR), near_SR.shape[1] ** 2, PAIRS_AT_ONCE):
        near_SR[rows] |= (matches(own.boxes_SR4[rows]) & own.linked_SR[rows, None]).any(dim=2)
    return near_SR & own.candidates_SR


def _overlaps(boxes: Tensor) -> Tensor:
    """Mask (S, R, R) of overlapping boxes of one image."""
    return box_iou(boxes, boxes) >= LEAST_IOU


def _has_centre_in(boxes: Tensor) -> Tensor:
    """Mask (S, R, R): the centre of the first box is in the second, edges included."""
    centre = ((boxes[..., :2] + boxes[..., 2:]) / 2)[:, :, None]
    return ((centre >= boxes[:, None, :, :2]) & (centre <= boxes[:, None, :, 2:])).all(dim=3)
