"""Training less of a tower, or with less memory: its layers, freezing, LoRA, gradient checkpointing. Every family."""

import logging
import sys
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import tiny
from spanbox.errors import ConfigError
from spanbox.models.families import TEXT_FAMILIES, VISION_FAMILIES
from spanbox.models.tower_settings import TowerSettings, VisionTowerSettings
from spanbox.models.towers import TextTower, VisionTower, build_text_tower, build_vision_tower
from spanbox.models.trainable import LoraSettings

ARCHITECTURES = [*tiny.TEXT_ARCHITECTURES, *tiny.VISION_ARCHITECTURES]
LAYERS = 2  # of every tiny architecture but MobileNet; ConvNeXt's are stages
HEADS = (  # what comes after the layers
    *("pooler.", "head.", "norm.", "layernorm.", "post_layernorm.", "final_layer_norm."),
    *("encoder.top_conv.", "encoder.top_bn.", "conv_1x1."),
)
CONVOLUTIONAL = {name for name, family in VISION_FAMILIES.items() if family.convolutional}
WITHOUT_LINEAR_LAYERS = {architecture["model_type"] for architecture in tiny.BATCH_NORMALISED}

every_family = pytest.mark.parametrize(
    "architecture", ARCHITECTURES, ids=lambda architecture: architecture["model_type"]
)
every_transformer = pytest.mark.parametrize(
    "architecture",
    [architecture for architecture in ARCHITECTURES if architecture["model_type"] not in CONVOLUTIONAL],
    ids=lambda architecture: architecture["model_type"],
)
every_family_for_lora = pytest.mark.parametrize(
    "architecture",
    [architecture for architecture in ARCHITECTURES if architecture["model_type"] not in WITHOUT_LINEAR_LAYERS],
    ids=lambda architecture: architecture["model_type"],
)


def build(architecture: tiny.Architecture, **settings: Any) -> TextTower | VisionTower:
    """In training mode, float64, with the same random weights on every call."""
    torch.manual_seed(0)
    if architecture["model_type"] in TEXT_FAMILIES:
        return build_text_tower(TowerSettings(architecture=architecture, **settings)).double()
    needed = tiny.needs(architecture)
    return build_vision_tower(VisionTowerSettings(architecture=architecture, **needed | settings)).double()


def with_dropout(architecture: tiny.Architecture, share: float) -> tiny.Architecture:
    """The architecture with as many kinds of dropout as its family has, all of the same share."""
    config = build(architecture).architecture()
    names = ("dropout", "hidden_dropout_prob", "attention_dropout", "attention_probs_dropout_prob", "drop_path_rate")
    return architecture | {name: share for name in names if name in config}


def inputs(tower: TextTower | VisionTower) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    if isinstance(tower, VisionTower):
        return (torch.randn(3, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE, generator=generator, dtype=torch.float64),)
    token_ids = torch.randint(5, tiny.VOCABULARY, (3, 9), generator=generator)
    return token_ids, torch.arange(9) < torch.tensor([9, 4, 6])[:, None]


def loss(tower: TextTower | VisionTower) -> Tensor:
    """A scalar that every state has a share in. The same dropout on every call."""
    torch.manual_seed(2)
    states = tower(*inputs(tower))
    total: Tensor = states[0].square().sum() + states.pooled.sum()
    return total


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def trained(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def saved_bytes(tower: TextTower | VisionTower) -> int:
    """What the graph of one forward pass keeps, weights included."""
    sizes = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(tower)
    return sum(sizes)


class TestLayers:
    @pytest.mark.slow
    @every_family
    def test_run_one_after_the_other(self, architecture: tiny.Architecture) -> None:
        tower = build(architecture)
        read: list[Tensor] = []
        written: list[Tensor] = []
        for layer in tower.layers:
            layer.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0]))
            layer.register_forward_hook(lambda _, __, output: written.append(output))
        tower(*inputs(tower))
        assert len(read) == len(tower.layers) >= LAYERS
        assert read[1] is written[0]

    def test_a_convnext_has_stages(self) -> None:
        tower = build(tiny.convnext(depths=[3, 2]))
        assert [len(stage.layers) for stage in tower.layers] == [3, 2]


class TestFreeze:
    @pytest.mark.slow
    @every_family
    @pytest.mark.parametrize("which", ["lowest", "every"])
    def test_the_graph_begins_above_the_frozen_layers(self, architecture: tiny.Architecture, which: str) -> None:
        freeze = 1 if which == "lowest" else len(build(architecture).layers)
        tower = build(architecture, freeze=freeze)
        asks: list[bool] = []
        for layer in tower.layers:
            layer.register_forward_hook(lambda _, __, output: asks.append(output.requires_grad))
        value = loss(tower)
        assert asks == [number >= freeze for number in range(len(tower.layers))]
        if trained(tower):  # a tower without a head ends with its layers
            value.backward()
        assert gradients(tower).keys() == trained(tower)

    @pytest.mark.slow
    @every_family
    def test_all_above_the_frozen_layers_is_trained(self, architecture: tiny.Architecture) -> None:
        """Without the higher layers those are the heads: a final norm, a pooler, a last convolution."""
        tower = build(architecture, freeze=1)
        (path,) = (name for name, module in tower.named_modules() if module is tower.layers)
        upper = {f"{path}.{name}" for name, _ in tower.layers.named_parameters() if not name.startswith("0.")}
        heads = {name for name, _ in tower.named_parameters() if name.removeprefix("model.").startswith(HEADS)}
        assert trained(tower) == upper | heads
        assert trained(build(architecture, freeze=len(tower.layers))) == heads

    @pytest.mark.slow
    @every_family
    def test_all(self, architecture: tiny.Architecture) -> None:
        """No graph, and evaluation mode whatever the model around it is in."""
        tower = build(with_dropout(architecture, 0.3), freeze="all")
        around = nn.ModuleList([tower]).train()
        assert around.training
        assert not any(module.training for module in tower.modules())
        assert trained(tower) == set()
        states = tower(*inputs(tower))
        assert not any(state.requires_grad for state in states)
        assert torch.equal(states.pooled, tower(*inputs(tower)).pooled)

    def test_all_by_number(self) -> None:
        """A BERT without its pooler ends with its layers."""
        assert not build(tiny.bert(), freeze=LAYERS).training
        assert build(tiny.bert(), freeze=LAYERS, pool="pooler").training

    @pytest.mark.slow
    @every_family
    def test_nothing(self, architecture: tiny.Architecture) -> None:
        assert trained(build(architecture)) == dict(build(architecture).named_parameters()).keys()

    def test_more_layers_than_there_are(self) -> None:
        with pytest.raises(ConfigError, match=r"text tower: freeze is 3, but this 'bert' has 2 layers.*2 or less"):
            build(tiny.bert(), freeze=3)
        with pytest.raises(ConfigError, match=r"vision tower: freeze is 5, but this 'convnext' has 2 layers"):
            build(tiny.convnext(), freeze=5)

    @pytest.mark.parametrize("freeze", [-1, 1.5, True, "some"])
    def test_neither_a_number_of_layers_nor_all(self, freeze: Any) -> None:
        with pytest.raises(ValidationError):
            TowerSettings(architecture=tiny.bert(), freeze=freeze)


class TestGradientCheckpointing:
    @pytest.mark.slow
    @every_transformer
    def test_same_states_and_gradients_with_fewer_bytes(self, architecture: tiny.Architecture) -> None:
        dropped = with_dropout(architecture, 0.3)
        plain, checkpointed = build(dropped), build(dropped, gradient_checkpointing=True)
        losses = [loss(plain), loss(checkpointed)]
        assert torch.equal(*losses)
        for value in losses:
            value.backward()
        torch.testing.assert_close(gradients(checkpointed), gradients(plain), rtol=0, atol=0)
        assert saved_bytes(checkpointed) < saved_bytes(plain) / 2

    @pytest.mark.slow
    @every_transformer
    def test_dropout_is_on(self, architecture: tiny.Architecture) -> None:
        """So that the test above compares something: without it the loss is another one."""
        tower = build(with_dropout(architecture, 0.3), gradient_checkpointing=True)
        assert not torch.equal(loss(tower), loss(tower.eval()))

    @pytest.mark.slow
    @every_transformer
    def test_transformers_has_nothing_to_say(self, architecture: tiny.Architecture) -> None:
        messages: list[logging.LogRecord] = []
        handler = logging.Handler()
        handler.emit = messages.append  # type: ignore[method-assign]
        logging.getLogger("transformers").addHandler(handler)
        logging.Logger.warning_once.cache_clear()  # type: ignore[attr-defined]
        tower = build(architecture, gradient_checkpointing=True)
        tower(*inputs(tower))
        logging.getLogger("transformers").removeHandler(handler)
        assert messages == []

    @pytest.mark.slow
    @every_transformer
    @pytest.mark.parametrize("freeze", [1, "all"])
    def test_no_graph_through_frozen_layers(self, architecture: tiny.Architecture, freeze: Any) -> None:
        tower = build(architecture, freeze=freeze, gradient_checkpointing=True)
        asks: list[bool] = []
        for layer in tower.layers:
            layer.register_forward_hook(lambda _, __, output: asks.append(output.requires_grad))
        loss(tower)
        assert asks == [False, freeze == 1]

    @pytest.mark.parametrize(
        "architecture",
        [architecture for architecture in ARCHITECTURES if architecture["model_type"] in CONVOLUTIONAL],
        ids=lambda architecture: architecture["model_type"],
    )
    def test_not_for_convolutional_encoders(self, architecture: tiny.Architecture) -> None:
        name = architecture["model_type"]
        with pytest.raises(
            ConfigError, match=f"vision tower: transformers offers no gradient checkpointing for '{name}"
        ):
            build(architecture, gradient_checkpointing=True)


class TestLora:
    @pytest.mark.slow
    @every_family_for_lora
    def test_only_the_updates_are_trained(self, architecture: tiny.Architecture) -> None:
        tower = build(architecture, lora={"rank": 2})
        loss(tower).backward()
        assert gradients(tower).keys() == trained(tower)
        assert {name.split(".")[-3] for name in trained(tower)} == {"lora_A", "lora_B"}
        linear = [module for module in build(architecture).layers.modules() if isinstance(module, nn.Linear)]
        assert len(trained(tower)) == 2 * len(linear)

    @pytest.mark.slow
    @every_family_for_lora
    def test_nothing_changes_at_first(self, architecture: tiny.Architecture) -> None:
        plain, updated = build(architecture).eval(), build(architecture, lora={}).eval()
        torch.testing.assert_close(loss(updated), loss(plain))

    @pytest.mark.slow
    @every_family_for_lora
    def test_rebuilt_from_its_own_settings(self, architecture: tiny.Architecture) -> None:
        lora = LoraSettings(rank=3, alpha=5.0, dropout=0.1)
        tower = build(architecture, lora=lora, freeze=1).eval()
        with torch.no_grad():
            for parameter in tower.parameters():
                parameter.add_(torch.randn_like(parameter) / 10)
        settings = type(tower.settings).model_validate_json(tower.settings.model_dump_json())
        assert settings.lora == lora
        rebuilt = build(**settings.model_dump()).eval()
        rebuilt.load_state_dict(tower.state_dict())
        assert torch.equal(loss(rebuilt), loss(tower))
        assert rebuilt.settings == tower.settings

    @pytest.mark.slow
    @every_family_for_lora
    def test_frozen_layers_have_no_update(self, architecture: tiny.Architecture) -> None:
        tower = build(architecture, lora={}, freeze=1)
        updated = [any("lora" in name for name, _ in layer.named_parameters()) for layer in tower.layers]
        assert updated == [False, True]

    def test_an_update_is_a_low_rank_product(self) -> None:
        """W x + alpha / rank * B A x."""
        tower = build(tiny.bert(), lora={"rank": 2, "alpha": 6.0, "targets": ["query"]}).eval()
        query = tower.layers[0].attention.self.query
        down, up = query.lora_A["default"].weight, query.lora_B["default"].weight
        assert (down.shape, up.shape) == ((2, 32), (32, 2))
        nn.init.normal_(up)
        x = torch.randn(4, 32, dtype=torch.float64)
        weight = query.base_layer.weight + 6.0 / 2 * up @ down
        torch.testing.assert_close(query(x), x @ weight.T + query.base_layer.bias)

    def test_targets(self) -> None:
        tower = build(tiny.bert(), lora={"targets": ["value", "output.dense"]})
        names = {name.split(".lora_")[0].partition("layer.1.")[2] for name in trained(tower)}
        assert names - {""} == {"attention.self.value", "attention.output.dense", "output.dense"}

    def test_as_many_layers_as_real_encoders_have(self) -> None:
        """peft shortens long lists of targets to their ends; the pooler and the frozen layers must stay out."""
        tower = build(tiny.bert(num_hidden_layers=12), lora={}, freeze=3, pool="pooler")
        assert len(trained(tower)) == 2 * 6 * 9
        assert all(int(name.split("layer.")[1].split(".")[0]) >= 3 for name in trained(tower))

    def test_a_target_that_is_not_there(self) -> None:
        known = r"Known are: dense, key, query, value\."
        with pytest.raises(ConfigError, match=rf"text tower: lora\.targets has 'q_proj'.*{known}"):
            build(tiny.bert(), lora={"targets": ["query", "q_proj"]})

    @pytest.mark.parametrize("architecture", [tiny.bert(), tiny.vit()])
    def test_with_gradient_checkpointing(self, architecture: tiny.Architecture) -> None:
        plain, checkpointed = (build(architecture, lora={}, gradient_checkpointing=on) for on in (False, True))
        loss(plain).backward()
        loss(checkpointed).backward()
        assert gradients(plain)
        torch.testing.assert_close(gradients(checkpointed), gradients(plain), rtol=0, atol=0)

    @pytest.mark.parametrize("architecture", tiny.BATCH_NORMALISED, ids=lambda architecture: architecture["model_type"])
    def test_without_linear_layers(self, architecture: tiny.Architecture) -> None:
        name = architecture["model_type"]
        with pytest.raises(
            ConfigError, match=f"vision tower: lora updates linear layers, and '{name}' has none. Remove"
        ):
            build(architecture, lora={})

    def test_all_frozen(self) -> None:
        with pytest.raises(ValidationError, match="remove freeze"):
            TowerSettings(architecture=tiny.bert(), lora=LoraSettings(), freeze="all")
        with pytest.raises(ConfigError, match=r"text tower: freeze leaves no layer for lora"):
            build(tiny.bert(), lora={}, freeze=LAYERS)

    def test_without_peft(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(ConfigError, match=r'vision tower: lora needs peft.*pip install "spanbox\[lora\]"'):
            build(tiny.vit(), lora={})
