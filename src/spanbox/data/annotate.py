"""From spans and boxes of a pair to the spans, regions and links of its sample. Boxes in pixels become fractions here.

An entity that is `ambiguous` has boxes of which the data does not say which one is meant. All of them are linked to
it, so each counts as right. Without boxes the flag means: unknown whether the image shows the entity.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import islice, zip_longest

import torch
from torch import Tensor

from spanbox.data.limits import SampleLimits
from spanbox.data.manifest import Box, Entity, ObjectBox, identity_key
from spanbox.data.masking import Proposals
from spanbox.geometry import SAME_OBJECT_IOU, Affine, box_area, box_iou, clip_boxes, normalise_boxes
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
    entities = [i for i, span in enumerate(spans) if not (limits.skip_ambiguous and span.ambiguous)]
    if len(entities) < len(spans):
        skipped = f"{len(spans) - len(entities)} of {len(spans)} entities left out"
        incidents.append(Incident("ambiguous entity", sample, skipped))
    entities.sort(key=lambda i: not box_of[i])  # those with a box first
    if limits.max_spans is not None and len(entities) > limits.max_spans:
        incidents.append(Incident("spans over limit", sample, f"{len(entities)} spans, {limits.max_spans} used"))
        entities = entities[: limits.max_spans]
    boxes_of_spans = [box_of[i] for i in entities]
    proposals = _proposals(boxes, image_size) if limits.objects_only or limits.views else Proposals.none()
    if limits.objects_only:
        regions = proposals.boxes
        relevance = torch.zeros(len(entities), len(regions))
        links = relevance > 0
        shown = [bool(own) for own in boxes_of_spans]
    else:
        used = _within_limit(boxes_of_spans, limits.max_regions, sample, incidents)
        others = _other_boxes(spans, boxes, image_size, shown_boxes, len(used), limits)
        regions = torch.cat([shown_boxes[used], others])
        links, relevance = _links(boxes_of_spans, used, len(regions))
        shown = links.any(dim=1).tolist()
    return Annotation(
        spans=tuple(trim_span(text, (spans[i].start, spans[i].end)) for i in entities),
        entities=tuple(entities),
        identities=tuple(stable_id(identity_key(text, spans[i])) for i in entities),
        shown=tuple(_state(spans[i], has_box) for i, has_box in zip(entities, shown, strict=True)),
        regions=regions,
        links=links,
        link_relevance=relevance,
        proposals=proposals,
        incidents=tuple(incidents),
    )


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
    column_of = {index: column for column, index in enumerate(used)}
    links = torch.zeros(len(boxes_of_spans), regions, dtype=torch.bool)
    relevance = torch.zeros(len(boxes_of_spans), regions)
    for row, own in enumerate(boxes_of_spans):
        kept = [index for index in own if index in column_of]
        columns = [column_of[index] for index in kept]
        links[row, columns] = True
        relevance[row, columns] = torch.tensor([own[index] for index in kept])
    return links, relevance


def _boxes_of_spans(
    spans: Sequence[Entity], image_size: tuple[int, int], sample: str, incidents: list[Incident]
) -> tuple[Tensor, list[dict[int, float]]]:
    """The distinct boxes of all spans (R, 4), in fractions and clipped, and the indices of each span's own with their
    relevance."""
    in_pixels = [box for span in spans for box in span.boxes]
    fractions = iter(_fractions(in_pixels, image_size, torch.float64).tolist())
    column_of: dict[Box, int] = {}
    box_of: list[dict[int, float]] = []
    for span in spans:
        box_of.append({})
        for box, relevance in zip(span.boxes, span.box_relevance(), strict=True):
            clipped = _clip(next(fractions), box, image_size, sample, incidents)
            if clipped is not None:
                column = column_of.setdefault(clipped, len(column_of))
                box_of[-1][column] = max(relevance, box_of[-1].get(column, 0.0))
    return torch.tensor(list(column_of), dtype=torch.float32).reshape(-1, 4), box_of


def _fractions(boxes: Sequence[Box], image_size: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Boxes in pixels as fractions (N, 4) of the image, not clipped."""
    return normalise_boxes(torch.tensor(boxes, dtype=dtype).reshape(-1, 4), *image_size)


def _clip(
    box: Sequence[float], in_pixels: Box, image_size: tuple[int, int], sample: str, incidents: list[Incident]
) -> Box | None:
    """The box clipped to the image; None, and an incident, when nothing of it lies in the image."""
    x0, y0, x1, y1 = box
    clipped = (max(x0, 0.0), max(y0, 0.0), min(x1, 1.0), min(y1, 1.0))
    image = "image of {}x{}".format(*image_size)
    if not (clipped[0] < clipped[2] and clipped[1] < clipped[3]):
        incidents.append(Incident("degenerate box", sample, f"{list(in_pixels)} lies outside the {image}"))
        return None
    if min(x0, y0) < -CLIP_TOLERANCE or max(x1, y1) > 1 + CLIP_TOLERANCE:
        incidents.append(Incident("clipped box", sample, f"{list(in_pixels)} leaves the {image}"))
    return clipped


def _other_boxes(
    spans: Sequence[Entity],
    boxes: Sequence[ObjectBox],
    image_size: tuple[int, int],
    shown_boxes: Tensor,
    used: int,
    limits: SampleLimits,
) -> Tensor:
    """The best other boxes (P, 4) that show none of the spans, as many as the limits allow beside `used` boxes."""
    room = limits.proposals if limits.max_regions is None else min(limits.proposals, limits.max_regions - used)
    if room <= 0:
        return torch.empty(0, 4)
    known = {box for span in spans for box in span.boxes}  # spares the arithmetic
    ranked = sorted((other for other in boxes if other.box not in known), key=lambda other: -other.score)
    candidates = clip_boxes(_fractions([other.box for other in ranked], image_size))
    apart = (box_iou(candidates, shown_boxes) < SAME_OBJECT_IOU).all(dim=1) & (box_area(candidates) > 0)
    return candidates[apart][:room]


def _proposals(boxes: Sequence[ObjectBox], image_size: tuple[int, int]) -> Proposals:
    """All boxes that lie in the image, with their scores."""
    clipped = clip_boxes(_fractions([other.box for other in boxes], image_size))
    inside = box_area(clipped) > 0
    return Proposals(clipped[inside], torch.tensor([other.score for other in boxes])[inside])


def moved(
    annotation: Annotation, to_square: Affine, min_visible: float, names: Sequence[str], *, sample: str = ""
) -> Annotation:
    """The annotation of an augmented image. Boxes follow the map and are clipped.

    A region of which less than `min_visible` is left is none any more, linked or not; each that was linked is an
    incident. A span that lost all its regions has no box: of some of it a part is left (NOT_KNOWN) or nothing
    (NAMED_ONLY).

    Args:
        annotation: of the image as it is.
        to_square: from the image to the square of the sample, in fractions.
        min_visible: smallest share of a box.
        names: of the spans, for incidents.
        sample: id of the pair.
    """
    regions, visible = _visible(annotation.regions, to_square)
    kept = visible >= min_visible
    links = annotation.links[:, kept]
    lost = (annotation.links.any(dim=0) & ~kept).nonzero().flatten().tolist()
    incidents = []
    for column in lost:
        owners = " and ".join(repr(names[row]) for row in annotation.links[:, column].nonzero().flatten().tolist())
        incidents.append(Incident("box out of view", sample, f"{visible[column]:.0%} of a box of {owners} is left"))
    partly_seen = (annotation.links & (visible > 0)).any(dim=1)
    shown = tuple(
        (NOT_KNOWN if partly else NAMED_ONLY) if before == SHOWN and not now else before
        for before, now, partly in zip(annotation.shown, links.any(dim=1).tolist(), partly_seen.tolist(), strict=True)
    )
    boxes, of_proposals = _visible(annotation.proposals.boxes, to_square)
    used = of_proposals >= min_visible
    return replace(
        annotation,
        shown=shown,
        regions=regions[kept],
        links=links,
        link_relevance=annotation.link_relevance[:, kept],
        proposals=Proposals(boxes[used], annotation.proposals.scores[used]),
        incidents=(*annotation.incidents, *incidents),
    )


def _visible(boxes: Tensor, to_square: Affine) -> tuple[Tensor, Tensor]:
    """Boxes (N, 4) on the square, clipped, and the share (N,) of each that lies on it."""
    whole = to_square.boxes(boxes)
    clipped = clip_boxes(whole)
    return clipped, box_area(clipped) / box_area(whole)
