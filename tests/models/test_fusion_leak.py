"""Fusion does not leak: with images that have nothing to do with the texts, held-out scores stay at chance.

The careless form stands here as the thing to catch: a text that attends to its own image before it is contrasted with
the images of the batch carries its image with it, so it matches whatever image it was given.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batches import batch_of
from encoders import fused
from fusion_batches import DIM, KINDS, PATCHES, TOKENS, WIDTH, make_fusion
from spanbox.intervals import rate_interval
from spanbox.losses.objective import LossSettings, Objective
from spanbox.models.fusion_layers import CrossLayer
from spanbox.structures import Features, Targets

PAIRS = 16


def targets() -> Targets:
    batch = batch_of(
        span_identity=torch.zeros(PAIRS, 0, dtype=torch.int64),
        region_valid=torch.zeros(PAIRS, 0, dtype=torch.bool),
        links=torch.zeros(PAIRS, 0, 0, dtype=torch.bool),
        group=torch.arange(PAIRS),
    )
    return replace(batch.targets, token_mask=torch.ones(PAIRS, TOKENS, dtype=torch.bool))


def noise(seed: int) -> Features:
    """Texts and images drawn apart from each other."""
    generator = torch.Generator().manual_seed(seed)
    text, image = (F.normalize(torch.randn(PAIRS, DIM, generator=generator), dim=1) for _ in range(2))
    nothing = torch.zeros(PAIRS, 0, DIM)
    tokens, patches = (torch.randn(PAIRS, many, WIDTH, generator=generator) for many in (TOKENS, PATCHES))
    return Features(text, image, nothing, nothing, tokens=tokens, patches=patches)


def recall(scores: Tensor) -> Tensor:
    """(B,) whether each sentence ranks its own image first."""
    return scores.argmax(dim=1) == torch.arange(len(scores))


def assert_chance(found: Tensor) -> None:
    interval = rate_interval(found.double().numpy(), torch.arange(len(found)).numpy())
    assert interval is not None
    assert interval.low <= 1 / PAIRS <= interval.high


class Careless(nn.Module):
    """Text that attends to the image of its pair, then an in-batch InfoNCE against the images."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = CrossLayer(fused("cross_attention"))
        self.text, self.image = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, features: Features) -> Tensor:
        assert features.tokens is not None
        assert features.patches is not None
        seen = self.layer(features.tokens, None, features.patches, None).mean(dim=1)
        text, image = self.text(seen), self.image(features.patches.mean(dim=1))
        return F.normalize(text, dim=1) @ F.normalize(image, dim=1).T


def train(parameters: Any, loss: Callable[[Features], Tensor], *, steps: int, sets: int) -> float:
    """The last loss, on so many sets of training pairs in turn."""
    optimiser = torch.optim.Adam(parameters, lr=0.02)
    for step in range(steps):
        optimiser.zero_grad()
        value = loss(noise(step % sets))
        value.backward()
        optimiser.step()
    return value.item()


def held_out(scores: Callable[[Features], Tensor], sets: int = 8) -> Tensor:
    with torch.no_grad():
        return torch.cat([recall(scores(noise(100 + seed))) for seed in range(sets)])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_fitted_and_tells_nothing_about_other_pairs(kind: str) -> None:
    fusion = make_fusion(kind).float()
    settings = {"fine": {"weight": 0.0}, "fusion": {"candidates": PAIRS}}
    objective, given = Objective(LossSettings.model_validate(settings), dim=DIM, fusion=kind), targets()
    assert objective.fusion is not None

    def scores(features: Features) -> Tensor:
        rows, columns = torch.meshgrid(torch.arange(PAIRS), torch.arange(PAIRS), indexing="ij")
        return fusion.pair_scores(features, given, rows.flatten(), columns.flatten()).reshape(PAIRS, PAIRS)

    before = objective(noise(0), given, fusion=fusion).terms["fusion"].item()
    parameters = [*fusion.parameters(), *objective.fusion.parameters()]
    after = train(
        parameters, lambda features: objective(features, given, fusion=fusion).terms["fusion"], steps=40, sets=1
    )
    assert after < 0.8 * before  # it may learn its training pairs by heart
    assert_chance(held_out(scores))


@pytest.mark.slow
def test_the_careless_form_is_caught() -> None:
    torch.manual_seed(0)
    model, own = Careless(), torch.arange(PAIRS)

    def loss(features: Features) -> Tensor:
        return F.cross_entropy(20 * model(features), own)

    assert train(model.parameters(), loss, steps=400, sets=400) < 0.05
    found = held_out(model)
    assert found.float().mean() > 0.9  # of noise, of which nothing can be known
    with pytest.raises(AssertionError):
        assert_chance(found)
