"""AdamW with sane parameter groups, and a learning rate that is a function of the step alone."""

import math
from collections.abc import Iterable

import torch
from pydantic import Field
from torch import nn

from spanbox.settings import Settings


class OptimiserSettings(Settings):
    lr: float = Field(1e-3, gt=0, description="peak learning rate of what starts from nothing")
    tower_lr: float | None = Field(
        None, gt=0, description="peak learning rate of the towers; default: that of the rest"
    )
    weight_decay: float = Field(
        0.05, ge=0, description="decoupled weight decay of matrices; biases and norms have none"
    )
    beta2: float = Field(0.98, gt=0, lt=1, description="decay of the second moment")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps in which the learning rate rises from 0")
    final_lr: float = Field(0.01, ge=0, le=1, description="learning rate at the last step, as a share of the peak")
    clip_norm: float = Field(1.0, gt=0, description="gradients longer than this are shortened to it")


def make_optimiser(
    towers: Iterable[nn.Module], others: Iterable[nn.Module], settings: OptimiserSettings
) -> torch.optim.AdamW:
    """AdamW over four groups: towers and the rest, each with and without weight decay; what is frozen is left out."""
    tower_lr = settings.tower_lr or settings.lr
    groups = [*_groups(towers, tower_lr, settings.weight_decay), *_groups(others, settings.lr, settings.weight_decay)]
    return torch.optim.AdamW(groups, betas=(0.9, settings.beta2), fused=True)


def _groups(modules: Iterable[nn.Module], peak_lr: float, weight_decay: float) -> list[dict[str, object]]:
    parameters = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in parameters if parameter.dim() >= 2]
    vectors = [parameter for parameter in parameters if parameter.dim() < 2]
    groups: list[dict[str, object]] = []
    for members, decay in ((matrices, weight_decay), (vectors, 0.0)):
        if members:
            groups.append({"params": members, "lr": peak_lr, "peak_lr": peak_lr, "weight_decay": decay})
    return groups


def lr_share(step: int, steps: int, settings: OptimiserSettings) -> float:
    """Learning rate of step `step` (from 0) as a share of its peak: linear warm-up, then half a cosine."""
    warmup = round(settings.warmup * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return settings.final_lr + (1 - settings.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rate(optimiser: torch.optim.Optimizer, share: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = group["peak_lr"] * share
