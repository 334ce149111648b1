"""The `train` section of the config."""

from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator

from spanbox.engine.distributed import Parallel
from spanbox.engine.optimiser import OptimiserSettings
from spanbox.engine.trackers import TrackerName
from spanbox.settings import MOST_GB, PathText, Settings


class TrainSettings(Settings):
    batch_size: int = Field(128, ge=2, description="pairs contrasted with each other in one step, over all processes")
    chunk_size: PositiveInt | Literal["auto"] | dict[str, PositiveInt] = Field(
        "auto",
        description="texts, and images, encoded at a time; {text: n, image: n} for a number for each tower; auto: as "
        "many as fit into memory_gb",
    )
    memory_gb: float | None = Field(
        None,
        gt=0,
        le=MOST_GB,
        description="memory limit of training; default: the free memory of the GPU, 8 GB on a CPU",
    )
    accumulation: Literal["exact", "naive"] = Field(
        "exact",
        description="exact: the gradient of the whole batch; naive: plain gradient accumulation, each chunk contrasted "
        "only with itself (no added negatives; for comparison)",
    )
    start: PathText | None = Field(
        None,
        description="run or checkpoint whose tokenizer and weights a new run begins with, in place of the paths and "
        "architectures of the model section; a fusion or LoRA that it does not have begins as in a new run",
    )
    steps: int = Field(1000, ge=1, description="optimiser steps of the whole run")
    minutes: float | None = Field(
        None, gt=0, description="train for this many minutes instead of `steps`; schedules follow the time"
    )
    clock: Literal["wall", "processor"] = Field(
        "wall",
        description="clock for `minutes`: wall time, or CPU time of the training process, which is fairer for "
        "comparisons on a busy machine without a GPU (excludes data.workers)",
    )
    optimiser: OptimiserSettings = Field(OptimiserSettings(), description="AdamW and its learning rate")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="precision of the towers; auto: bfloat16 on GPUs that compute in it, and on CPUs where it "
        "is measured to be faster; else float32",
    )
    compile: bool = Field(False, description="compile the towers: slower start, faster steps on a GPU")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N; auto with torchrun: the GPU of the process")
    parallel: Parallel = Field(
        "ddp",
        description="with torchrun: ddp keeps the model on every GPU, fsdp a part of each parameter",
    )
    rank_timeout: float = Field(
        600.0, gt=0, description="seconds after which a rank that does not answer is named and the run ends"
    )
    cache_frozen: PathText | None = Field(
        None,
        description="folder for the states of a tower that is frozen whole, which then encodes each text or image once "
        "in all epochs, and in all runs with the same weights; null: no cache",
    )
    log_every: int = Field(20, ge=1, description="steps between two lines of the log")
    validate_every: int = Field(500, ge=1, description="steps between two validations; the last step always has one")
    save_every: int = Field(500, ge=1, description="steps between two checkpoints; the last step always has one")
    keep: int = Field(2, ge=1, description="number of checkpoints to keep besides the best")
    best_metric: str | dict[str, float] = Field(
        "retrieval.t2i.r1",
        description="validation metric that selects the best checkpoint; smaller is better for ranks and embedding.*; "
        "or a weighted sum, {retrieval.t2i.r1: 1, matching.within_image: 0.5}, where the weights set the sign",
    )
    patience: PositiveInt | None = Field(
        None,
        description="validations in a row without improvement after which the run stops early; null: never; schedules "
        "follow `steps` or `minutes`, so an early stop comes before the learning rate has decayed",
    )
    track: tuple[TrackerName, ...] = Field(
        (), description="trackers to write to besides log.jsonl: tensorboard, wandb, trackio; all work offline"
    )
    resume: bool = Field(False, description="resume from the last checkpoint of run.dir")

    @field_validator("chunk_size")
    @classmethod
    def _each_tower(cls, chunk_size: Any) -> Any:
        if isinstance(chunk_size, dict) and chunk_size.keys() != {"text", "image"}:
            raise ValueError("give a number for each tower, {text: n, image: n}, one number for both, or auto")
        return chunk_size

    @field_validator("track", mode="before")
    @classmethod
    def _one_or_several(cls, names: Any) -> Any:
        return (names,) if isinstance(names, str) else names

    @property
    def best_name(self) -> str:
        """Name of the value that selects the best checkpoint."""
        if isinstance(self.best_metric, str):
            return self.best_metric
        return " + ".join(f"{weight:g} {name}" for name, weight in self.best_metric.items())
