"""From spans and boxes of a pair to the spans, regions and links of its sample. Boxes in pixels become fractions here.

An `ambiguous` entity has several boxes, and it is unknown which one is meant. All of them are linked to
it, so each counts as right. Without boxes the flag means: unknown whether the image shows the entity.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, zip_longest

import torch
from torch import Tensor

from spanbox.data.limits import SampleLimits
from spanbox.data.manifest import Box, Entity, ObjectBox, identity_key
from spanbox.data.masking import Proposals
from spanbox.geometry import SAME_OBJECT_IOU, WHOLE, Affine, area_of, box_iou, clip_box, in_fractions
from spanbox.spans import CharSpan, trim_span
from spanbox.structures import NAMED_ONLY, NOT_KNOWN, SHOWN, Incident, stable_id

CLIP_TOLERANCE = 1e-3  # of the image: edges that leave it by less are rounding, not a fault


@dataclass(frozen=True)
class Annotation:
    """Spans and regions of a pair, checked against its image. K spans, R regions, P proposals."""

    spans: tuple[CharSpan, ...]
    entities: tuple[int, ...]  # index of each span among those of the pair
    identities: tuple[int, ...]
    shown: tuple[int, ...]  # of each span: SHOWN, NAMED_ONLY or NOT_KNOWN
    regions: Tensor  # (R, 4)
    links: Tensor  # (K, R)
    link_relevance: Tensor  # (K, R): in [0, 1], 0 without a link
    proposals: Proposals  # all boxes of the objects within the image
    incidents: tuple[Incident, ...]


def annotate(
    text: str,
    spans: Sequence[Entity],
    boxes: Sequence[ObjectBox],
    image_size: tuple[int, int],
    limits: SampleLimits,
    *,
    sample: str = "",
) -> Annotation:
    """Spans, regions and links of a pair whose image is `image_size` (width, height) pixels as shown.

    One region may be linked to several spans, and one span to several regions. Regions are the spans' boxes, then up to
    `limits.proposals` of the other boxes, best score first, that overlap none of them. Whatever exceeds a limit is an
    incident.

    Args:
        text: that the spans are in.
        spans: with the boxes that show them, in pixels.
        boxes: further ones, such as the proposals of a detector, in pixels.
        image_size: in pixels.
        limits: numbers of spans and regions.
        sample: id of the pair, for incidents.
    """
    incidents: list[Incident] = []
    shown_boxes, box_of = _boxes_of_spans(spans, image_size, sample, incidents)
    entities = _used_entities(spans, box_of, limits, sample, incidents)
    boxes_of_spans = [box_of[i] for i in entities]
    proposals = _proposals(boxes, image_size) if limits.objects_only or limits.views else Proposals.none()
    if limits.objects_only:
        regions = proposals.boxes
        if limits.link_iou is None:
            links = relevance = torch.zeros(len(entities), len(regions))
            shown = [bool(own) for own in boxes_of_spans]
        else:
            links = relevance = _overlapping(boxes_of_spans, shown_boxes, regions, limits.link_iou)
            shown = links.any(dim=1).tolist()
            incidents += _unmatched(text, spans, entities, boxes_of_spans, shown, sample)
    else:
        used = _within_limit(boxes_of_spans, limits.max_regions, sample, incidents)
        others = _other_boxes(spans, boxes, image_size, shown_boxes, len(used), limits)
        regions = _tensor([*(shown_boxes[index] for index in used), *others])
        links, relevance = _links(boxes_of_spans, used, len(regions))
        shown = [not own.keys().isdisjoint(used) for own in boxes_of_spans]
    return Annotation(
        spans=tuple(trim_span(text, (spans[i].start, spans[i].end)) for i in entities),
        entities=tuple(entities),
        identities=tuple(stable_id(identity_key(text, spans[i])) for i in entities),
        shown=tuple(_state(spans[i], has_box) for i, has_box in zip(entities, shown, strict=True)),
        regions=regions,
        links=links.bool(),
        link_relevance=relevance,
        proposals=proposals,
        incidents=tuple(incidents),
    )


def _used_entities(
    spans: Sequence[Entity],
    box_of: Sequence[Mapping[int, float]],
    limits: SampleLimits,
    sample: str,
    incidents: list[Incident],
) -> list[int]:
    """Indices of the entities that become spans, those with a box first."""
    entities = [i for i, span in enumerate(spans) if not (limits.skip_ambiguous and span.ambiguous)]
    if len(entities) < len(spans):
        skipped = f"{len(spans) - len(entities)} of {len(spans)} entities left out"
        incidents.append(Incident("ambiguous entity", sample, skipped))
    entities.sort(key=lambda i: not box_of[i])  # those with a box first
    if limits.max_spans is not None and len(entities) > limits.max_spans:
        incidents.append(Incident("spans over limit", sample, f"{len(entities)} spans, {limits.max_spans} used"))
        entities = entities[: limits.max_spans]
    return entities


def _state(entity: Entity, has_box: bool) -> int:
    if has_box:
        return SHOWN
    return NOT_KNOWN if entity.boxes or entity.ambiguous else NAMED_ONLY


def _within_limit(
    boxes_of_spans: Sequence[Collection[int]], limit: int | None, sample: str, incidents: list[Incident]
) -> list[int]:
    """The boxes that become regions, in the order of their spans. Over the limit, every span gets its first box before
    any gets its second."""
    used = list(dict.fromkeys(index for own in boxes_of_spans for index in own))
    if limit is None or len(used) <= limit:
        return used
    incidents.append(Incident("regions over limit", sample, f"{len(used)} boxes, {limit} used"))
    by_turns = dict.fromkeys(index for turn in zip_longest(*boxes_of_spans) for index in turn if index is not None)
    kept = set(islice(by_turns, limit))
    return [index for index in used if index in kept]


def _links(boxes_of_spans: Sequence[dict[int, float]], used: Sequence[int], regions: int) -> tuple[Tensor, Tensor]:
    """Links (K, R) and their relevance (K, R): the boxes of each span among the used ones, which are the first
    regions."""
    others = [0.0] * (regions - len(used))
    linked = [[float(index in own) for index in used] + others for own in boxes_of_spans]
    relevance = [[own.get(index, 0.0) for index in used] + others for own in boxes_of_spans]
    shape = len(boxes_of_spans), regions
    return torch.tensor(linked).reshape(shape), torch.tensor(relevance).reshape(shape)


def _overlapping(
    boxes_of_spans: Sequence[Collection[int]], shown_boxes: Sequence[Box], regions: Tensor, least_iou: float
) -> Tensor:
    """Links (K, R) of each span with the regions that overlap one of its boxes by an IoU above `least_iou`."""
    overlaps = box_iou(_tensor(shown_boxes), regions) > least_iou
    rows = [overlaps[list(own)].any(dim=0) for own in boxes_of_spans]
    return torch.stack(rows).float() if rows else torch.zeros(0, len(regions))


def _unmatched(
    text: str,
    spans: Sequence[Entity],
    entities: Sequence[int],
    boxes_of_spans: Sequence[Collection[int]],
    shown: Sequence[bool],
    sample: str,
) -> Iterator[Incident]:
    """Incidents of spans with a box that no region overlaps enough."""
    for i, own, matched in zip(entities, boxes_of_spans, shown, strict=True):
        if own and not matched:
            name = text[spans[i].start : spans[i].end]
            yield Incident("box without a candidate", sample, f"no object overlaps a box of {name!r} enough")


def _boxes_of_spans(
    spans: Sequence[Entity], image_size: tuple[int, int], sample: str, incidents: list[Incident]
) -> tuple[list[Box], list[dict[int, float]]]:
    """The distinct boxes of all spans, in fractions and clipped, and the indices of each span's own with their
    relevance."""
    column_of: dict[Box, int] = {}
    box_of: list[dict[int, float]] = []
    for span in spans:
        box_of.append({})
        for box, relevance in zip(span.boxes, span.box_relevance(), strict=True):
            clipped = _clip(box, image_size, sample, incidents)
            if clipped is not None:
                column = column_of.setdefault(clipped, len(column_of))
                box_of[-1][column] = max(relevance, box_of[-1].get(column, 0.0))
    return list(column_of), box_of


def _tensor(boxes: Sequence[Box]) -> Tensor:
    """(N, 4) float32."""
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def _clip(box: Box, image_size: tuple[int, int], sample: str, incidents: list[Incident]) -> Box | None:
    """The box in fractions and clipped; None, with an incident, when it lies outside the image."""
    x0, y0, x1, y1 = in_fractions(box, *image_size)
    clipped = clip_box((x0, y0, x1, y1))
    image = "image of {}x{}".format(*image_size)
    if not (clipped[0] < clipped[2] and clipped[1] < clipped[3]):
        incidents.append(Incident("degenerate box", sample, f"{list(box)} lies outside the {image}"))
        return None
    if min(x0, y0) < -CLIP_TOLERANCE or max(x1, y1) > 1 + CLIP_TOLERANCE:
        incidents.append(Incident("clipped box", sample, f"{list(box)} leaves the {image}"))
    return clipped


def _other_boxes(
    spans: Sequence[Entity],
    boxes: Sequence[ObjectBox],
    image_size: tuple[int, int],
    shown_boxes: Sequence[Box],
    used: int,
    limits: SampleLimits,
) -> list[Box]:
    """The best other boxes that show none of the spans, as many as the limits allow beside `used` boxes."""
    room = limits.proposals if limits.max_regions is None else min(limits.proposals, limits.max_regions - used)
    if room <= 0:
        return []
    known = {box for span in spans for box in span.boxes}  # spares the arithmetic
    ranked = sorted((other for other in boxes if other.box not in known), key=lambda other: -other.score)
    candidates = [clip_box(in_fractions(other.box, *image_size)) for other in ranked]
    if not candidates:
        return []
    overlap = box_iou(_tensor(candidates), _tensor(shown_boxes))
    apart = (overlap < SAME_OBJECT_IOU).all(dim=1).tolist()
    return [box for box, is_apart in zip(candidates, apart, strict=True) if is_apart and area_of(box) > 0][:room]


def _proposals(boxes: Sequence[ObjectBox], image_size: tuple[int, int]) -> Proposals:
    """All boxes that lie in the image, with their scores."""
    clipped = [(clip_box(in_fractions(other.box, *image_size)), other.score) for other in boxes]
    inside = [(box, score) for box, score in clipped if area_of(box) > 0]
    return Proposals(_tensor([box for box, _ in inside]), torch.tensor([score for _, score in inside]))


def linked_boxes(annotation: Annotation) -> list[Box]:
    """The regions that show a span."""
    linked = annotation.links.any(dim=0).tolist()
    return [tuple(box) for box, is_linked in zip(annotation.regions.tolist(), linked, strict=True) if is_linked]


def moved(
    annotation: Annotation,
    to_square: Affine,
    min_visible: float,
    names: Sequence[str],
    *,
    frame: Box = WHOLE,
    sample: str = "",
) -> Annotation:
    """The annotation of an image on its square. Boxes follow the map and are clipped.

    A region of which less than `min_visible` is left is none any more, linked or not; each that was linked is an
    incident. A span that lost all its regions has no box: of some of it a part is left (NOT_KNOWN) or nothing
    (NAMED_ONLY).

    Args:
        annotation: of the image as it is.
        to_square: from the image to the square of the sample, in fractions.
        min_visible: smallest share of a box.
        names: of the spans, for incidents.
        frame: the part of the square that shows the image.
        sample: id of the pair.
    """
    regions, visible = _visible(annotation.regions, to_square, frame)
    kept = [column for column, share in enumerate(visible) if share >= min_visible]
    links = annotation.links[:, kept]
    owners = annotation.links.tolist()
    incidents = [
        Incident(
            "box out of view", sample, f"{visible[column]:.0%} of a box of {_named(names, owners, column)} is left"
        )
        for column in range(len(visible))
        if visible[column] < min_visible and any(row[column] for row in owners)
    ]
    shown = tuple(
        _state_after(before, row, visible, min_visible) for before, row in zip(annotation.shown, owners, strict=True)
    )
    boxes, shares = _visible(annotation.proposals.boxes, to_square, frame)
    used = [row for row, share in enumerate(shares) if share >= min_visible]
    return replace(
        annotation,
        shown=shown,
        regions=_tensor([regions[column] for column in kept]),
        links=links,
        link_relevance=annotation.link_relevance[:, kept],
        proposals=Proposals(_tensor([boxes[row] for row in used]), annotation.proposals.scores[used]),
        incidents=(*annotation.incidents, *incidents),
    )


def _named(names: Sequence[str], owners: Sequence[Sequence[bool]], column: int) -> str:
    return " and ".join(repr(name) for name, row in zip(names, owners, strict=True) if row[column])


def _state_after(before: int, linked: Sequence[bool], visible: Sequence[float], min_visible: float) -> int:
    """Presence of a span after the change, from the visible shares of its regions."""
    best = max((share for share, is_own in zip(visible, linked, strict=True) if is_own), default=1.0)
    if before != SHOWN or best >= min_visible:
        return before
    return NOT_KNOWN if best > 0 else NAMED_ONLY


def _visible(boxes: Tensor, to_square: Affine, frame: Box) -> tuple[list[Box], list[float]]:
    """Boxes (N, 4) on the square, clipped to the frame, and the share of each that lies in it."""
    whole = [to_square.box(tuple(box)) for box in boxes.tolist()]
    clipped = [clip_box(box, frame) for box in whole]
    # A box of a ten-thousandth of a pixel has an area in its file, and none in float32. Rounded: a box that ends where
    # the frame does is whole, though its edge comes to lie a little beyond.
    return clipped, [round(area_of(part) / (area_of(box) or 1.0), 6) for part, box in zip(clipped, whole, strict=True)]
