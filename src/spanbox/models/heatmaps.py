"""Heatmaps of a span over the patches of an image.

`similarity` shows the similarity of each patch with the span; `rollout` the input patches that the most similar states
attend to; `fusion` the patches that the span attends to in the layers of the fusion. Heatmaps are computed for one
image at a time, from span features and pixels, and drawn by the report.

    K spans    P = h * w patches    T tokens: a prefix (class token, registers), then the patches    D features
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbox.models.dual_encoder import DualEncoder
from spanbox.models.families import VISION_FAMILIES
from spanbox.models.fusion import PairFusion, as_grid
from spanbox.models.inputs import Images, by_picture
from spanbox.models.towers import VisionTower
from spanbox.structures import Batch

Size = tuple[int, int]  # width and height in pixels


@torch.no_grad()
def span_heatmaps(model: DualEncoder, pixels: Tensor, spans: Tensor, content: Size | None = None) -> dict[str, Tensor]:
    """Heatmaps of spans over one image by kind, each (K, h, w) float32 on the CPU, row 0 at the top.

    - `similarity`: cosine of the span with each patch, projected like a region.
    - `rollout`: rows of the attention rollout, averaged over the patches that are more similar to the span than
      the mean of the image, weighted by the difference. Zero if there are none.

    Missing kinds: rollout for a convolutional tower; both for regions from crops whose pooled state is not a mean,
    since patches have no comparable feature then.

    Args:
        model: in evaluation mode.
        pixels: (3, S, S) uint8, as in a batch.
        spans: (K, D), features of the spans, of unit length.
        content: width and height in pixels of the picture, if the rest is padding. The maps are of the picture alone.
    """
    if not _patches_have_features(model):
        return {}
    with _recorded_attentions(model.vision) as attentions:
        grid = _grid(model, pixels, content)
    similarity = _similarity(model, grid, spans)
    maps = {"similarity": similarity}
    if attentions:
        rollout = attention_rollout(attentions)[0]
        prefix = len(rollout) - similarity.shape[1]
        maps["rollout"] = _weights_above_mean(similarity) @ rollout[prefix:, prefix:]
    return {name: _of_picture(model, values.reshape(-1, *grid.shape[:2]), content) for name, values in maps.items()}


@torch.no_grad()
def similarity_maps(model: DualEncoder, pixels: Tensor, spans: Tensor, content: Size | None = None) -> Tensor | None:
    """The map `similarity` of `span_heatmaps` alone, (K, h, w), without attentions; None where the model has none."""
    if not _patches_have_features(model):
        return None
    grid = _grid(model, pixels, content)
    return _of_picture(model, _similarity(model, grid, spans).reshape(-1, *grid.shape[:2]), content)


def _grid(model: DualEncoder, pixels: Tensor, content: Size | None) -> Tensor:
    """States of the patches (h, w, H) of one image that show its picture."""
    image = Images(pixels[None], content=None if content is None else torch.tensor([content]))
    (image,), _ = by_picture(image, model.vision.stride)
    image = image.to(model.device)
    grid: Tensor = model.vision(model.normalised(image.pixels, image.content), image.kept).grid[0]
    if content is None:
        return grid
    return grid.reshape(-1, math.ceil(content[0] / model.vision.stride), grid.shape[2])


def _of_picture(model: DualEncoder, maps: Tensor, content: Size | None) -> Tensor:
    """Maps (K, h, w) whose cells span the picture exactly, float32 on the CPU.

    Patches in the last row and column may show less of the picture than a patch. The map is read, bilinearly, at the
    centres of as many cells of equal size; where the picture ends with a patch, it stays as it is.
    """
    maps = maps.float().cpu()
    if content is None:
        return maps
    width, height = content
    rows, columns = (
        (torch.arange(cells) + 0.5) / cells * side / model.vision.stride - 0.5
        for cells, side in ((maps.shape[1], height), (maps.shape[2], width))
    )
    return _between_cells(rows, maps.shape[1]) @ maps @ _between_cells(columns, maps.shape[2]).T


def _between_cells(positions: Tensor, cells: int) -> Tensor:
    """Bilinear weights (n, cells) of the cells of one axis at positions (n,), clamped to their centres."""
    return (1 - (positions.clamp(0, cells - 1)[:, None] - torch.arange(cells)).abs()).clamp(min=0)


def _similarity(model: DualEncoder, grid: Tensor, spans: Tensor) -> Tensor:
    """Cosines (K, P) of spans (K, D) and the patches of a grid (h, w, H)."""
    patches = model.project_regions(model.pooled_patches(grid)).flatten(0, 1)
    return spans.to(patches) @ patches.T


def heaviest_box(heat: Tensor) -> Tensor:
    """The box (4,), normalised, of the patches that hold the mass of a map (h, w).

    It is the rectangle of patches with the largest sum, where each patch counts by how far it is above half of the way
    from the mean of the map to its maximum, or below it. Of equal ones the smallest; of a constant map one patch.
    """
    rows, columns = heat.shape
    excess = (heat - (heat.mean() + heat.max()) / 2).double()
    table = F.pad(excess.cumsum(0).cumsum(1), (1, 0, 1, 0))  # sums of all rectangles from the upper left corner
    top, bottom = torch.triu_indices(rows + 1, rows + 1, offset=1)
    left, right = torch.triu_indices(columns + 1, columns + 1, offset=1)
    strips = table[bottom] - table[top]  # (pairs of rows, columns + 1)
    sums = strips[:, right] - strips[:, left]
    area = (bottom - top)[:, None] * (right - left)
    largest = sums >= sums.max() - 1e-9 * excess.abs().sum().clamp(min=1e-9)
    best = int(area.masked_fill(~largest, rows * columns + 1).argmin())
    y, x = divmod(best, sums.shape[1])
    edges = [left[x] / columns, top[y] / rows, right[x] / columns, bottom[y] / rows]
    return torch.stack(edges).float()


class FusionMaps(NamedTuple):
    """Attention maps of the fusion over the image of a pair, and over its sentence."""

    sentence: Tensor  # (h, w), shares of the attention; they sum to 1
    spans: Tensor  # (K, h, w)
    regions: Tensor  # (R, T), shares of the tokens in the attention of each region; they sum to 1
    gates: Tensor | None  # (K,), share that the tokens of each span take from the image; `gated` alone


@torch.no_grad()
def fusion_maps(model: DualEncoder, batch: Batch) -> FusionMaps | None:
    """The attention of a sentence and its spans over the patches, and of the regions over the tokens, of one pair.

    The mean over tokens, heads and layers; None for a model without fusion.

    Args:
        model: in evaluation mode.
        batch: of one pair.
    """
    if model.fusion is None:
        return None
    features = model(batch)
    assert features.patches is not None
    assert features.tokens is not None
    if not isinstance(model.fusion, PairFusion):
        queries = torch.cat([features.text, features.spans[0]])
        content = None if batch.content is None else batch.content[0].to(queries.device)
        maps, gates = model.fusion.seen(queries, features.patches[0], content), None
        mask = batch.token_mask[0].to(queries.device)
        regions = model.fusion.seen_by_regions(features.regions[0], features.tokens[0], mask)
    else:
        targets = batch.targets.to(features.text.device)
        of_regions = model.fusion.seen_by_regions(features, targets)
        regions = torch.stack([layer.attention[0] for layer in of_regions]).mean(dim=0)
        seen = model.fusion.seen(features, targets)
        members = torch.cat([batch.token_mask[:, None], batch.span_tokens], dim=1)[0].to(features.text)
        weights = members / members.sum(dim=1, keepdim=True).clamp(min=1)
        maps = weights @ torch.stack([layer.attention[0] for layer in seen]).mean(dim=0)
        of_layers = [layer.gate[0] for layer in seen if layer.gate is not None]
        gates = weights[1:] @ torch.stack(of_layers).mean(dim=0) if of_layers else None
    grids = as_grid(maps[:, :, None])[..., 0]
    if batch.content is not None:
        width, height = batch.content[0].tolist()
        rows, columns = (math.ceil(side / model.vision.stride) for side in (height, width))
        grids = _of_picture(model, grids[:, :rows, :columns], (width, height))
    grids = grids.float().cpu()
    return FusionMaps(grids[0], grids[1:], regions.float().cpu(), None if gates is None else gates.float().cpu())


def attention_rollout(attentions: Sequence[Tensor]) -> Tensor:
    """Share (N, T, T) of each input token in each output token; rows sum to 1.

    Heads are averaged, and the residual connection counts as half of a layer's output.

    Args:
        attentions: (N, heads, T, T) of each layer, lowest first; rows sum to 1.

    Source: Abnar and Zuidema, Quantifying Attention Flow in Transformers, 2020, section 3.
    """
    identity = torch.eye(attentions[0].shape[-1], dtype=attentions[0].dtype, device=attentions[0].device)
    rollout = identity.expand(len(attentions[0]), -1, -1)
    for attention in attentions:
        rollout = (attention.mean(dim=1) + identity) / 2 @ rollout
    return rollout


def to_unit_range(maps: Tensor) -> Tensor:
    """Scale each map (K, h, w) to [0, 1]; a constant map becomes zero."""
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny), 0.0)


def _patches_have_features(model: DualEncoder) -> bool:
    """Whether the region projection applies to single patches, because it was trained on grid states or their mean."""
    return model.settings.regions.source == "roi_align" or model.vision.settings.pool == "mean"


def _weights_above_mean(similarity: Tensor) -> Tensor:
    """Weights (K, P) of the patches with above-average similarity (K, P); they sum to 1, or are all 0."""
    above = (similarity - similarity.mean(dim=1, keepdim=True)).clamp(min=0)
    return above / above.sum(dim=1, keepdim=True).clamp(min=torch.finfo(above.dtype).tiny)


@contextmanager
def _recorded_attentions(tower: VisionTower) -> Iterator[list[Tensor]]:
    """Context that records the attentions (N, heads, T, T) of the tower, lowest layer first; empty if it has none.

    The tower runs eager attention meanwhile, because the fast kernels do not return weights.
    """
    encoder, recorded = tower.model, list[Tensor]()
    if VISION_FAMILIES[encoder.config.model_type].convolutional:
        yield recorded
        return

    def record(module: Any, inputs: Any, outputs: Any) -> None:
        recorded.extend(outputs.attentions)

    before = encoder.config._attn_implementation
    encoder.set_attn_implementation("eager")
    encoder.config.output_attentions = True
    hook = encoder.register_forward_hook(record)
    try:
        yield recorded
    finally:
        hook.remove()
        encoder.config.output_attentions = False
        encoder.set_attn_implementation(before)
