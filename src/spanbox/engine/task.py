"""The interface between the trainer and a task: a model, its losses, and the way from a batch to both.

A step takes a batch apart into rows for each tower (`inputs`), encodes them in chunks (`encode`), makes features of the
states of all rows (`features`), and losses of the features of all ranks (`losses`). The trainer, the large-batch engine
and the ranks are independent of models, features and losses; they exchange bundles of tensors.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from spanbox.engine.device import autocast
from spanbox.engine.large_batch import Rows, States
from spanbox.losses.kernel import Share
from spanbox.structures import Losses, TensorBundle


@dataclass(frozen=True)
class StepInputs:
    """A batch, taken apart.

    Attributes:
        rows: groups of rows of each tower, by its name.
        targets: inputs of the losses besides the features; a row per pair.
        rest: further arguments of `Task.features`.
    """

    rows: Mapping[str, Sequence[Rows]]
    targets: TensorBundle
    rest: Any = None


@dataclass(frozen=True)
class BlockedLoss:
    """A part of the losses that is computed in blocks of bounded memory.

    Attributes:
        pairs: of the smallest batch that fills a block.
        grows: whether its memory grows further with the batch; linearly then.
        loss: of the features and targets of a batch.
    """

    pairs: int
    grows: bool
    loss: Callable[[Any, Any], Tensor]


class Task(Protocol):
    """A task of the trainer.

    Attributes:
        model: everything that is saved as the model.
        towers: the parts that encode, by name. They have `layers` and `frozen_layers`, are cut up with fsdp, and have a
            separate learning rate.
        objective: parameters that are learned beside the model.
    """

    @property
    def model(self) -> Any: ...
    @property
    def towers(self) -> Mapping[str, nn.Module]: ...
    @property
    def objective(self) -> nn.Module: ...

    def inputs(self, batch: Any) -> StepInputs:
        """Take a batch apart, on the CPU."""

    def encode(self, tower: str, rows: Any) -> TensorBundle:
        """States of a chunk of a tower's rows, each by itself."""

    def trains(self, tower: str) -> bool:
        """Whether anything between the rows of a tower and their states learns."""

    def features(self, states: Mapping[str, States], rest: Any) -> TensorBundle:
        """Features of the pairs of this rank; a row per pair."""

    def losses(self, features: TensorBundle, targets: TensorBundle, share: Share) -> Losses:
        """This rank's share of the losses, from the features and targets of all ranks."""

    def unblocked(self, features: Any) -> Any:
        """The features without those that only `blocked_losses` read, such as tokens and patches."""

    def blocked_losses(self, features: Any) -> Sequence[BlockedLoss]:
        """Parts of the losses whose memory is measured on full blocks."""

    def before_step(self, done: float, step: int) -> None:
        """Set the values that follow a schedule, for the finished share of the run."""

    def after_step(self) -> None:
        """Clamp parameters that the optimiser moved out of their bounds."""

    def notes(self, *, last: bool) -> list[str]:
        """Notes for the user after a step. Raises TrainingError when going on makes no sense."""

    def log_values(self) -> dict[str, float]:
        """Values for the log."""

    def compile(self) -> None:
        """Compile the towers."""


@dataclass(frozen=True)
class Forward:
    """The forward passes of a task in the precision of the run."""

    task: Task
    device: torch.device
    precision: torch.dtype = torch.float32

    def encode(self, tower: str, rows: Any) -> TensorBundle:
        """States of a chunk of a tower's rows."""
        with autocast(self.device, self.precision):
            return self.task.encode(tower, rows)

    def measured_pass(self, tower: str, rows: Any) -> None:
        """Forward and backward pass of a chunk with a gradient of zeros, to be measured."""
        with torch.set_grad_enabled(self.task.trains(tower)):
            states = [state for state in self.encode(tower, rows).tensors() if state.requires_grad]
        if states:
            torch.autograd.backward(states, [torch.zeros_like(state) for state in states])

    def features(self, states: Mapping[str, States], rest: Any) -> TensorBundle:
        """Features of the pairs of this rank, from the states of all their rows."""
        with autocast(self.device, self.precision):
            return self.task.features(states, rest)


def parameters(task: Task) -> list[nn.Parameter]:
    """The trained parameters of a task."""
    return [one for one in (*task.model.parameters(), *task.objective.parameters()) if one.requires_grad]


def clear_gradients(task: Task) -> None:
    """Leave the trained parameters without gradients, which frees their memory."""
    for parameter in parameters(task):
        parameter.grad = None


def heads(task: Task) -> list[nn.Module]:
    """The largest parts of the model that contain no tower."""
    return list(_without(task.model, set(task.towers.values())))


def _without(module: nn.Module, towers: set[nn.Module]) -> Iterator[nn.Module]:
    """The largest parts of a module without any of the towers in them."""
    for child in module.children():
        if child in towers:
            continue
        if towers.isdisjoint(child.modules()):
            yield child
        else:
            yield from _without(child, towers)


def is_trained(tower: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in tower.parameters())


def weights(task: Task) -> list[Tensor]:
    """All parameters and buffers that are saved."""
    return [*task.model.state_dict().values(), *task.objective.state_dict().values()]
