"""What a masked view is evidence of, and what its hidden pixels are filled with.

The masks come from `data/masking.py`. What a view means is measured: how much of each entity's boxes it hides, whatever
strategy drew it. Views that hide an object are negatives for it, views that keep the objects and hide the rest are
positives, so that being masked is no shortcut; those in between leave the loss.

    V views    R regions    K spans    g cells along each side of the grid    S pixels of the image's side
"""

from typing import NamedTuple, assert_never

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spanbox.data.masking import MaskSettings, PixelFill
from spanbox.geometry import box_area

ROUNDING = 1e-6  # a box wholly under hidden cells may come out covered by a little less than 1
BLUR_SIDE = 8  # cells along each side of what a blurred image still tells


class ViewMeaning(NamedTuple):
    """What views are evidence of: 1 keeps it, -1 hides it, 0 neither (or nothing is to be seen) and leaves the loss."""

    spans: Tensor  # (V, K) int8
    sentence: Tensor  # (V,) int8


def view_meaning(coverage: Tensor, regions: Tensor, links: Tensor, settings: MaskSettings) -> ViewMeaning:
    """What each view is evidence of, for the entities and for the sentence.

    An entity is judged by all its boxes together: the hidden share of the sum of their areas. One without a box, or
    whose boxes have no area, is neutral. A view is against the sentence (-1) if it hides at least one entity, and for
    it (1) if it keeps all entities that have boxes, of which there must be one. An image without boxes is neutral.

    Args:
        coverage: (V, R), share of each region's area that is hidden.
        regions: (R, 4), normalised and clipped.
        links: (K, R) bool, this region shows this span.
        settings: with the two bounds.
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


def fill_pixels(pixels: Tensor, hidden: Tensor, fill: PixelFill, generator: np.random.Generator) -> Tensor:
    """The views (V, 3, S, S) uint8 of an image (3, S, S) uint8 whose masks are (V, g, g) bool; g divides S.

    - zero: black.
    - mean: the image's own mean colour.
    - noise: normal, with the mean and deviation of each channel of the image; one draw for all views.
    - blur: the image averaged to 8 x 8 cells and scaled up again.
    """
    return torch.where(_pixel_mask(hidden, pixels.shape[-1]), _filling(pixels, fill, generator), pixels)


def _pixel_mask(hidden: Tensor, side: int) -> Tensor:
    """Masks (V, g, g) as (V, 1, S, S)."""
    views, grid, _ = hidden.shape
    cell, rest = divmod(side, grid)
    assert rest == 0, "see mask_grid"
    return hidden[:, :, None, :, None].expand(-1, -1, cell, -1, cell).reshape(views, 1, side, side)


def _filling(pixels: Tensor, fill: PixelFill, generator: np.random.Generator) -> Tensor:
    """What stands in for hidden pixels: (3, S, S) uint8, or (3, 1, 1) for one colour."""
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
