"""Slow loops over boxes: areas and overlaps, samples of a region one by one, pixels under a mask."""

import itertools

import torch
from torch import Tensor


def area(x0: float, y0: float, x1: float, y1: float) -> float:
    return max(x1 - x0, 0.0) * max(y1 - y0, 0.0)


def iou(a: list[float], b: list[float]) -> float:
    shared = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    union = area(*a) + area(*b) - shared
    return shared / union if union > 0 else 0.0


def box_iou(first: Tensor, second: Tensor) -> list[list[float]]:
    return [[iou(a, b) for b in second.tolist()] for a in first.tolist()]


def overlaps(box: list[float], own: list[float]) -> bool:
    return iou(box, own) >= 0.5


def has_centre_in(box: list[float], own: list[float]) -> bool:
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return own[0] <= x <= own[2] and own[1] <= y <= own[3]


def roi_align(features: Tensor, boxes: Tensor, output_size: int, sampling_ratio: int) -> Tensor:
    """(B, R, o, o, C): sample by sample, each from its four neighbours; torchvision's `aligned=True`."""
    height, width = features.shape[1:3]
    out = features.new_zeros(*boxes.shape[:2], output_size, output_size, features.shape[-1])
    for b, r, i, j in itertools.product(*map(range, out.shape[:4])):
        x0, y0, x1, y1 = boxes[b, r].tolist()
        bin_height, bin_width = (y1 - y0) * height / output_size, (x1 - x0) * width / output_size
        for k, m in itertools.product(range(sampling_ratio), repeat=2):
            y = y0 * height - 0.5 + i * bin_height + (k + 0.5) * bin_height / sampling_ratio
            x = x0 * width - 0.5 + j * bin_width + (m + 0.5) * bin_width / sampling_ratio
            out[b, r, i, j] = out[b, r, i, j] + bilinear(features[b], y, x) / sampling_ratio**2
    return out


def bilinear(plane: Tensor, y: float, x: float) -> Tensor:
    """(C,) of a plane (H, W, C) at a point; the centre of the first cell is at 0."""
    height, width = plane.shape[:2]
    if y < -1 or y > height or x < -1 or x > width:
        return torch.zeros_like(plane[0, 0])
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = y - top, x - left
    return (
        plane[top, left] * (1 - down) * (1 - across)
        + plane[top, right] * (1 - down) * across
        + plane[bottom, left] * down * (1 - across)
        + plane[bottom, right] * down * across
    )


def box_coverage(boxes: list[tuple[int, int, int, int]], hidden: Tensor, side: int) -> list[list[float]]:
    """Share of each box under hidden cells (V, g, g), pixel by pixel of a square image; boxes in its pixels."""
    grid = hidden.shape[-1]

    def share(mask: Tensor, box: tuple[int, int, int, int]) -> float:
        pixels = list(itertools.product(range(box[1], box[3]), range(box[0], box[2])))
        covered = sum(bool(mask[y * grid // side, x * grid // side]) for y, x in pixels)
        return covered / len(pixels) if pixels else 0.0

    return [[share(mask, box) for box in boxes] for mask in hidden]
