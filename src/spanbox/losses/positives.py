"""What is a positive of what, and what may be contrasted: by ids and links, never by position.

So two captions of one image, one entity with three boxes and one name in two samples come out right by construction.

    B pairs    Q = B*K spans    M = B*R regions
"""

from torch import Tensor

from spanbox.structures import Targets


def pair_positives(group: Tensor) -> Tensor:
    """(B, B) bool: a sentence and an image belong together when they share a group (an image with its captions)."""
    return group[:, None] == group[None, :]


def span_region_masks(targets: Targets) -> tuple[Tensor, Tensor]:
    """Positives and candidates (Q, M) bool between all spans and all regions of a batch; transposed for regions.

    - A span's positives: the regions linked to it, and those of other pairs linked to a span of the same identity.
    - A span without a region has no positives, so it is no anchor. Its text is still a negative for regions, unless
      one of them shows what it names: such a pair is neither positive nor contrasted.
    - Two pairs that show the same image are not contrasted with each other: what one annotates, the other may omit.
    """
    pairs, spans_per_pair, regions_per_pair = targets.links.shape
    identity = targets.span_identity.flatten()
    valid_spans = targets.span_valid.flatten()
    valid_regions = targets.region_valid.flatten()

    same_identity = identity[:, None] == identity[None, :]
    # A region shows an identity when it is linked to a span of it: (B, Q, K) @ (B, K, R), no block-diagonal matrix.
    spans_by_pair = same_identity.reshape(len(identity), pairs, spans_per_pair).transpose(0, 1)
    shows_identity = (spans_by_pair.float() @ targets.links.float() > 0).transpose(0, 1).flatten(1)

    has_region = (targets.links & targets.region_valid[:, None, :]).any(dim=2).flatten()
    usable = valid_spans[:, None] & valid_regions[None, :]
    positives = shows_identity & has_region[:, None] & usable

    span_pair = _pair_index(targets.group, spans_per_pair)
    region_pair = _pair_index(targets.group, regions_per_pair)
    same_image = targets.group[span_pair][:, None] == targets.group[region_pair][None, :]
    same_pair = span_pair[:, None] == region_pair[None, :]
    candidates = positives | (usable & ~shows_identity & (same_pair | ~same_image))
    return positives, candidates


def _pair_index(group: Tensor, repeats: int) -> Tensor:
    """Index of the pair that each of `repeats` spans or regions a pair belongs to."""
    return group.new_ones(len(group)).cumsum(0).sub(1).repeat_interleave(repeats)
