"""Trained towers as transformers folders: `save_pretrained` writes weights, config and preprocessing.

An encoder with LoRA has names of weights that transformers fills with random numbers, an image encoder at another size
than its own needs an argument to accept such images, and an encoder by itself has no tokenizer. Here the encoder
becomes a subclass of its own class whose `save_pretrained` writes a copy with the updates merged and the positions
interpolated, and the tokenizer or image processor beside it. `AutoModel`, `AutoTokenizer` and `AutoImageProcessor` open
the folder without arguments.

A tower that does not use its pooler has none, so transformers gives `pooler_output` random weights, with a warning;
`AutoModel.from_pretrained(folder, add_pooling_layer=False)` leaves it out (BERT, RoBERTa, ViT, DeiT).
"""

import copy
import json
import os
from functools import cache
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from spanbox.errors import OutputError
from spanbox.files import explained
from spanbox.models.encoder_config import side
from spanbox.models.families import VISION_FAMILIES
from spanbox.models.preprocessing import FILE_NAMES, Preprocessing


class Companion(Protocol):
    """A tokenizer or an image processor."""

    def save_pretrained(self, folder: str) -> Any: ...


class ImageProcessorFiles:
    """The image processor of a vision tower: bicubic to a square, then normalised channel by channel."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing

    def save_pretrained(self, folder: str) -> None:
        side = self.preprocessing.image_size
        values = {
            "image_processor_type": "ViTImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"height": side, "width": side},
            "resample": 3,  # bicubic
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.preprocessing.mean),
            "image_std": list(self.preprocessing.std),
        }
        (Path(folder) / FILE_NAMES[0]).write_text(json.dumps(values, indent=2), encoding="utf-8")


class _Exporting:
    """Mixin before the class of a transformers encoder."""

    companion: Companion

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        folder = os.fspath(save_directory)
        if Path(folder).is_file():
            raise OutputError(f"{folder}: is a file; give a folder to save the encoder to")
        own_size = self.companion.preprocessing.image_size if isinstance(self.companion, ImageProcessorFiles) else None
        exported: Any = exportable(self, own_size)
        with explained(Path(folder)):
            super(_Exporting, exported).save_pretrained(folder, *args, **kwargs)  # type: ignore[misc]
            self.companion.save_pretrained(folder)


def make_exportable(encoder: Any, companion: Companion) -> None:
    """Let the encoder's `save_pretrained` write a folder that transformers opens with the same outputs, in place."""
    encoder.__class__ = _exporting_class(type(encoder))  # type: ignore[arg-type]
    encoder.companion = companion


@cache
def _exporting_class(encoder_class: Any) -> Any:
    # Of the same name, which transformers writes into the config.
    return type(encoder_class.__name__, (_Exporting, encoder_class), {"__module__": encoder_class.__module__})


def exportable(encoder: Any, image_size: int | None = None) -> Any:
    """The encoder with LoRA updates merged and position embeddings for `image_size`: itself, or a changed copy."""
    return _resized(_merged(encoder), image_size)


def _merged(encoder: Any) -> Any:
    """The encoder; if it has LoRA updates, a copy in which they are added to the weights."""
    try:
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError:
        return encoder
    if not any(isinstance(module, BaseTunerLayer) for module in encoder.modules()):
        return encoder
    merged: nn.Module = copy.deepcopy(encoder)
    merged.__dict__.pop("peft_config", None)
    for name, module in list(merged.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            parent, _, own = name.rpartition(".")
            setattr(merged.get_submodule(parent), own, module.get_base_layer())
    return merged


def _resized(encoder: Any, image_size: int | None) -> Any:
    """The encoder; if its position embeddings belong to another image size, a copy with interpolated ones."""
    family = VISION_FAMILIES.get(encoder.config.model_type)
    if image_size is None or family is None or not family.has_interpolate_argument:
        return encoder
    own = side(encoder.config.image_size)
    if own == image_size:
        return encoder
    resized = copy.deepcopy(encoder)
    embeddings, stride = resized.embeddings, family.stride(encoder.config)
    with torch.no_grad():
        prefix = _positions(embeddings).shape[-2] - (own // stride) ** 2
        tokens = torch.zeros(1, prefix + (image_size // stride) ** 2, encoder.config.hidden_size)
        interpolated = embeddings.interpolate_pos_encoding(tokens, image_size, image_size)
    if hasattr(embeddings, "position_embeddings"):
        embeddings.position_embeddings = nn.Parameter(interpolated)
    else:
        embeddings.position_embedding.weight = nn.Parameter(interpolated[0])
    resized.config.image_size = image_size
    return resized


def _positions(embeddings: Any) -> Tensor:
    """The weights of position embeddings, (1, T, H) or (T, H)."""
    if hasattr(embeddings, "position_embeddings"):
        return cast(Tensor, embeddings.position_embeddings)
    return cast(Tensor, embeddings.position_embedding.weight)
