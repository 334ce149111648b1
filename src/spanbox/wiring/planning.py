"""Memory and precision of a config, for `spanbox plan`."""

from dataclasses import dataclass

import torch

from spanbox.config import RunConfig
from spanbox.engine.device import PRECISIONS, choose_device, choose_precision
from spanbox.engine.memory import StepMemory, measure_step, memory_budget
from spanbox.engine.speed import can_gain_on_cpu, clearly_faster, seconds_per_pair
from spanbox.engine.task import Forward, parameters
from spanbox.models.trainable import checkpoint_gradients
from spanbox.tasks.pretraining import Pretraining
from spanbox.wiring.beginning import new_model
from spanbox.wiring.building import PARTS, build_objective, example_batches


@dataclass(frozen=True)
class Plan:
    """Memory of a training step, with and without gradient checkpointing.

    Attributes:
        parameters, trained: number of all parameters and of the trained ones.
        plain, checkpointed: memory of a step without and with gradient checkpointing of both towers.
        budget: available bytes.
        device: device of the measurement.
        precision: of the towers in these steps, as a run has it.
        seconds: of the towers per pair by precision, on a CPU; empty on a GPU, where `auto` measures nothing.
    """

    parameters: int
    trained: int
    plain: StepMemory
    checkpointed: StepMemory
    budget: int
    device: torch.device
    precision: torch.dtype
    seconds: dict[str, float]


def plan(config: RunConfig) -> Plan:
    """Measure the memory of a training step, and the towers in each precision. Loads the towers but no data."""
    device = choose_device(config.train.device)
    objective = build_objective(config)
    model, _ = new_model(config, objective)
    model.to(device).train()
    objective.to(device)
    task = Pretraining(model, objective)
    example = example_batches(config, model)
    seconds = seconds_per_pair(task, device, example) if device.type == "cpu" else {}
    precision = choose_precision(config.train.precision, device)
    if config.train.precision == "auto" and seconds and can_gain_on_cpu(task):
        precision = PRECISIONS[clearly_faster(seconds)]
    forward = Forward(task, device, precision)
    plain = measure_step(forward, example)
    for part in PARTS:
        tower = getattr(model, part)
        if tower.model.supports_gradient_checkpointing:
            checkpoint_gradients(tower.model, part)
    checkpointed = measure_step(forward, example)
    everything = (*model.parameters(), *objective.parameters())
    return Plan(
        parameters=sum(parameter.numel() for parameter in everything),
        trained=sum(parameter.numel() for parameter in parameters(task)),
        plain=plain,
        checkpointed=checkpointed,
        budget=memory_budget(config.train.memory_gb, device, plain.weights),
        device=device,
        precision=precision,
        seconds=seconds,
    )
