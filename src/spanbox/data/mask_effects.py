"""Visibility of the entities in a masked view, and the fill of its hidden pixels.

The masks come from `data/masking.py`. Visibility is measured as the hidden share of an entity's boxes, for any
strategy. Views that hide an entity are negatives of it; views that keep the entities and hide the rest are positives,
so that masking is not a cue; views in between are left out of the loss.

    V views    R regions    K spans    g side of the grid in cells    S side of the image in pixels
"""

from typing import NamedTuple, assert_never

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spanbox.data.masking import MaskSettings, PixelFill
from spanbox.geometry import box_area

ROUNDING = 1e-6  # the coverage of a fully hidden box may be slightly below 1
BLUR_SIDE = 8  # resolution of a blurred image, in cells per side


class ViewMeaning(NamedTuple):
    """Visibility in each view: 1 visible, -1 hidden, 0 in between or without boxes (left out of the loss)."""

    spans: Tensor  # (V, K) int8
    sentence: Tensor  # (V,) int8


def view_meaning(coverage: Tensor, regions: Tensor, links: Tensor, settings: MaskSettings) -> ViewMeaning:
    """Visibility of the entities and of the sentence in each view.

    For an entity the hidden share of the total area of its boxes decides. An entity without boxes, or whose boxes have
    no area, gets 0. The sentence gets -1 if at least one entity is hidden, 1 if all entities with boxes are visible (at
    least one), else 0.

    Args:
        coverage: (V, R), hidden share of each region's area.
        regions: (R, 4), normalised and clipped.
        links: (K, R) bool, this region shows this span.
        settings: min_coverage and keep_coverage.
    """
    areas = links * box_area(regions)  # (K, R)
    total = areas.sum(dim=1)
    seen = total > 0
    share = coverage @ areas.T / total.clamp(min=torch.finfo(areas.dtype).tiny)  # (V, K)
    hides = seen & (share >= settings.min_coverage - ROUNDING)
    keeps = seen & (share <= settings.keep_coverage + ROUNDING)
    against = hides.any(dim=1)
    favours = (keeps | ~seen).all(dim=1) & seen.any()
    return ViewMeaning(keeps.to(torch.int8) - hides.to(torch.int8), favours.to(torch.int8) - against.to(torch.int8))


def fill_pixels(
    pixels: Tensor,
    hidden: Tensor,
    fill: PixelFill,
    generator: np.random.Generator,
    content: tuple[int, int] | None = None,
) -> Tensor:
    """Fill the hidden cells (V, g, g) bool of an image (3, S, S) uint8; returns (V, 3, S, S) uint8. g divides S.

    - zero: black.
    - mean: the mean colour of the image.
    - noise: normal noise with the mean and deviation of each channel; one draw for all views.
    - blur: the image averaged to 8 x 8 cells and scaled up again.

    The image is the picture of width and height `content` in the upper left corner; None: all pixels.
    """
    side = pixels.shape[-1]
    width, height = content or (side, side)
    filling = _filling(pixels[:, :height, :width], fill, generator)
    if filling.shape[1:] != (1, 1):
        filling = F.pad(filling, (0, side - width, 0, side - height))
    return torch.where(_pixel_mask(hidden, side), filling, pixels)


def _pixel_mask(hidden: Tensor, side: int) -> Tensor:
    """Masks (V, g, g) at pixel resolution, (V, 1, S, S)."""
    views, grid, _ = hidden.shape
    cell, rest = divmod(side, grid)
    assert rest == 0, "see mask_grid"
    return hidden[:, :, None, :, None].expand(-1, -1, cell, -1, cell).reshape(views, 1, side, side)


def _filling(pixels: Tensor, fill: PixelFill, generator: np.random.Generator) -> Tensor:
    """Fill of the hidden pixels: (3, S, S) uint8, or (3, 1, 1) for a single colour."""
    brightness = pixels.float()
    mean = brightness.mean(dim=(1, 2), keepdim=True)
    match fill:
        case "zero":
            filling = torch.zeros_like(mean)
        case "mean":
            filling = mean
        case "noise":
            noise = torch.from_numpy(generator.standard_normal(pixels.shape, dtype=np.float32))
            filling = mean + brightness.std(dim=(1, 2), keepdim=True, correction=0) * noise
        case "blur":
            coarse = F.adaptive_avg_pool2d(brightness, BLUR_SIDE)
            filling = F.interpolate(coarse[None], pixels.shape[1:], mode="bilinear")[0]
        case _:
            assert_never(fill)
    return filling.round().clamp(0, 255).to(torch.uint8)
