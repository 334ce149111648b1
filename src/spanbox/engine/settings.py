"""How a run is trained: the `train` section of the config."""

from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator

from spanbox.engine.distributed import Parallel
from spanbox.engine.optimiser import OptimiserSettings
from spanbox.engine.trackers import TrackerName
from spanbox.settings import Settings


class TrainSettings(Settings):
    batch_size: int = Field(
        128, ge=2, description="pairs contrasted with each other in one step, over all processes together"
    )
    chunk_size: PositiveInt | Literal["auto"] = Field(
        "auto", description="pairs encoded at a time; auto: as many as fit into memory_gb"
    )
    memory_gb: float | None = Field(
        None, gt=0, description="memory that training may use; default: what the card has free, 8 GB on a processor"
    )
    accumulation: Literal["exact", "naive"] = Field(
        "exact",
        description="exact: chunks give the gradient of the whole batch; naive: each chunk is contrasted with itself "
        "alone, as gradient accumulation usually does (it adds no negatives; to compare with)",
    )
    steps: int = Field(1000, ge=1, description="optimiser steps of the whole run")
    minutes: float | None = Field(
        None, gt=0, description="train for so many minutes instead of so many steps; the schedules follow the time"
    )
    clock: Literal["wall", "processor"] = Field(
        "wall",
        description="what minutes are: time that passes, or processor time of the training process, which is fairer "
        "where runs are compared on a busy machine without a card (data.workers are not in it)",
    )
    optimiser: OptimiserSettings = Field(OptimiserSettings(), description="AdamW and its learning rate")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="arithmetic of the towers; auto: bfloat16 on cards that have it, else float32"
    )
    compile: bool = Field(False, description="compile the towers: slower to start, faster to run on a card")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N; with torchrun auto is the process's own card")
    parallel: Parallel = Field(
        "ddp",
        description="with torchrun: ddp keeps the model on every card, fsdp a part of each of its parameters",
    )
    log_every: int = Field(20, ge=1, description="steps between two lines of the log")
    validate_every: int = Field(500, ge=1, description="steps between two validations; the last step always has one")
    save_every: int = Field(500, ge=1, description="steps between two checkpoints; the last step always has one")
    keep: int = Field(2, ge=1, description="how many checkpoints to keep besides the best")
    best_metric: str | dict[str, float] = Field(
        "retrieval.t2i.r1",
        description="validation metric that chooses the best checkpoint; of ranks and embedding.* the smaller value is "
        "better. Or a weighted sum, {retrieval.t2i.r1: 1, matching.within_image: 0.5}: the weights say the sign",
    )
    patience: PositiveInt | None = Field(
        None,
        description="validations in a row without a better best_metric after which the run ends; null: it never ends "
        "early. Schedules follow steps (or minutes) all the same, so such a run ends before the learning rate is down",
    )
    track: tuple[TrackerName, ...] = Field(
        (), description="what shows the curves beside log.jsonl: any of tensorboard, wandb, trackio; all work offline"
    )
    resume: bool = Field(False, description="go on from the last checkpoint of run.dir")

    @field_validator("track", mode="before")
    @classmethod
    def _one_or_several(cls, names: Any) -> Any:
        return (names,) if isinstance(names, str) else names

    @property
    def best_name(self) -> str:
        """What the value that chooses the best checkpoint is called."""
        if isinstance(self.best_metric, str):
            return self.best_metric
        return " + ".join(f"{weight:g} {name}" for name, weight in self.best_metric.items())
