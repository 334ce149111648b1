"""Encoders with BatchNorm: admitted with frozen statistics only, and then no pair looks at another."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, ResNetConfig, ResNetModel

import miniature
import tiny
from encoders import MAX_TOKENS, VOCABULARY, accumulate, collate, make_sample
from spanbox.errors import ConfigError
from spanbox.losses.objective import LossSettings, Objective
from spanbox.models.dual_encoder import DualEncoder, ModelSettings, RegionSettings
from spanbox.models.preprocessing import Preprocessing
from spanbox.models.tower_settings import TowerSettings, VisionTowerSettings
from spanbox.models.towers import VisionTower, build_text_tower, build_vision_tower
from spanbox.structures import Batch
from spanbox.wiring import load, train

every_family = pytest.mark.parametrize(
    "architecture", tiny.BATCH_NORMALISED, ids=lambda architecture: architecture["model_type"]
)


def build(architecture: tiny.Architecture, **settings: Any) -> VisionTower:
    """In training mode, float64, with statistics as after a pretraining."""
    torch.manual_seed(0)
    needed = {"freeze_norm": True, "image_size": tiny.IMAGE_SIZE}
    tower = build_vision_tower(VisionTowerSettings(architecture=architecture, **needed | settings)).double()
    for module in batch_norms(tower):
        nn.init.normal_(module.running_mean, std=0.1)
        nn.init.uniform_(module.running_var, 0.5, 2.0)
    return tower


def batch_norms(module: nn.Module) -> list[Any]:
    return [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE, dtype=torch.float64)


class TestSettings:
    @pytest.mark.slow
    @every_family
    def test_refused_with_live_statistics(self, architecture: tiny.Architecture) -> None:
        name = architecture["model_type"]
        with pytest.raises(ConfigError, match=rf"'{name}' contains BatchNorm.*model\.vision\.freeze_norm=true admits"):
            build(architecture, freeze_norm=False)
        with pytest.raises(ConfigError, match="contains BatchNorm"):
            build(architecture, freeze_norm=False, freeze=1)

    @pytest.mark.slow
    @every_family
    def test_implied_when_all_is_frozen(self, architecture: tiny.Architecture) -> None:
        tower = build(architecture, freeze_norm=False, freeze="all").train()
        assert not any(module.training for module in tower.modules())
        assert not tower(images()).grid.requires_grad

    def test_nothing_to_freeze(self) -> None:
        with pytest.raises(ConfigError, match=r"^model\.vision\.freeze_norm: true, but 'vit' has no BatchNorm"):
            build_vision_tower(VisionTowerSettings(architecture=tiny.vit(), freeze_norm=True))

    @every_family
    def test_patches_are_not_dropped(self, architecture: tiny.Architecture) -> None:
        assert not build(architecture).drops_patches

    def test_a_head_of_another_width(self) -> None:
        with pytest.raises(
            ConfigError, match=r"vision tower: this 'efficientnet' cannot encode an image: .*32 elements not 48"
        ):
            build(tiny.efficientnet(hidden_dim=48))


class TestStrides:
    """Of every setting that changes it: the tower must find the grid that the encoder makes."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("architecture", "stride"),
        [
            (tiny.resnet(depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 16]), 32),
            (tiny.resnet(downsample_in_first_stage=True), 16),
            (tiny.resnet(layer_type="bottleneck", downsample_in_bottleneck=True), 8),
            (tiny.regnet(depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 16]), 32),
            (tiny.regnet(layer_type="x", downsample_in_first_stage=False), 4),
            (tiny.efficientnet(depthwise_padding=[0]), 8),
            (tiny.efficientnet(num_block_repeats=[2, 2]), 8),
            (tiny.mobilenet_v2(output_stride=32), 32),
            (tiny.mobilenet_v2(output_stride=16, tf_padding=False), 16),
        ],
    )
    def test_grid(self, architecture: tiny.Architecture, stride: int) -> None:
        tower = build(architecture, image_size=64)
        assert tower.stride == stride
        assert tower(torch.zeros(1, 3, 64, 96).double()).grid.shape == (1, 64 // stride, 96 // stride, tower.width)

    def test_image_size_that_is_no_multiple(self) -> None:
        with pytest.raises(ConfigError, match=r"image_size is 112.*32 pixels.*'resnet' covers. Set it to 96 or 128"):
            build(tiny.resnet(depths=[1] * 4, hidden_sizes=[8] * 4), image_size=112)


class TestFrozenStatistics:
    @every_family
    def test_eval_mode_in_training(self, architecture: tiny.Architecture) -> None:
        around = nn.ModuleList([build(architecture)])
        for mode in (True, False, True):
            around.train(mode)
            norms = batch_norms(around)
            assert norms
            assert not any(module.training for module in norms)
            assert all(module.training == mode for module in around.modules() if module not in norms)

    @pytest.mark.slow
    @every_family
    def test_no_image_depends_on_others(self, architecture: tiny.Architecture) -> None:
        tower, pixels = build(architecture), images()
        together = tower(pixels)
        for number in range(len(pixels)):
            alone = tower(pixels[number : number + 1])
            torch.testing.assert_close(alone.grid[0], together.grid[number], rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(alone.pooled[0], together.pooled[number], rtol=1e-10, atol=1e-12)

    @pytest.mark.slow
    @every_family
    def test_scale_and_shift_are_trained_and_statistics_are_not(self, architecture: tiny.Architecture) -> None:
        tower = build(architecture)
        before = {name: value.clone() for name, value in tower.state_dict().items()}
        optimiser = torch.optim.SGD(tower.parameters(), lr=1e-3)
        for _ in range(3):
            optimiser.zero_grad()
            tower.train()(images()).grid.square().mean().backward()
            optimiser.step()
        statistics = {name for name, _ in tower.named_buffers()}
        assert {name.rpartition(".")[2] for name in statistics} == {
            "running_mean",
            "running_var",
            "num_batches_tracked",
        }
        changed = {name for name, value in tower.state_dict().items() if not torch.equal(value, before[name])}
        assert not changed & statistics
        trained = {name for name, module in tower.named_modules() if isinstance(module, nn.BatchNorm2d)}
        assert {f"{name}.{own}" for name in trained for own in ("weight", "bias")} <= changed

    @every_family
    def test_frozen_layers_keep_scale_and_shift(self, architecture: tiny.Architecture) -> None:
        tower = build(architecture, freeze=1)
        assert not any(parameter.requires_grad for parameter in tower.layers[0].parameters())
        assert all(module.weight.requires_grad for module in batch_norms(tower.layers[1]))


def dual_encoder(architecture: tiny.Architecture, regions: RegionSettings) -> DualEncoder:
    vision = build(architecture)
    text = tiny.bert(vocab_size=VOCABULARY, max_position_embeddings=MAX_TOKENS, hidden_dropout_prob=0.0)
    settings = ModelSettings(
        text=TowerSettings(architecture=text | {"attention_probs_dropout_prob": 0.0}),
        vision=vision.settings,
        dim=8,
        regions=regions,
    )
    return DualEncoder(
        build_text_tower(settings.text), vision, Preprocessing(image_size=tiny.IMAGE_SIZE), settings
    ).double()


@pytest.mark.slow
@every_family
@pytest.mark.parametrize("source", ["roi_align", "crop"])
def test_chunked_gradients_are_those_of_the_whole_batch(architecture: tiny.Architecture, source: Any) -> None:
    def gradients(chunk: int | None) -> dict[str, Tensor]:
        model, objective = dual_encoder(architecture, RegionSettings(source=source)), Objective(LossSettings(), dim=8)
        batch: Batch = collate(*(make_sample(number) for number in range(5)))
        if chunk is None:
            objective.double()(model(batch), batch).total.backward()
        else:
            accumulate(model, objective.double(), batch, text=chunk, image=chunk)
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    torch.manual_seed(0)
    whole = gradients(None)
    assert any("normalization" in name or "_bn" in name or "batchnorm" in name for name in whole)
    for name, gradient in gradients(chunk=2).items():
        scale = max(whole[name].abs().max().item(), 1e-5)
        torch.testing.assert_close(gradient, whole[name], rtol=0, atol=1e-9 * scale, msg=name)


@pytest.mark.slow
def test_trained_saved_and_loaded(tmp_path: Path) -> None:
    """A run from a folder with statistics of its own; its checkpoint, and the encoder exported from it, keep them."""
    scenes = miniature.write_scenes(tmp_path / "scenes")
    original = ResNetModel(ResNetConfig(**tiny.resnet()))
    for module in batch_norms(original):
        nn.init.uniform_(module.running_var, 0.5, 2.0)
    original.save_pretrained(tmp_path / "resnet")
    tower = f"model.vision={{path: {tmp_path}/resnet, image_size: 48, freeze_norm: true}}"
    config = miniature.demo_config(scenes, tmp_path / "run", "data.val=null", "train.chunk_size=3", tower)
    trained = load(train(config).run_dir)
    vision = trained.model.vision.train()
    assert not any(module.training for module in batch_norms(vision))
    for own, first in zip(batch_norms(vision), batch_norms(original), strict=True):
        assert torch.equal(own.running_var, first.running_var)
        assert not torch.equal(own.weight, first.weight)
    trained.save_towers(tmp_path / "towers")
    opened = AutoModel.from_pretrained(tmp_path / "towers" / "vision").eval()
    pixels = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(opened(pixels).last_hidden_state, vision.eval()(pixels).grid.permute(0, 3, 1, 2))
