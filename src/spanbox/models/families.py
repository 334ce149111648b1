"""What differs between the transformer families that can be towers: one row for each `model_type` of transformers.

The towers are written once; what a family does in its own way is a fact in its row. A family that is not listed is
refused rather than guessed at: a wrong guess about the class token or the order of the patches shows in no loss curve.
To add one, add a row and a tiny architecture to `tests/tiny.py`; the tower tests then check every claim of the row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from transformers import AutoModel, ChineseCLIPTextModel, SiglipTextModel

Pool = Literal["cls", "mean", "pooler"]


def _keep(model: Any) -> None:
    """For a pooler without parameters of its own: nothing to take out."""


def _drop_pooling_layer(model: Any) -> None:
    model.pooler = None


def _drop_siglip_text_head(model: Any) -> None:
    model.head = nn.Identity()  # its forward calls it unconditionally


def _drop_siglip_vision_head(model: Any) -> None:
    model.use_head = False
    model.head = None


@dataclass(frozen=True)
class TextFamily:
    """How a family of text encoders is built and read."""

    pools: tuple[Pool, ...]  # what it offers; the first one is what "auto" means
    layers: str = "encoder.layer"  # where the list of its layers is, lowest first
    drop_pooler: Callable[[Any], None] = _keep  # takes its parameters out when another pool is used
    ends_with_eos: bool = False  # causal: its pooler is the state of the end-of-sequence token
    always_full_length: bool = False  # pretrained on texts padded to one length, the padding attended to
    positions_after_padding: bool = False  # the first position is pad_token_id + 1
    model_class: Any = AutoModel


@dataclass(frozen=True)
class VisionFamily:
    """How a family of image encoders is built and read."""

    pools: tuple[Pool, ...]
    layers: str = "encoder.layers"
    drop_pooler: Callable[[Any], None] = _keep
    final_norm: str | None = None  # the layer norm that the model itself applies to its pooled state only
    convolutional: bool = False  # (N, H, h, w) states, its layers are stages: each after the first halves the grid
    drops_patches: bool = True  # positions are added to the patches, so that those left out take nothing with them
    asks_to_interpolate: bool = True  # an argument of its forward switches position embeddings to another image size
    model_class: Any = AutoModel


_BERT = TextFamily(pools=("cls", "pooler", "mean"), drop_pooler=_drop_pooling_layer)
_ROBERTA = TextFamily(pools=("cls", "pooler", "mean"), drop_pooler=_drop_pooling_layer, positions_after_padding=True)
_VIT = VisionFamily(pools=("cls", "pooler", "mean"), layers="layers", drop_pooler=_drop_pooling_layer)
_DINOV2 = VisionFamily(pools=("cls", "pooler", "mean"), layers="encoder.layer", asks_to_interpolate=False)
_DINOV3 = VisionFamily(
    pools=("cls", "pooler", "mean"), layers="model.layer", drops_patches=False, asks_to_interpolate=False
)
# The field (open_clip, and those who read dense features from CLIP) applies CLIP's last layer norm to the patches too:
# without it they keep the scale of the residual stream, far from that of the class token beside them.
_CLIP_VISION = VisionFamily(pools=("cls", "pooler", "mean"), final_norm="post_layernorm")
# ConvNeXt normalises its average only; a region needs the cells on the scale that the norm was trained for.
_CONVNEXT = VisionFamily(
    pools=("pooler", "mean"),
    layers="encoder.stages",
    final_norm="layernorm",
    convolutional=True,
    drops_patches=False,
    asks_to_interpolate=False,
)

TEXT_FAMILIES: dict[str, TextFamily] = {
    "bert": _BERT,
    "ernie": _BERT,
    "electra": TextFamily(pools=("cls", "mean")),
    "distilbert": TextFamily(pools=("cls", "mean"), layers="transformer.layer"),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "clip_text_model": TextFamily(pools=("pooler", "mean"), layers="encoder.layers", ends_with_eos=True),
    "chinese_clip_text_model": TextFamily(
        pools=("cls", "pooler", "mean"), drop_pooler=_drop_pooling_layer, model_class=ChineseCLIPTextModel
    ),
    "siglip_text_model": TextFamily(
        pools=("pooler", "mean"),
        layers="encoder.layers",
        drop_pooler=_drop_siglip_text_head,
        always_full_length=True,
        model_class=SiglipTextModel,
    ),
}

VISION_FAMILIES: dict[str, VisionFamily] = {
    "vit": _VIT,
    "deit": _VIT,
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2,
    "dinov3_vit": _DINOV3,
    "clip_vision_model": _CLIP_VISION,
    "chinese_clip_vision_model": _CLIP_VISION,
    "siglip_vision_model": VisionFamily(pools=("pooler", "mean"), drop_pooler=_drop_siglip_vision_head),
    "convnext": _CONVNEXT,
    "convnextv2": _CONVNEXT,
}
