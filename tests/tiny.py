"""Tiny architectures, one for each family that can be a tower: 32 wide, two layers, random weights.

Each function returns a fresh dictionary for `TowerSettings(architecture=...)`; keyword arguments override its values.
"""

from typing import Any

VOCABULARY = 64
MAX_TOKENS = 16  # of every text architecture, special tokens included
IMAGE_SIZE = 32  # of every vision architecture; its grid is 4 x 4

Architecture = dict[str, Any]

_LAYERS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_TEXT = {"vocab_size": VOCABULARY, "max_position_embeddings": MAX_TOKENS}
_VISION = {"image_size": IMAGE_SIZE, "patch_size": 8}


def bert(**overrides: Any) -> Architecture:
    return {"model_type": "bert", **_LAYERS, **_TEXT} | overrides


def ernie(**overrides: Any) -> Architecture:
    return bert(model_type="ernie") | overrides


def electra(**overrides: Any) -> Architecture:
    return bert(model_type="electra", embedding_size=24) | overrides


def distilbert(**overrides: Any) -> Architecture:
    return {"model_type": "distilbert", "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, **_TEXT} | overrides


def roberta(**overrides: Any) -> Architecture:
    """Positions start after pad_token_id = 1, so two more of them for the same number of tokens."""
    return bert(model_type="roberta", max_position_embeddings=MAX_TOKENS + 2) | overrides


def xlm_roberta(**overrides: Any) -> Architecture:
    return roberta(model_type="xlm-roberta") | overrides


def camembert(**overrides: Any) -> Architecture:
    return roberta(model_type="camembert") | overrides


def clip_text(**overrides: Any) -> Architecture:
    """The ids of its special tokens stay at their defaults, far beyond the vocabulary, as in real tiny configs."""
    return {"model_type": "clip_text_model", **_LAYERS, **_TEXT} | overrides


def chinese_clip_text(**overrides: Any) -> Architecture:
    return bert(model_type="chinese_clip_text_model") | overrides


def siglip_text(**overrides: Any) -> Architecture:
    return {"model_type": "siglip_text_model", **_LAYERS, **_TEXT} | overrides


def vit(**overrides: Any) -> Architecture:
    return {"model_type": "vit", **_LAYERS, **_VISION} | overrides


def deit(**overrides: Any) -> Architecture:
    return vit(model_type="deit") | overrides


def clip_vision(**overrides: Any) -> Architecture:
    return vit(model_type="clip_vision_model") | overrides


def chinese_clip_vision(**overrides: Any) -> Architecture:
    return vit(model_type="chinese_clip_vision_model") | overrides


def siglip_vision(**overrides: Any) -> Architecture:
    return vit(model_type="siglip_vision_model") | overrides


def dinov2(**overrides: Any) -> Architecture:
    layers = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2}
    return {"model_type": "dinov2", **layers, **_VISION} | overrides


def dinov2_with_registers(**overrides: Any) -> Architecture:
    return dinov2(model_type="dinov2_with_registers", num_register_tokens=4) | overrides


def dinov3_vit(**overrides: Any) -> Architecture:
    return vit(model_type="dinov3_vit", num_register_tokens=4) | overrides


def convnext(**overrides: Any) -> Architecture:
    """Stride 8: a stem of 4 pixels and one halving."""
    stages = {"num_stages": 2, "depths": [1, 1], "hidden_sizes": [16, 32]}
    return {"model_type": "convnext", "patch_size": 4, "image_size": IMAGE_SIZE, **stages} | overrides


def convnextv2(**overrides: Any) -> Architecture:
    return convnext(model_type="convnextv2") | overrides


def resnet(**overrides: Any) -> Architecture:
    """Stride 8: a stem of 4 pixels and one halving. Like RegNet without an image size of its own."""
    stages = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}
    return {"model_type": "resnet", **stages} | overrides


def regnet(**overrides: Any) -> Architecture:
    """Stride 8: a stem of 2 pixels, and both stages halve."""
    stages = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "groups_width": 8}
    return {"model_type": "regnet", **stages} | overrides


def efficientnet(**overrides: Any) -> Architecture:
    """Two blocks of 8 channels and a head of 32; its own initial weights are so small that no signal would arrive."""
    blocks = {"num_block_repeats": [1, 1], "strides": [2, 2], "kernel_sizes": [3, 5], "expand_ratios": [1, 2]}
    widths = {"in_channels": [32, 16], "out_channels": [16, 24], "width_coefficient": 0.025, "hidden_dim": 32}
    own = {"model_type": "efficientnet", "image_size": IMAGE_SIZE, "depth_coefficient": 1.0, "initializer_range": 0.5}
    return own | blocks | widths | overrides


def mobilenet_v2(**overrides: Any) -> Architecture:
    """16 layers of 8 channels, as their number is not in the config; those above stride 8 are dilated."""
    own = {"model_type": "mobilenet_v2", "image_size": IMAGE_SIZE, "initializer_range": 0.3, "output_stride": 8}
    return own | {"depth_multiplier": 0.05, "finegrained_output": False} | overrides


TEXT_ARCHITECTURES = [
    bert(),
    ernie(),
    electra(),
    distilbert(),
    roberta(),
    xlm_roberta(),
    camembert(),
    clip_text(),
    chinese_clip_text(),
    siglip_text(),
]
BATCH_NORMALISED = [resnet(), regnet(), efficientnet(), mobilenet_v2()]
VISION_ARCHITECTURES = [
    vit(),
    deit(),
    clip_vision(),
    chinese_clip_vision(),
    siglip_vision(),
    dinov2(),
    dinov2_with_registers(),
    dinov3_vit(),
    convnext(),
    convnextv2(),
    *BATCH_NORMALISED,
]


def needs(architecture: Architecture) -> dict[str, Any]:
    """The settings without which a vision tower of this architecture cannot be built, or has another image size."""
    if architecture["model_type"] not in {batch_normalised["model_type"] for batch_normalised in BATCH_NORMALISED}:
        return {}
    return {"freeze_norm": True, "image_size": IMAGE_SIZE}
