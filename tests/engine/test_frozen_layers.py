"""Skipping frozen layers changes neither states nor gradients, in every family."""

from typing import Any

import pytest
import torch

import tiny
from spanbox.engine.frozen_layers import FrozenLayers
from spanbox.engine.random_state import RandomState
from spanbox.models.tower_settings import TowerSettings, VisionTowerSettings
from spanbox.models.towers import build_text_tower, build_vision_tower

CASES = [
    *(pytest.param(one, "text", False, id=one["model_type"]) for one in tiny.TEXT_ARCHITECTURES),
    *(pytest.param(one, "vision", False, id=one["model_type"]) for one in tiny.VISION_ARCHITECTURES),
    pytest.param(tiny.bert(), "text", True, id="bert, checkpointing"),
    pytest.param(tiny.vit(), "vision", True, id="vit, checkpointing"),
]


def tower_and_inputs(architecture: tiny.Architecture, part: str, **settings: Any) -> tuple[Any, list[Any]]:
    """A tower in training mode with dropout, whose lowest layer is frozen, and inputs of three rows."""
    torch.manual_seed(0)
    dropout = {name: 0.2 for name in ("hidden_dropout_prob", "attention_dropout") if name in architecture}
    given = {"architecture": architecture | dropout, "freeze": 1, **settings}
    if part == "text":
        token_mask = torch.arange(6) < torch.tensor([6, 4, 2])[:, None]
        return build_text_tower(TowerSettings(**given)).double(), [torch.randint(5, 60, (3, 6)), token_mask]
    size = tiny.IMAGE_SIZE
    vision = VisionTowerSettings(**given | tiny.needs(architecture))
    return build_vision_tower(vision).double(), [torch.randn(3, 3, size, size, dtype=torch.float64)]


def gradients(tower: Any, states: Any) -> list[torch.Tensor]:
    sum(state.square().sum() for state in states).backward()
    found = [parameter.grad for parameter in tower.parameters() if parameter.grad is not None]
    tower.zero_grad()
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "part", "checkpointing"), CASES)
def test_states_and_gradients(architecture: tiny.Architecture, part: str, checkpointing: bool) -> None:
    tower, inputs = tower_and_inputs(architecture, part, gradient_checkpointing=checkpointing)
    frozen = FrozenLayers.of(tower)
    random = RandomState.capture()
    with torch.no_grad(), frozen.kept() as kept:
        tower(*inputs)
    with random.replayed():
        expected = tower(*inputs)
        expected_gradients = gradients(tower, expected)
    with random.replayed(), frozen.skipped(kept):
        found = tower(*inputs)
        found_gradients = gradients(tower, found)
    assert len(kept) == 1
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert len(found_gradients) == len(expected_gradients) > 0
    for one, other in zip(found_gradients, expected_gradients, strict=True):
        assert torch.equal(one, other)


class TestWhichLayersAreFrozen:
    def test_nothing_is_frozen(self) -> None:
        tower, inputs = tower_and_inputs(tiny.bert(), "text", freeze=0)
        frozen = FrozenLayers.of(tower)
        with frozen.kept() as kept:
            tower(*inputs)
        assert kept == []
        with frozen.skipped(kept):
            assert tower(*inputs).tokens.requires_grad

    @pytest.mark.parametrize("freeze", [0, 1, 2])
    def test_lowest_layers(self, freeze: int) -> None:
        tower, _ = tower_and_inputs(tiny.vit(), "vision", freeze=freeze)
        assert tower.frozen_layers == list(tower.layers[:freeze])

    def test_layers_above_trained_embeddings_are_not_constant(self) -> None:
        tower, _ = tower_and_inputs(tiny.bert(), "text", freeze=0)
        tower.layers.requires_grad_(False)
        assert tower.frozen_layers == []
