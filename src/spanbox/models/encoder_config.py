"""Sizes of an encoder from its transformers config, for all families."""

from typing import Any

from spanbox.errors import ConfigError

IMAGENET_SIDE = 224  # pixels; of encoders whose config names no image size (ResNet, RegNet)


def pooler_width(config: Any, width: int) -> int:
    """Width of the pooler's state; it differs from the token width only for poolers with a projection."""
    projected: int | None = getattr(config, "projection_size", None) or getattr(config, "pooler_output_size", None)
    return projected or width


def max_tokens(config: Any, *, positions_after_padding: bool) -> int:
    """Maximum input length by the number of positions, special tokens included."""
    positions: int = config.max_position_embeddings
    return positions - (config.pad_token_id + 1) if positions_after_padding else positions


def image_side(config: Any, stride: int, wanted: int | None) -> int:
    """Image size of the tower. The encoder's default is rounded down to a multiple of the patch (SigLIP: 384 by 14),
    because pixels beyond the last whole patch are ignored and boxes would be shifted by up to a patch. An encoder
    without a default size gets 224.

    Raises:
        ConfigError: `wanted` is not a multiple of the patch.
    """
    if wanted is None:
        return side(getattr(config, "image_size", IMAGENET_SIDE)) // stride * stride
    if wanted % stride:
        below = max(wanted // stride, 1) * stride
        raise ConfigError(
            f"vision tower: image_size is {wanted}, which is not a multiple of the {stride} pixels that one patch of "
            f"{config.model_type!r} covers. Set it to {below} or {below + stride}."
        )
    return wanted


def side(size: int | list[int] | tuple[int, ...]) -> int:
    """The side of a square, given as one number or as two equal ones.

    Raises:
        ConfigError: the two differ.
    """
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ConfigError(f"vision tower: images and patches must be square here, the encoder's config has {size}.")
    return sides.pop()
