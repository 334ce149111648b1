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

from spanbox.data.augment_image import ImagePlan
from spanbox.data.images import Pixels
from spanbox.geometry import Affine, Box

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
FILL = 128  # grey of places beyond the image, and of erased ones
ROUNDING = 1e-4  # of a pixel: an edge this near to a whole one is there


def render(pixels: Pixels, plan: ImagePlan, side: int, window: Box = WHOLE) -> Tensor:
    """A window of the sample's square as (3, side, side) uint8.

    Args:
        pixels: of the image.
        plan: the changes.
        side: in pixels.
        window: part of the square, in fractions: all of it, or a region that is cut out of the image.
    """
    to_image = Affine.onto(window).then(plan.to_square.inverse())
    seen = _resample(pixels, to_image, side, exact=window != WHOLE)
    seen = _recolour(seen, plan)
    if plan.blur:
        seen = _blur(seen, plan.blur * side / (window[2] - window[0]))
    return seen if plan.erased is None else _erase(seen, plan.erased, window)


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
        """Of a map from fractions of the result to those of an image of `size` pixels."""
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


def _resample(pixels: Pixels, to_image: Affine, side: int, *, exact: bool) -> Tensor:
    """The image (3, side, side) seen through a map from the square to the image, both in fractions.

    Args:
        exact: Pillow's filter throughout, whose edges may lie between two pixels.
    """
    height, width = pixels.values.shape[:2]
    across = _Axis.of(to_image.a, to_image.c, pixels.size[0], width, pixels.reduction, side)
    down = _Axis.of(to_image.e, to_image.f, pixels.size[1], height, pixels.reduction, side)
    if not (to_image.is_upright and across.lies_on_pixels and down.lies_on_pixels):
        return _warp(pixels, to_image, side)
    rows, columns = down.places(), across.places()
    extent = (columns.stop - columns.start, rows.stop - rows.start)
    if exact or not (across.starts_at_pixels and down.starts_at_pixels):
        edges = (across.source[0], down.source[0], across.source[1], down.source[1])
        part = to_pixels(Image.fromarray(pixels.values).resize(extent, Image.Resampling.BICUBIC, box=edges))
    else:
        part = _resize(pixels.values[down.pixels(), across.pixels()], *extent)
    mirrored = [axis for axis, of in ((1, down), (2, across)) if of.is_mirrored]
    part = part.flip(mirrored) if mirrored else part
    if extent == (side, side):
        return part
    canvas = part.new_full((3, side, side), FILL)
    canvas[:, rows, columns] = part
    return canvas


def _resize(values: NDArray[np.uint8], width: int, height: int) -> Tensor:
    """Pixels (H, W, 3) resized to (3, height, width).

    PyTorch's filter is a vectorised version of Pillow's: a quarter of the time, and a difference of one or two levels
    of 255 in some pixels. It is fast on contiguous channels-last memory, the layout of an image.
    """
    channels_last = torch.from_numpy(np.ascontiguousarray(values)).permute(2, 0, 1)
    return F.interpolate(channels_last[None], (height, width), mode="bicubic", antialias=True)[0].contiguous()


def _warp(pixels: Pixels, to_image: Affine, side: int) -> Tensor:
    """As `_resample`, for any map: bilinear, from pixels averaged where there are several to one of the result."""
    image = Image.fromarray(pixels.values)
    width, height = (size / pixels.reduction for size in pixels.size)
    steps = math.hypot(to_image.a, to_image.b) * width / side, math.hypot(to_image.d, to_image.e) * height / side
    across, down = (max(1, int(step)) for step in steps)
    if across > 1 or down > 1:
        image = image.reduce((across, down))
    x, y = width / across, height / down
    coefficients = (
        to_image.a * x / side,
        to_image.b * x / side,
        to_image.c * x,
        to_image.d * y / side,
        to_image.e * y / side,
        to_image.f * y,
    )
    bilinear = Image.Resampling.BILINEAR
    grey = (FILL,) * 3
    return to_pixels(image.transform((side, side), Image.Transform.AFFINE, coefficients, bilinear, fillcolor=grey))


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
