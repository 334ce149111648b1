"""Features and ids for the tests of the fusion, without towers: tokens with padding, patches, spans of tokens."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from batches import random_batch
from encoders import fused
from spanbox.models.fusion import build_fusion
from spanbox.structures import PADDING_ID, Batch, Features

WIDTH, DIM, TOKENS, PATCHES = 8, 4, 5, 4
KINDS = ("gated", "cross_attention", "conditioned_pooling")
PAIR_KINDS = KINDS[:2]


def make_fusion(kind: str, dropout: float = 0.0, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    fusion = build_fusion(fused(kind, dropout), patch_width=WIDTH, patches=PATCHES, dim=DIM, patch=8)
    assert fusion is not None
    return fusion.double()


def fusion_batch(seed: int, pairs: int = 5, spans: int = 3, regions: int = 3) -> Batch:
    """Repeated groups, wordings and identities; sentences of different lengths; spans of one token or more."""
    generator = torch.Generator().manual_seed(seed)
    batch = random_batch(seed, pairs=pairs, spans=spans, regions=regions)
    length = torch.randint(1, TOKENS + 1, (pairs, 1), generator=generator)
    mask = torch.arange(TOKENS) < length
    members = (torch.rand(pairs, spans, TOKENS, generator=generator) < 0.6) & mask[:, None]
    return replace(
        batch,
        token_mask=mask,
        span_tokens=members,
        span_identity=batch.span_identity.where(members.any(dim=2), PADDING_ID),
    )


def padded(batch: Batch) -> Batch:
    """Pictures of one to four of the patches of 8 pixels."""
    sizes = torch.tensor([(16, 8), (8, 16), (16, 16), (3, 4), (16, 9)])
    return replace(batch, content=sizes[torch.arange(len(batch)) % len(sizes)])


def fusion_features(batch: Batch, seed: int = 0) -> Features:
    """Leaves; padding holds large values, which must not count."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    pairs, spans, regions = batch.links.shape
    tokens = draw(pairs, TOKENS, WIDTH).where(batch.token_mask[:, :, None], 100.0)
    units = (draw(*shape, DIM) for shape in ((pairs,), (pairs,), (pairs, spans), (pairs, regions)))
    text, image, of_spans, of_regions = (normalize(values, dim=-1).requires_grad_() for values in units)
    return Features(
        text,
        image,
        of_spans,
        of_regions,
        tokens=tokens.requires_grad_(),
        patches=draw(pairs, PATCHES, WIDTH).requires_grad_(),
    )
