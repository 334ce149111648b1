"""Weights from local folders: all of them, only what is wanted, without noise; and every way in which it can fail."""

import json
import os
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetForImageClassification,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
)

import tiny
from spanbox.errors import CheckpointError, ConfigError
from spanbox.models.tower_settings import TowerSettings, VisionTowerSettings
from spanbox.models.towers import TextTower, VisionTower, build_text_tower, build_vision_tower
from spanbox.models.trainable import LoraSettings

TWO_TOWERS = {
    "clip": (CLIPModel, CLIPConfig, tiny.clip_text, tiny.clip_vision),
    "siglip": (SiglipModel, SiglipConfig, tiny.siglip_text, tiny.siglip_vision),
    "chinese_clip": (ChineseCLIPModel, ChineseCLIPConfig, tiny.chinese_clip_text, tiny.chinese_clip_vision),
}


def text(path: Path, pool: Any = "auto") -> TextTower:
    return build_text_tower(TowerSettings(path=str(path), pool=pool))


def vision(path: Path, pool: Any = "auto") -> VisionTower:
    return build_vision_tower(VisionTowerSettings(path=str(path), pool=pool))


def assert_weights(tower: TextTower | VisionTower, original: torch.nn.Module) -> None:
    """Every weight of the tower is the original's; what the original has beyond is not asked for."""
    expected = original.state_dict()
    for name, weight in tower.model.state_dict().items():
        assert torch.equal(weight, expected[name]), name


def without(folder: Path, *names: str) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k not in names}, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture
def masked_lm(tmp_path: Path) -> tuple[BertForMaskedLM, Path]:
    """BERT as most of them are published: with a head for masked words, without a pooler."""
    model = BertForMaskedLM(BertConfig(**tiny.bert()))
    model.save_pretrained(tmp_path / "bert")
    return model, tmp_path / "bert"


class TestLoading:
    @pytest.mark.slow
    def test_with_lora(self, masked_lm: tuple[BertForMaskedLM, Path]) -> None:
        """The weights below the updates are the folder's, and can be had again without it."""
        original, folder = masked_lm
        tower = build_text_tower(TowerSettings(path=str(folder), lora=LoraSettings(), freeze=1))
        own = {name: weight for name, weight in tower.model.state_dict().items() if "lora_" not in name}
        assert len(own) < len(tower.model.state_dict())
        expected = original.bert.state_dict()
        for name, weight in own.items():
            assert torch.equal(weight, expected[name.replace("base_layer.", "")]), name
        rebuilt = build_text_tower(tower.settings)
        rebuilt.load_state_dict(tower.state_dict())
        assert rebuilt.settings.path is None

    @pytest.mark.slow
    @pytest.mark.parametrize("family", TWO_TOWERS)
    def test_halves_of_two_tower_models(self, family: str, tmp_path: Path) -> None:
        model_class, config_class, text_architecture, vision_architecture = TWO_TOWERS[family]
        model = model_class(config_class(text_config=text_architecture(), vision_config=vision_architecture()))
        model.save_pretrained(tmp_path)
        assert_weights(text(tmp_path), model.text_model)
        assert_weights(vision(tmp_path), model.vision_model)

    @pytest.mark.slow
    @pytest.mark.parametrize("family", TWO_TOWERS)
    def test_a_half_saved_by_itself(self, family: str, tmp_path: Path) -> None:
        model_class, config_class, text_architecture, vision_architecture = TWO_TOWERS[family]
        model = model_class(config_class(text_config=text_architecture(), vision_config=vision_architecture()))
        model.text_model.save_pretrained(tmp_path / "text")
        model.vision_model.save_pretrained(tmp_path / "vision")
        assert_weights(text(tmp_path / "text"), model.text_model)
        assert_weights(vision(tmp_path / "vision"), model.vision_model)

    def test_bert_behind_a_head(self, masked_lm: tuple[BertForMaskedLM, Path]) -> None:
        model, folder = masked_lm
        assert_weights(text(folder), model.bert)

    def test_vit_behind_a_head(self, tmp_path: Path) -> None:
        model = ViTForImageClassification(ViTConfig(**tiny.vit()))
        model.save_pretrained(tmp_path)
        assert_weights(vision(tmp_path), model.vit)

    def test_resnet_behind_a_head(self, tmp_path: Path) -> None:
        """With its statistics. Old files lack the count of batches, which nothing reads once they are frozen."""
        model = ResNetForImageClassification(ResNetConfig(**tiny.resnet()))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.normal_(module.running_mean)
                torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
        model.save_pretrained(tmp_path)
        without(tmp_path, *(name for name in model.state_dict() if name.endswith("num_batches_tracked")))
        tower = build_vision_tower(VisionTowerSettings(path=str(tmp_path), freeze_norm=True))
        assert tower.image_size == 224
        assert_weights(tower, model.resnet)

    def test_mask_token_is_left_behind(self, tmp_path: Path) -> None:
        model = Dinov2Model(Dinov2Config(**tiny.dinov2()))
        model.save_pretrained(tmp_path)
        assert "embeddings.mask_token" in model.state_dict()
        tower = vision(tmp_path)
        assert_weights(tower, model)
        assert "embeddings.mask_token" not in tower.model.state_dict()

    def test_rebuilt_without_the_folder(self, masked_lm: tuple[BertForMaskedLM, Path]) -> None:
        _, folder = masked_lm
        tower = text(folder).eval()
        assert tower.settings.path is None
        rebuilt = build_text_tower(tower.settings).eval()
        rebuilt.load_state_dict(tower.state_dict())
        inputs = torch.randint(5, 60, (2, 6)), torch.ones(2, 6, dtype=torch.bool)
        assert torch.equal(rebuilt(*inputs).pooled, tower(*inputs).pooled)

    def test_half_precision_becomes_float32(self, tmp_path: Path) -> None:
        BertForMaskedLM(BertConfig(**tiny.bert())).half().save_pretrained(tmp_path)
        assert {parameter.dtype for parameter in text(tmp_path).parameters()} == {torch.float32}

    def test_in_training_mode_like_a_new_one(self, masked_lm: tuple[BertForMaskedLM, Path]) -> None:
        assert all(module.training for module in text(masked_lm[1]).modules())

    def test_says_nothing(
        self, masked_lm: tuple[BertForMaskedLM, Path], capfd: pytest.CaptureFixture[str], caplog: Any
    ) -> None:
        capfd.readouterr()
        text(masked_lm[1])
        build_text_tower(TowerSettings(architecture=tiny.siglip_text()))  # transformers warns of its special tokens
        captured = capfd.readouterr()
        assert (captured.out, captured.err, caplog.text) == ("", "", "")

    def test_home_folder(
        self, masked_lm: tuple[BertForMaskedLM, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        assert build_text_tower(TowerSettings(path="~/bert")).width == 32

    def test_name_in_the_cache(
        self, masked_lm: tuple[BertForMaskedLM, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, folder = masked_lm
        repository = tmp_path / "models--somebody--bert-tiny"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40)
        (repository / "snapshots").mkdir()
        folder.rename(repository / "snapshots" / ("0" * 40))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        assert_weights(build_text_tower(TowerSettings(path="somebody/bert-tiny")), model.bert)


class TestWeightsThatDoNotFit:
    def test_missing(self, masked_lm: tuple[BertForMaskedLM, Path]) -> None:
        _, folder = masked_lm
        without(folder, "bert.encoder.layer.1.output.dense.bias")
        with pytest.raises(CheckpointError, match=r"lacks 1 of the weights.*encoder\.layer\.1\.output\.dense\.bias"):
            text(folder)

    def test_missing_pooler(self, masked_lm: tuple[BertForMaskedLM, Path]) -> None:
        with pytest.raises(CheckpointError, match=r"pooler\.dense.*set pool to cls or mean"):
            text(masked_lm[1], "pooler")

    def test_of_another_shape(self, masked_lm: tuple[BertForMaskedLM, Path]) -> None:
        _, folder = masked_lm
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
        with pytest.raises(CheckpointError, match="cannot load the weights"):
            text(folder)

    def test_damaged(self, masked_lm: tuple[BertForMaskedLM, Path]) -> None:
        _, folder = masked_lm
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        with pytest.raises(CheckpointError, match="cannot load the weights"):
            text(folder)

    def test_absent(self, masked_lm: tuple[BertForMaskedLM, Path]) -> None:
        _, folder = masked_lm
        (folder / "model.safetensors").unlink()
        with pytest.raises(CheckpointError, match="cannot load the weights"):
            text(folder)


class TestFoldersThatDoNotFit:
    def test_absent(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"text tower: there is no folder .*/nowhere.*hf download"):
            text(tmp_path / "nowhere")

    def test_without_config(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"has no config\.json"):
            vision(tmp_path)

    @pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model_type": "nonsense"}'])
    def test_config_that_is_none(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ConfigError, match=r"config\.json is not a transformers config"):
            text(tmp_path)

    @pytest.mark.parametrize(("name", "value"), [("hidden_act", "/"), ("num_attention_heads", -1)])
    def test_config_that_is_damaged(self, masked_lm: tuple[BertForMaskedLM, Path], name: str, value: str | int) -> None:
        path = masked_lm[1] / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
        with pytest.raises((ConfigError, CheckpointError), match="text tower: "):
            text(masked_lm[1])

    @pytest.mark.parametrize("path", ["nobody/bert-tiny", "models/bert-base-uncased"])
    def test_name_that_is_not_cached(self, path: str) -> None:
        """It may be the name of a folder that was not downloaded, which is no name of the hub."""
        advice = "hf download NAME --local-dir DIR`, such as google-bert/bert-base-uncased, and set model.text.path=DIR"
        with pytest.raises(ConfigError, match=rf"there is no folder {path}.*nothing is downloaded.*{advice}"):
            build_text_tower(TowerSettings(path=path))

    def test_text_encoder_as_vision_tower(self, masked_lm: tuple[BertForMaskedLM, Path]) -> None:
        with pytest.raises(ConfigError, match=r"'bert' is not a supported family for the vision tower. Known: .*vit"):
            vision(masked_lm[1])


class TestArchitecturesThatDoNotFit:
    def test_unknown_family(self) -> None:
        with pytest.raises(ConfigError, match="'gpt2' is not a supported family"):
            build_text_tower(TowerSettings(architecture={"model_type": "gpt2"}))

    def test_unknown_model_type(self) -> None:
        with pytest.raises(ConfigError, match=r"no model_type 'robertta'. Did you mean 'roberta'"):
            build_text_tower(TowerSettings(architecture={"model_type": "robertta"}))

    def test_unknown_key(self) -> None:
        with pytest.raises(ConfigError, match=r"key 'num_hidden_layer'.*Did you mean 'num_hidden_layers'"):
            build_text_tower(TowerSettings(architecture=tiny.bert(num_hidden_layer=3)))

    @pytest.mark.parametrize(
        "values",
        [
            {"hidden_size": "big"},
            {"hidden_size": 33},
            {"hidden_act": "nonsense"},
            {"hidden_dropout_prob": float("nan")},
            {"num_attention_heads": -1},
            {"num_hidden_layers": 0},
        ],
        ids=str,
    )
    def test_impossible_values(self, values: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match="text tower: "):
            build_text_tower(TowerSettings(architecture=tiny.bert(**values)))

    @pytest.mark.parametrize("values", [{"image_size": []}, {"num_channels": 1}, {"num_channels": 0}], ids=str)
    def test_impossible_images(self, values: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match="vision tower: "):
            build_vision_tower(VisionTowerSettings(architecture=tiny.vit(**values)))

    def test_an_error_of_many_lines_is_one_line(self) -> None:
        with pytest.raises(ConfigError) as caught:
            build_text_tower(TowerSettings(architecture=tiny.bert(vocab_size=2**70)))
        assert "\n" not in str(caught.value)

    def test_pool_that_the_family_lacks(self) -> None:
        with pytest.raises(
            ConfigError, match=r"^model\.text\.pool: 'pooler', but 'electra' has no pooler; set it to auto, cls or mean"
        ):
            build_text_tower(TowerSettings(architecture=tiny.electra(), pool="pooler"))
        with pytest.raises(
            ConfigError, match=r"^model\.vision\.pool: 'cls', but 'siglip_vision_model' has no class token"
        ):
            build_vision_tower(VisionTowerSettings(architecture=tiny.siglip_vision(), pool="cls"))


class TestSettings:
    def test_neither_path_nor_architecture(self) -> None:
        with pytest.raises(ValidationError, match="give either path"):
            TowerSettings()

    def test_both(self) -> None:
        with pytest.raises(ValidationError, match="not both"):
            TowerSettings(path="bert", architecture=tiny.bert())

    def test_architecture_without_a_type(self) -> None:
        with pytest.raises(ValidationError, match="needs a model_type"):
            TowerSettings(architecture={"hidden_size": 32})

    def test_image_size_below_one(self) -> None:
        with pytest.raises(ValidationError, match="image_size"):
            VisionTowerSettings(architecture=tiny.vit(), image_size=0)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:53aa51172d142c89d9012cce15ae4d6c\nsize 90868376\n"


class TestGitLfs:
    @pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "vocab.txt"])
    def test_pointers_are_refused_by_name(self, name: str, tmp_path: Path) -> None:
        BertModel(BertConfig(**tiny.bert())).save_pretrained(tmp_path)
        (tmp_path / name).write_text(POINTER)
        with pytest.raises(ConfigError, match=rf"{name} is a Git LFS pointer, not the file.*git lfs pull.*hf download"):
            build_text_tower(TowerSettings(path=str(tmp_path)))

    def test_a_named_pipe_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        os.mkfifo(tmp_path / "model.safetensors")
        with pytest.raises(ConfigError, match=r"model\.safetensors is not a regular file"):
            build_vision_tower(VisionTowerSettings(path=str(tmp_path)))

    def test_pointers_of_unused_files_are_accepted(self, tmp_path: Path) -> None:
        BertModel(BertConfig(**tiny.bert())).save_pretrained(tmp_path)
        (tmp_path / "pytorch_model.bin").write_text(POINTER)
        assert build_text_tower(TowerSettings(path=str(tmp_path))).width == 32
