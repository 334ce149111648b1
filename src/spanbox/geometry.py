"""Box arithmetic, affine maps, RoIAlign, and the coverage of boxes by masks.

Inside the program a box is `[x0, y0, x1, y1]`, float32, normalised to [0, 1] of the image as displayed; x to the right,
y down, (x1, y1) exclusive. Boxes are in pixels only in files (`in_fractions`, `in_pixels`) and in drawings
(`denormalise_boxes`).
"""

from math import cos, radians, sin, tan
from typing import NamedTuple, Self

import torch
from torch import Tensor

Box = tuple[float, float, float, float]  # x0 y0 x1 y1
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)

SAME_OBJECT_IOU = 0.5  # from this IoU on, two boxes of an image show the same object


def in_fractions(box: Box, width: int, height: int) -> Box:
    """A box in pixels of a `width` x `height` image as fractions of it. Not clipped: see `clip_box`."""
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


def clip_box(box: Box, frame: Box = WHOLE) -> Box:
    """A box clipped to the image, or to a frame; one outside it gets no area."""
    x0, x1 = (min(max(edge, frame[0]), frame[2]) for edge in (box[0], box[2]))
    y0, y1 = (min(max(edge, frame[1]), frame[3]) for edge in (box[1], box[3]))
    return x0, y0, x1, y1


def area_of(box: Box) -> float:
    """Area of a box that is not inverted."""
    return (box[2] - box[0]) * (box[3] - box[1])


def shared_area(first: Box, second: Box) -> float:
    """Area that two boxes that are not inverted have in common."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0.0) * max(height, 0.0)


def denormalise_boxes(boxes: Tensor, width: int, height: int) -> Tensor:
    """Normalised boxes (..., 4) in pixels of a `width` x `height` image, float32."""
    return boxes.to(torch.float32) * torch.tensor([width, height, width, height], dtype=torch.float32)


def in_pixels(box: Tensor, width: int, height: int) -> Box:
    """A normalised box (4,) in pixels of a `width` x `height` image."""
    x0, y0, x1, y1 = denormalise_boxes(box, width, height).tolist()
    return x0, y0, x1, y1


def clip_boxes(boxes: Tensor, frame: Box = WHOLE) -> Tensor:
    """Boxes (..., 4) clipped to the image, or to a frame; a box outside it gets zero area."""
    return boxes.clamp(boxes.new_tensor(frame[:2] * 2), boxes.new_tensor(frame[2:] * 2))


def box_area(boxes: Tensor) -> Tensor:
    """Area (...) of boxes (..., 4) as a fraction of the image; 0 for inverted boxes."""
    return (boxes[..., 2] - boxes[..., 0]).clamp(min=0) * (boxes[..., 3] - boxes[..., 1]).clamp(min=0)


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union (..., N, M) of boxes (..., N, 4) and (..., M, 4); 0 if both areas are 0."""
    low = torch.maximum(first[..., :, None, :2], second[..., None, :, :2])
    high = torch.minimum(first[..., :, None, 2:], second[..., None, :, 2:])
    intersection = box_area(torch.cat([low, high], dim=-1))
    union = box_area(first)[..., :, None] + box_area(second)[..., None, :] - intersection
    return torch.where(union > 0, intersection / union.clamp(min=torch.finfo(union.dtype).tiny), 0.0)


def expand_boxes(boxes: Tensor, margin: float, frame: Box = WHOLE) -> Tensor:
    """Boxes (..., 4) expanded on each side by `margin` times their width and height, and clipped."""
    size = boxes[..., 2:] - boxes[..., :2]
    return clip_boxes(torch.cat([boxes[..., :2] - margin * size, boxes[..., 2:] + margin * size], dim=-1), frame)


class Affine(NamedTuple):
    """A map of the plane, (x, y) to (a x + b y + c, d x + e y + f), in fractions of an image."""

    a: float = 1.0
    b: float = 0.0
    c: float = 0.0
    d: float = 0.0
    e: float = 1.0
    f: float = 0.0

    @classmethod
    def onto(cls, box: Box) -> Self:
        """The map of the unit square onto a box."""
        x0, y0, x1, y1 = box
        return cls(x1 - x0, 0.0, x0, 0.0, y1 - y0, y0)

    @classmethod
    def mirror(cls) -> Self:
        """The map that exchanges left and right."""
        return cls(-1.0, 0.0, 1.0)

    @classmethod
    def rotation(cls, degrees: float, aspect: float = 1.0) -> Self:
        """The rotation about the centre, clockwise as seen in an image whose width is `aspect` times its height."""
        turn = radians(degrees)
        return cls._about_centre(cos(turn), -sin(turn) / aspect, sin(turn) * aspect, cos(turn))

    @classmethod
    def shear(cls, x_degrees: float, y_degrees: float, aspect: float = 1.0) -> Self:
        """The shear about the centre, by angles of the vertical and horizontal edges; `aspect` as in `rotation`."""
        return cls._about_centre(1.0, tan(radians(x_degrees)) / aspect, tan(radians(y_degrees)) * aspect, 1.0)

    @classmethod
    def _about_centre(cls, a: float, b: float, d: float, e: float) -> Self:
        return cls(a, b, (1.0 - a - b) / 2, d, e, (1.0 - d - e) / 2)

    @property
    def is_upright(self) -> bool:
        """Whether upright boxes stay upright: no rotation, no shear."""
        return self.b == self.d == 0.0

    @property
    def area(self) -> float:
        """The factor by which areas grow; negative for a mirror image."""
        return self.a * self.e - self.b * self.d

    def then(self, after: "Affine") -> "Affine":
        """The composition: this map first, then another one."""
        return Affine(
            after.a * self.a + after.b * self.d,
            after.a * self.b + after.b * self.e,
            after.a * self.c + after.b * self.f + after.c,
            after.d * self.a + after.e * self.d,
            after.d * self.b + after.e * self.e,
            after.d * self.c + after.e * self.f + after.f,
        )

    def inverse(self) -> "Affine":
        area = self.area
        a, b, d, e = self.e / area, -self.b / area, -self.d / area, self.a / area
        return Affine(a, b, -(a * self.c + b * self.f), d, e, -(d * self.c + e * self.f))

    def box(self, box: Box) -> Box:
        """The smallest upright box that holds the image of a box under the map, not clipped."""
        x0, y0, x1, y1 = box
        x = [self.a * x + self.b * y + self.c for x in (x0, x1) for y in (y0, y1)]
        y = [self.d * x + self.e * y + self.f for x in (x0, x1) for y in (y0, y1)]
        return min(x), min(y), max(x), max(y)


def cell_shares(boxes: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Shares (..., grid) of each box's height in the rows, and of its width in the columns, of a square grid.

    Boxes (..., 4) are normalised and clipped; the shares of a box without height (width) are 0. The share of a box's
    area in the cell at (y, x) is the product of its shares of row y and of column x.
    """
    edges = torch.arange(grid + 1, device=boxes.device, dtype=boxes.dtype) / grid
    low, high = boxes[..., :2, None], boxes[..., 2:, None]
    inside = (torch.minimum(high, edges[1:]) - torch.maximum(low, edges[:-1])).clamp(min=0.0)
    extent = high - low
    columns, rows = (inside / extent.where(extent > 0, 1.0)).unbind(dim=-2)
    return rows, columns


def box_coverage(boxes: Tensor, hidden: Tensor) -> Tensor:
    """Share (V, R) of the area of each box (R, 4) under hidden cells (V, g, g) bool; 0 for a box without area.

    Exact; computed as a product with one small weight matrix per axis, like `roi_align`.
    """
    rows, columns = cell_shares(boxes, hidden.shape[-1])
    return ((rows @ hidden.to(boxes.dtype)) * columns).sum(dim=-1)


def kept_indices(hidden: Tensor) -> Tensor:
    """Indices (V, n) int64 of the visible cells of each mask (V, g, g) bool; all masks have the same number of them."""
    visible = ~hidden.flatten(1)
    views, cells = visible.nonzero(as_tuple=True)
    count = len(cells) // max(len(hidden), 1)
    assert (torch.bincount(views, minlength=len(hidden)) == count).all(), "group the masks by kept count first"
    return cells.reshape(len(hidden), count)


def picture_cells(content: Tensor, cell: int, grid: int) -> Tensor:
    """Mask (B, g, g) of the cells that show a part of the picture; the others are padding.

    Args:
        content: (B, 2) int64, width and height of each picture in pixels, at least 1; it lies in the upper left corner.
        cell: side of a cell in pixels.
        grid: cells along each side.
    """
    steps = torch.arange(grid, device=content.device) * cell
    columns, rows = (steps < content[:, :, None]).unbind(dim=1)
    return rows[:, :, None] & columns[:, None, :]


def nearest_picture_cells(content: Tensor, cell: int, grid: int) -> Tensor:
    """Of each cell (B, g * g) the nearest one that shows the picture: its place among those, counted row by row.

    Arguments as of `picture_cells`.
    """
    columns, rows = (content + cell - 1).div(cell, rounding_mode="floor").unbind(dim=1)
    steps = torch.arange(grid, device=content.device)
    row, column = (torch.minimum(steps, count[:, None] - 1) for count in (rows, columns))
    return (row[:, :, None] * columns[:, None, None] + column[:, None, :]).flatten(1)


def by_kept_count(hidden: Tensor) -> dict[int, Tensor]:
    """Indices (n,) int64 of the masks (V, g, g) bool, grouped by their number of visible cells, in ascending order."""
    counts = (~hidden).flatten(1).sum(dim=1)
    return {count: (counts == count).nonzero().flatten() for count in sorted(set(counts.tolist()))}


def roi_align(features: Tensor, boxes: Tensor, output_size: int, sampling_ratio: int = 2) -> Tensor:
    """Average feature of each bin of each box, by bilinear sampling: RoIAlign, `aligned` form.

    A bin's value is the mean over sampling_ratio^2 bilinear samples. Bilinear interpolation is separable, so this mean
    is `Wy @ F @ Wx.T` with one small weight matrix per box and axis, and all boxes of a batch take two batched matrix
    products.

    Args:
        features: (B, H, W, C) map, row 0 at the top.
        boxes: (B, R, 4), normalised.
        output_size: bins along each axis.
        sampling_ratio: samples along each axis of a bin, at least 1.

    Returns:
        (B, R, output_size, output_size, C), differentiable with respect to `features`.

    Source: He et al., Mask R-CNN, 2017, section 3; border rule as in the reference implementations: samples up to one
    cell outside the map are clamped to its border; samples further out are 0.
    """
    batch, height, width, channels = features.shape
    count = boxes.shape[1]
    wide = torch.promote_types(features.dtype, torch.float32)  # half precision is too coarse for positions and weights
    boxes = boxes.to(wide)
    weights_x = _axis_weights(boxes[..., 0], boxes[..., 2], width, output_size, sampling_ratio)
    weights_y = _axis_weights(boxes[..., 1], boxes[..., 3], height, output_size, sampling_ratio)
    with torch.autocast(features.device.type, enabled=False):
        flat = features.to(wide).reshape(batch, height, width * channels)
        rows = weights_y.reshape(batch, count * output_size, height) @ flat
        rows = rows.reshape(batch, count, output_size, width, channels)
        return (weights_x[:, :, None] @ rows).to(features.dtype)


def _axis_weights(low: Tensor, high: Tensor, cells: int, bins: int, sampling_ratio: int) -> Tensor:
    """Weights (..., bins, cells) of the cells of one axis in each bin between `low` and `high` (...)."""
    samples = bins * sampling_ratio
    fractions = (torch.arange(samples, device=low.device, dtype=low.dtype) + 0.5) / samples
    # In units of cells; the centre of cell i lies at i, hence the half ("aligned").
    positions = (low[..., None] + (high - low)[..., None] * fractions) * cells - 0.5
    inside = (positions >= -1.0) & (positions <= cells)
    positions = positions.clamp(0.0, cells - 1.0)
    centres = torch.arange(cells, device=low.device, dtype=low.dtype)
    weights = (1.0 - (positions[..., None] - centres).abs()).clamp(min=0.0) * inside[..., None]
    return weights.reshape(*low.shape, bins, sampling_ratio, cells).mean(dim=-2)
