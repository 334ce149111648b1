"""AdamW, its parameter groups, and a learning rate that depends on the completed share of the run."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grads_with_norm_, get_total_norm

from spanbox.engine.distributed import is_sharded, shared_like, whole
from spanbox.engine.trainer_state import check_moments, group_sizes
from spanbox.errors import CheckpointError
from spanbox.settings import Settings

_NEVER_DECAYED = re.compile(
    r"(^|[._])(position_embeddings?|(token|task)_type_embeddings|cls_token|class_embedding|mask_token|register_tokens"
    r"|probe)(\.weight)?$"
    r"|(^|\.)grn\."  # scales per channel, as (1, 1, 1, C)
)
"""Parameters of more than one dimension that are no weight matrices: learned tokens, positions and types of tokens."""


class OptimiserSettings(Settings):
    lr: float = Field(1e-3, gt=0, description="peak learning rate of the newly initialised parts")
    tower_lr: float | None = Field(None, gt=0, description="peak learning rate of the towers; default: lr")
    weight_decay: float = Field(
        0.05,
        ge=0,
        description="decoupled weight decay of matrices; biases, norms, and embeddings of positions, token types and "
        "special tokens have none",
    )
    beta2: float = Field(0.98, gt=0, lt=1, description="decay of the second moment")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps over which the learning rate rises from 0")
    final_lr: float = Field(0.01, ge=0, le=1, description="learning rate at the last step, as a share of the peak")
    clip_norm: float = Field(1.0, gt=0, description="largest norm of the gradient; longer gradients are scaled down")


def make_optimiser(
    towers: Iterable[nn.Module], heads: Iterable[nn.Module], objective: nn.Module, settings: OptimiserSettings
) -> torch.optim.AdamW:
    """AdamW with groups of towers, heads and objective, each with and without weight decay; without frozen weights.

    Towers have their own groups for their learning rate, and since their parameters may be cut up among ranks.
    """
    decay = settings.weight_decay
    groups = [
        *_groups(towers, settings.tower_lr or settings.lr, decay),
        *_groups(heads, settings.lr, decay),
        *_groups([objective], settings.lr, decay),
    ]
    return torch.optim.AdamW(groups, betas=(0.9, settings.beta2), fused=True)


def _groups(modules: Iterable[nn.Module], peak_lr: float, weight_decay: float) -> list[dict[str, object]]:
    decayed, others = list[nn.Parameter](), list[nn.Parameter]()
    for module in modules:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                (decayed if is_decayed(name, parameter) else others).append(parameter)
    groups: list[dict[str, object]] = []
    for members, decay in ((decayed, weight_decay), (others, 0.0)):
        if members:
            groups.append({"params": members, "lr": peak_lr, "peak_lr": peak_lr, "weight_decay": decay})
    return groups


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: to matrices and convolutions, word and patch embeddings included."""
    return parameter.dim() >= 2 and not _NEVER_DECAYED.search(name)


def lr_share(done: float, settings: OptimiserSettings) -> float:
    """Learning rate as a share of its peak at the share `done` of the run: linear warm-up, then half a cosine."""
    if done < settings.warmup:
        return done / settings.warmup
    falling = (done - settings.warmup) / (1 - settings.warmup)
    return settings.final_lr + (1 - settings.final_lr) * 0.5 * (1 + math.cos(math.pi * falling))


def set_learning_rate(optimiser: torch.optim.Optimizer, share: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = group["peak_lr"] * share


def clip_gradients(parameters: Sequence[nn.Parameter], longest: float) -> Tensor:
    """Scale the gradient of all parameters down to a norm of at most `longest`. Returns its norm before."""
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    shared = [parameter for parameter in trained if is_sharded(parameter)]
    if not shared:
        return clip_grad_norm_(trained, longest)
    own = [parameter for parameter in trained if not is_sharded(parameter)]
    norms = [whole(get_total_norm([p.grad for p in group if p.grad is not None])) for group in (shared, own) if group]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    for group in (shared, own):  # the two kinds do not mix in one kernel
        clip_grads_with_norm_(group, longest, norm)
    return norm


def whole_state(optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimiser's state with whole tensors, also if they are sharded; collective: all ranks must call it."""
    state = optimiser.state_dict()
    moments = {
        index: {name: whole(value).cpu() for name, value in own.items()} for index, own in state["state"].items()
    }
    return {"state": moments, "param_groups": state["param_groups"]}


def restore_optimiser(optimiser: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load the moments of `whole_state`; learning rates and decay come from the settings, which may have changed.

    Raises:
        CheckpointError: the moments belong to other parameters, or are damaged.
    """
    own = optimiser.state_dict()["param_groups"]
    if [len(group["params"]) for group in own] != group_sizes(saved):
        raise CheckpointError(
            "the trained parameters of the checkpoint differ from those of the config; resume with the loss and model "
            "settings of its config.yaml"
        )
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    check_moments(saved, [parameter.shape for parameter in parameters])
    moments = {
        index: {name: shared_like(value, parameters[index]) for name, value in state.items()}
        for index, state in saved["state"].items()
    }
    optimiser.load_state_dict({"state": moments, "param_groups": own})
