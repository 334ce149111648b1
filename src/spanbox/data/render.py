"""The pixels of a sample from a decoded image and its drawn changes: one resampling, one matrix, one table.

The square of a sample and the crops of its regions come from the decoded image by one affine map.
"""

import math
from typing import NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor

from spanbox.data.augment_image import ImagePlan, Size
from spanbox.data.images import Pixels
from spanbox.geometry import Affine, Box

FILL = 128  # grey of places beyond the image, and of erased ones
ROUNDING = 1e-4  # of a pixel: an edge this near to a whole one is there


def render(
    pixels: Pixels, plan: ImagePlan, side: int, window: Box | None = None, content: Size | None = None
) -> Tensor:
    """A window of the sample's square as (3, side, side) uint8.

    Args:
        pixels: of the image.
        plan: the changes.
        side: in pixels.
        window: part of the square, in fractions: a region that is cut out of the image; None: all that shows the image.
        content: size of the window in the result, in its upper left corner; the rest is padding. None: all of it.
    """
    size, place = content or (side, side), window or plan.frame
    to_image = Affine.onto(place).then(plan.to_square.inverse())
    seen = _resample(pixels, to_image, size, exact=place != plan.frame)
    seen = _recolour(seen, plan)
    if plan.blur:
        seen = _blur(seen, plan.blur * size[0] / (place[2] - place[0]))
    if plan.erased is not None:
        seen = _erase(seen, plan.erased, place)
    return F.pad(seen, (0, side - size[0], 0, side - size[1]), value=FILL) if size != (side, side) else seen


def to_square(values: NDArray[np.uint8], side: int) -> Tensor:
    """An RGB image (H, W, 3) resized to (3, side, side) uint8: bicubic, antialiased."""
    return _resize(values, side, side)


def to_pixels(image: Image.Image) -> Tensor:
    """An RGB image as (3, H, W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


class _Axis(NamedTuple):
    """Where the image lies along one axis of the result."""

    source: tuple[float, float]  # the part that is seen, in decoded pixels
    target: tuple[float, float]  # and its place, in pixels of the result
    is_mirrored: bool

    @classmethod
    def of(cls, scale: float, offset: float, size: int, decoded: int, reduction: int, side: int) -> Self:
        """The axis of a map from fractions of the result to fractions of an image of `size` pixels."""
        ends = sorted((offset, offset + scale))
        low, high = max(ends[0], 0.0), min(ends[1], 1.0)
        target = sorted(((low - offset) / scale * side, (high - offset) / scale * side))
        end = decoded if high * size > size - ROUNDING else high * size / reduction
        source = _rounded(low * size / reduction), _rounded(end)
        return cls(source, (_rounded(target[0]), _rounded(target[1])), is_mirrored=scale < 0)

    @property
    def starts_at_pixels(self) -> bool:
        return all(edge.is_integer() for edge in self.source)

    @property
    def lies_on_pixels(self) -> bool:
        return all(edge.is_integer() for edge in self.target) and self.target[0] < self.target[1]

    def pixels(self) -> slice:
        return slice(int(self.source[0]), int(self.source[1]))

    def places(self) -> slice:
        return slice(int(self.target[0]), int(self.target[1]))


def _rounded(edge: float) -> float:
    return float(round(edge)) if abs(edge - round(edge)) < ROUNDING else float(edge)


def _resample(pixels: Pixels, to_image: Affine, size: Size, *, exact: bool) -> Tensor:
    """The image (3, H, W) resampled by a map from the result to the image, both in fractions.

    Args:
        size: W and H of the result.
        exact: Pillow's filter throughout, whose edges may lie between two pixels.
    """
    height, width = pixels.values.shape[:2]
    across = _Axis.of(to_image.a, to_image.c, pixels.size[0], width, pixels.reduction, size[0])
    down = _Axis.of(to_image.e, to_image.f, pixels.size[1], height, pixels.reduction, size[1])
    if not (to_image.is_upright and across.lies_on_pixels and down.lies_on_pixels):
        return _warp(pixels, to_image, size)
    rows, columns = down.places(), across.places()
    extent = (columns.stop - columns.start, rows.stop - rows.start)
    if exact or not (across.starts_at_pixels and down.starts_at_pixels):
        edges = (across.source[0], down.source[0], across.source[1], down.source[1])
        part = to_pixels(Image.fromarray(pixels.values).resize(extent, Image.Resampling.BICUBIC, box=edges))
    else:
        part = _resize(pixels.values[down.pixels(), across.pixels()], *extent)
    mirrored = [axis for axis, of in ((1, down), (2, across)) if of.is_mirrored]
    part = part.flip(mirrored) if mirrored else part
    if extent == size:
        return part
    canvas = part.new_full((3, size[1], size[0]), FILL)
    canvas[:, rows, columns] = part
    return canvas


def _resize(values: NDArray[np.uint8], width: int, height: int) -> Tensor:
    """Pixels (H, W, 3) resized to (3, height, width).

    PyTorch's filter is a vectorised version of Pillow's: a quarter of the time, and a difference of one or two levels
    of 255 in some pixels. It is fast on contiguous channels-last memory, the layout of an image.
    """
    channels_last = torch.from_numpy(np.ascontiguousarray(values)).permute(2, 0, 1)
    return F.interpolate(channels_last[None], (height, width), mode="bicubic", antialias=True)[0].contiguous()


def _warp(pixels: Pixels, to_image: Affine, size: Size) -> Tensor:
    """As `_resample`, for any map: bilinear, from pixels averaged where there are several to one of the result."""
    image = Image.fromarray(pixels.values)
    width, height = (size / pixels.reduction for size in pixels.size)
    shape = size[0] / size[1]
    steps = (
        math.hypot(to_image.a, to_image.b * shape) * width / size[0],
        math.hypot(to_image.d / shape, to_image.e) * height / size[1],
    )
    across, down = (max(1, int(step)) for step in steps)
    if across > 1 or down > 1:
        image = image.reduce((across, down))
    x, y = width / across, height / down
    coefficients = (
        to_image.a * x / size[0],
        to_image.b * x / size[1],
        to_image.c * x,
        to_image.d * y / size[0],
        to_image.e * y / size[1],
        to_image.f * y,
    )
    bilinear = Image.Resampling.BILINEAR
    grey = (FILL,) * 3
    return to_pixels(image.transform(size, Image.Transform.AFFINE, coefficients, bilinear, fillcolor=grey))


def _recolour(seen: Tensor, plan: ImagePlan) -> Tensor:
    if plan.colour is not None:
        matrix = torch.from_numpy(plan.colour)
        flat = torch.addmm(matrix[:, 3:] * 255 + 0.5, matrix[:, :3], seen.flatten(1).float())
        seen = flat.clamp_(0, 255).to(torch.uint8).reshape(seen.shape)
    if plan.table is not None:
        values = bytearray(seen.numpy().tobytes().translate(plan.table))
        seen = torch.frombuffer(values, dtype=torch.uint8).reshape(seen.shape)
    return seen


def _blur(seen: Tensor, sigma: float) -> Tensor:
    image = Image.fromarray(seen.permute(1, 2, 0).contiguous().numpy())
    return to_pixels(image.filter(ImageFilter.GaussianBlur(sigma)))


def _erase(seen: Tensor, erased: Box, window: Box) -> Tensor:
    """The picture with the pixels of a rectangle of the square made grey, in place."""
    height, width = seen.shape[1:]
    x0, x1 = ((edge - window[0]) / (window[2] - window[0]) * width for edge in (erased[0], erased[2]))
    y0, y1 = ((edge - window[1]) / (window[3] - window[1]) * height for edge in (erased[1], erased[3]))
    columns, rows = (slice(max(0, round(low)), max(0, round(high))) for low, high in ((x0, x1), (y0, y1)))
    seen[:, rows, columns] = FILL
    return seen
