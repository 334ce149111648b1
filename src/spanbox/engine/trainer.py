"""The training run: steps, log, validation, checkpoints, and an end that loses nothing."""

import json
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from spanbox.engine.checkpoint import CheckpointStore
from spanbox.engine.optimiser import OptimiserSettings, lr_share, make_optimiser, set_learning_rate
from spanbox.engine.tracking import IncidentTally, JsonLog
from spanbox.errors import CheckpointError, ConfigError, TrainingError
from spanbox.losses.objective import Objective
from spanbox.models.dual_encoder import DualEncoder
from spanbox.progress import Progress
from spanbox.settings import Settings
from spanbox.structures import Batch, Incident, Losses

Validate = Callable[[DualEncoder], tuple[dict[str, float], float]]  # metrics, and the one that chooses the best


class TrainSettings(Settings):
    batch_size: int = Field(128, ge=2, description="pairs contrasted with each other in one step")
    steps: int = Field(1000, ge=1, description="optimiser steps of the whole run")
    optimiser: OptimiserSettings = Field(OptimiserSettings(), description="AdamW and its learning rate")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="arithmetic of the towers; auto: bfloat16 on cards that have it, else float32"
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    log_every: int = Field(20, ge=1, description="steps between two lines of the log")
    validate_every: int = Field(500, ge=1, description="steps between two validations; the last step always has one")
    save_every: int = Field(500, ge=1, description="steps between two checkpoints; the last step always has one")
    keep: int = Field(2, ge=1, description="how many checkpoints to keep besides the best")
    best_metric: str = Field(
        "retrieval.t2i.r1", description="validation metric, larger is better, that chooses the best"
    )
    resume: bool = Field(False, description="go on from the last checkpoint of run.dir")


def choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ConfigError(f"train.device: {name!r} is no device to train on; expected auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"train.device: {name!r} is asked for, but the CUDA devices that PyTorch sees are "
            f"{torch.cuda.device_count()}; use train.device=cpu or a lower number"
        )
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        capable = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if capable else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


@dataclass
class _Window:
    """What happened since the last line of the log."""

    started: float
    waited: float = 0.0
    pairs: int = 0


class Trainer:
    """Trains a dual encoder by an objective, from its current state to `settings.steps`.

    Args:
        run_dir: folder for the log and the batch that made a loss non-finite.
        store: where checkpoints go.
        tally: counts the data's incidents and stops when too many images are broken.
        validate: metrics of the model and the value that chooses the best; None: no validation.
    """

    def __init__(
        self,
        model: DualEncoder,
        objective: Objective,
        settings: TrainSettings,
        *,
        run_dir: Path,
        store: CheckpointStore,
        tally: IncidentTally,
        validate: Validate | None,
    ) -> None:
        self.device = choose_device(settings.device)
        self.dtype = choose_precision(settings.precision, self.device)
        self.model = model.to(self.device)
        self.objective = objective.to(self.device)
        self.settings = settings
        self.run_dir = run_dir
        self.store = store
        self.tally = tally
        self.validate = validate
        heads = [child for name, child in model.named_children() if name not in ("text", "vision")]
        self.optimiser = make_optimiser([model.text, model.vision], [*heads, objective], settings.optimiser)
        self.step = 0
        self.best: float | None = None
        self.best_metrics: dict[str, float] = {}
        self._stop_asked = False

    def train_step(self, batch: Batch, ids: list[str]) -> Losses:
        """One optimiser step on one contrastive batch. `ids` name its pairs when the loss is not finite."""
        set_learning_rate(self.optimiser, lr_share(self.step, self.settings.steps, self.settings.optimiser))
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            features = self.model(batch)
        losses: Losses = self.objective(features, batch)
        self.optimiser.zero_grad()
        losses.total.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self._parameters(), self.settings.optimiser.clip_norm)
        self._check_finite(losses, norm, ids)
        self.optimiser.step()
        self.objective.clamp_temperatures()
        self.step += 1
        return losses

    def fit(self, batches: Iterable[tuple[Batch, list[str], list[Incident]]], progress: Progress) -> bool:
        """Run the remaining steps. Returns False when it was asked to stop before the end (Ctrl-C, SIGTERM).

        Raises:
            TrainingError: a loss that is not finite, or too many broken images.
        """
        log = JsonLog(self.run_dir / "log.jsonl", self.step)
        self.model.train()
        window = _Window(time.perf_counter())
        stream = iter(batches)
        with self._stopping_gently():
            while self.step < self.settings.steps and not self._stop_asked:
                asked = time.perf_counter()
                batch, ids, incidents = next(stream)
                window.waited += time.perf_counter() - asked
                self.tally.add(incidents)
                losses = self.train_step(batch.to(self.device, non_blocking=True), ids)
                window.pairs += len(batch)
                if self.step % self.settings.log_every == 0 or self.step == self.settings.steps:
                    values = self._log_values(losses, window)
                    log.write(self.step, "train", values)
                    progress.update(self.step, _progress_line(values))
                    window = _Window(time.perf_counter())
                else:
                    progress.update(self.step)
                paused = time.perf_counter()
                self._validate_and_save(log, progress)
                window.started += time.perf_counter() - paused  # the rates are those of training alone
            if self._stop_asked:
                self._save(best=False)
        return self.step == self.settings.steps

    def state(self) -> dict[str, Any]:
        """All that resuming needs beside the weights."""
        return {
            "step": self.step,
            "best": self.best,
            "best_metrics": self.best_metrics,
            "incidents": self.tally.state(),
            "optimiser": self.optimiser.state_dict(),
            "cpu_random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state that `state()` gave."""
        self.step = state["step"]
        self.best = state["best"]
        self.best_metrics = state["best_metrics"]
        self.tally.restore(state["incidents"])
        self._restore_optimiser(state["optimiser"])
        torch.set_rng_state(state["cpu_random"])
        if self.device.type == "cuda" and state["cuda_random"]:
            torch.cuda.set_rng_state_all(state["cuda_random"])

    def _restore_optimiser(self, saved: dict[str, Any]) -> None:
        """Take over the moments; rates and decay are those of the settings, which may have changed."""
        own = self.optimiser.state_dict()["param_groups"]
        if [len(group["params"]) for group in own] != [len(group["params"]) for group in saved["param_groups"]]:
            raise CheckpointError(
                "the checkpoint was made with other parameters to train than the config asks for; resume with the loss "
                "settings of its config.yaml"
            )
        self.optimiser.load_state_dict({"state": saved["state"], "param_groups": own})

    def _validate_and_save(self, log: JsonLog, progress: Progress) -> None:
        at_end = self.step == self.settings.steps
        is_best = False
        if self.validate and (at_end or self.step % self.settings.validate_every == 0):
            self.model.eval()
            metrics, value = self.validate(self.model)
            self.model.train()
            is_best = self.best is None or value > self.best
            if is_best:
                self.best, self.best_metrics = value, metrics
            log.write(self.step, "validation", metrics)
            progress.note(f"step {self.step}: {self.settings.best_metric} {value:.4f}{' (best)' if is_best else ''}")
        if is_best or at_end or self.step % self.settings.save_every == 0:
            self._save(best=is_best)

    def _save(self, *, best: bool) -> None:
        self.store.save(self.step, self.model, self.objective, self.state(), best=best)

    def _log_values(self, losses: Losses, window: _Window) -> dict[str, Any]:
        seconds = time.perf_counter() - window.started
        return {
            "loss": losses.total.item(),
            **{f"loss.{name}": value.item() for name, value in losses.terms.items()},
            **{f"temperature.{name}": value for name, value in self.objective.temperatures().items()},
            "lr": max(group["lr"] for group in self.optimiser.param_groups),
            "pairs_per_second": window.pairs / seconds,
            "data_wait": window.waited / seconds,
            "incidents": self.tally.counts(),
        }

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimiser.param_groups for parameter in group["params"]]

    def _check_finite(self, losses: Losses, norm: Tensor, ids: list[str]) -> None:
        """Before the step is taken: a gradient that is not finite would ruin every weight."""
        if torch.isfinite(losses.total + norm):
            return
        path = self.run_dir / f"nonfinite-step-{self.step:06d}.json"
        terms = {name: f"{value.item():g}" for name, value in losses.terms.items()}
        path.write_text(
            json.dumps({"step": self.step, "loss": terms, "ids": ids}, ensure_ascii=False), encoding="utf-8"
        )
        raise TrainingError(
            f"the loss of step {self.step} ({terms}) or its gradient ({norm:g}) is not finite; the batch's ids are in "
            f"{path}. Lower train.optimiser.lr, or use train.precision=float32."
        )

    @contextmanager
    def _stopping_gently(self) -> Iterator[None]:
        """Let SIGINT and SIGTERM end the run after the current step; a second one ends it at once."""

        def ask_to_stop(number: int, frame: FrameType | None) -> None:
            if self._stop_asked:
                raise KeyboardInterrupt
            self._stop_asked = True

        handlers = {number: signal.signal(number, ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _progress_line(values: dict[str, Any]) -> str:
    wait = f"waiting for data {values['data_wait']:.0%}"
    return f"loss {values['loss']:.3f}  {values['pairs_per_second']:.0f} pairs/s  {wait}"
