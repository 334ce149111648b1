"""Slow loops over masked views: what they say, entity by entity, and their pixels."""

import itertools

import torch
from torch import Tensor


def view_meaning(
    coverage: Tensor, areas: list[float], links: Tensor, min_coverage: float, keep_coverage: float
) -> tuple[list[list[int]], list[int]]:
    """What each view says of each entity and of the sentence, entity by entity."""

    def of_entity(shares: list[float], linked: list[bool]) -> int | None:
        boxes = [r for r, link in enumerate(linked) if link]
        total = sum(areas[r] for r in boxes)
        if total == 0:
            return None
        hidden = sum(areas[r] * shares[r] for r in boxes) / total
        return -1 if hidden >= min_coverage else 1 if hidden <= keep_coverage else 0

    spans, sentence = [], []
    for shares in coverage.tolist():
        row = [of_entity(shares, linked) for linked in links.tolist()]
        shown = [meaning for meaning in row if meaning is not None]
        spans.append([meaning or 0 for meaning in row])
        sentence.append(-1 if -1 in shown else 1 if shown and set(shown) == {1} else 0)
    return spans, sentence


def fill_pixels(pixels: Tensor, hidden: Tensor, filling: Tensor) -> Tensor:
    """(V, 3, S, S): pixel by pixel from an image or what stands in for it, both (3, S, S)."""
    side, grid = pixels.shape[-1], hidden.shape[-1]
    views = torch.stack([pixels] * len(hidden))
    for v, y, x in itertools.product(range(len(hidden)), range(side), range(side)):
        if hidden[v, y * grid // side, x * grid // side]:
            views[v, :, y, x] = filling[:, y, x]
    return views
