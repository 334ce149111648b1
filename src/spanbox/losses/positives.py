"""What is a positive of what, and what may be contrasted: by ids and links, never by position.

So two captions of one image, one entity with three boxes and one name in two samples come out right by construction.
Both levels give the masks of any block of their matrix, from the ids of its pairs alone: a batch that is too large for
a whole matrix is taken tile by tile (`tiled.py`).

    B pairs    b pairs of the rows, with q = b*K spans    c pairs of the columns, with m = c*R regions
"""

import torch
from torch import Tensor

from spanbox.geometry import box_iou
from spanbox.structures import Targets

WHOLE = slice(None)
SAME_OBJECT_IOU = 0.5  # of boxes that show the same thing, by the usual measure of detection


def sentence_image_masks(targets: Targets, rows: slice = WHOLE, columns: slice = WHOLE) -> tuple[Tensor, Tensor]:
    """Positives and candidates (b, c) bool between the sentences of some pairs and the images of others.

    They belong together when they share a group (an image with its captions). All else is contrasted, save a sentence
    with the images of other pairs of the same wording, which may well fit: those are neither.

    Args:
        rows: the pairs whose sentences are the rows.
        columns: the pairs whose images are the columns.
    """
    positives = targets.group[rows, None] == targets.group[None, columns]
    return positives, positives | (targets.wording[rows, None] != targets.wording[None, columns])


def span_region_masks(targets: Targets, rows: slice = WHOLE, columns: slice = WHOLE) -> tuple[Tensor, Tensor]:
    """Positives and candidates (q, m) bool between the spans of some pairs and the regions of others.

    - A span's positives: the regions linked to it, and those of other pairs linked to a span of the same identity.
    - A span without a region has no positives, so it is no anchor. Its text is still a negative for regions, unless
      one of them shows what it names: such a pair is neither positive nor contrasted.
    - Two pairs that show the same image are not contrasted with each other: what one annotates, the other may omit.
    - Nor is a span contrasted with a region of its image that overlaps one of its own, from SAME_OBJECT_IOU on: another
      box of the same thing, such as a detector's.

    Args:
        rows: the pairs whose spans are the rows.
        columns: the pairs whose regions are the columns.
    """
    own, other = targets[rows], targets[columns]
    # A region shows an identity when it is linked to a span of it: (c, q, K) @ (c, K, R), no block-diagonal matrix.
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
    """(B, K, R) bool: the regions that show a span, padding aside. A span without any is no anchor."""
    return targets.links & targets.region_valid[:, None, :] & targets.span_valid[:, :, None]


def same_pair(targets: Targets, rows: slice, columns: slice) -> Tensor:
    """(b, c) bool: where a pair of the rows meets itself among those of the columns."""
    place = torch.arange(len(targets), device=targets.group.device)
    return place[rows, None] == place[None, columns]


def _show_the_same(targets: Targets) -> Tensor:
    """(B, R, R) bool: regions of one image that overlap so much that they show the same thing."""
    return torch.vmap(box_iou)(targets.regions, targets.regions) >= SAME_OBJECT_IOU
