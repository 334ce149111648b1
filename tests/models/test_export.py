"""Saved encoders: transformers opens the folder and gives the same states, with and without LoRA."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

import tiny
from encoders import VOCABULARY, tokenizer
from full_disk import full_disk
from spanbox.errors import OutputError
from spanbox.models.export import ImageProcessorFiles, make_exportable
from spanbox.models.preprocessing import Preprocessing
from spanbox.models.tower_settings import TowerSettings, VisionTowerSettings
from spanbox.models.towers import Tower, build_text_tower, build_vision_tower

LORA = {"rank": 4}
TEXT = [tiny.bert, tiny.roberta, tiny.distilbert, tiny.electra, tiny.clip_text]
VISION = [tiny.vit, tiny.deit, tiny.clip_vision, tiny.siglip_vision, tiny.dinov2, tiny.convnext]
BATCH_NORMALISED = [tiny.resnet, tiny.regnet, tiny.efficientnet, tiny.mobilenet_v2]


def trained(tower: Tower) -> Any:
    """The encoder of a tower that training moved: a fresh LoRA update is zero and would hide its loss."""
    with torch.no_grad():
        for parameter in tower.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for module in tower.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 2.0)  # the statistics of its pretraining
    return tower.eval().model


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("architecture", TEXT, ids=lambda make: make.__name__)
def test_text(architecture: Any, lora: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = TowerSettings(architecture=architecture(vocab_size=VOCABULARY), lora=lora)
    encoder = trained(build_text_tower(settings))
    names = set(encoder.state_dict())
    make_exportable(encoder, tokenizer())
    encoder.save_pretrained(tmp_path / "text")
    assert set(encoder.state_dict()) == names  # the encoder itself stays as it was
    opened = AutoModel.from_pretrained(tmp_path / "text").eval()
    read = AutoTokenizer.from_pretrained(tmp_path / "text")
    assert read.tokenize("the red kite") == tokenizer().tokenize("the red kite") == ["the", "red", "kite"]
    inputs = {
        name: read("the red kite and the otter", return_tensors="pt")[name] for name in ("input_ids", "attention_mask")
    }
    torch.testing.assert_close(opened(**inputs).last_hidden_state, encoder(**inputs).last_hidden_state)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "lora"),
    [(make, lora) for make in VISION for lora in (None, LORA)] + [(make, None) for make in BATCH_NORMALISED],
    ids=lambda value: getattr(value, "__name__", "lora" if value else "full"),
)
def test_vision(architecture: Any, lora: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = VisionTowerSettings(architecture=architecture(), lora=lora, **tiny.needs(architecture()))
    encoder = trained(build_vision_tower(settings))
    preprocessing = Preprocessing(image_size=tiny.IMAGE_SIZE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    make_exportable(encoder, ImageProcessorFiles(preprocessing))
    encoder.save_pretrained(str(tmp_path))
    opened = AutoModel.from_pretrained(tmp_path).eval()
    pixels = torch.randn(2, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)
    torch.testing.assert_close(opened(pixels).last_hidden_state, encoder(pixels).last_hidden_state)
    assert Preprocessing.from_model_folder(tmp_path, tiny.IMAGE_SIZE) == preprocessing
    processor = AutoImageProcessor.from_pretrained(tmp_path, use_fast=False)
    white = processor(Image.new("RGB", (50, 40), "white"), return_tensors="pt")["pixel_values"]
    assert white.shape == (1, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)
    torch.testing.assert_close(white[0, :, 0, 0], torch.tensor([3.0, 0.5 / 0.3, 1.0]))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [tiny.vit, tiny.deit, tiny.clip_vision, tiny.siglip_vision, tiny.dinov2])
def test_another_image_size_is_that_of_the_folder(architecture: Any, tmp_path: Path) -> None:
    """The positions are interpolated in the folder, so that images of the size need no argument."""
    torch.manual_seed(0)
    size = 2 * tiny.IMAGE_SIZE
    tower = build_vision_tower(VisionTowerSettings(architecture=architecture(), image_size=size))
    encoder = trained(tower)
    make_exportable(encoder, ImageProcessorFiles(Preprocessing(image_size=size)))
    encoder.save_pretrained(tmp_path)
    opened = AutoModel.from_pretrained(tmp_path).eval()
    pixels = torch.randn(2, 3, size, size)
    arguments = {} if encoder.config.model_type == "dinov2" else {"interpolate_pos_encoding": True}
    expected = encoder(pixels, **arguments).last_hidden_state
    torch.testing.assert_close(opened(pixels).last_hidden_state, expected, rtol=0, atol=1e-5)
    assert AutoImageProcessor.from_pretrained(tmp_path, use_fast=False).size["height"] == size
    assert encoder.config.image_size == tiny.IMAGE_SIZE  # the encoder itself stays as it was


def test_a_full_disk(tmp_path: Path) -> None:
    encoder = build_text_tower(TowerSettings(architecture=tiny.bert(vocab_size=VOCABULARY))).model
    make_exportable(encoder, tokenizer())
    with full_disk(5000), pytest.raises(OutputError, match=r"encoder: cannot be written .*; free space"):
        encoder.save_pretrained(tmp_path / "encoder")


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    encoder = build_text_tower(TowerSettings(architecture=tiny.bert(vocab_size=VOCABULARY))).model
    make_exportable(encoder, tokenizer())
    with pytest.raises(OutputError, match="is a file; give a folder"):
        encoder.save_pretrained(tmp_path / "taken")
