"""Does a score reflect the object? It should fall further when the entity's object is hidden than when as much of the
image is hidden elsewhere.

For each entity that has boxes the image is encoded three times: whole, with the cells hidden that its boxes touch, and
with equally many cells hidden that none of them touches. Hidden cells are filled with the image's mean colour, so that
every tower can be asked, and not only those that can leave patches out. The fall is the score of the whole image minus
that of the image with something hidden: on the coarse level the score of sentence and image, on the fine level that of
the span and its best region, cut from the image as it is then.

    Q queries    R regions    s pixels of a crop's side    g cells along each side of the grid
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spanbox.data.mask_effects import fill_pixels
from spanbox.evaluation.extract import FeatureBank
from spanbox.evaluation.outcomes import Outcome
from spanbox.geometry import cell_shares, expand_boxes
from spanbox.structures import Batch, Features, Sample

ENTITIES = 500
"""How many entities are asked for, where there are more: three images each are encoded."""
ENTITIES_AT_ONCE = 32


class Query(NamedTuple):
    """An entity whose object is to be hidden."""

    sample: Sample
    entity: int  # its index in the record; it has at least one region


class Falls(NamedTuple):
    """How far the scores of Q entities fall, float64; the first column when the object is hidden, the second when as
    much is hidden elsewhere."""

    coarse: Tensor  # (Q, 2)
    fine: Tensor  # (Q, 2)
    image: Tensor  # (Q,) int64, group of the entity's pair
    too_large: int  # entities that were not asked for, since their boxes leave less of the image than they touch


def draw_linked_spans(bank: FeatureBank, limit: int = ENTITIES, seed: int = 0) -> Tensor:
    """Indices, ascending, of the spans that are linked to a region; of `limit` of them where there are more."""
    linked = bank.links[:, 0].bincount().nonzero()[:, 0]
    order = np.random.default_rng(seed).permutation(len(linked))[:limit]
    return linked[torch.from_numpy(order)].sort().values


def measure_falls(
    encode: Callable[[Batch], Features],
    collate: Callable[[list[Sample]], Batch],
    queries: Iterable[Query],
    grid: int,
    *,
    crop_margin: float = 0.0,
    seed: int = 0,
) -> Falls:
    """Hide the object of each entity, and as much elsewhere, and compare the scores.

    Args:
        encode: the towers, in evaluation mode.
        collate: samples as a batch.
        queries: read as they are needed.
        grid: cells along each side of what is hidden; divides the side of the images.
        crop_margin: by which boxes were grown when the samples' crops were cut.
        seed: of what is hidden elsewhere.
    """
    generator = np.random.default_rng(seed)
    coarse, fine, image, too_large = [torch.zeros(0, 2)], [torch.zeros(0, 2)], list[int](), 0
    left = iter(queries)
    while some := list(islice(left, ENTITIES_AT_ONCE)):
        asked, versions = [], []
        for query in some:
            hidden = object_cells(query.sample.regions[_linked(query)], grid)
            elsewhere = cells_elsewhere(hidden, generator)
            if elsewhere is None:
                too_large += 1
                continue
            asked.append(query)
            versions += [query.sample, *(hide(query.sample, mask, crop_margin) for mask in (hidden, elsewhere))]
        if asked:
            coarse_scores, fine_scores = _scores(encode, collate(versions), [query.entity for query in asked])
            coarse.append(coarse_scores[:, :1] - coarse_scores[:, 1:])
            fine.append(fine_scores[:, :1] - fine_scores[:, 1:])
            image += [query.sample.group for query in asked]
    return Falls(
        torch.cat(coarse).double(), torch.cat(fine).double(), torch.tensor(image, dtype=torch.int64), too_large
    )


def occlusion_outcomes(falls: Falls) -> dict[str, Outcome]:
    """Falls as metrics: for `occlusion.coarse` and `occlusion.fine` the mean fall with the object hidden (`.object`)
    and with as much hidden elsewhere (`.elsewhere`), and the share of entities whose object counts more
    (`.share_larger`); that both count the same counts against the model.
    """
    outcomes: dict[str, Outcome] = {}
    for level, falls_Q2 in (("coarse", falls.coarse), ("fine", falls.fine)):
        larger_Q = falls_Q2[:, 0] > falls_Q2[:, 1]
        half_Q = torch.full((len(larger_Q),), 0.5)
        outcomes |= {
            f"occlusion.{level}.object": Outcome.of(falls_Q2[:, 0], falls.image),
            f"occlusion.{level}.elsewhere": Outcome.of(falls_Q2[:, 1], falls.image),
            f"occlusion.{level}.share_larger": Outcome.of(larger_Q, falls.image, chance=half_Q),
        }
    return outcomes


def object_cells(boxes: Tensor, grid: int) -> Tensor:
    """The cells (g, g) bool that boxes (R, 4), normalised and clipped, touch."""
    rows, columns = (shares > 0 for shares in cell_shares(boxes, grid))
    return (rows[:, :, None] & columns[:, None, :]).any(dim=0)


def cells_elsewhere(hidden: Tensor, generator: np.random.Generator) -> Tensor | None:
    """As many cells (g, g) bool as `hidden` has, none of them hidden by it: those nearest to one drawn at random.

    They lie together as the cells of an object do. None where fewer are left.
    """
    free = (~hidden).nonzero()
    count = int(hidden.sum())
    if count > len(free):
        return None
    centre = free[generator.integers(len(free))]
    distance = (free - centre).square().sum(dim=1).numpy()
    nearest = free[np.lexsort((generator.random(len(free)), distance))[:count]]
    chosen = torch.zeros_like(hidden)
    chosen[nearest[:, 0], nearest[:, 1]] = True
    return chosen


def hide(sample: Sample, hidden: Tensor, crop_margin: float = 0.0) -> Sample:
    """The sample with the cells (g, g) of its image, and what its crops show of them, in the image's mean colour."""
    unused = np.random.default_rng(0)  # one colour draws nothing
    pixels = fill_pixels(sample.pixels, hidden[None], "mean", unused)[0]
    if sample.crops is None or not len(sample.crops):
        return replace(sample, pixels=pixels)
    side, grid = sample.crops.shape[-1], hidden.shape[-1]
    boxes = expand_boxes(sample.regions, crop_margin)
    centres = (torch.arange(side) + 0.5) / side
    cells = boxes[:, :2, None] + (boxes[:, 2:] - boxes[:, :2])[:, :, None] * centres  # (R, 2, s) x, y of the pixels
    columns, rows = (cells * grid).long().clamp(max=grid - 1).unbind(dim=1)
    hidden_in_crops = hidden[rows[:, :, None], columns[:, None, :]]  # (R, s, s)
    colour = sample.pixels.float().mean(dim=(1, 2)).round().to(torch.uint8)[:, None, None]
    return replace(sample, pixels=pixels, crops=torch.where(hidden_in_crops[:, None], colour, sample.crops))


def _linked(query: Query) -> Tensor:
    """Which regions (R,) of its sample show an entity."""
    return query.sample.links[query.sample.entities.index(query.entity)]


def _scores(encode: Callable[[Batch], Features], batch: Batch, entities: list[int]) -> tuple[Tensor, Tensor]:
    """Scores (Q, 3) of both levels, from the versions of each entity's pair, which follow each other in the batch."""
    with torch.no_grad():
        features = encode(batch).to("cpu")
    coarse = (features.text * features.image).sum(dim=1)
    fine = []
    for row, entity in enumerate(entity for entity in entities for _ in range(3)):
        span = int((batch.span_entity[row] == entity).nonzero()[0])
        fine.append((features.regions[row, batch.links[row, span]] @ features.spans[row, span]).max())
    return coarse.reshape(-1, 3), torch.stack(fine).reshape(-1, 3)
