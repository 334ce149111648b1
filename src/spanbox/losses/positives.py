"""What is a positive of what, and what may be contrasted: by ids and links, never by position.

So two captions of one image, one entity with three boxes and one name in two samples come out right by construction.
Both levels give the masks of any block of their matrix, from the ids of its pairs alone: a batch that is too large for
a whole matrix is taken tile by tile (`tiled.py`).

    B pairs    b pairs of the rows, with q = b*K spans    c pairs of the columns, with m = c*R regions
"""

import torch
from torch import Tensor

from spanbox.structures import Targets

WHOLE = slice(None)


def sentence_image_masks(targets: Targets, rows: slice = WHOLE, columns: slice = WHOLE) -> tuple[Tensor, Tensor]:
    """Positives and candidates (b, c) bool between the sentences of some pairs and the images of others.

    They belong together when they share a group (an image with its captions); all else is contrasted.

    Args:
        rows: the pairs whose sentences are the rows.
        columns: the pairs whose images are the columns.
    """
    positives = targets.group[rows, None] == targets.group[None, columns]
    return positives, torch.ones_like(positives)


def span_region_masks(targets: Targets, rows: slice = WHOLE, columns: slice = WHOLE) -> tuple[Tensor, Tensor]:
    """Positives and candidates (q, m) bool between the spans of some pairs and the regions of others.

    - A span's positives: the regions linked to it, and those of other pairs linked to a span of the same identity.
    - A span without a region has no positives, so it is no anchor. Its text is still a negative for regions, unless
      one of them shows what it names: such a pair is neither positive nor contrasted.
    - Two pairs that show the same image are not contrasted with each other: what one annotates, the other may omit.

    Args:
        rows: the pairs whose spans are the rows.
        columns: the pairs whose regions are the columns.
    """
    own, other = targets[rows], targets[columns]
    spans_per_pair, regions_per_pair = targets.links.shape[1:]

    # A region shows an identity when it is linked to a span of it: (c, q, K) @ (c, K, R), no block-diagonal matrix.
    same_identity = own.span_identity.flatten()[None, :, None] == other.span_identity[:, None, :]
    shows_identity = (same_identity.float() @ other.links.float() > 0).transpose(0, 1).flatten(1)

    has_region = (own.links & own.region_valid[:, None, :]).any(dim=2).flatten()
    usable = own.span_valid.flatten()[:, None] & other.region_valid.flatten()[None, :]
    positives = shows_identity & usable & has_region[:, None]

    place = torch.arange(len(targets), device=targets.group.device)
    same_pair = place[rows, None] == place[None, columns]
    contrasted = same_pair | (own.group[:, None] != other.group[None, :])
    contrasted = contrasted.repeat_interleave(spans_per_pair, dim=0).repeat_interleave(regions_per_pair, dim=1)
    return positives, positives | (usable & contrasted & ~shows_identity)
