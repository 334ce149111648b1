"""Text and vision towers: transformers encoders behind one interface each.

A batch's token ids and pixels enter, states leave: one for each token or patch, and one for the whole sentence or
image. Spans and regions are pooled from the former (`pooling`), the coarse level uses the latter. What differs between
families of encoders stands in `families`, how they are opened in `pretrained`, what of them is trained in `trainable`.

    N rows    T tokens    S image size in pixels    h, w patches down and across    H width
"""

from typing import Any, Literal, NamedTuple, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from spanbox.errors import ConfigError
from spanbox.models.encoder_config import image_side, max_tokens, pooled_width, side, stride_of
from spanbox.models.families import TEXT_FAMILIES, VISION_FAMILIES, Pool, TextFamily, VisionFamily
from spanbox.models.pretrained import (
    Part,
    architecture_of,
    config_from_architecture,
    config_from_folder,
    model_folder,
    pretrained_model,
    random_model,
    refuse_batch_norm,
    refuse_family,
)
from spanbox.models.trainable import Freeze, LoraSettings, add_lora, checkpoint_gradients, freeze_layers
from spanbox.models.visible import VisiblePatches, make_selective
from spanbox.settings import PathText, Settings


class TowerSettings(Settings):
    """Which encoder a tower is, which of its states stands for the whole input, and what of it is trained."""

    path: PathText | None = Field(
        default=None,
        description="Local transformers folder of a pretrained encoder, or of a whole CLIP or SigLIP; or the name of "
        "a model that is already in the local cache. Nothing is downloaded: `hf download NAME --local-dir DIR`.",
    )
    architecture: dict[str, Any] | None = Field(
        default=None,
        description="In place of path: a transformers config with its model_type, for an encoder with random weights.",
    )
    pool: Literal["auto", "cls", "mean", "pooler"] = Field(
        default="auto",
        description="State of the whole input: the class token, the mean over real tokens or patches, the encoder's "
        "own pooler; auto takes the class token where there is one, else the pooler.",
    )
    freeze: Freeze = Field(
        default=0,
        description="Lowest layers that are not trained, with the embeddings below them; all: the whole tower, which "
        "then has no dropout either. ConvNeXt counts stages. With lora: the lowest layers without an update.",
    )
    lora: LoraSettings | None = Field(
        default=None,
        description="Train low-rank updates in place of the tower's own weights: rank, alpha, dropout, targets; {} for "
        'the defaults. Needs `pip install "spanbox[lora]"`.',
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Compute each layer twice in place of keeping what is in it for the backward pass: the same "
        "gradients with much less memory, in a third to a half more time. Not for ConvNeXt.",
    )

    @field_validator("architecture")
    @classmethod
    def _names_its_type(cls, architecture: dict[str, Any] | None) -> dict[str, Any] | None:
        if architecture is not None and not isinstance(architecture.get("model_type"), str):
            raise ValueError("architecture needs a model_type, for example `model_type: bert`")
        return architecture

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.architecture is None):
            raise ValueError(
                "give either path (a pretrained encoder) or architecture (one with random weights)"
                + (", not both" if self.path is not None else "")
            )
        return self

    @model_validator(mode="after")
    def _something_to_update(self) -> Self:
        if self.lora is not None and self.freeze == "all":
            raise ValueError(
                "lora leaves the tower's own weights alone by itself, and freeze=all leaves it no layer to update: "
                "leave freeze out, or give the number of lowest layers that get no update"
            )
        return self


class VisionTowerSettings(TowerSettings):
    """A vision tower's encoder, and the size of the images it reads."""

    image_size: int | None = Field(
        default=None,
        ge=1,
        description="Side of the square input in pixels, a multiple of the patch size. Default: what the encoder was "
        "made for, rounded down to such a multiple. Another size interpolates the position embeddings.",
    )


class TextStates(NamedTuple):
    """What a text tower makes of sentences."""

    tokens: Tensor  # (N, T, H), meaningless on padding
    pooled: Tensor  # (N, P), P = H but for the rare pooler of another width


class VisionStates(NamedTuple):
    """What a vision tower makes of images."""

    grid: Tensor  # (N, h, w, H), row 0 at the top
    pooled: Tensor  # (N, P)


class Tower(nn.Module):
    """What both towers have in common.

    Attributes:
        model: the transformers encoder.
        settings: with these alone `build_*_tower` makes the same architecture, without the folder it came from.
    """

    def __init__(self, model: Any, family: TextFamily | VisionFamily, pool: Pool, settings: TowerSettings) -> None:
        super().__init__()
        self.model = model
        read = {"path": None, "architecture": architecture_of(model.config), "pool": pool}
        self.settings = settings.model_copy(update=read)
        self._pool = pool
        self._layers = family.layers
        self.train()

    @property
    def layers(self) -> nn.ModuleList:
        """The encoder's layers, lowest first; the stages of a ConvNeXt."""
        return _layers(self.model, self._layers)

    def architecture(self) -> dict[str, Any]:
        """The encoder's resolved transformers config as plain JSON, with its model_type."""
        return dict(self.settings.architecture or {})

    def train(self, mode: bool = True) -> Self:
        """As for every module, but a wholly frozen tower stays in evaluation mode: dropout would teach it nothing."""
        return super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))


class TextTower(Tower):
    """A text encoder. Build it with `build_text_tower`.

    Attributes:
        width: of a token's state.
        pooled_width: of the pooled state; differs from `width` only for a pooler that projects.
        max_tokens: the longest input, special tokens included.
    """

    def __init__(self, model: Any, family: TextFamily, pool: Pool, settings: TowerSettings) -> None:
        super().__init__(model, family, pool, settings)
        self.width: int = model.config.hidden_size
        self.pooled_width = pooled_width(model.config, self.width, pool)
        self.max_tokens = max_tokens(model.config, family)
        self._family = family

    def forward(self, token_ids: Tensor, token_mask: Tensor) -> TextStates:
        """States of sentences that are padded at their end.

        Args:
            token_ids: (N, T) int64, special tokens included.
            token_mask: (N, T) bool, False on padding. Padding never changes the states of real tokens. A row without
                any real token gives finite states without a meaning. N may be 0.
        """
        if len(token_ids) == 0:
            return TextStates(*(states[:0] for states in self.forward(*_one_row(token_ids, token_mask))))
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
        return TextStates(tokens, self._pooled(tokens, token_mask, outputs))

    def _fill_up(self, token_ids: Tensor, token_mask: Tensor) -> Tensor:
        """(N, max_tokens) ids padded the way SigLIP was pretrained: always to one length, with padding attended to.

        Its pooled state is that of the last position, usually padding. So no mask is passed, and the states do not
        depend on how far the batch happens to be padded.
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
            # Found by the mask, not by its id: configs carry ids that are wrong for their vocabulary (2, or 49407
            # beside a small one), and CLIP's own search then returns the first token in silence.
            last = torch.where(token_mask, torch.arange(token_mask.shape[1], device=tokens.device), 0).amax(dim=1)
            return tokens[torch.arange(len(tokens), device=tokens.device), last]
        pooled: Tensor = outputs.pooler_output
        return pooled


class VisionTower(Tower):
    """An image encoder. Build it with `build_vision_tower`.

    Attributes:
        width: of a patch's state.
        pooled_width: of the pooled state; differs from `width` only for a pooler that projects.
        image_size: side of the square input in pixels.
        stride: side in pixels of what one cell of the grid stands for.
    """

    def __init__(self, model: Any, family: VisionFamily, pool: Pool, settings: VisionTowerSettings) -> None:
        stride = stride_of(model.config, family)
        image_size = image_side(model.config, stride, settings.image_size)
        super().__init__(model, family, pool, settings.model_copy(update={"image_size": image_size}))
        self.stride = stride
        self.image_size = image_size
        self.width: int = model.config.hidden_sizes[-1] if family.convolutional else model.config.hidden_size
        self.pooled_width = pooled_width(model.config, self.width, pool)
        self._family = family
        if family.drops_patches:
            make_selective(model.embeddings, stride)

    @property
    def drops_patches(self) -> bool:
        """Whether the encoder can leave patches out."""
        return self._family.drops_patches

    def forward(self, pixels: Tensor, views: VisiblePatches | None = None) -> VisionStates:
        """States of images, or of masked views of them.

        Args:
            pixels: (N, 3, S, S), normalised as the encoder expects. S may be another size, N may be 0.
            views: what is encoded instead of the images, whose other patches are never seen. The grid is then a row
                (M, 1, n, H) of the visible patches. They alone are paid for, and the embedding of each image, once.
        """
        if len(pixels) == 0:
            return VisionStates(*(states[:0] for states in self.forward(_one_row(pixels)[0])))
        if views is not None:
            assert self._family.drops_patches
            self.model.embeddings.views = views
        try:
            outputs = self.model(pixel_values=pixels, **self._position_arguments(pixels))
        finally:
            if views is not None:
                self.model.embeddings.views = None
        states = outputs.last_hidden_state
        if self._family.convolutional:
            states = states.permute(0, 2, 3, 1)
        if self._family.final_norm is not None:
            states = getattr(self.model, self._family.final_norm)(states)
        if views is not None:
            grid = states[:, None, states.shape[1] - views.kept.shape[1] :]
        else:
            grid = states if self._family.convolutional else self._to_grid(states, pixels)
        if self._pool == "cls":
            return VisionStates(grid, states[:, 0])
        if self._pool == "mean":
            return VisionStates(grid, grid.mean(dim=(1, 2)))
        return VisionStates(grid, outputs.pooler_output)

    def _position_arguments(self, pixels: Tensor) -> dict[str, bool]:
        """Ask for interpolated position embeddings, where a family has to be asked, for a size it was not made for."""
        native = side(self.model.config.image_size)
        if not self._family.has_interpolate_argument or tuple(pixels.shape[-2:]) == (native, native):
            return {}
        return {"interpolate_pos_encoding": True}

    def _to_grid(self, states: Tensor, pixels: Tensor) -> Tensor:
        """(N, h, w, H) patch states of (N, prefix + h * w, H): class token and registers come before the patches."""
        rows, columns = pixels.shape[-2] // self.stride, pixels.shape[-1] // self.stride
        prefix = states.shape[1] - rows * columns
        return states[:, prefix:].reshape(len(states), rows, columns, self.width)


def build_text_tower(settings: TowerSettings, *, pad_token_id: int | None = None) -> TextTower:
    """The text tower that `settings` describe, in training mode.

    Args:
        settings: which encoder.
        pad_token_id: the tokenizer's, which SigLIP needs since it attends to padding. Default: the encoder's config.

    Raises:
        ConfigError: no such folder, an impossible architecture, a family or pool that does not fit, more frozen layers
            than there are, lora without peft.
        CheckpointError: the folder lacks weights that the tower needs.
    """
    config = _open_config(settings, "text")
    family = TEXT_FAMILIES.get(config.model_type)
    if family is None:
        raise refuse_family(config, TEXT_FAMILIES, "text")
    if family.always_full_length and pad_token_id is not None:
        config.pad_token_id = pad_token_id
    pool = _resolve_pool(settings, config, family)
    return TextTower(_open_model(settings, config, family, pool, "text"), family, pool, settings)


def build_vision_tower(settings: VisionTowerSettings) -> VisionTower:
    """The vision tower that `settings` describe, in training mode. Raises as `build_text_tower` does."""
    config = _open_config(settings, "vision")
    family = VISION_FAMILIES.get(config.model_type)
    if family is None:
        raise refuse_family(config, VISION_FAMILIES, "vision")
    pool = _resolve_pool(settings, config, family)
    model = _open_model(settings, config, family, pool, "vision")
    return VisionTower(model, family, pool, settings)


def _open_config(settings: TowerSettings, part: Part) -> Any:
    if settings.path is not None:
        return config_from_folder(model_folder(settings.path, part), part)
    assert settings.architecture is not None
    return config_from_architecture(settings.architecture, part)


def _open_model(
    settings: TowerSettings, config: Any, family: TextFamily | VisionFamily, pool: Pool, part: Part
) -> nn.Module:
    def drop_unused(model: Any) -> None:
        """Leave no parameter without a gradient: data-parallel training waits for each of them."""
        if pool != "pooler":
            family.drop_pooler(model)
        if getattr(model.embeddings, "mask_token", None) is not None:
            model.embeddings.mask_token = None  # only masked image modelling uses it

    if settings.path is not None:
        model = pretrained_model(model_folder(settings.path, part), config, family.model_class, part, drop_unused)
    else:
        model = random_model(config, family.model_class, part)
        drop_unused(model)
    refuse_batch_norm(model, config.model_type, part)
    layers = _layers(model, family.layers)
    freeze_layers(model, layers, settings.freeze, part)
    if settings.lora is not None:
        assert settings.freeze != "all"  # TowerSettings refuses the two together
        add_lora(model, layers[settings.freeze :], settings.lora, part)
    if settings.gradient_checkpointing:
        checkpoint_gradients(model, part)
    return model


def _layers(model: nn.Module, path: str) -> nn.ModuleList:
    layers = model.get_submodule(path)
    assert isinstance(layers, nn.ModuleList)
    return layers


def _resolve_pool(settings: TowerSettings, config: Any, family: TextFamily | VisionFamily) -> Pool:
    if settings.pool == "auto":
        return family.pools[0]
    if settings.pool in family.pools:
        return settings.pool
    offered = " or ".join(family.pools)
    reason = "has no class token that sees the whole input" if settings.pool == "cls" else "has no pooler"
    raise ConfigError(f"pool is {settings.pool!r}, but {config.model_type!r} {reason}. Set it to auto, {offered}.")


def _one_row(*inputs: Tensor) -> list[Tensor]:
    """One row of zeros in place of none: attention cannot reshape an empty batch, and nothing is cut from it later
    but its shape, its dtype and its place in the graph."""
    return [tensor.new_zeros(1, *tensor.shape[1:]) for tensor in inputs]


def _never_empty(token_mask: Tensor) -> Tensor:
    """The mask with the first token shown to rows that have none: attention over nothing is 0/0 in some kernels."""
    first = torch.zeros_like(token_mask)
    first[:, 0] = ~token_mask.any(dim=1)
    return token_mask | first
