"""Scenes of coloured rectangles: where a colour is, and whether views hide the rectangles that they say."""

from collections.abc import Sequence

import torch
from torch import Tensor

from spanbox.data.dataset import PairDataset
from spanbox.structures import Sample

RED, GREEN, BLUE = (250, 5, 5), (5, 250, 5), (5, 5, 250)
COLOURS = {"cat": RED, "dog": GREEN, "bird": BLUE}
TEXT = "a cat, a dog and a bird"


def of_colour(pixels: Tensor, colour: Sequence[int]) -> Tensor:
    """Mask (H, W) of the pixels nearer to a colour than to the middle between it and the others."""
    distance = (pixels.float() - torch.tensor(colour).float()[:, None, None]).abs().amax(dim=0)
    return distance < 60


def edges_of(mask: Tensor) -> Tensor:
    """The box (4,) of the True cells, in fractions."""
    rows, columns = mask.any(dim=1).nonzero().flatten(), mask.any(dim=0).nonzero().flatten()
    edges = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
    return edges / mask.shape[0]


def hidden_by_views(dataset: PairDataset, steps: int) -> int:
    """How many rectangles the views of the first pair hide; these keep little of their colour, visible ones most."""
    hidden = 0
    for step in range(steps):
        sample = dataset[step, 0]
        assert isinstance(sample, Sample)
        assert sample.views is not None
        assert sample.views.pixels is not None
        for view, visibility in zip(sample.views.pixels, sample.views.spans, strict=True):
            for span, value in zip(sample.span_texts, visibility.tolist(), strict=True):
                before, after = (of_colour(pixels, COLOURS[span]).sum() for pixels in (sample.pixels, view))
                if value == -1:
                    assert after <= 0.12 * before
                    hidden += 1
                elif value == 1:
                    assert after >= 0.85 * before
    return hidden
