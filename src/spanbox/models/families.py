"""Table of the supported encoder families: one row per transformers `model_type`.

The towers share their code; differences between families are facts in this table. Families that are not listed are
refused: a wrong assumption about the class token or the order of the patches would not show in the loss. To add one,
add a row and a tiny architecture to `tests/tiny.py`; the tower tests check every fact of the row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from torch import nn

from spanbox.models.encoder_config import side

WholePool = Literal["cls", "mean", "pooler"]
"""How the states of a tower become one state of the whole sentence or image."""


def _keep(model: Any) -> None:
    """Leave the model unchanged, for poolers without parameters."""


def _drop_pooling_layer(model: Any) -> None:
    model.pooler = None


def _drop_siglip_text_head(model: Any) -> None:
    model.head = nn.Identity()  # forward always calls it


def _drop_siglip_vision_head(model: Any) -> None:
    model.use_head = False
    model.head = None


def _patch_side(config: Any) -> int:
    return side(config.patch_size)


def _convnext_stride(config: Any) -> int:
    return int(side(config.patch_size) * 2 ** (config.num_stages - 1))


def _resnet_stride(config: Any) -> int:
    """The stem halves twice, each stage once; the first stage only with `downsample_in_first_stage`."""
    return int(2 ** (len(config.depths) + 1 + config.downsample_in_first_stage))


def _regnet_stride(config: Any) -> int:
    """The stem halves once."""
    return int(2 ** (len(config.depths) + config.downsample_in_first_stage))


def _efficientnet_stride(config: Any) -> int:
    return int(2 * prod(config.strides))


def _mobilenet_v2_stride(config: Any) -> int:
    """`output_stride` if layers beyond it are dilated to keep it, which happens for these four values; else 32."""
    return int(config.output_stride) if config.output_stride in (2, 4, 8, 16) else 32


@dataclass(frozen=True)
class TextFamily:
    """Facts about a family of text encoders."""

    pools: tuple[WholePool, ...]  # supported pools; "auto" is the first
    layers: str = "encoder.layer"  # attribute path of the layers, lowest first
    drop_pooler: Callable[[Any], None] = _keep  # removes the parameters of an unused pooler
    ends_with_eos: bool = False  # the pooled state is that of the end-of-sequence token
    always_full_length: bool = False  # pretrained with padding to one length, attending to padding
    positions_after_padding: bool = False  # the first position is pad_token_id + 1
    model_class: str = "AutoModel"  # of transformers, imported when a tower is built


@dataclass(frozen=True)
class VisionFamily:
    """Facts about a family of image encoders."""

    pools: tuple[WholePool, ...]
    layers: str = "encoder.layers"
    drop_pooler: Callable[[Any], None] = _keep
    final_norm: str | None = None  # a layer norm that the model applies to the pooled state only
    convolutional: bool = False  # states (N, H, h, w)
    stride: Callable[[Any], int] = _patch_side  # side in pixels of one cell of the grid, from the config
    drops_patches: bool = True  # positions are embedded patch by patch, so that some patches can be dropped
    has_interpolate_argument: bool = True  # forward has an argument to interpolate position embeddings
    model_class: str = "AutoModel"


_BERT = TextFamily(pools=("cls", "pooler", "mean"), drop_pooler=_drop_pooling_layer)
_ROBERTA = TextFamily(pools=("cls", "pooler", "mean"), drop_pooler=_drop_pooling_layer, positions_after_padding=True)
_VIT = VisionFamily(pools=("cls", "pooler", "mean"), layers="layers", drop_pooler=_drop_pooling_layer)
_DINOV2 = VisionFamily(pools=("cls", "pooler", "mean"), layers="encoder.layer", has_interpolate_argument=False)
_DINOV3 = VisionFamily(pools=("cls", "pooler", "mean"), layers="model.layer", has_interpolate_argument=False)
# As in open_clip and work on dense CLIP features, CLIP's last layer norm is applied to the patches too: without it they
# keep the scale of the residual stream, unlike the class token.
_CLIP_VISION = VisionFamily(pools=("cls", "pooler", "mean"), final_norm="post_layernorm")
# ConvNeXt normalises only its average; regions need normalised cells.
_CONVNEXT = VisionFamily(
    pools=("pooler", "mean"),
    layers="encoder.stages",
    final_norm="layernorm",
    convolutional=True,
    stride=_convnext_stride,
    drops_patches=False,
    has_interpolate_argument=False,
)


def _batch_normalised(layers: str, stride: Callable[[Any], int]) -> VisionFamily:
    """A convolutional encoder with BatchNorm, whose pooler is the average of the grid and has no parameters."""
    return VisionFamily(
        pools=("pooler", "mean"),
        layers=layers,
        convolutional=True,
        stride=stride,
        drops_patches=False,
        has_interpolate_argument=False,
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
        pools=("cls", "pooler", "mean"), drop_pooler=_drop_pooling_layer, model_class="ChineseCLIPTextModel"
    ),
    "siglip_text_model": TextFamily(
        pools=("pooler", "mean"),
        layers="encoder.layers",
        drop_pooler=_drop_siglip_text_head,
        always_full_length=True,
        model_class="SiglipTextModel",
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
    "resnet": _batch_normalised("encoder.stages", _resnet_stride),
    "regnet": _batch_normalised("encoder.stages", _regnet_stride),
    "efficientnet": _batch_normalised("encoder.blocks", _efficientnet_stride),
    "mobilenet_v2": _batch_normalised("layer", _mobilenet_v2_stride),
}
