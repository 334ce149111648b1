"""Fused scores of a model for the pairs of a feature bank, and what its tokens look at."""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from spanbox.data.dataset import PairDataset
from spanbox.evaluation.extract import Context, FeatureBank
from spanbox.evaluation.reranking import PairScores
from spanbox.models.dual_encoder import DualEncoder
from spanbox.models.fusion import STATES_AT_ONCE, PairFusion
from spanbox.structures import Batch, Features
from spanbox.wiring.loading import Loaded

MIB = 2**20
TELL_FROM = 64 * MIB
"""Size of stored tokens and patches from which it is announced."""


def pair_scores(model: DualEncoder, bank: FeatureBank) -> PairScores | None:
    """Fused scores of pairs of a bank, in blocks; None without fusion or without tokens and patches in the bank."""
    fusion, tokens, count, patches = model.fusion, bank.tokens, bank.token_count, bank.patches
    if fusion is None or tokens is None or count is None or patches is None:
        return None
    device = model.mean.device
    first = count.cumsum(0) - count
    size = max(1, STATES_AT_ONCE // int(count.max()) + patches.shape[1])

    def blocks(sentences: Tensor, images: Tensor) -> Iterator[Tensor]:
        for text, image in zip(torch.split(sentences, size), torch.split(images, size), strict=True):
            columns = torch.arange(max(1, int(count[text].max())))
            mask = columns < count[text][:, None]
            places = (first[text][:, None] + columns).masked_fill(~mask, 0)
            yield fusion.scores(
                bank.text[text].to(device),
                tokens[places].to(device).float(),
                mask.to(device),
                bank.image[image].to(device),
                patches[image].to(device).float(),
                None if bank.content is None else bank.content[image].to(device),
            )

    @torch.no_grad()
    def scores(sentences: Tensor, images: Tensor) -> Tensor:
        return torch.cat(list(blocks(sentences, images))).cpu()

    return scores


def context_of(model: DualEncoder) -> Context | None:
    """Spans and regions that have seen their own pair; None for a model that has none."""
    fusion = model.fusion
    if not isinstance(fusion, PairFusion):
        return None

    def context(features: Features, batch: Batch) -> tuple[Tensor, Tensor]:
        return fusion.in_context(features, batch.targets.to(features.text.device))

    return context


def announce_size(loaded: Loaded, dataset: PairDataset, folder: Path) -> None:
    """Say how large the tokens and patches are that are about to be stored, if they are large."""
    config, vision = loaded.config, loaded.model.vision
    patches = (vision.image_size // vision.stride) ** 2
    size = len(dataset) * (config.data.max_tokens + patches) * config.model.fusion.width * 2
    if size >= TELL_FROM:
        print(f"{folder}: tokens and patches for re-ranking take up to {size / MIB:,.0f} MiB", file=sys.stderr)
