"""Parameter groups, and the learning rate as a function of the step."""

import math

import pytest
import torch
from torch import nn

import tiny
from spanbox.engine.optimiser import (
    OptimiserSettings,
    clip_gradients,
    lr_share,
    make_optimiser,
    set_learning_rate,
)
from spanbox.models.families import TEXT_FAMILIES
from spanbox.models.tower_settings import TowerSettings, VisionTowerSettings
from spanbox.models.towers import build_text_tower, build_vision_tower


def block() -> nn.Module:
    """Two matrices (one of them the embedding) and three vectors."""
    return nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4))


def group_of(optimiser: torch.optim.Optimizer, wanted: nn.Parameter) -> dict[str, object]:
    """The one group that holds a parameter."""
    (group,) = [group for group in optimiser.param_groups if any(held is wanted for held in group["params"])]
    return group


class TestGroups:
    def test_each_parameter_exactly_once(self) -> None:
        tower, head = block(), block()
        optimiser = make_optimiser([tower], [head], nn.Module(), OptimiserSettings())
        held = [id(parameter) for group in optimiser.param_groups for parameter in group["params"]]
        assert sorted(held) == sorted(id(parameter) for parameter in [*tower.parameters(), *head.parameters()])

    def test_vectors_do_not_decay(self) -> None:
        tower, head = block(), block()
        optimiser = make_optimiser([tower], [head], nn.Module(), OptimiserSettings(weight_decay=0.1))
        for parameter in [*tower.parameters(), *head.parameters()]:
            assert group_of(optimiser, parameter)["weight_decay"] == (0.1 if parameter.dim() >= 2 else 0.0)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("architecture", "without"),
        [
            (tiny.bert(), {"position_embeddings.weight", "token_type_embeddings.weight"}),
            (tiny.xlm_roberta(), {"position_embeddings.weight", "token_type_embeddings.weight"}),
            (tiny.distilbert(), {"position_embeddings.weight"}),
            (tiny.clip_text(), {"position_embedding.weight"}),
            (tiny.siglip_text(), {"position_embedding.weight"}),
            (tiny.vit(), {"cls_token", "position_embeddings"}),
            (tiny.clip_vision(), {"position_embedding.weight"}),  # its class embedding is a vector
            (tiny.siglip_vision(), {"position_embedding.weight", "probe"}),
            (tiny.dinov2(), {"cls_token", "position_embeddings"}),
            (tiny.dinov2_with_registers(), {"cls_token", "position_embeddings", "register_tokens"}),
            (tiny.dinov3_vit(), {"cls_token", "register_tokens"}),
            (tiny.convnextv2(), {"grn.weight", "grn.bias"}),
        ],
        ids=lambda value: value.get("model_type") if isinstance(value, dict) else "",
    )
    def test_tokens_and_positions_do_not_decay(self, architecture: tiny.Architecture, without: set[str]) -> None:
        """By name, in real architectures; all other weights of two dimensions and more do."""
        if architecture["model_type"] in TEXT_FAMILIES:
            tower: nn.Module = build_text_tower(TowerSettings(architecture=architecture))
        else:
            tower = build_vision_tower(VisionTowerSettings(architecture=architecture))
        optimiser = make_optimiser([tower], [], nn.Module(), OptimiserSettings(weight_decay=0.1))
        found = {
            name
            for name, parameter in tower.named_parameters()
            if parameter.dim() >= 2 and group_of(optimiser, parameter)["weight_decay"] == 0.0
        }
        assert {end for end in without if any(name.endswith(f".{end}") for name in found)} == without
        assert all(any(name.endswith(f".{end}") for end in without) for name in found), found

    def test_a_lone_scalar_does_not_decay(self) -> None:
        head = nn.Module()
        head.log_scale = nn.Parameter(torch.tensor(2.0))
        (group,) = make_optimiser([], [], head, OptimiserSettings()).param_groups
        assert group["weight_decay"] == 0.0

    def test_towers_have_their_own_rate(self) -> None:
        tower, head = block(), block()
        optimiser = make_optimiser([tower], [head], nn.Module(), OptimiserSettings(lr=1e-3, tower_lr=1e-5))
        assert {group_of(optimiser, parameter)["lr"] for parameter in tower.parameters()} == {1e-5}
        assert {group_of(optimiser, parameter)["lr"] for parameter in head.parameters()} == {1e-3}

    def test_without_it_they_have_the_rate_of_the_rest(self) -> None:
        optimiser = make_optimiser([block()], [block()], nn.Module(), OptimiserSettings(lr=2e-3))
        assert {group["lr"] for group in optimiser.param_groups} == {2e-3}

    def test_frozen_parameters_are_left_out(self) -> None:
        tower, head = block(), block()
        tower.requires_grad_(False)
        head[1].requires_grad_(False)
        optimiser = make_optimiser([tower], [head], nn.Module(), OptimiserSettings())
        held = {id(parameter) for group in optimiser.param_groups for parameter in group["params"]}
        assert held == {id(parameter) for index in (0, 2) for parameter in head[index].parameters()}


class TestLearningRate:
    def test_by_hand(self) -> None:
        """A line up in the first fifth, then half a cosine from 1 to 0.1."""
        settings = OptimiserSettings(warmup=0.2, final_lr=0.1)
        falling = [0.1 + 0.9 * (1 + math.cos(math.pi * share)) / 2 for share in (0, 0.25, 0.5, 0.75, 1)]
        expected = [0.0, 0.5, *falling]
        assert [lr_share(done, settings) for done in (0, 0.1, 0.2, 0.4, 0.6, 0.8, 1)] == pytest.approx(expected)
        assert expected[2] == 1.0
        assert expected[-1] == pytest.approx(0.1)

    def test_without_warm_up_the_run_starts_at_the_peak(self) -> None:
        assert lr_share(0.0, OptimiserSettings(warmup=0.0)) == 1.0

    def test_constant_after_the_warm_up(self) -> None:
        settings = OptimiserSettings(warmup=0.0, final_lr=1.0)
        assert {lr_share(done / 10, settings) for done in range(11)} == {1.0}

    def test_setting_it_scales_each_peak_and_does_not_add_up(self) -> None:
        optimiser = make_optimiser([block()], [block()], nn.Module(), OptimiserSettings(lr=1.0, tower_lr=0.1))
        for share in (0.5, 0.25):
            set_learning_rate(optimiser, share)
        assert [group["lr"] for group in optimiser.param_groups] == pytest.approx([0.025, 0.025, 0.25, 0.25])


class TestClipping:
    def parameters(self) -> list[nn.Parameter]:
        parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(3))]
        parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
        return parameters

    def test_a_long_gradient_is_shortened_as_a_whole(self) -> None:
        first, second, without = self.parameters()
        assert clip_gradients([first, second, without], 1.0).item() == pytest.approx(5.0)
        assert torch.cat([first.grad, second.grad]).tolist() == pytest.approx([0.6, 0.0, 0.8], rel=1e-5)
        assert without.grad is None

    def test_a_short_one_stays(self) -> None:
        first, second, without = self.parameters()
        clip_gradients([first, second, without], 10.0)
        assert torch.cat([first.grad, second.grad]).tolist() == [3.0, 0.0, 4.0]
