"""Memory plan of a config, for `spanbox plan`."""

from dataclasses import dataclass
from pathlib import Path

import torch

from spanbox.config import RunConfig
from spanbox.engine.checkpoint import find_checkpoint
from spanbox.engine.device import choose_device, choose_precision
from spanbox.engine.memory import StepMemory, measure_step, memory_budget
from spanbox.engine.task import encode_in, parameters
from spanbox.models.pretrained import Part
from spanbox.models.trainable import checkpoint_gradients
from spanbox.tasks.pretraining import Pretraining
from spanbox.wiring.building import build_model, build_objective, example_batches
from spanbox.wiring.loading import open_encoder

PARTS: tuple[Part, ...] = ("text", "vision")


@dataclass(frozen=True)
class Plan:
    """Memory of a training step, with and without gradient checkpointing.

    Attributes:
        parameters, trained: number of all parameters and of the trained ones.
        plain, checkpointed: memory of a step without and with gradient checkpointing of both towers.
        budget: available bytes.
        device: device of the measurement.
    """

    parameters: int
    trained: int
    plain: StepMemory
    checkpointed: StepMemory
    budget: int
    device: torch.device


def plan(config: RunConfig) -> Plan:
    """Measure the memory of a training step. Loads the towers but no data; takes seconds."""
    device = choose_device(config.train.device)
    precision = choose_precision(config.train.precision, device)
    start = config.train.start
    model = open_encoder(find_checkpoint(Path(start)), config)[0] if start else build_model(config.model)
    model.to(device).train()
    objective = build_objective(config).to(device)
    task = Pretraining(model, objective)
    encode = encode_in(task, device, precision)
    example = example_batches(config, model)
    plain = measure_step(task, encode, example)
    for part in PARTS:
        tower = getattr(model, part)
        if tower.model.supports_gradient_checkpointing:
            checkpoint_gradients(tower.model, part)
    checkpointed = measure_step(task, encode, example)
    everything = (*model.parameters(), *objective.parameters())
    return Plan(
        parameters=sum(parameter.numel() for parameter in everything),
        trained=sum(parameter.numel() for parameter in parameters(task)),
        plain=plain,
        checkpointed=checkpointed,
        budget=memory_budget(config.train.memory_gb, device, plain.weights),
        device=device,
    )
