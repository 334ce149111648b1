"""Where in an image a span finds what it names: maps over the grid of patches, to be looked at.

Each kind answers another question. `similarity` asks which patches look like the span, `rollout` which patches of the
input those states were made of. They are computed for one image at a time, from the features of a feature bank and the
image's pixels, and drawn by the report.

    K spans    P = h * w patches    T tokens: a prefix (class token, registers), then the patches    D features
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from spanbox.models.dual_encoder import DualEncoder
from spanbox.models.families import VISION_FAMILIES
from spanbox.models.pooling import pool_regions
from spanbox.models.towers import VisionTower


@torch.no_grad()
def span_heatmaps(model: DualEncoder, pixels: Tensor, spans: Tensor) -> dict[str, Tensor]:
    """Maps of spans over the patches of one image by kind, each (K, h, w) float32 on the CPU, row 0 at the top.

    - `similarity`: cosine of the span with each patch, projected as if it were a region of its own.
    - `rollout`: how much of what the span is similar to comes from each patch of the input. Attention rollout by itself
      knows nothing of a span; here its rows are averaged over the patches that are more similar to the span than the
      mean of the image, weighted by how much more. Where none is, the map is zero.

    A kind that the model cannot give is absent: rollout of a convolutional tower; both where regions are read from
    crops whose pooled state is no mean, since a patch has no feature to compare then.

    Args:
        model: in evaluation mode.
        pixels: (3, S, S) uint8, as in a batch.
        spans: (K, D), features of the spans, of unit length.
    """
    if not _patches_have_features(model):
        return {}
    device = next(model.parameters()).device
    with _recorded_attentions(model.vision) as attentions:
        grid = model.vision(model.normalised(pixels[None].to(device))).grid[0]  # (h, w, H)
    each_a_box_of_one_bin = grid[:, :, None, None]
    kind = model.settings.regions.pool if model.settings.regions.source == "roi_align" else "mean"
    patches = model.project_regions(pool_regions(each_a_box_of_one_bin, kind)).flatten(0, 1)
    similarity = spans.to(patches) @ patches.T  # (K, P)
    maps = {"similarity": similarity}
    if attentions:
        rollout = attention_rollout(attentions)[0]
        prefix = len(rollout) - len(patches)
        maps["rollout"] = _weights_above_mean(similarity) @ rollout[prefix:, prefix:]
    return {name: values.reshape(-1, *grid.shape[:2]).float().cpu() for name, values in maps.items()}


def attention_rollout(attentions: Sequence[Tensor]) -> Tensor:
    """How much of each token after the last layer comes from each token of the input: (N, T, T), rows add up to 1.

    The heads of a layer are averaged, and its residual connection stands for half of what it passes on.

    Args:
        attentions: (N, heads, T, T) of each layer, lowest first, rows add up to 1.

    Source: Abnar and Zuidema, Quantifying Attention Flow in Transformers, 2020, section 3.
    """
    identity = torch.eye(attentions[0].shape[-1], dtype=attentions[0].dtype, device=attentions[0].device)
    rollout = identity.expand(len(attentions[0]), -1, -1)
    for attention in attentions:
        rollout = (attention.mean(dim=1) + identity) / 2 @ rollout
    return rollout


def to_unit_range(maps: Tensor) -> Tensor:
    """Maps (K, h, w) from 0 at the lowest to 1 at the highest value of each; zeros for one that is flat."""
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny), 0.0)


def _patches_have_features(model: DualEncoder) -> bool:
    """Whether the projection of regions was made for states that a patch has, too: those of a grid, or their mean."""
    return model.settings.regions.source == "roi_align" or model.vision.settings.pool == "mean"


def _weights_above_mean(similarity: Tensor) -> Tensor:
    """Weights (K, P) of the patches that are more similar (K, P) than the mean: they add up to 1, or are all 0."""
    above = (similarity - similarity.mean(dim=1, keepdim=True)).clamp(min=0)
    return above / above.sum(dim=1, keepdim=True).clamp(min=torch.finfo(above.dtype).tiny)


@contextmanager
def _recorded_attentions(tower: VisionTower) -> Iterator[list[Tensor]]:
    """Context in which the tower's attentions (N, heads, T, T) are recorded, lowest layer first; none if it has none.

    The fast kernels of attention never hold its weights, so the tower runs the plain one for as long.
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
