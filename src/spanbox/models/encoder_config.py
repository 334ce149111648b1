"""What a transformers config says of an encoder's sizes, whatever its family calls them."""

from typing import Any

from spanbox.errors import ConfigError
from spanbox.models.families import Pool, TextFamily, VisionFamily


def pooled_width(config: Any, width: int, pool: Pool) -> int:
    """Width of the pooled state; differs from that of a token or patch only for a pooler that projects."""
    if pool != "pooler":
        return width
    projected: int | None = getattr(config, "projection_size", None) or getattr(config, "pooler_output_size", None)
    return projected or width


def max_tokens(config: Any, family: TextFamily) -> int:
    """The longest input that there are positions for, special tokens included."""
    positions: int = config.max_position_embeddings
    return positions - (config.pad_token_id + 1) if family.positions_after_padding else positions


def stride_of(config: Any, family: VisionFamily) -> int:
    """Side in pixels of what one cell of the grid stands for."""
    patch = side(config.patch_size)
    return patch * 2 ** (config.num_stages - 1) if family.convolutional else patch


def image_side(config: Any, stride: int, wanted: int | None) -> int:
    """The size to run at. An encoder's own may be no multiple of its patch (SigLIP: 384 of 14): the pixels beyond the
    last whole patch would go unseen and boxes would be off by up to a patch, so it is rounded down.

    Raises:
        ConfigError: another size is wanted that is no multiple of the patch.
    """
    if wanted is None:
        return side(config.image_size) // stride * stride
    if wanted % stride:
        below = max(wanted // stride, 1) * stride
        raise ConfigError(
            f"vision tower: image_size is {wanted}, which is not a multiple of the {stride} pixels that one patch of "
            f"{config.model_type!r} covers. Set it to {below} or {below + stride}."
        )
    return wanted


def side(size: int | list[int] | tuple[int, ...]) -> int:
    """The side of a square that a config gives as one number or as two equal ones.

    Raises:
        ConfigError: the two differ.
    """
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ConfigError(f"vision tower: images and patches must be square here, the encoder's config says {size}.")
    return sides.pop()
