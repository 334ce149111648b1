"""From a record of the manifest to a decoded sample: image, spans, regions and the links between them.

An entity that is `ambiguous` has boxes of which the data does not say which one is meant. All of them are linked to
it, so each counts as right. Without boxes the flag means: unknown whether the image shows the entity.
"""

from collections.abc import Collection, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import islice, zip_longest

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from spanbox.data.images import load_image, load_reduced
from spanbox.data.manifest import Box, Entity, Manifest, Record
from spanbox.data.mask_effects import fill_pixels, view_meaning
from spanbox.data.masking import MaskSettings, Proposals, draw_views
from spanbox.errors import DataError
from spanbox.geometry import SAME_OBJECT_IOU, box_area, box_iou, clip_boxes, expand_boxes, normalise_boxes
from spanbox.spans import CharSpan, trim_span
from spanbox.structures import NAMED_ONLY, NOT_KNOWN, SHOWN, Incident, Sample, SampleViews, stable_id

CLIP_TOLERANCE = 1e-3  # of the image: edges that leave it by less are rounding, not a fault
REPLACEMENT_TRIES = 20
VIEW_STREAM = 1  # views have a stream of random numbers of their own, beside that of replacements


@dataclass(frozen=True)
class SampleLimits:
    """How much of a record enters a sample."""

    image_size: int  # side of the square the image is resized to, in pixels
    max_spans: int | None = None  # None: all
    max_regions: int | None = None  # None: all boxes of the entities, and the proposals
    proposals: int = 0  # regions taken from the record's objects, besides the entities' boxes
    objects_only: bool = False  # regions are all of the record's objects, linked to nothing: candidates of a prediction
    skip_ambiguous: bool = False  # ambiguous entities are left out
    crop_size: int | None = None  # side of a region's own crop, in pixels; None: regions are not cropped
    crop_margin: float = 0.0
    views: MaskSettings | None = None  # masked views are drawn of each image
    view_grid: int = 0  # cells along each side of a masked view


@dataclass(frozen=True)
class Annotation:
    """Spans and regions of a record, checked against its image."""

    spans: tuple[CharSpan, ...]
    entities: tuple[int, ...]  # index of each span's entity in the record
    identities: tuple[int, ...]
    shown: tuple[int, ...]  # of each span: SHOWN, NAMED_ONLY or NOT_KNOWN
    regions: Tensor  # (R, 4)
    links: Tensor  # (K, R)
    link_relevance: Tensor  # (K, R): in [0, 1], 0 without a link
    incidents: tuple[Incident, ...]


class PairDataset(Dataset[Sample | Incident]):
    """Samples by (step, index). Every random draw of a sample depends on (seed, step, index) alone.

    In training a pair with a broken image is replaced by another pair of the manifest, and the sample carries the
    incident; in evaluation (`replace_broken=False`) the item is the incident.
    """

    def __init__(
        self, manifest: Manifest, limits: SampleLimits, seed: int, *, replace_broken: bool, cache_bytes: int = 0
    ) -> None:
        """`cache_bytes`: memory for decoded samples, in each process that loads."""
        self.manifest = manifest
        self.limits = limits
        self.seed = seed
        self.replace_broken = replace_broken
        self._cache: dict[int, Sample] = {}
        self._cache_left = cache_bytes

    def for_evaluation(self) -> "PairDataset":
        """The same pairs without masked views, and with incidents for broken images. Shares the cache."""
        other = copy(self)
        other.replace_broken = False
        other.limits = replace(self.limits, views=None)
        other._cache_left = 0
        return other

    def __len__(self) -> int:
        return len(self.manifest)

    def most_parts(self, index: int) -> int:
        """Upper bound of the spans, and of the regions, of a pair's sample; the image is not read."""
        record, limits = self.manifest[index], self.limits
        proposals = len(record.objects) if limits.objects_only else min(limits.proposals, len(record.objects))
        boxes = 0 if limits.objects_only else sum(len(entity.boxes) for entity in record.entities)
        return max(_at_most(len(record.entities), limits.max_spans), _at_most(boxes + proposals, limits.max_regions))

    def __getitem__(self, key: tuple[int, int]) -> Sample | Incident:
        step, index = key
        broken: list[Incident] = []
        for stand_in in self._indices_to_try(step, index):
            try:
                sample = self._cached(stand_in)
                if broken:
                    sample = replace(sample, incidents=(*broken, *sample.incidents))
                return self._with_views(sample, step, index)
            except DataError as error:
                broken.append(Incident("broken image", self.manifest[stand_in].id, str(error)))
            if not self.replace_broken:
                return broken[0]
        raise DataError(
            f"{self.manifest.path}: {REPLACEMENT_TRIES} images in a row cannot be read; the last: {broken[-1].detail}"
        )

    def _indices_to_try(self, step: int, index: int) -> Iterator[int]:
        """The pair itself, then its replacements."""
        yield index
        generator = np.random.default_rng((self.seed, step, index))
        for _ in range(REPLACEMENT_TRIES - 1):
            yield int(generator.integers(len(self.manifest)))

    def _with_views(self, sample: Sample, step: int, index: int) -> Sample:
        """The sample with newly drawn masked views; unchanged when none are drawn."""
        settings = self.limits.views
        if settings is None:
            return sample
        generator = np.random.default_rng((self.seed, step, index, VIEW_STREAM))
        proposals = Proposals(*sample.proposals) if sample.proposals else Proposals.none()
        plan = draw_views(settings, self.limits.view_grid, sample.regions, sample.links, proposals, generator)
        meaning = view_meaning(plan.coverage, sample.regions, sample.links, settings)
        fill = settings.fill
        pixels = None if fill == "drop" else fill_pixels(sample.pixels, plan.hidden, fill, generator)
        return replace(sample, views=SampleViews(plan.hidden, meaning.sentence, meaning.spans, pixels))

    def _cached(self, index: int) -> Sample:
        if index in self._cache:
            return self._cache[index]
        sample = self._read(self.manifest[index], index)
        size = sample.pixels.nbytes + (0 if sample.crops is None else sample.crops.nbytes)
        if size <= self._cache_left:
            self._cache_left -= size
            self._cache[index] = sample
        return sample

    def _read(self, record: Record, place: int) -> Sample:
        size = self.limits.image_size
        path = self.manifest.image_path(record)
        if self.limits.crop_size is None:
            image, full_size = load_reduced(path, at_least=size)
        else:
            image = load_image(path)
            full_size = image.size
        annotation = annotate(record, full_size, self.limits)
        weighted = self.manifest.has_relevance
        return Sample(
            id=record.id,
            place=place,
            pixels=to_square(image, size),
            text=record.text,
            group=stable_id(record.group_key),
            spans=annotation.spans,
            span_texts=tuple(record.text[start:end] for start, end in annotation.spans),
            entities=annotation.entities,
            identities=annotation.identities,
            shown=annotation.shown,
            regions=annotation.regions,
            links=annotation.links,
            crops=self._crop(image, annotation.regions),
            incidents=annotation.incidents,
            relevance=record.relevance if weighted else None,
            link_relevance=annotation.link_relevance if weighted else None,
            proposals=_scored_proposals(record, full_size) if self.limits.views else None,
        )

    def _crop(self, image: Image.Image, regions: Tensor) -> Tensor | None:
        if self.limits.crop_size is None:
            return None
        side = self.limits.crop_size
        scale = torch.tensor([image.width, image.height, image.width, image.height])
        edges = (expand_boxes(regions, self.limits.crop_margin) * scale).tolist()
        crops = [to_pixels(image.resize((side, side), Image.Resampling.BICUBIC, box=tuple(box))) for box in edges]
        return torch.stack(crops) if crops else torch.empty(0, 3, side, side, dtype=torch.uint8)


def to_square(image: Image.Image, side: int) -> Tensor:
    """An RGB image resized to (3, side, side) uint8: bicubic, antialiased.

    PyTorch's filter is a vectorised version of Pillow's: a quarter of the time, and a difference of one or two levels
    of 255 in some pixels. It is fast on channels-last memory, the layout of an image.
    """
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return F.interpolate(pixels[None], (side, side), mode="bicubic", antialias=True)[0].contiguous()


def to_pixels(image: Image.Image) -> Tensor:
    """An RGB image as (3, H, W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def annotate(record: Record, image_size: tuple[int, int], limits: SampleLimits) -> Annotation:
    """Spans, regions and links of a record whose image is `image_size` (width, height) pixels as shown.

    One region may be linked to several spans, and one span to several regions. Regions are the entities' boxes, then up
    to `limits.proposals` proposals, best score first, that overlap none of them. Whatever exceeds a limit is an
    incident.
    """
    incidents: list[Incident] = []
    boxes, box_of = _entity_boxes(record, image_size, incidents)
    entities = [i for i, entity in enumerate(record.entities) if not (limits.skip_ambiguous and entity.ambiguous)]
    if len(entities) < len(record.entities):
        skipped = f"{len(record.entities) - len(entities)} of {len(record.entities)} entities left out"
        incidents.append(Incident("ambiguous entity", record.id, skipped))
    entities.sort(key=lambda i: not box_of[i])  # those with a box first
    if limits.max_spans is not None and len(entities) > limits.max_spans:
        incidents.append(Incident("spans over limit", record.id, f"{len(entities)} spans, {limits.max_spans} used"))
        entities = entities[: limits.max_spans]
    boxes_of_spans = [box_of[i] for i in entities]
    if limits.objects_only:
        regions = _scored_proposals(record, image_size)[0]
        relevance = torch.zeros(len(entities), len(regions))
        links = relevance > 0
        shown = [bool(own) for own in boxes_of_spans]
    else:
        used = _within_limit(boxes_of_spans, limits.max_regions, record.id, incidents)
        regions = torch.cat([boxes[used], _proposals(record, image_size, boxes, len(used), limits)])
        links, relevance = _links(boxes_of_spans, used, len(regions))
        shown = links.any(dim=1).tolist()
    return Annotation(
        spans=tuple(trim_span(record.text, (record.entities[i].start, record.entities[i].end)) for i in entities),
        entities=tuple(entities),
        identities=tuple(stable_id(record.identity_key(record.entities[i])) for i in entities),
        shown=tuple(_state(record.entities[i], has_box) for i, has_box in zip(entities, shown, strict=True)),
        regions=regions,
        links=links,
        link_relevance=relevance,
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


def _at_most(count: int, limit: int | None) -> int:
    return count if limit is None else min(count, limit)


def _entity_boxes(
    record: Record, image_size: tuple[int, int], incidents: list[Incident]
) -> tuple[Tensor, list[dict[int, float]]]:
    """The distinct boxes of all entities (R, 4), normalised and clipped, and the indices of each entity's own with
    their relevance."""
    column_of: dict[Box, int] = {}
    box_of: list[dict[int, float]] = []
    for entity in record.entities:
        box_of.append({})
        for box, relevance in zip(entity.boxes, entity.box_relevance(), strict=True):
            clipped = _clip(box, image_size, record.id, incidents)
            if clipped is not None:
                column = column_of.setdefault(clipped, len(column_of))
                box_of[-1][column] = max(relevance, box_of[-1].get(column, 0.0))
    return torch.tensor(list(column_of), dtype=torch.float32).reshape(-1, 4), box_of


def _clip(box: Box, image_size: tuple[int, int], sample: str, incidents: list[Incident]) -> Box | None:
    """The box normalised and clipped; None, and an incident, when nothing of it lies in the image."""
    width, height = image_size
    x0, y0, x1, y1 = box[0] / width, box[1] / height, box[2] / width, box[3] / height
    clipped = (max(x0, 0.0), max(y0, 0.0), min(x1, 1.0), min(y1, 1.0))
    if not (clipped[0] < clipped[2] and clipped[1] < clipped[3]):
        incidents.append(Incident("degenerate box", sample, f"{list(box)} lies outside the image of {width}x{height}"))
        return None
    if min(x0, y0) < -CLIP_TOLERANCE or max(x1, y1) > 1 + CLIP_TOLERANCE:
        incidents.append(Incident("clipped box", sample, f"{list(box)} leaves the image of {width}x{height}"))
    return clipped


def _proposals(
    record: Record, image_size: tuple[int, int], entity_boxes: Tensor, used: int, limits: SampleLimits
) -> Tensor:
    """The best proposals (P, 4) that show none of the entities, as many as the limits allow beside `used` boxes."""
    room = limits.proposals if limits.max_regions is None else min(limits.proposals, limits.max_regions - used)
    if room <= 0:
        return torch.empty(0, 4)
    known = {box for entity in record.entities for box in entity.boxes}  # spares the arithmetic
    others = [proposal for proposal in record.objects if proposal.box not in known]
    if not others:
        return torch.empty(0, 4)
    ranked = sorted(others, key=lambda proposal: -proposal.score)
    boxes = clip_boxes(normalise_boxes(torch.tensor([proposal.box for proposal in ranked]), *image_size))
    apart = (box_iou(boxes, entity_boxes) < SAME_OBJECT_IOU).all(dim=1) & (box_area(boxes) > 0)
    return boxes[apart][:room]


def _scored_proposals(record: Record, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """All proposals of a record that lie in its image: boxes (P, 4), normalised and clipped, and scores (P,)."""
    if not record.objects:
        return Proposals.none()
    boxes = clip_boxes(normalise_boxes(torch.tensor([proposal.box for proposal in record.objects]), *image_size))
    inside = box_area(boxes) > 0
    return boxes[inside], torch.tensor([proposal.score for proposal in record.objects])[inside]
