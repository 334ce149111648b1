"""Freezing, LoRA and gradient checkpointing of an encoder.

The functions change an encoder in place without changing its outputs. Towers call them when they are built, in the
order below; `freeze_statistics` again with each change of mode.
"""

from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from spanbox.errors import ConfigError
from spanbox.models.pretrained import Part
from spanbox.settings import Settings

Freeze = Annotated[int, Field(strict=True, ge=0)] | Literal["all"]  # strict: `true` is not one layer


class LoraSettings(Settings):
    """Low-rank updates instead of full training (LoRA, https://arxiv.org/abs/2106.09685)."""

    rank: int = Field(
        8,
        ge=1,
        description="rank of the update of each weight matrix; LoRA is off unless a key of this section is set, and "
        'needs `pip install "spanbox[lora]"`',
    )
    alpha: float = Field(16.0, gt=0.0, description="updates are scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="dropout on the inputs of the updates")
    targets: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="suffixes of the names of the linear layers to update, e.g. [query, value]; "
        "default: all linear layers of the encoder's layers",
    )


def freeze_layers(model: Any, layers: nn.ModuleList, freeze: Freeze, part: Part) -> None:
    """Freeze the `freeze` lowest layers and everything before them, or the whole model.

    Raises:
        ConfigError: there are fewer layers.
    """
    if freeze == "all":
        model.requires_grad_(False)
        return
    if freeze > len(layers):
        raise ConfigError(
            f"{part} tower: freeze is {freeze}, but this {model.config.model_type!r} has {len(layers)} layers. "
            f"Set it to {len(layers)} or less, or to all."
        )
    frozen = list(layers[:freeze].parameters())
    for parameter in model.parameters() if frozen else ():  # in the order in which the encoder uses them
        parameter.requires_grad_(False)
        if parameter is frozen[-1]:
            break


def add_lora(model: Any, layers: nn.ModuleList, lora: LoraSettings, part: Part) -> None:
    """Freeze the model and add updates, initially zero, to the linear layers of `layers`.

    By default only linear layers within `layers` are targets: a pooler may use the weight of a linear layer without
    calling it (as in SigLIP), so an update there would get no gradient.

    Raises:
        ConfigError: peft is not installed, there are no layers or none of them is linear, or a target does not exist.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ConfigError(
            f'{part} tower: lora needs peft, which is not installed: pip install "spanbox[lora]"'
        ) from None
    if not layers:
        raise ConfigError(f"{part} tower: freeze leaves no layer for lora to update. Set it to a smaller number.")
    inside = {module for module in layers.modules() if isinstance(module, nn.Linear)}
    linear = [name for name, module in model.named_modules() if module in inside]
    if not linear:
        raise ConfigError(
            f"{part} tower: lora updates linear layers, and {model.config.model_type!r} has none. Remove lora; freeze "
            "trains less of the tower."
        )
    names = _matching(linear, lora.targets, part) if lora.targets else linear
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=names)
    inject_adapter_in_model(config, model)


def _matching(names: list[str], targets: tuple[str, ...], part: Part) -> list[str]:
    """The names that end in one of `targets`; each target must match."""
    for target in targets:
        if not any(_ends_in(name, target) for name in names):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
            raise ConfigError(
                f"{part} tower: lora.targets has {target!r}, but no trained linear layer has that name. "
                f"Known are: {known}."
            )
    return [name for name in names if any(_ends_in(name, target) for target in targets)]


def _ends_in(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def checkpoint_gradients(model: Any, part: Part) -> None:
    """Store only the inputs of each layer, and compute the layer again in the backward pass.

    Raises:
        ConfigError: transformers does not offer it for this family.
    """
    if not model.supports_gradient_checkpointing:
        raise ConfigError(
            f"{part} tower: transformers offers no gradient checkpointing for {model.config.model_type!r}. Set "
            "gradient_checkpointing to false; a smaller train.chunk_size saves memory too."
        )
    # transformers 5.23 renamed it to activation checkpointing; the old name warns.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    # It also sets requires_grad on the output of the word embeddings, which only reentrant checkpointing needs: it
    # would build a graph through frozen layers.
    model.disable_input_require_grads()
    model.config.use_cache = False  # encoders cache nothing, but BERT's default makes transformers warn


def check_batch_norm(model: Any, *, frozen: bool, all_frozen: bool) -> None:
    """Raise ConfigError for BatchNorm whose statistics are not frozen, or for frozen statistics without BatchNorm."""
    has_batch_norm = any(isinstance(module, _BatchNorm) for module in model.modules())
    if has_batch_norm and not (frozen or all_frozen):
        raise ConfigError(
            f"vision tower: {model.config.model_type!r} contains BatchNorm, which makes features depend on the other "
            "images of a chunk and updates its statistics in both forward passes of the exact large-batch step. "
            "model.vision.freeze_norm=true admits the encoder: pretrained statistics are kept, everything else is "
            "trained. Or use an encoder with layer normalisation, for example ConvNeXt."
        )
    if frozen and not has_batch_norm:
        raise ConfigError(
            f"model.vision.freeze_norm: true, but {model.config.model_type!r} has no BatchNorm whose statistics could "
            "be frozen. Set it to false."
        )


def freeze_statistics(model: nn.Module) -> None:
    """Put every BatchNorm in eval mode: it normalises with its stored statistics and does not update them."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
