"""Occlusion test: the score of an entity should fall further when its object is hidden than when as much is hidden
elsewhere.

For each entity with boxes the image is encoded three times: whole, with the cells hidden that its boxes touch, and with
as many other cells hidden. Hidden cells get the mean colour of the image, which works for every tower. The fall is the
score of the whole image minus that of the occluded one: on the coarse level the score of sentence and image, on the
fine level that of the span and its best region in the occluded image.

    Q queries    R regions    s side of a crop in pixels    g side of the grid in cells
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
"""Maximum number of entities; each needs three encoded images."""
ENTITIES_AT_ONCE = 32


class Query(NamedTuple):
    """An entity of the test."""

    sample: Sample
    entity: int  # its index in the record; it has at least one region


class Falls(NamedTuple):
    """Falls of the scores of Q entities, float64; columns: the object hidden, other cells hidden."""

    coarse: Tensor  # (Q, 2)
    fine: Tensor  # (Q, 2)
    image: Tensor  # (Q,) int64, group of the entity's pair
    too_large: int  # entities left out because their boxes touch more than half of the cells


def draw_linked_spans(bank: FeatureBank, limit: int = ENTITIES, seed: int = 0) -> Tensor:
    """Indices, ascending, of the spans with a linked region; a random sample of `limit` if there are more."""
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
    """Measure the falls of the scores for each entity.

    Args:
        encode: the towers, in evaluation mode.
        collate: makes a batch of samples.
        queries: may be lazy.
        grid: cells along each side of the image; divides its side in pixels.
        crop_margin: the margin with which the samples' crops were cut.
        seed: of the cells hidden elsewhere.
    """
    generator = np.random.default_rng(seed)
    coarse, fine, image, too_large = [torch.zeros(0, 2)], [torch.zeros(0, 2)], list[int](), 0
    remaining = iter(queries)
    while chunk := list(islice(remaining, ENTITIES_AT_ONCE)):
        tested, versions = [], []
        for query in chunk:
            hidden = object_cells(query.sample.regions[_linked(query)], grid)
            elsewhere = cells_elsewhere(hidden, generator, query.sample.picture_cells(grid))
            if elsewhere is None:
                too_large += 1
                continue
            tested.append(query)
            alone = _entity_alone(query)
            versions += [alone, *(hide(alone, mask, crop_margin) for mask in (hidden, elsewhere))]
        if tested:
            coarse_scores, fine_scores = _scores(encode, collate(versions), [query.entity for query in tested])
            coarse.append(coarse_scores[:, :1] - coarse_scores[:, 1:])
            fine.append(fine_scores[:, :1] - fine_scores[:, 1:])
            image += [query.sample.group for query in tested]
    return Falls(
        torch.cat(coarse).double(), torch.cat(fine).double(), torch.tensor(image, dtype=torch.int64), too_large
    )


def occlusion_outcomes(falls: Falls) -> dict[str, Outcome]:
    """Metrics of `occlusion.coarse` and `occlusion.fine`: mean fall with the object hidden (`.object`) and with other
    cells hidden (`.elsewhere`), and the share of entities with a larger fall for the object (`.share_larger`). Equal
    falls count against the model. A level with falls that are not finite is left out.
    """
    outcomes: dict[str, Outcome] = {}
    for level, falls_Q2 in (("coarse", falls.coarse), ("fine", falls.fine)):
        if not falls_Q2.isfinite().all():
            continue
        larger_Q = falls_Q2[:, 0] > falls_Q2[:, 1]
        half_Q = torch.full((len(larger_Q),), 0.5)
        outcomes |= {
            f"occlusion.{level}.object": Outcome.of(falls_Q2[:, 0], falls.image),
            f"occlusion.{level}.elsewhere": Outcome.of(falls_Q2[:, 1], falls.image),
            f"occlusion.{level}.share_larger": Outcome.of(larger_Q, falls.image, chance=half_Q),
        }
    return outcomes


def object_cells(boxes: Tensor, grid: int) -> Tensor:
    """Mask (g, g) of the cells that boxes (R, 4), normalised and clipped, touch."""
    rows, columns = (shares > 0 for shares in cell_shares(boxes, grid))
    return (rows[:, :, None] & columns[:, None, :]).any(dim=0)


def cells_elsewhere(
    hidden: Tensor, generator: np.random.Generator, picture: tuple[int, int] | None = None
) -> Tensor | None:
    """Mask (g, g) of as many other cells as `hidden` has: those nearest to a random cell.

    They are adjacent, like the cells of an object, and lie in the columns and rows of the picture. None if there are
    not enough.
    """
    columns, rows = picture or (hidden.shape[1], hidden.shape[0])
    free = (~hidden[:rows, :columns]).nonzero()
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
    """The sample with the cells (g, g) of its image and of its crops in the mean colour of the image."""
    unused = np.random.default_rng(0)  # no draws for a single colour
    pixels = fill_pixels(sample.pixels, hidden[None], "mean", unused, sample.content)[0]
    if sample.crops is None or not len(sample.crops):
        return replace(sample, pixels=pixels)
    side, grid = sample.crops.shape[-1], hidden.shape[-1]
    boxes = expand_boxes(sample.regions, crop_margin, sample.frame)
    drawn = side if sample.crop_content is None else sample.crop_content[:, :, None]  # (R, 2, 1) pixels of each crop
    centres = ((torch.arange(side) + 0.5) / drawn).clamp(max=1.0)
    cells = boxes[:, :2, None] + (boxes[:, 2:] - boxes[:, :2])[:, :, None] * centres  # (R, 2, s) x, y of the pixels
    columns, rows = (cells * grid).long().clamp(max=grid - 1).unbind(dim=1)
    hidden_in_crops = hidden[rows[:, :, None], columns[:, None, :]]  # (R, s, s)
    width, height = sample.content or (sample.pixels.shape[-1],) * 2
    colour = sample.pixels[:, :height, :width].float().mean(dim=(1, 2)).round().to(torch.uint8)[:, None, None]
    return replace(sample, pixels=pixels, crops=torch.where(hidden_in_crops[:, None], colour, sample.crops))


def _entity_alone(query: Query) -> Sample:
    """The sample without other entities and regions: an image may have hundreds, each with a crop."""
    sample, linked = query.sample, _linked(query)
    row = sample.entities.index(query.entity)
    own = slice(row, row + 1)
    return replace(
        sample,
        spans=sample.spans[own],
        span_texts=sample.span_texts[own],
        entities=sample.entities[own],
        identities=sample.identities[own],
        shown=sample.shown[own],
        regions=sample.regions[linked],
        links=sample.links[own, linked],
        crops=None if sample.crops is None else sample.crops[linked],
        crop_content=None if sample.crop_content is None else sample.crop_content[linked],
    )


def _linked(query: Query) -> Tensor:
    """Mask (R,) of the regions of the sample that show the entity."""
    return query.sample.links[query.sample.entities.index(query.entity)]


def _scores(encode: Callable[[Batch], Features], batch: Batch, entities: list[int]) -> tuple[Tensor, Tensor]:
    """Scores (Q, 3) of both levels; the three versions of each entity's pair are consecutive in the batch."""
    with torch.no_grad():
        features = encode(batch).to("cpu")
    coarse = (features.text * features.image).sum(dim=1)
    fine = []
    for row, entity in enumerate(entity for entity in entities for _ in range(3)):
        span = int((batch.span_entity[row] == entity).nonzero()[0])
        fine.append((features.regions[row, batch.links[row, span]] @ features.spans[row, span]).max())
    return coarse.reshape(-1, 3), torch.stack(fine).reshape(-1, 3)
