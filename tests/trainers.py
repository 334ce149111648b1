"""Training runs of tiny encoders: made, run and resumed, and what their logs say."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from encoders import collate, make_model, make_sample, tokenizer
from spanbox.engine.checkpoint import CheckpointFiles, CheckpointStore, load_trainer_state, load_weights
from spanbox.engine.device import choose_precision
from spanbox.engine.settings import TrainSettings
from spanbox.engine.tracking import IncidentTally
from spanbox.engine.trainer import Trainer, Validate
from spanbox.losses.objective import LossSettings, Objective
from spanbox.progress import Progress
from spanbox.structures import Batch, Incident
from spanbox.tasks.pretraining import Pretraining

Loaded = tuple[Batch, list[str], list[Incident]]
STEPS = 6
SIZE = 4  # pairs of a batch


def make_trainer(
    run_dir: Path,
    *,
    validate: Validate | None = None,
    dropout: float = 0.0,
    loss: dict[str, Any] | None = None,
    broken_limit: float = 0.01,
    **settings: Any,
) -> Trainer:
    run_dir.mkdir(exist_ok=True)
    torch.manual_seed(0)
    defaults = {
        "steps": STEPS,
        "batch_size": SIZE,
        "chunk_size": SIZE,
        "device": "cpu",
        "log_every": 1,
        "save_every": 3,
        "validate_every": 2,
    }
    model = make_model(dropout=dropout)
    files = CheckpointFiles("", tokenizer(), {}, model.preprocessing)
    train = TrainSettings.model_validate(defaults | settings)
    return Trainer(
        Pretraining(model, Objective(LossSettings.model_validate(loss or {}))),
        train,
        example=lambda pairs: collate(*(make_sample(number) for number in range(pairs))),
        precision=choose_precision(train.precision, torch.device(train.device)),
        seed=0,
        run_dir=run_dir,
        store=CheckpointStore(run_dir / "checkpoints", files, keep=2),
        tally=IncidentTally(100, broken_limit),
        validate=validate,
    )


def load(step: int) -> Loaded:
    """The batch of a step, the same in every run."""
    samples = [make_sample(SIZE * step + number) for number in range(SIZE)]
    return collate(*samples), [sample.id for sample in samples], []


def batches(first: int = 0) -> Iterator[Loaded]:
    return map(load, range(first, 1000))


def fit(trainer: Trainer, stream: Iterator[Loaded] | None = None) -> bool:
    with Progress("training", trainer.settings.steps, trainer.step) as progress:
        return trainer.fit(stream or batches(trainer.step), progress)


def log(run_dir: Path, kind: str = "train") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def losses(run_dir: Path) -> list[float]:
    return [line["loss"] for line in log(run_dir)]


def resumed(run_dir: Path, **options: Any) -> Trainer:
    trainer = make_trainer(run_dir, **options)
    last = run_dir / "checkpoints" / "last"
    load_weights(last, trainer.model, trainer.task.objective)
    trainer.restore(load_trainer_state(last))
    return trainer


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)
