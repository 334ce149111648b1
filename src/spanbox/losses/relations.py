"""Positives and candidates among the entries of a similarity matrix, by level, with or without masked views.

Ids and links decide, never the position in the batch: two captions of one image, an entity with three boxes and a name
in two samples are handled by construction. `Relation` is the one type of masks in the losses. It is computed for any
block of the matrix from the ids of its pairs, so that large matrices need not be stored (`blocks.py`).

For the sentence and for each span, a masked view keeps (1) or hides (-1) the named entities, or neither (0). A view is
contrasted only with the texts of its own pair, so that masking is not a cue.

    B pairs    K spans per sentence    R regions per image    V views per image
    b pairs in the rows, q rows    c pairs in the columns, m columns
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbox.geometry import SAME_OBJECT_IOU, box_iou
from spanbox.structures import Targets

WHOLE = slice(None)


class Relation(NamedTuple):
    """Relation of the rows of a block of a similarity matrix to its columns: candidates, positives and weights.

    An entry that is neither a positive nor a candidate is left out.
    """

    positives: Tensor  # (q, m) bool
    candidates: Tensor  # (q, m) bool, entries of the denominator; positives are always included
    weight: Tensor | None = None  # (q, m) float: strength in (0, 1] of each positive; None: 1 everywhere

    @property
    def negatives(self) -> Tensor:
        """(q, m) bool: candidates that are not positives."""
        return self.candidates & ~self.positives

    def transposed(self) -> "Relation":
        """The columns as rows."""
        return self.map(lambda entries: entries.mT)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Relation":
        """Apply `function` to each tensor."""
        weight = None if self.weight is None else function(self.weight)
        return Relation(function(self.positives), function(self.candidates), weight)

    def strongest(self) -> Tensor | None:
        """Weight (q,) of the strongest positive of each row, 0 if it has none; None without weights."""
        return None if self.weight is None else strongest(self.weight, self.positives)

    def relative_weight(self) -> Tensor | None:
        """Weight (q, m) of each positive as a fraction of the strongest of its row, 0 elsewhere."""
        if self.weight is None:
            return None
        best = strongest(self.weight, self.positives)[:, None]
        return torch.where(self.positives, self.weight, 0.0) / torch.where(best > 0, best, 1.0)


BlockRelation = Callable[[slice, slice], Relation]
"""Maps b pairs of queries and c pairs of keys (slices) to the `Relation` of that block."""

RowRelation = Callable[[slice, Tensor], Relation]
"""Maps a block of pairs and its detached similarities (q, m) to the `Relation` of these whole rows."""


def strongest(weight: Tensor, positives: Tensor) -> Tensor:
    """Largest weight (q,) of the positives of each row; 0 without any."""
    return F.pad(torch.where(positives, weight, 0.0), (0, 1)).amax(dim=1)  # padded, so that amax has a column


def transposed(relation: BlockRelation) -> BlockRelation:
    """The relation of the transposed matrix."""
    return lambda rows, columns: relation(columns, rows).transposed()


def sentence_image_relation(targets: Targets, rows: slice = WHOLE, columns: slice = WHOLE) -> Relation:
    """`Relation` (b, c) of the sentences of some pairs to the images of others.

    Pairs of one group (an image with its captions) are positives. All others are negatives, except pairs of the same
    text in different groups, which are left out. With `relevance`, a positive is as strong as the weaker of its pairs.

    Args:
        rows: the pairs whose sentences are the rows.
        columns: the pairs whose images are the columns.
    """
    positives = targets.group[rows, None] == targets.group[None, columns]
    candidates = positives | (targets.wording[rows, None] != targets.wording[None, columns])
    relevance = targets.relevance
    weight = None if relevance is None else torch.minimum(relevance[rows, None], relevance[None, columns])
    return _without_zeros(positives, candidates, weight)


def copies_relation(targets: Targets, rows: slice = WHOLE, columns: slice = WHOLE) -> Relation:
    """`Relation` (b*2, c*2) of sentences and images of some pairs to those of others, sentence before image.

    Each is contrasted with its own kind, as in `sentence_image_relation`; itself is left out.
    """
    positives, candidates, weight = sentence_image_relation(targets, rows, columns)
    others = ~same_pair(targets, rows, columns)
    of_one_kind = torch.eye(2, dtype=torch.bool, device=others.device)

    def for_both(mask: Tensor) -> Tensor:
        return (mask[:, None, :, None] & of_one_kind[:, None]).flatten(2).flatten(0, 1)

    both = None if weight is None else weight.repeat_interleave(2, dim=0).repeat_interleave(2, dim=1)
    return Relation(for_both(positives & others), for_both(candidates & others), both)


def sentence_view_relation(
    targets: Targets,
    rows: slice = WHOLE,
    columns: slice = WHOLE,
    *,
    keeping: bool,
    hiding: bool,
    of_columns: bool = False,
) -> Relation:
    """`Relation` (b, c*(1+V)) of the sentences of some pairs to the images of others, each followed by its views.

    Images as in `sentence_image_relation`. Own views of a sentence are positives if they keep its entities, negatives
    if they hide one, else left out. Views of other pairs are left out.

    Args:
        rows, columns: as in `sentence_image_relation`.
        keeping: use the views that keep all entities.
        hiding: use the views that hide one.
        of_columns: return the candidates for the columns as queries. There a view that keeps the entities has the same
            candidates as its image; a view that hides one has no positive.
    """
    images = sentence_image_relation(targets, rows, columns)
    meaning = view_sentence(targets)[columns]
    keeps, hides = ((meaning == sign) & used for sign, used in ((1, keeping), (-1, hiding)))  # (c, V)
    own = same_pair(targets, rows, columns)[:, :, None]
    positives = own & keeps
    candidates = positives | (own & hides)
    if of_columns:
        candidates |= images.negatives[:, :, None] & keeps
    weight = images.weight
    if weight is not None:
        weight = weight[:, :, None].expand(-1, -1, 1 + keeps.shape[1]).flatten(1)
    return _without_zeros(
        torch.cat([images.positives[:, :, None], positives], dim=2).flatten(1),
        torch.cat([images.candidates[:, :, None], candidates], dim=2).flatten(1),
        weight,
    )


def span_region_relation(targets: Targets, rows: slice = WHOLE, columns: slice = WHOLE) -> Relation:
    """`Relation` (b*K, c*R) of the spans of some pairs to the regions of others.

    - Positives of a span: the regions linked to it, and regions of other pairs linked to a span of the same identity.
    - A span without a region has no positives, so it is no anchor. It is still a negative of regions, except of those
      that show its identity, where it is left out.
    - Pairs of the same image are left out: one of them may lack an annotation that the other has.
    - A region of the span's own image that overlaps one of its regions by SAME_OBJECT_IOU or more is left out: another
      box of the same object, for example from a detector.
    - With `link_relevance`, a linked region is as strong as its link, and any other positive as the strongest link by
      which it shows the identity.

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

    own_pair = same_pair(targets, rows, columns)[:, None, :, None]
    apart = linked.float() @ _show_the_same(own).float() == 0  # (b, K, R)
    within = own_pair & apart[:, :, None, :]
    across = (own.group[:, None] != other.group[None, :])[:, None, :, None]
    contrasted = (within | across).flatten(2).flatten(0, 1)
    candidates = positives | (usable & contrasted & ~shows_identity)
    if own.link_relevance is None:
        return Relation(positives, candidates)
    own_link = own_pair & linked[:, :, None, :]
    shown = _identity_relevance(same_identity, other).reshape(own_link.shape)
    weight = torch.where(own_link, own.link_relevance[:, :, None, :], shown)
    return _without_zeros(positives, candidates, weight.flatten(2).flatten(0, 1))


def own_pair_relation(targets: Targets) -> Relation:
    """`Relation` (B, K, R) of the spans of each pair to the regions of its own image: the blocks on the diagonal of
    `span_region_relation`."""
    identity = targets.span_identity
    same_identity = (identity[:, :, None] == identity[:, None, :]).float()
    shows_identity = same_identity @ targets.links.float() > 0  # (B, K, R)
    linked = linked_regions(targets)
    usable = targets.span_valid[:, :, None] & targets.region_valid[:, None, :]
    positives = shows_identity & usable & linked.any(dim=2, keepdim=True)
    apart = linked.float() @ _show_the_same(targets).float() == 0
    candidates = positives | (usable & apart & ~shows_identity)
    if targets.link_relevance is None:
        return Relation(positives, candidates)
    relevance = torch.where(targets.links, targets.link_relevance, 0.0)
    shown = (same_identity[:, :, :, None] * relevance[:, None]).amax(dim=2) if relevance.shape[1] else relevance
    return _without_zeros(positives, candidates, torch.where(linked, targets.link_relevance, shown))


def span_image_relation(targets: Targets, rows: slice = WHOLE, columns: slice = WHOLE) -> Relation:
    """`Relation` (b*K, c) of the spans of some pairs to the images of others.

    An image with a positive region of a span (`span_region_relation`) is its positive, as strong as the strongest of
    them. Images of other groups are negatives, unless their sentence names the same identity: the image may show it.
    """
    own, other = targets[rows], targets[columns]
    of_regions = span_region_relation(targets, rows, columns)
    named = (own.span_identity[:, :, None, None] == other.span_identity[None, None]).any(dim=3)
    across = (own.group[:, None] != other.group[None, :])[:, None]
    negatives = (across & ~named & own.span_valid[:, :, None]).flatten(0, 1)
    return _with_wholes(of_regions, len(other), targets.links.shape[2], negatives)


def region_sentence_relation(targets: Targets, rows: slice = WHOLE, columns: slice = WHOLE) -> Relation:
    """`Relation` (b*R, c) of the regions of some pairs to the sentences of others.

    A sentence with a span whose positive is the region is its positive, as strong as the strongest of them. Sentences
    of other groups are negatives, unless they name an identity that the region shows.
    """
    own, other = targets[rows], targets[columns]
    of_spans = span_region_relation(targets, columns, rows).transposed()
    names = (own.span_identity[:, None, :, None] == other.span_identity[None, :, None, :]) & other.span_valid[:, None]
    shared = (own.links & own.span_valid[:, :, None])[:, None] & names.any(dim=3)[:, :, :, None]  # (b, c, K, R)
    shows_named = shared.any(dim=2).transpose(1, 2).flatten(0, 1)
    across = (own.group[:, None] != other.group[None, :])[:, None].expand(-1, own.links.shape[2], -1).flatten(0, 1)
    negatives = across & own.region_valid.flatten()[:, None] & ~shows_named
    return _with_wholes(of_spans, len(other), targets.links.shape[1], negatives)


def _with_wholes(of_parts: Relation, wholes: int, parts: int, negatives: Tensor) -> Relation:
    """Reduce a `Relation` to parts (q, c*parts) to one to `wholes` images or sentences (q, c)."""

    def of_wholes(entries: Tensor) -> Tensor:
        padded = F.pad(entries.reshape(len(entries), wholes, parts), (0, 1))  # so that there is a part
        return padded.amax(dim=2)

    positives, _, weight = of_parts
    strongest_part = None if weight is None else of_wholes(torch.where(positives, weight, 0.0))
    right = of_wholes(positives)
    return Relation(right, right | negatives, strongest_part)


def span_view_relation(targets: Targets, rows: slice = WHOLE, columns: slice = WHOLE) -> Relation:
    """`Relation` (b*K, c*(R+V)) of the spans of some pairs to the regions of others, each image's followed by its
    views. Regions as in `span_region_relation`.

    Views of a span's image that hide its entity are negatives of the span, if it has a region. No view is a
    positive of a span.
    """
    hides = hidden_from_spans(targets[rows])[:, :, None, :]  # (b, K, 1, V)
    negatives = (same_pair(targets, rows, columns)[:, None, :, None] & hides).flatten(0, 1)  # (b*K, c, V)
    nothing = torch.zeros_like(negatives)

    def followed_by(views: Tensor, regions: Tensor) -> Tensor:
        shape = (*negatives.shape[:2], targets.links.shape[2])
        return torch.cat([regions.reshape(shape), views.to(regions.dtype)], dim=2).flatten(1)

    positives, candidates, weight = span_region_relation(targets, rows, columns)
    return Relation(
        followed_by(nothing, positives),
        followed_by(negatives, candidates),
        None if weight is None else followed_by(nothing, weight),
    )


def hidden_from_spans(targets: Targets) -> Tensor:
    """(B, K, V) bool: views that hide the entity of a span, for spans with a region."""
    assert targets.view_spans is not None, "features of views need view_spans"
    has_region = linked_regions(targets).any(dim=2)
    return (targets.view_spans == -1).transpose(1, 2) & has_region[:, :, None]


def view_sentence(targets: Targets) -> Tensor:
    """(B, V) int8: visibility of the sentence's entities in each view; see `SampleViews`."""
    assert targets.view_sentence is not None, "features of views need view_sentence"
    return targets.view_sentence


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


def _identity_relevance(same_identity: Tensor, other: Targets) -> Tensor:
    """(q, c, R): the strongest link by which each region shows the identity of each span; 0 if it does not.

    Args:
        same_identity: (c, q, K) bool.
    """
    assert other.link_relevance is not None
    relevance = torch.where(other.links, other.link_relevance, 0.0)
    shown = relevance.new_zeros(*same_identity.shape[:2], relevance.shape[2])
    for span in range(relevance.shape[1]):  # one at a time: the product of all would be K times as large
        torch.maximum(shown, same_identity[:, :, span, None] * relevance[:, None, span], out=shown)
    return shown.transpose(0, 1)


def _without_zeros(positives: Tensor, candidates: Tensor, weight: Tensor | None) -> Relation:
    """The relation in which positives of weight 0 are left out."""
    if weight is None:
        return Relation(positives, candidates)
    kept = ~positives | (weight > 0)
    return Relation(positives & kept, candidates & kept, weight)
