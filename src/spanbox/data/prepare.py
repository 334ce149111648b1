"""From an image, a text, spans and boxes to a sample: annotate, augment, decode, render.

One path for training, evaluation and use from Python. It is independent of manifests: it takes the parts of a record
from any source.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from spanbox.data.annotate import annotate, linked_boxes, moved
from spanbox.data.augment_image import ImagePlan, Size, deciding_side, draw_plan, fitted, has_direction, plain_plan
from spanbox.data.draws import Draws, Stream
from spanbox.data.images import Pixels, open_picture, reduction_for
from spanbox.data.limits import SampleLimits
from spanbox.data.manifest import Entity, ObjectBox
from spanbox.data.render import render
from spanbox.geometry import Affine, Box, expand_boxes
from spanbox.structures import Sample, stable_id


def prepare(
    image: Path | Image.Image | Pixels,
    text: str,
    spans: Sequence[Entity],
    boxes: Sequence[ObjectBox],
    limits: SampleLimits,
    *,
    id: str = "",
    group: str = "",
    place: int = 0,
    relevance: float | None = None,
    draws: Draws | None = None,
    may_flip: bool = True,
) -> Sample:
    """The sample of an image-text pair, without masked views.

    Args:
        image: a file, an image in memory, or decoded pixels.
        text: the sentence.
        spans: of the text, with the boxes that show them, in pixels of the image as shown.
        boxes: further boxes, linked to no span.
        limits: size of the image, and which spans and boxes are used.
        id: names the pair in incidents and in the batch.
        group: pairs that show the same image share it; default: the id.
        place: of the pair in its manifest.
        relevance: of the text for the image, in [0, 1]; None: the data has none, for pairs or boxes.
        draws: random numbers of the sample; None: it is not augmented.
        may_flip: whether other texts of the image allow a mirror image.

    Raises:
        DataError: the image cannot be read.
    """
    augment = limits.augment
    with open_picture(image) if isinstance(image, Path | Image.Image) else nullcontext(image) as picture:
        annotation = annotate(text, spans, boxes, picture.size, limits, sample=id)
        if augment is None or draws is None or not augment.image.active:
            plan, min_visible = plain_plan(picture.size, limits.image_size, limits.aspect), 0.0
        else:
            plan = draw_plan(
                augment.image,
                picture.size,
                limits.image_size,
                linked_boxes(annotation),
                aspect=limits.aspect,
                may_flip=may_flip and not has_direction(text),
                generator=draws.stream(Stream.IMAGE),
            )
            min_visible = augment.image.min_visible
        if plan.to_square != Affine():
            names = [text[start:end] for start, end in annotation.spans]
            annotation = moved(annotation, plan.to_square, min_visible, names, frame=plan.frame, sample=id)
        pixels = picture.decode(1 if limits.crop_size else plan.reduction)
    content = _content(plan.frame, limits.image_size, limits)
    crops, crop_content = _crops(pixels, plan, annotation.regions, limits)
    return Sample(
        id=id,
        place=place,
        pixels=render(pixels, plan, limits.image_size, content=content),
        content=content,
        text=text,
        group=stable_id(group or id),
        spans=annotation.spans,
        span_texts=tuple(text[start:end] for start, end in annotation.spans),
        entities=annotation.entities,
        identities=annotation.identities,
        shown=annotation.shown,
        regions=annotation.regions,
        links=annotation.links,
        crops=crops,
        crop_content=crop_content,
        incidents=annotation.incidents,
        relevance=relevance,
        link_relevance=None if relevance is None else annotation.link_relevance,
        proposals=annotation.proposals if limits.views else None,
    )


def least_reduction(image_size: tuple[int, int], limits: SampleLimits) -> int:
    """The reduction at which an image can be decoded once for all its samples, with any draw."""
    if limits.crop_size:
        return 1
    smallest = limits.augment.image.smallest_crop if limits.augment else 1.0
    return reduction_for(deciding_side(image_size, limits.aspect) * smallest, limits.image_size)


def _content(window: Box, side: int, limits: SampleLimits) -> Size | None:
    """Size in pixels of a window of the square on another square; None: it is squashed."""
    if limits.aspect == "squash":
        return None
    return fitted(window[2] - window[0], window[3] - window[1], side)


def _crops(
    pixels: Pixels, plan: ImagePlan, regions: Tensor, limits: SampleLimits
) -> tuple[Tensor | None, Tensor | None]:
    """Each region cut from the full image, (R, 3, s, s) uint8, and its size (R, 2) on that square, if it is padded."""
    side = limits.crop_size
    if side is None:
        return None, None
    windows = [tuple(window) for window in expand_boxes(regions, limits.crop_margin, plan.frame).tolist()]
    contents = [_content(window, side, limits) for window in windows]
    crops = [render(pixels, plan, side, window, content) for window, content in zip(windows, contents, strict=True)]
    stacked = torch.stack(crops) if crops else torch.empty(0, 3, side, side, dtype=torch.uint8)
    return stacked, None if limits.aspect == "squash" else torch.tensor(contents, dtype=torch.int64).reshape(-1, 2)
