"""The training run: steps, log, validation, checkpoints, graceful shutdown."""

import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spanbox.engine.checkpoint import CheckpointStore, named_weights
from spanbox.engine.chunks import ChunkSizes
from spanbox.engine.device import casting_once, choose_device
from spanbox.engine.distributed import Ranks, whole
from spanbox.engine.frozen_layers import FrozenLayers
from spanbox.engine.large_batch import States, TowerStep, accumulate_gradients, even_chunk
from spanbox.engine.optimiser import (
    clip_gradients,
    lr_share,
    make_optimiser,
    restore_optimiser,
    set_learning_rate,
    whole_state,
)
from spanbox.engine.run_folder import settle_replaced
from spanbox.engine.settings import TrainSettings
from spanbox.engine.state_cache import StateCache
from spanbox.engine.stopping import StopRequest
from spanbox.engine.task import Forward, StepInputs, Task, heads, parameters
from spanbox.engine.trackers import check_installed
from spanbox.engine.tracking import IncidentTally, RunLog
from spanbox.engine.trainer_state import check_trainer_state
from spanbox.errors import ConfigError, TrainingError
from spanbox.files import write_json
from spanbox.progress import Progress
from spanbox.structures import Incident, Losses, stable_id

Validate = Callable[[Any, Progress], tuple[dict[str, float], float]]
"""Gives the metrics of a model, and the one that chooses the best; shown as a part of the progress."""


@dataclass
class _Window:
    """What happened since the last line of the log."""

    seconds: float = 0.0  # of loading and training
    waited: float = 0.0  # of them for data
    pairs: int = 0


class Trainer:
    """Trains a task's model, from its current state to the end of the run.

    Args:
        example: a batch of that many pairs, as large as pairs get; measured when the chunk sizes are chosen here.
        precision: of the towers, as `train.precision` or a measurement has it.
        seed: every random draw of a step comes from it, the step and the rank.
        run_dir: folder for the log and the batch that made a loss non-finite.
        store: where checkpoints go.
        tally: counts the data's incidents and stops when too many images are broken.
        validate: metrics of the model and the value that chooses the best; None: no validation.
        ranks: the processes that train together.
        state_caches: of towers in which nothing learns, by name.
    """

    def __init__(
        self,
        task: Task,
        settings: TrainSettings,
        *,
        example: Callable[[int], Any],
        precision: torch.dtype,
        seed: int,
        run_dir: Path,
        store: CheckpointStore,
        tally: IncidentTally,
        validate: Validate | None,
        ranks: Ranks | None = None,
        state_caches: Mapping[str, StateCache] | None = None,
    ) -> None:
        check_installed(settings.track)
        if settings.patience and validate is None:
            raise ConfigError("train.patience: nothing is validated; give data.val, or set train.patience=null")
        self.ranks = ranks or Ranks()
        self.device = choose_device(settings.device, self.ranks.local_rank)
        self.precision = precision
        self.task = task
        self.model = task.model
        self.settings = settings
        self.seed = seed
        self.run_dir = run_dir
        self.store = store
        self.tally = tally
        self.state_caches = state_caches or {}
        self.validate = validate
        sharded = settings.parallel == "fsdp" and self.ranks.world_size > 1
        if not sharded:
            task.model.to(self.device)  # fsdp moves each layer when it is cut up
        task.objective.to(self.device)
        self._forward = Forward(task, self.device, self.precision)
        self.chunk_sizes = ChunkSizes.of(settings, self._forward, example, self.ranks)
        if settings.compile:  # after measuring, whose dispatch mode would make dynamo skip the towers for good
            task.compile()
        self.ranks.share_weights(task.model, task.towers.values(), settings.parallel)
        if sharded:
            task.model.to(self.device)
        # No layer of a compiled tower can be skipped, nor of one that is cut up: its hooks gather weights.
        self.skips_frozen_layers = not (settings.compile or sharded)
        self._trained = parameters(task)
        self.optimiser = make_optimiser(task.towers.values(), heads(task), task.objective, settings.optimiser)
        self.step = 0
        self.seconds = 0.0  # of training so far, without validation and saving
        self.best: float | None = None
        self.best_metrics: dict[str, float] = {}
        self._metrics: dict[str, float] | None = None  # of the validation of this step
        self.since_best = 0  # validations
        self._stop = StopRequest()
        self._stopping = False  # all ranks, after the same step
        self._uncounted: list[Incident] = []
        self._clock = time.perf_counter if settings.clock == "wall" else time.process_time

    @property
    def done(self) -> float:
        """Share of the run that is done, seen from the middle of the coming step; 1 or more at the end."""
        if self.settings.minutes is not None:
            return self.seconds / (60 * self.settings.minutes)
        return (self.step + 0.5) / self.settings.steps

    def train_step(self, batch: Any, ids: list[str]) -> Losses:
        """One optimiser step on one contrastive batch on the CPU. `ids` name its pairs when the loss is not finite."""
        torch.manual_seed(stable_id(f"{self.seed} {self.step} {self.ranks.rank}"))
        done = min(1.0, self.done)
        set_learning_rate(self.optimiser, lr_share(done, self.settings.optimiser))
        self.task.before_step(done, self.step)
        losses = self._gradients_in_memory(batch)
        self.ranks.add_up_gradients(self._trained)
        norm = clip_gradients(self._trained, self.settings.optimiser.clip_norm)
        self._check_finite(losses, norm, ids)
        self.optimiser.step()
        self.task.after_step()
        self.step += 1
        return losses

    def _gradients_in_memory(self, batch: Any) -> Losses:
        """Accumulate the gradients of a step; with smaller chunks when the memory does not suffice."""
        while True:
            self.optimiser.zero_grad()
            try:
                losses = self._gradients(batch)
                break
            except torch.OutOfMemoryError as error:
                rows = {name: sum(map(len, groups)) for name, groups in self.task.inputs(batch).rows.items()}
                self.chunk_sizes.halve(rows, self.ranks.rank, self.ranks.world_size, error)
            torch.cuda.empty_cache()  # outside of the handler, which keeps the exception alive
        for parameter in self._trained:
            if parameter.grad is None:  # of something unused, as a level that is off
                parameter.grad = torch.zeros_like(parameter)
        return self.ranks.total_losses(losses)

    def _gradients(self, batch: Any) -> Losses:
        """This rank's share of the gradients and losses."""
        if self.settings.accumulation == "exact":
            return self._gradients_of(batch, self.chunk_sizes, 1.0)
        # Usual accumulation, for comparison: each chunk of pairs is contrasted with itself only.
        chunks = list(batch.split(even_chunk(len(batch), min(self.chunk_sizes.values()))))
        whole = dict.fromkeys(self.task.towers, sys.maxsize)
        parts = [self._gradients_of(chunk, whole, len(chunk) / len(batch)) for chunk in chunks]
        terms = {name: torch.stack([part.terms[name] for part in parts]).sum() for name in parts[0].terms}
        return Losses(torch.stack([part.total for part in parts]).sum(), terms)

    def _gradients_of(self, batch: Any, chunk_sizes: dict[str, int], weight: float) -> Losses:
        """As `_gradients`, of losses that are multiplied by `weight`."""
        inputs = self.task.inputs(batch)
        names = list(inputs.rows)

        def score(*states: States) -> Losses:
            losses = self._score(dict(zip(names, states, strict=True)), inputs)
            return Losses(weight * losses.total, {name: weight * term for name, term in losses.terms.items()})

        return accumulate_gradients([self._tower_step(name, inputs, chunk_sizes[name]) for name in names], score)

    def _tower_step(self, name: str, inputs: StepInputs, chunk_size: int) -> TowerStep:
        tower = self.task.towers[name]
        if self.ranks.is_sharded:
            shared: dict[str, Any] = {"largest": self.ranks.largest}
        else:  # the cast weights of a tower that is cut up would be whole
            shared = {"casting_once": partial(casting_once, self.device)}
        encode = partial(self._forward.encode, name)
        if name in self.state_caches:
            encode = partial(self.state_caches[name].encode, encode)
        return TowerStep(
            encode,
            inputs.rows[name],
            chunk_size,
            self.task.trains(name),
            FrozenLayers.of(tower) if self.skips_frozen_layers else FrozenLayers(),
            partial(self.ranks.before_backward, tower),
            **shared,
        )

    def _score(self, states: dict[str, States], inputs: StepInputs) -> Losses:
        """This rank's share of the losses of the pairs of all ranks."""
        features = self._forward.features(states, inputs.rest)
        targets = self.ranks.gather(inputs.targets.to(self.device, non_blocking=True))
        return self.task.losses(self.ranks.gather_features(features), targets, self.ranks.share(len(features)))

    def fit(self, batches: Iterable[tuple[Any, list[str], list[Incident]]], progress: Progress) -> bool:
        """Run the remaining steps; none when the patience is used up. Returns False when it was stopped before its end
        (Ctrl-C, SIGTERM).

        Raises:
            TrainingError: a loss that is not finite, nothing to contrast, or too many broken images.
            OutputError: the log or a checkpoint cannot be written.
        """
        self.model.train()
        window = _Window()
        with ExitStack() as stack:
            stack.enter_context(self._stop.listening())
            if self._at_end():
                progress.note(f"nothing left to train: the run ended at step {self.step}")
            log = stack.enter_context(self._open_log())
            stream = stack.enter_context(_closing(iter(batches)))  # last: its workers end first
            while not self._at_end() and not self._stopping:
                began = self._clock()
                batch, ids, incidents = next(stream)
                window.waited += self._clock() - began
                self._count(incidents)
                losses = self.train_step(batch, ids)
                window.pairs += len(batch) * self.ranks.world_size
                took = self._clock() - began
                window.seconds += took
                self._agree(took)
                for note in self.task.notes(last=self._at_end()):
                    progress.note(f"step {self.step}: {note}")
                detail = ""
                if self._is_due(self.settings.log_every):
                    self._share_incidents()
                    if log:
                        values = self._log_values(losses, window)
                        log.write(self.step, "train", values)
                        detail = _progress_line(values)
                    window = _Window()
                progress.update(self._progress(), detail)
                self._validate_and_save(log, progress)
            if self._stopping:
                self._save(best=False)
        return self._at_end()

    def _count(self, incidents: list[Incident]) -> None:
        """Count the incidents of a batch: at once on a single rank, with those of the others when they are shared."""
        self._uncounted += incidents
        if self.ranks.world_size == 1:
            self._share_incidents()

    def _share_incidents(self) -> None:
        """Count the incidents of all ranks. All of them call it at the same steps."""
        self.tally.add(self.ranks.everyones(self._uncounted))
        self._uncounted = []

    def state(self) -> dict[str, Any]:
        """All that resuming needs beside the weights, the same for any number of ranks. Called on all of them."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "best_metrics": self.best_metrics,
            "since_best": self.since_best,
            "incidents": self.tally.state(),
            "optimiser": whole_state(self.optimiser),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from the result of `state()`. Raises CheckpointError when it is damaged."""
        check_trainer_state(state)
        self.step = state["step"]
        self.seconds = state["seconds"]
        self.best = state["best"]
        self.best_metrics = state["best_metrics"]
        self.since_best = state.get("since_best", 0)  # a checkpoint from before there was patience has none
        self.tally.restore(state["incidents"])
        restore_optimiser(self.optimiser, state["optimiser"])

    def _at_end(self) -> bool:
        return self.done >= 1.0 or self._patience_used_up()

    def _patience_used_up(self) -> bool:
        return self.settings.patience is not None and self.since_best >= self.settings.patience

    def _open_log(self) -> AbstractContextManager[RunLog | None]:
        """The log of the run, on the main rank."""
        if not self.ranks.is_main:
            return nullcontext()
        return RunLog(self.run_dir, self.step, self.settings.track, self.store.files.config_yaml)

    def _is_due(self, every: int) -> bool:
        """Whether an action that happens every `every` steps, and at the end, is due."""
        return self.step % every == 0 or self._at_end()

    def _progress(self) -> int:
        return int(self.seconds) if self.settings.minutes is not None else self.step

    def _agree(self, seconds: float) -> None:
        """Count the time of a step, and make all ranks stop at the same step."""
        slowest, stop = self.ranks.largest(seconds, float(self._stop.received))
        self.seconds += slowest
        self._stopping = stop > 0

    def _validate_and_save(self, log: RunLog | None, progress: Progress) -> None:
        is_best = False
        self._metrics = None
        if self.validate and self._is_due(self.settings.validate_every):
            is_best = self._validate(self.validate, log, progress)
        if is_best or self._is_due(self.settings.save_every):
            self._save(best=is_best)

    def _validate(self, validate: Validate, log: RunLog | None, progress: Progress) -> bool:
        """Measure the model: on the main rank, on all where it is shared among them. Returns whether it is the best."""
        improved = 0.0
        if log or self.ranks.is_sharded:
            self.model.eval()
            metrics, value = validate(self.model, progress)
            self._metrics = metrics
            self.model.train()
            if self.best is None or value > self.best:
                improved, self.best, self.best_metrics = 1.0, value, metrics
            if log:
                log.write(self.step, "validation", metrics)
                name = self.settings.best_name
                best = " (best)" if improved else ""
                progress.note(f"step {self.step}: {name} {metrics.get(name, value):z.4f}{best}")
        is_best = self.ranks.largest(improved)[0] > 0
        self.since_best = 0 if is_best else self.since_best + 1
        if log and self._patience_used_up() and self.done < 1.0:
            log.write(self.step, "early stop", {"since_best": self.since_best})
            progress.note(
                f"step {self.step}: no better {self.settings.best_name} in {self.since_best} validations, so the run "
                "ends here (train.patience)"
            )
        return is_best

    def _save(self, *, best: bool) -> None:
        self._share_incidents()
        weights = {name: whole(tensor).cpu() for name, tensor in named_weights(self.model, self.task.objective).items()}
        state = self.state()
        if self.ranks.is_main:
            self.store.save(self.step, weights, state, best=best, metrics=self._metrics)
            settle_replaced(self.run_dir)
        self.ranks.wait_for_all()

    def _log_values(self, losses: Losses, window: _Window) -> dict[str, Any]:
        return {
            "loss": losses.total.item(),
            **{f"loss.{name}": value.item() for name, value in losses.terms.items()},
            **self.task.log_values(),
            "lr": max(group["lr"] for group in self.optimiser.param_groups),
            "seconds": round(self.seconds, 3),
            "chunk_size": dict(self.chunk_sizes),
            "pairs_per_second": window.pairs / window.seconds,
            "data_wait": window.waited / window.seconds,
            "incidents": self.tally.counts(),
        }

    def _check_finite(self, losses: Losses, norm: Tensor, ids: list[str]) -> None:
        """Raise TrainingError before a step with a gradient that is not finite, which would ruin every weight."""
        if torch.isfinite(losses.total + norm):
            return
        path = self.run_dir / f"nonfinite-step-{self.step:06d}.json"
        terms = {name: f"{value.item():g}" for name, value in losses.terms.items()}
        content = {"step": self.step, "loss": terms, "ids": self.ranks.everyones(ids)}
        if self.ranks.is_main:
            write_json(path, content)
        raise TrainingError(
            f"the loss of step {self.step} ({terms}) or its gradient ({norm:g}) is not finite; the batch's ids are in "
            f"{path}. Lower train.optimiser.lr, or use train.precision=float32."
        )


def _closing(stream: Iterator[Any]) -> AbstractContextManager[Iterator[Any]]:
    """Context that closes an iterator that can be closed, which ends the workers that it loads with."""
    return closing(stream) if isinstance(stream, Generator) else nullcontext(stream)


def _progress_line(values: dict[str, Any]) -> str:
    wait = f"waiting for data {values['data_wait']:.0%}"
    return f"loss {values['loss']:z.3f}  {values['pairs_per_second']:.0f} pairs/s  {wait}"
