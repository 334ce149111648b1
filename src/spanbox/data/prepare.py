"""From an image, a text, spans and boxes to a sample: decode, annotate, render.

One path for training, evaluation and use from Python. It knows no manifest: a record's parts come in, and where they
come from does not matter.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from spanbox.data.annotate import annotate
from spanbox.data.images import load_image, load_reduced
from spanbox.data.limits import SampleLimits
from spanbox.data.manifest import Entity, ObjectBox
from spanbox.geometry import expand_boxes
from spanbox.structures import Sample, stable_id


def prepare(
    image: Path | Image.Image,
    text: str,
    spans: Sequence[Entity],
    boxes: Sequence[ObjectBox],
    limits: SampleLimits,
    *,
    id: str = "",
    group: str = "",
    place: int = 0,
    relevance: float | None = None,
) -> Sample:
    """The sample of an image-text pair, without masked views.

    Args:
        image: a file, or an image in memory.
        text: the sentence.
        spans: of the text, with the boxes that show them, in pixels of the image as shown.
        boxes: further boxes, linked to no span.
        limits: size of the image, and which spans and boxes are used.
        id: names the pair in incidents and in the batch.
        group: pairs that show the same image share it; default: the id.
        place: of the pair in its manifest.
        relevance: of the text for the image, in [0, 1]; None: the data has none, for pairs or boxes.

    Raises:
        DataError: the image cannot be read.
    """
    if limits.crop_size is None:
        picture, full_size = load_reduced(image, at_least=limits.image_size)
    else:
        picture = load_image(image)
        full_size = picture.size
    annotation = annotate(text, spans, boxes, full_size, limits, sample=id)
    return Sample(
        id=id,
        place=place,
        pixels=to_square(picture, limits.image_size),
        text=text,
        group=stable_id(group or id),
        spans=annotation.spans,
        span_texts=tuple(text[start:end] for start, end in annotation.spans),
        entities=annotation.entities,
        identities=annotation.identities,
        shown=annotation.shown,
        regions=annotation.regions,
        links=annotation.links,
        crops=_crops(picture, annotation.regions, limits),
        incidents=annotation.incidents,
        relevance=relevance,
        link_relevance=None if relevance is None else annotation.link_relevance,
        proposals=annotation.proposals if limits.views else None,
    )


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


def _crops(image: Image.Image, regions: Tensor, limits: SampleLimits) -> Tensor | None:
    """Each region cut from the full image, (R, 3, s, s) uint8."""
    if limits.crop_size is None:
        return None
    side = limits.crop_size
    scale = torch.tensor([image.width, image.height, image.width, image.height])
    edges = (expand_boxes(regions, limits.crop_margin) * scale).tolist()
    crops = [to_pixels(image.resize((side, side), Image.Resampling.BICUBIC, box=tuple(box))) for box in edges]
    return torch.stack(crops) if crops else torch.empty(0, 3, side, side, dtype=torch.uint8)
