"""Features of texts, spans, images and regions by themselves, without pairs and without a manifest.

Texts and images take the path of training: the same tokens, the same decoding, the same pooling. Each function encodes
one batch.

    N texts or images    K spans of a text    R regions of an image    D features
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple
from urllib.request import url2pathname

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from spanbox.data.manifest import Box, ObjectBox, is_inverted
from spanbox.data.prepare import prepare
from spanbox.errors import DataError
from spanbox.models.dual_encoder import ImageStates, Part
from spanbox.models.inputs import Images, Texts, by_picture
from spanbox.spans import CharSpan, span_token_mask, trim_span
from spanbox.structures import Sample, TensorBundle
from spanbox.wiring.building import sample_limits
from spanbox.wiring.loading import Loaded

ImageSource = str | Path | Image.Image | NDArray[np.uint8] | Tensor
"""A file (or its `file://` URL), a PIL image, or pixels: an array (H, W, 3) or (H, W), a tensor (3, H, W), uint8."""
PIXELS = "expected uint8, an array (H, W, 3) or (H, W), or a tensor (3, H, W)"
FILE_URL = re.compile("file://(localhost)?(?=/)", re.IGNORECASE)
OTHER_URL = re.compile("[a-z][a-z0-9+.-]+://", re.IGNORECASE)


class EncodedTexts(NamedTuple):
    """Features of texts, of their spans, and which texts were cut."""

    texts: Tensor  # (N, D)
    spans: list[Tensor]  # (K, D) of each text
    truncated: int  # texts with more tokens than `data.max_tokens`


@dataclass(frozen=True)
class TextSide(TensorBundle):
    """Texts encoded for fused scores."""

    features: Tensor  # (N, D)
    tokens: Tensor  # (N, T, F)
    mask: Tensor  # (N, T) bool, False on padding


@dataclass(frozen=True)
class ImageSide(TensorBundle):
    """Images encoded for fused scores."""

    features: Tensor  # (N, D)
    patches: Tensor  # (N, P, F)
    content: Tensor | None = None  # (N, 2) int64, width and height of the pictures in pixels, beside padding


@torch.no_grad()
def encode_texts(
    loaded: Loaded, texts: Sequence[str], spans: Sequence[Sequence[CharSpan]] | None = None, *, unit: bool = True
) -> EncodedTexts:
    """Features of texts and of spans of them.

    Args:
        loaded: the model.
        texts: at least one.
        spans: of each text, half-open intervals of code points; None: no spans.
        unit: features of unit length.

    Raises:
        DataError: a span has no token: it lies beyond the text, beyond the tokens that are read, or is white space.
    """
    trimmed = [
        [_checked(text, span) for span in own] for text, own in zip(texts, spans or [[]] * len(texts), strict=True)
    ]
    alone = loaded.config.model.spans.source == "own"
    rows, truncated = _tokens(loaded, texts, [[]] * len(texts) if alone else trimmed)
    with loaded.in_precision():
        states = loaded.model.encode_text(rows)
    features = _project(loaded, "text", states.pooled, unit)
    if alone:
        return EncodedTexts(features, _spans_alone(loaded, texts, trimmed, features, unit), truncated)
    unread = (~rows.span_tokens.any(dim=2)).nonzero().tolist()
    for row, column in unread:
        if column < len(trimmed[row]):
            raise _unread(loaded, texts[row], trimmed[row][column])
    pooled = _project(loaded, "spans", states.spans, unit)
    return EncodedTexts(features, [pooled[row, : len(own)] for row, own in enumerate(trimmed)], truncated)


@torch.no_grad()
def encode_images(loaded: Loaded, images: Sequence[ImageSource], *, unit: bool = True) -> Tensor:
    """Features (N, D) of at least one image. Raises DataError where an image cannot be read."""
    limits = sample_limits(loaded.config, loaded.model, objects_only=True)
    samples = [prepare(as_image(image), "", (), (), limits) for image in images]
    return _project(loaded, "image", _states(loaded, _images(samples)).pooled, unit)


@torch.no_grad()
def encode_text_sides(loaded: Loaded, texts: Sequence[str]) -> TextSide:
    """Encode at least one text for fused scores, by a model with fusion."""
    rows, _ = _tokens(loaded, texts, [[]] * len(texts))
    with loaded.in_precision():
        states = loaded.model.encode_text(replace(rows, keep_tokens=True))
    assert states.tokens is not None
    return TextSide(_project(loaded, "text", states.pooled, True), states.tokens.float(), rows.token_mask)


@torch.no_grad()
def encode_image_sides(loaded: Loaded, images: Sequence[ImageSource]) -> ImageSide:
    """Encode at least one image for fused scores, by a model with fusion. Raises DataError for an unreadable one."""
    limits = sample_limits(loaded.config, loaded.model, objects_only=True)
    inputs = _images([prepare(as_image(image), "", (), (), limits) for image in images])
    states = _states(loaded, replace(inputs, keep_patches=True))
    assert states.patches is not None
    return ImageSide(_project(loaded, "image", states.pooled, True), states.patches.float(), inputs.content)


@torch.no_grad()
def encode_regions(
    loaded: Loaded, images: Sequence[ImageSource], boxes: Sequence[Sequence[Box]], *, unit: bool = True
) -> list[Tensor]:
    """Features (R, D) of the boxes of each image.

    Args:
        loaded: the model.
        images: at least one.
        boxes: of each image, x0 y0 x1 y1 in pixels of the image as shown.
        unit: features of unit length.

    Raises:
        DataError: an image cannot be read, or a box has no area within it.
    """
    samples = [sample_of(loaded, image, own) for image, own in zip(images, boxes, strict=True)]
    if samples[0].crops is not None:
        counts = [len(sample.regions) for sample in samples]
        crops = torch.cat([sample.crops for sample in samples if sample.crops is not None])
        sizes = [sample.crop_content for sample in samples if sample.crop_content is not None]
        pooled = _states(loaded, Images(crops, content=torch.cat(sizes) if sizes else None)).pooled
        return list(torch.split(_project(loaded, "regions", pooled, unit), counts))
    most = max(len(sample.regions) for sample in samples)
    padded = torch.stack([F.pad(sample.regions, (0, 0, 0, most - len(sample.regions))) for sample in samples])
    states = _states(loaded, replace(_images(samples), regions=padded))
    assert states.regions is not None
    features = _project(loaded, "regions", states.regions, unit)
    return [features[row, : len(sample.regions)] for row, sample in enumerate(samples)]


def readable_spans(loaded: Loaded, text: str, spans: Sequence[CharSpan]) -> list[CharSpan]:
    """The spans of a text that `encode_texts` can encode: neither beyond the token limit nor only white space."""
    trimmed = [trim_span(text, span) for span in spans]
    if loaded.config.model.spans.source == "own":
        return [span for span, (start, end) in zip(spans, trimmed, strict=True) if start < end]
    rows, _ = _tokens(loaded, [text], [trimmed])
    has_token = rows.span_tokens[0].any(dim=1).tolist()
    return [span for span, is_read in zip(spans, has_token, strict=True) if is_read]


def _images(samples: Sequence[Sample]) -> Images:
    contents = [sample.content for sample in samples if sample.content is not None]
    return Images(
        torch.stack([sample.pixels for sample in samples]), content=torch.tensor(contents) if contents else None
    )


def _states(loaded: Loaded, images: Images) -> ImageStates:
    """The states of images, in their order."""
    groups, rows = by_picture(images, loaded.model.vision.stride)
    with loaded.in_precision():
        states = ImageStates.cat([loaded.model.encode_images(group) for group in groups])
    return states if rows is None else states[rows]


def sample_of(loaded: Loaded, image: ImageSource, boxes: Sequence[Box]) -> Sample:
    """An image with boxes as its regions, in their order. Raises DataError as `encode_regions`."""
    limits = sample_limits(loaded.config, loaded.model, objects_only=True)
    objects = [ObjectBox(box) for box in map(box_of, boxes) if not is_inverted(box)]
    sample = prepare(as_image(image), "", (), objects, limits)
    if len(sample.regions) != len(boxes):
        name = image if isinstance(image, str | Path) else "the image"
        raise DataError(
            f"{name}: {len(boxes) - len(sample.regions)} of {len(boxes)} boxes have no area within the image; expected "
            "x0, y0, x1, y1 in pixels, with x0 < x1 and y0 < y1"
        )
    return sample


def as_image(image: ImageSource) -> Path | Image.Image:
    """An image as a path or a PIL image. Raises DataError for pixels of another shape or type."""
    match image:
        case Path():
            return image
        case str():
            return _path_of(image)
        case Image.Image():
            if 0 in image.size:
                raise DataError(f"an image of {image.width} x {image.height} pixels is empty")
            return image
        case Tensor():
            if image.dtype != torch.uint8 or image.ndim not in (2, 3):
                raise DataError(f"a tensor of {image.dtype} with shape {tuple(image.shape)} is not an image; {PIXELS}")
            return as_image((image.movedim(0, -1) if image.ndim == 3 else image).cpu().numpy())
        case np.ndarray():
            channels = image.shape[2:] or (3,)
            if image.dtype != np.uint8 or image.ndim not in (2, 3) or channels[0] not in (3, 4) or not image.size:
                raise DataError(f"pixels of {image.dtype} with shape {image.shape} are not an image; {PIXELS}")
            return Image.fromarray(image)
        case _:
            raise DataError(
                f"{type(image).__name__} is not an image; expected a path, a PIL image, an array or a tensor"
            )


def _path_of(name: str) -> Path:
    """The file of a path or a `file://` URL."""
    if found := FILE_URL.match(name):
        return Path(url2pathname(name[found.end() :]))
    if OTHER_URL.match(name):
        raise DataError(f"{name}: only files are read; download the image and give its path")
    if not name:
        raise DataError("the path of an image is empty")
    return Path(name)


def box_of(box: Box) -> Box:
    """A box from four finite numbers. Raises DataError for anything else."""
    try:
        x0, y0, x1, y1 = () if isinstance(box, str) else map(float, box)
    except (TypeError, ValueError, OverflowError):
        x0 = y0 = x1 = y1 = math.nan
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        raise DataError(f"{box!r} is not a box; expected x0, y0, x1, y1 in pixels")
    return x0, y0, x1, y1


def _checked(text: str, span: CharSpan) -> CharSpan:
    start, end = span
    if not 0 <= start < end <= len(text):
        raise DataError(f"span ({start}, {end}): expected 0 <= start < end <= {len(text)}, the characters of the text")
    trimmed = trim_span(text, (start, end))
    if trimmed[0] == trimmed[1]:
        raise DataError(f"span ({start}, {end}), {text[start:end]!r}: is only white space; expected words of the text")
    return trimmed


def _tokens(loaded: Loaded, texts: Sequence[str], spans: Sequence[Sequence[CharSpan]]) -> tuple[Texts, int]:
    """Texts as rows of the tower with their spans, and the number of those that were cut."""
    limit = loaded.config.data.max_tokens
    encodings = loaded.tokenizer(list(texts), truncation=True, max_length=limit, padding=True).encodings
    most = max(map(len, spans))
    edges = torch.tensor([[*own, *[(0, 0)] * (most - len(own))] for own in spans]).reshape(len(texts), most, 2)
    rows = Texts(
        token_ids=torch.tensor([encoding.ids for encoding in encodings]),
        token_mask=torch.tensor([encoding.attention_mask for encoding in encodings]).bool(),
        span_tokens=span_token_mask(edges.long(), torch.tensor([encoding.offsets for encoding in encodings])),
    )
    return rows, sum(bool(encoding.overflowing) for encoding in encodings)


def _spans_alone(
    loaded: Loaded, texts: Sequence[str], spans: Sequence[Sequence[CharSpan]], like: Tensor, unit: bool
) -> list[Tensor]:
    """Features of spans that are encoded without their sentences."""
    words = [text[start:end] for text, own in zip(texts, spans, strict=True) for start, end in own]
    if not words:
        return [like[:0] for _ in texts]
    rows, _ = _tokens(loaded, words, [[]] * len(words))
    rows = Texts(rows.token_ids, rows.token_mask, rows.token_mask[:, None])
    with loaded.in_precision():
        pooled = loaded.model.encode_text(rows).spans[:, 0]
    return list(torch.split(_project(loaded, "spans", pooled, unit), [len(own) for own in spans]))


def _unread(loaded: Loaded, text: str, span: CharSpan) -> DataError:
    start, end = span
    return DataError(
        f"span ({start}, {end}), {text[start:end]!r}: has no token among the first {loaded.config.data.max_tokens} of "
        "its text; leave it out, or split the text"
    )


def _project(loaded: Loaded, part: Part, pooled: Tensor, unit: bool) -> Tensor:
    """Features (..., D) float32 of pooled states (..., P)."""
    with loaded.in_precision():
        features = loaded.model.projection_of(part)(pooled).float()
    return F.normalize(features, dim=-1) if unit else features
