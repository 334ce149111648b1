"""Fused scores of a model for the pairs of a feature bank, and spans and regions after attention within their pair."""

import sys
from pathlib import Path

import torch
from torch import Tensor

from spanbox.config import RunConfig
from spanbox.data.dataset import PairDataset
from spanbox.errors import ConfigError
from spanbox.evaluation.extract import Context, FeatureBank
from spanbox.evaluation.reranking import PairScores
from spanbox.models.dual_encoder import DualEncoder
from spanbox.models.fusion import Fusion, PairFusion, pairs_of_a_block
from spanbox.structures import Batch, Features
from spanbox.wiring.encoding import ImageSide, TextSide
from spanbox.wiring.loading import Loaded

MIB = 2**20
TELL_FROM = 64 * MIB
"""Size of stored tokens and patches from which it is announced."""


def pair_scores(model: DualEncoder, bank: FeatureBank) -> PairScores | None:
    """Fused scores of pairs of a bank, in blocks; None without fusion or without tokens and patches in the bank."""
    fusion = model.fusion
    if fusion is None or bank.tokens is None or bank.patches is None:
        return None
    device, longest = model.device, int(bank.token_count.max()) if bank.token_count is not None else 0
    size = pairs_of_a_block(longest, bank.patches.shape[1])

    @torch.no_grad()
    def scores(sentences: Tensor, images: Tensor) -> Tensor:
        blocks = zip(torch.split(sentences, size), torch.split(images, size), strict=True)
        sides = ((text_side(bank, text).to(device), image_side(bank, image).to(device)) for text, image in blocks)
        return torch.cat([_scores(fusion, *side) for side in sides]).cpu()

    return scores


def fused_scores(loaded: Loaded, texts: TextSide, images: ImageSide) -> Tensor:
    """Fused scores (N, M) of N texts with M images, in blocks of pairs, on the device of the model.

    Raises:
        ConfigError: the model has no fusion.
    """
    fusion = fusion_of(loaded)
    device = loaded.model.device
    texts, images = texts.to(device), images.to(device)
    size = pairs_of_a_block(texts.tokens.shape[1], images.patches.shape[1])
    pairs = torch.cartesian_prod(torch.arange(len(texts)), torch.arange(len(images))).to(device)
    with torch.no_grad():
        blocks = [_scores(fusion, texts[block[:, 0]], images[block[:, 1]]) for block in torch.split(pairs, size)]
    return torch.cat(blocks).reshape(len(texts), len(images))


def fusion_of(loaded: Loaded) -> Fusion:
    """The fusion of a model. Raises ConfigError where it has none."""
    if loaded.model.fusion is None:
        raise ConfigError(
            "this model has no fused scores: it was trained with model.fusion.kind=none; compare features with "
            "similarity(), or train with another kind"
        )
    return loaded.model.fusion


def text_side(bank: FeatureBank, places: Tensor) -> TextSide:
    """Sentences of a bank that holds their tokens."""
    count = bank.token_count
    assert bank.tokens is not None
    assert count is not None
    columns = torch.arange(max(1, int(count[places].max())))
    mask = columns < count[places][:, None]
    rows = ((count.cumsum(0) - count)[places][:, None] + columns).masked_fill(~mask, 0)
    return TextSide(bank.text[places], bank.tokens[rows].float(), mask)


def image_side(bank: FeatureBank, places: Tensor) -> ImageSide:
    """Images of a bank that holds their patches."""
    assert bank.patches is not None
    content = None if bank.content is None else bank.content[places]
    return ImageSide(bank.image[places], bank.patches[places].float(), content)


def _scores(fusion: Fusion, texts: TextSide, images: ImageSide) -> Tensor:
    return fusion.scores(texts.features, texts.tokens, texts.mask, images.features, images.patches, images.content)


def matches_in_context(config: RunConfig) -> bool:
    """Whether a loss trains spans and regions after attention within their own pair."""
    kinds = ("gated", "cross_attention")
    return config.model.fusion.kind in kinds and config.loss.fine.used and config.loss.fusion.parts_weight > 0


def context_of(model: DualEncoder) -> Context | None:
    """Spans and regions after attention within their own pair; None for a model that has none."""
    fusion = model.fusion
    if not isinstance(fusion, PairFusion):
        return None

    def context(features: Features, batch: Batch) -> tuple[Tensor, Tensor]:
        return fusion.in_context(features, batch.targets.to(features.text.device))

    return context


def announce_size(loaded: Loaded, dataset: PairDataset, folder: Path) -> None:
    """Print the size of the tokens and patches to be stored, if it is large."""
    config, vision = loaded.config, loaded.model.vision
    patches = (vision.image_size // vision.stride) ** 2
    size = len(dataset) * (config.data.max_tokens + patches) * config.model.fusion.width * 2
    if size >= TELL_FROM:
        print(f"{folder}: tokens and patches for re-ranking take up to {size / MIB:,.0f} MiB", file=sys.stderr)
