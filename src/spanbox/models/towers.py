"""Text and vision towers: a common interface for transformers encoders.

A tower maps token ids or pixels to states: one per token or patch, and one pooled state of the whole sentence or image.
Spans and regions are pooled from the former (`pooling`); the coarse level uses the latter. `families` lists the
differences between encoders, `pretrained` loads them, `trainable` freezes or adapts them.

    N rows    T tokens    S image size in pixels    h, w patches down and across    H width
"""

from itertools import takewhile
from typing import Any, NamedTuple, Self

import torch
import transformers
from torch import Tensor, nn

from spanbox.errors import ConfigError
from spanbox.models.encoder_config import image_side, max_tokens, pooler_width, side
from spanbox.models.families import TEXT_FAMILIES, VISION_FAMILIES, TextFamily, VisionFamily, WholePool
from spanbox.models.pretrained import (
    Part,
    architecture_of,
    config_from_architecture,
    config_from_folder,
    model_folder,
    pretrained_model,
    random_model,
    unknown_family,
)
from spanbox.models.tower_settings import TowerSettings, VisionTowerSettings
from spanbox.models.trainable import (
    add_lora,
    check_batch_norm,
    checkpoint_gradients,
    freeze_layers,
    freeze_statistics,
)
from spanbox.models.visible import make_selective, select


class TextOutput(NamedTuple):
    """Output of a text tower."""

    tokens: Tensor  # (N, T, H), undefined on padding
    pooled: Tensor  # (N, P), P = H except for poolers of another width


class VisionOutput(NamedTuple):
    """Output of a vision tower."""

    grid: Tensor  # (N, h, w, H), row 0 at the top
    pooled: Tensor  # (N, P)


class Tower(nn.Module):
    """Base class of both towers.

    Attributes:
        model: the transformers encoder.
        settings: resolved; `build_*_tower` makes the same architecture from them, without the original folder.
    """

    def __init__(self, model: Any, family: TextFamily | VisionFamily, pool: WholePool, settings: TowerSettings) -> None:
        super().__init__()
        self.model = model
        resolved = {"path": None, "architecture": architecture_of(model.config), "pool": pool}
        self.settings = settings.model_copy(update=resolved)
        self._pool = pool
        self._layers = family.layers
        self.train()

    @property
    def layers(self) -> nn.ModuleList:
        """The layers of the encoder, lowest first; stages for ConvNeXt, ResNet and RegNet."""
        return _layers(self.model, self._layers)

    @property
    def frozen_layers(self) -> list[nn.Module]:
        """The lowest layers whose output is constant: neither they nor anything before them learns."""
        before = takewhile(lambda parameter: not parameter.requires_grad, self.model.parameters())  # in order of use
        constant = {id(parameter) for parameter in before}
        return list(
            takewhile(lambda layer: all(id(parameter) in constant for parameter in layer.parameters()), self.layers)
        )

    def architecture(self) -> dict[str, Any]:
        """The encoder's resolved transformers config as plain JSON, with its model_type."""
        return dict(self.settings.architecture or {})

    def train(self, mode: bool = True) -> Self:
        """Set training mode; a fully frozen tower stays in eval mode."""
        return super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))


class TextTower(Tower):
    """A text encoder. Build it with `build_text_tower`.

    Attributes:
        width: of a token state.
        pooled_width: of the pooled state; differs from `width` only for poolers with a projection.
        max_tokens: maximum input length, special tokens included.
    """

    def __init__(self, model: Any, family: TextFamily, pool: WholePool, settings: TowerSettings) -> None:
        super().__init__(model, family, pool, settings)
        self.width: int = model.config.hidden_size
        self.pooled_width = pooler_width(model.config, self.width) if pool == "pooler" else self.width
        self.max_tokens = max_tokens(model.config, positions_after_padding=family.positions_after_padding)
        self._family = family

    def forward(self, token_ids: Tensor, token_mask: Tensor) -> TextOutput:
        """States of sentences with padding at the end.

        Args:
            token_ids: (N, T) int64, special tokens included.
            token_mask: (N, T) bool, False on padding. Padding does not change the states of other tokens. A row of only
                padding gives finite, undefined states. N may be 0.
        """
        if len(token_ids) == 0:
            return TextOutput(*(states[:0] for states in self.forward(*_one_row(token_ids, token_mask))))
        length = token_ids.shape[1]
        if length > self.max_tokens:
            raise ConfigError(
                f"text tower: {length} tokens, but {self.model.config.model_type!r} has positions for "
                f"{self.max_tokens}. Set the maximum number of tokens to {self.max_tokens} or less."
            )
        if self._family.always_full_length:
            outputs = self.model(input_ids=self._fill_up(token_ids, token_mask))
        else:
            outputs = self.model(input_ids=token_ids, attention_mask=_never_empty(token_mask).long())
        tokens = outputs.last_hidden_state[:, :length]
        return TextOutput(tokens, self._pooled(tokens, token_mask, outputs))

    def _fill_up(self, token_ids: Tensor, token_mask: Tensor) -> Tensor:
        """Ids (N, max_tokens), padded as in SigLIP's pretraining: to one length, without an attention mask.

        Its pooled state is that of the last position, usually padding. With a fixed length the states do not depend on
        the padding of the batch.
        """
        ids = token_ids.masked_fill(~token_mask, self.model.config.pad_token_id)
        missing = self.max_tokens - ids.shape[1]
        return nn.functional.pad(ids, (0, missing), value=self.model.config.pad_token_id)

    def _pooled(self, tokens: Tensor, token_mask: Tensor, outputs: Any) -> Tensor:
        if self._pool == "cls":
            return tokens[:, 0]
        if self._pool == "mean":
            weights = token_mask.to(tokens.dtype)[..., None]
            return (tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        if self._family.ends_with_eos:
            # Found by the mask, not by the id: some configs have a wrong eos_token_id (2, or 49407 with a small
            # vocabulary), and CLIP's search then returns the first token.
            last = torch.where(token_mask, torch.arange(token_mask.shape[1], device=tokens.device), 0).amax(dim=1)
            return tokens[torch.arange(len(tokens), device=tokens.device), last]
        pooled: Tensor = outputs.pooler_output
        return pooled


class VisionTower(Tower):
    """An image encoder. Build it with `build_vision_tower`.

    Attributes:
        width: of a patch state.
        pooled_width: of the pooled state; differs from `width` only for poolers with a projection.
        image_size: side of the square input in pixels.
        stride: side in pixels of one cell of the grid.
    """

    def __init__(self, model: Any, family: VisionFamily, pool: WholePool, settings: VisionTowerSettings) -> None:
        stride = family.stride(model.config)
        width = _channels(model, stride) if family.convolutional else model.config.hidden_size
        image_size = image_side(model.config, stride, settings.image_size)
        super().__init__(model, family, pool, settings.model_copy(update={"image_size": image_size}))
        self.stride = stride
        self.image_size = image_size
        self.width: int = width
        self.pooled_width = pooler_width(model.config, self.width) if pool == "pooler" else self.width
        self._family = family
        if family.drops_patches:
            make_selective(model, stride)

    def train(self, mode: bool = True) -> Self:
        """Set training mode; BatchNorm stays in eval mode, so that no image depends on the statistics of others."""
        super().train(mode)
        freeze_statistics(self.model)
        return self

    @property
    def drops_patches(self) -> bool:
        """Whether the encoder can drop patches."""
        return self._family.drops_patches

    def forward(self, pixels: Tensor, kept: Tensor | None = None) -> VisionOutput:
        """States of images, of masked views of them, or of pictures beside padding.

        Args:
            pixels: (N, 3, S, S), normalised. S may differ from `image_size`, N may be 0.
            kept: (N, n) int64, the patches that count, row by row. The grid is then a row (N, 1, n, H) of them, and the
                pooled state is theirs. Where the encoder can drop patches, the others are not encoded, and the cost is
                that of n patches plus the patch embedding of the whole image; a convolutional encoder computes all.
        """
        if len(pixels) == 0:
            return VisionOutput(*(states[:0] for states in self.forward(_one_row(pixels)[0])))
        selects = kept is not None and self._family.drops_patches
        if selects:
            select(self.model, kept)
        try:
            outputs = self.model(pixel_values=pixels, **self._position_arguments(pixels))
        finally:
            if selects:
                select(self.model, None)
        states = outputs.last_hidden_state
        if self._family.convolutional:
            states = states.permute(0, 2, 3, 1)
            if kept is not None:
                return self._of_cells(states.flatten(1, 2), kept)
        states = self._final_norm(states)
        if kept is not None:
            grid = states[:, None, states.shape[1] - kept.shape[1] :]
        else:
            grid = states if self._family.convolutional else self._to_grid(states, pixels)
        if self._pool == "cls":
            return VisionOutput(grid, states[:, 0])
        if self._pool == "mean":
            return VisionOutput(grid, grid.mean(dim=(1, 2)))
        return VisionOutput(grid, outputs.pooler_output.flatten(1))  # (N, P, 1, 1) in ResNet

    def _final_norm(self, states: Tensor) -> Tensor:
        name = self._family.final_norm
        normed: Tensor = states if name is None else getattr(self.model, name)(states)
        return normed

    def _of_cells(self, cells: Tensor, kept: Tensor) -> VisionOutput:
        """States of some cells (N, n) of a convolutional encoder's (N, P, H), pooled as its own pooler does."""
        cells = cells.gather(1, kept[:, :, None].expand(-1, -1, cells.shape[2]))
        grid = self._final_norm(cells)
        if self._pool == "mean":
            return VisionOutput(grid[:, None], grid.mean(dim=1))
        takes_largest = getattr(self.model.config, "pooling_type", "mean") == "max"  # EfficientNet
        pooled = cells.amax(dim=1) if takes_largest else cells.mean(dim=1)
        return VisionOutput(grid[:, None], self._final_norm(pooled))

    def _position_arguments(self, pixels: Tensor) -> dict[str, bool]:
        """Arguments that switch interpolation of position embeddings on, for another size than the native one."""
        if not self._family.has_interpolate_argument:
            return {}
        native = side(self.model.config.image_size)
        if tuple(pixels.shape[-2:]) == (native, native):
            return {}
        return {"interpolate_pos_encoding": True}

    def _to_grid(self, states: Tensor, pixels: Tensor) -> Tensor:
        """Patch states (N, h, w, H) from (N, prefix + h * w, H); the prefix is the class token and registers."""
        rows, columns = pixels.shape[-2] // self.stride, pixels.shape[-1] // self.stride
        prefix = states.shape[1] - rows * columns
        return states[:, prefix:].reshape(len(states), rows, columns, self.width)


def build_text_tower(settings: TowerSettings, *, pad_token_id: int | None = None) -> TextTower:
    """Build a text tower in training mode.

    Args:
        settings: of the tower.
        pad_token_id: of the tokenizer, for SigLIP, which attends to padding. Default: from the encoder's config.

    Raises:
        ConfigError: no such folder, an impossible architecture, an unsupported family or pool, more frozen layers than
            layers, lora without peft.
        CheckpointError: the folder lacks weights of the tower.
    """
    config = _open_config(settings, "text")
    family = TEXT_FAMILIES.get(config.model_type)
    if family is None:
        raise unknown_family(config, TEXT_FAMILIES, "text")
    if family.always_full_length and pad_token_id is not None:
        config.pad_token_id = pad_token_id
    pool = _resolve_pool(settings, config, family, "text")
    return TextTower(_open_model(settings, config, family, pool, "text"), family, pool, settings)


def build_vision_tower(settings: VisionTowerSettings) -> VisionTower:
    """Build a vision tower in training mode. Raises like `build_text_tower`."""
    config = _open_config(settings, "vision")
    family = VISION_FAMILIES.get(config.model_type)
    if family is None:
        raise unknown_family(config, VISION_FAMILIES, "vision")
    pool = _resolve_pool(settings, config, family, "vision")
    model = _open_model(settings, config, family, pool, "vision")
    check_batch_norm(model, frozen=settings.freeze_norm, all_frozen=settings.freeze == "all")
    return VisionTower(model, family, pool, settings)


def _open_config(settings: TowerSettings, part: Part) -> Any:
    if settings.path is not None:
        return config_from_folder(model_folder(settings.path, part), part)
    assert settings.architecture is not None
    return config_from_architecture(settings.architecture, part)


def _open_model(
    settings: TowerSettings, config: Any, family: TextFamily | VisionFamily, pool: WholePool, part: Part
) -> nn.Module:
    def drop_unused(model: Any) -> None:
        """Remove parameters that get no gradient: data-parallel training waits for each of them."""
        if pool != "pooler":
            family.drop_pooler(model)
        embeddings: Any = getattr(model, "embeddings", None)
        if getattr(embeddings, "mask_token", None) is not None:
            embeddings.mask_token = None  # only masked image modelling uses it

    model_class = getattr(transformers, family.model_class)
    if settings.path is not None:
        model = pretrained_model(model_folder(settings.path, part), config, model_class, part, drop_unused)
    else:
        model = random_model(config, model_class, part)
        drop_unused(model)
    layers = _layers(model, family.layers)
    freeze_layers(model, layers, settings.freeze, part)
    if settings.lora is not None:
        assert settings.freeze != "all"  # refused by TowerSettings
        add_lora(model, layers[settings.freeze :], settings.lora, part)
    if settings.gradient_checkpointing:
        checkpoint_gradients(model, part)
    return model


def _channels(model: Any, stride: int) -> int:
    """Width of the states of a convolutional encoder, from a blank image of one cell."""
    try:
        with torch.no_grad():
            states = model.eval()(pixel_values=torch.zeros(1, 3, stride, stride)).last_hidden_state
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"vision tower: this {model.config.model_type!r} cannot encode an image: {error}") from error
    assert states.shape[2:] == (1, 1)
    return int(states.shape[1])


def _layers(model: nn.Module, path: str) -> nn.ModuleList:
    layers = model.get_submodule(path)
    assert isinstance(layers, nn.ModuleList)
    return layers


def _resolve_pool(settings: TowerSettings, config: Any, family: TextFamily | VisionFamily, part: Part) -> WholePool:
    if settings.pool == "auto":
        return family.pools[0]
    if settings.pool in family.pools:
        return settings.pool
    known = " or ".join(family.pools)
    reason = "has no class token of the whole input" if settings.pool == "cls" else "has no pooler"
    raise ConfigError(
        f"model.{part}.pool: {settings.pool!r}, but {config.model_type!r} {reason}; set it to auto, {known}"
    )


def _one_row(*inputs: Tensor) -> list[Tensor]:
    """One row of zeros for an empty batch, which attention cannot reshape; the caller slices it off again, which keeps
    shape, dtype and graph."""
    return [tensor.new_zeros(1, *tensor.shape[1:]) for tensor in inputs]


def _never_empty(token_mask: Tensor) -> Tensor:
    """The mask with the first token unmasked in empty rows: attention over nothing is 0/0 in some kernels."""
    first = torch.zeros_like(token_mask)
    first[:, 0] = ~token_mask.any(dim=1)
    return token_mask | first
