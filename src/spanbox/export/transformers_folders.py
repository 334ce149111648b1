"""Export to transformers: each tower as a folder for `AutoModel`, and the pair as a `VisionTextDualEncoderModel`.

    text/             encoder and tokenizer
    vision/           encoder and image processor
    heads.*           layers from the towers to the features
    dual_encoder/     the coarse level as one model, where this class can represent it

`VisionTextDualEncoderModel` projects the output of each encoder's pooler, without a bias. A model that pools the first
token has no use for a pooler, so its layer becomes the pooler: with activation `linear` in ViT as it is, in BERT scaled
down to where tanh is the identity in float32, and scaled up again by the projection.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
)

from spanbox.api import Model
from spanbox.export.heads import write_heads

TANH_POOLER = frozenset(("bert", "ernie", "roberta", "xlm-roberta", "camembert"))
ANY_POOLER = frozenset(("vit", "deit"))
WITHOUT_POOLER = TANH_POOLER | ANY_POOLER | {"chinese_clip_text_model"}
POOLER_NOTE = (
    "{parts}: trained without a pooler. `AutoModel.from_pretrained('{first}', add_pooling_layer=False)` leaves it out; "
    "otherwise transformers gives `pooler_output` random weights, with a warning."
)
PADDED_NOTE = (
    "Trained with data.aspect=pad: images kept their aspect ratio, and patches of padding were not encoded. An image "
    "processor of transformers cannot do so; the one in `vision/` stretches images to the square, so the features of "
    "those that are not square differ from `spanbox.load`'s."
)
LINEAR = 1e-5
"""Scale at which tanh(x) = x in float32 for |x| up to 50."""


def write_transformers(model: Model, folder: Path) -> list[str]:
    """Write the folders. Returns notes."""
    model.save_towers(folder)
    write_heads(model, folder)
    unpooled = [part for part in ("text", "vision") if _lost_its_pooler(getattr(model.model, part))]
    notes = [POOLER_NOTE.format(parts=" and ".join(unpooled), first=unpooled[0])] if unpooled else []
    if model.config.data.aspect == "pad":
        notes.append(PADDED_NOTE)
    reason = _why_no_dual_encoder(model)
    if reason:
        return [
            *notes,
            f"No dual_encoder/: VisionTextDualEncoderModel {reason}. Use both towers and heads.safetensors.",
        ]
    _write_dual_encoder(model, folder)
    return notes


def _lost_its_pooler(tower: Any) -> bool:
    """Whether transformers would give the encoder a pooler that was not trained."""
    return tower.settings.pool != "pooler" and tower.model.config.model_type in WITHOUT_POOLER


def _why_no_dual_encoder(model: Model) -> str | None:
    """The reason why the class cannot give the same scores; None where it can."""
    known = {"text": TANH_POOLER, "vision": ANY_POOLER}
    for part in ("text", "vision"):
        tower: Any = getattr(model.model, part)
        kind, pool = tower.model.config.model_type, tower.settings.pool
        if kind not in known[part]:
            return f"takes the pooler output of {kind!r} without a bias, which this model's layer has"
        if pool != "cls":
            return f"takes the state of the first token, but this model pools with {part}.pool={pool}"
        if model.dim > tower.width:
            return f"cannot hold {model.dim} features of an encoder with states of {tower.width}"
    return None


def _write_dual_encoder(model: Model, folder: Path) -> None:
    text, vision = (AutoModel.from_pretrained(folder / part) for part in ("text", "vision"))
    vision.config.pooler_act = "linear"
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        vision.config, text.config, projection_dim=model.dim, logit_scale_init_value=_log_scale(model)
    )
    pair = VisionTextDualEncoderModel(config=config)
    pair.text_model.load_state_dict(text.state_dict())
    pair.vision_model.load_state_dict(vision.state_dict())
    with torch.no_grad():
        pair.logit_scale.fill_(_log_scale(model))
        _fill(pair.text_model.pooler.dense, pair.text_projection, model.model.text_projection, LINEAR)
        _fill(pair.vision_model.pooler.dense, pair.visual_projection, model.model.image_projection, 1.0)
    pair.save_pretrained(folder / "dual_encoder")
    VisionTextDualEncoderProcessor(
        AutoImageProcessor.from_pretrained(folder / "vision", use_fast=False),
        AutoTokenizer.from_pretrained(folder / "text"),
    ).save_pretrained(folder / "dual_encoder")


def _fill(pooler: nn.Linear, projection: nn.Linear, layer: nn.Linear, scale: float) -> None:
    """Let pooler and projection, one after the other, compute `layer`."""
    for parameter in (pooler.weight, pooler.bias, projection.weight):
        parameter.zero_()
    pooler.weight[: layer.out_features] = scale * layer.weight
    pooler.bias[: layer.out_features] = scale * layer.bias
    projection.weight[:, : layer.out_features] = torch.eye(layer.out_features) / scale


def _log_scale(model: Model) -> float:
    return -math.log(model.objective.temperatures()["coarse"])
