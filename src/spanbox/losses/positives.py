"""Positives and candidates of both levels, from ids and links and never from the position in the batch.

Two captions of one image, an entity with three boxes and a name in two samples are handled by construction. The masks
of any block of the matrix can be computed from the ids of its pairs, which `tiled.py` uses for large batches.

    B pairs    b pairs in the rows, q = b*K spans    c pairs in the columns, m = c*R regions
"""

import torch
from torch import Tensor

from spanbox.geometry import box_iou
from spanbox.structures import Targets

WHOLE = slice(None)
SAME_OBJECT_IOU = 0.5  # from this IoU on, two boxes show the same object


def sentence_image_masks(targets: Targets, rows: slice = WHOLE, columns: slice = WHOLE) -> tuple[Tensor, Tensor]:
    """Positives and candidates (b, c) bool between the sentences of some pairs and the images of others.

    Pairs of one group (an image with its captions) are positives. All others are negatives, except pairs of the same
    text in different groups, which are left out.

    Args:
        rows: the pairs whose sentences are the rows.
        columns: the pairs whose images are the columns.
    """
    positives = targets.group[rows, None] == targets.group[None, columns]
    return positives, positives | (targets.wording[rows, None] != targets.wording[None, columns])


def span_region_masks(targets: Targets, rows: slice = WHOLE, columns: slice = WHOLE) -> tuple[Tensor, Tensor]:
    """Positives and candidates (q, m) bool between the spans of some pairs and the regions of others.

    - Positives of a span: the regions linked to it, and regions of other pairs linked to a span of the same identity.
    - A span without a region has no positives, so it is no anchor. It is still a negative of regions, except of those
      that show its identity, where it is left out.
    - Pairs of the same image are left out: one of them may lack an annotation that the other has.
    - A region of the span's own image that overlaps one of its regions by SAME_OBJECT_IOU or more is left out: another
      box of the same object, for example from a detector.

    Args:
        rows: the pairs whose spans are the rows.
        columns: the pairs whose regions are the columns.
    """
    own, other = targets[rows], targets[columns]
    # A region shows an identity if it is linked to a span of that identity: (c, q, K) @ (c, K, R).
    same_identity = own.span_identity.flatten()[None, :, None] == other.span_identity[:, None, :]
    shows_identity = (same_identity.float() @ other.links.float() > 0).transpose(0, 1).flatten(1)

    linked = linked_regions(own)
    has_region = linked.any(dim=2).flatten()
    usable = own.span_valid.flatten()[:, None] & other.region_valid.flatten()[None, :]
    positives = shows_identity & usable & has_region[:, None]

    apart = linked.float() @ _show_the_same(own).float() == 0  # (b, K, R)
    within = same_pair(targets, rows, columns)[:, None, :, None] & apart[:, :, None, :]
    across = (own.group[:, None] != other.group[None, :])[:, None, :, None]
    contrasted = (within | across).flatten(2).flatten(0, 1)
    return positives, positives | (usable & contrasted & ~shows_identity)


def linked_regions(targets: Targets) -> Tensor:
    """(B, K, R) bool: links without padding. A span without a link is no anchor."""
    return targets.links & targets.region_valid[:, None, :] & targets.span_valid[:, :, None]


def same_pair(targets: Targets, rows: slice, columns: slice) -> Tensor:
    """(b, c) bool: entries whose row and column are the same pair."""
    place = torch.arange(len(targets), device=targets.group.device)
    return place[rows, None] == place[None, columns]


def _show_the_same(targets: Targets) -> Tensor:
    """(B, R, R) bool: regions of one image that overlap enough to show the same object."""
    return torch.vmap(box_iou)(targets.regions, targets.regions) >= SAME_OBJECT_IOU
