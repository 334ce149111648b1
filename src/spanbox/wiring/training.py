"""A training run from its config."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from spanbox.config import RunConfig, dump_config, load_config, without_actions
from spanbox.data.manifest import Manifest
from spanbox.data.neighbours import manifest_digest
from spanbox.engine.checkpoint import (
    CheckpointFiles,
    CheckpointStore,
    last_checkpoint,
    load_trainer_state,
    report_fallback,
)
from spanbox.engine.device import choose_device, choose_precision, cpu_computes_in_bfloat16
from spanbox.engine.distributed import Ranks
from spanbox.engine.environment import earlier_precision, write_environment
from spanbox.engine.run_folder import (
    files_of_run,
    only_training,
    prepare_run_folder,
    refuse_earlier_run,
    refuse_running,
    settle_replaced,
)
from spanbox.engine.speed import faster_on_cpu
from spanbox.engine.task import Task
from spanbox.engine.tracking import IncidentTally
from spanbox.engine.trainer import Trainer, Validate
from spanbox.engine.versions import other_version
from spanbox.errors import CheckpointError, ConfigError
from spanbox.files import write_text
from spanbox.models.dual_encoder import DualEncoder
from spanbox.progress import Progress
from spanbox.tasks.pretraining import Pretraining
from spanbox.wiring.batches import TrainingBatches
from spanbox.wiring.beginning import model_of_checkpoint, new_model
from spanbox.wiring.building import build_objective, example_batches, open_manifest
from spanbox.wiring.evaluating import make_validation
from spanbox.wiring.loading import read_architecture
from spanbox.wiring.state_caches import make_state_caches


@dataclass(frozen=True)
class Trained:
    """How a run ended."""

    run_dir: Path
    is_main: bool  # whether this process reports for all ranks
    step: int
    finished: bool  # False: it was stopped, and can be resumed
    best: dict[str, float]  # validation metrics of the best checkpoint; empty without validation
    incidents: dict[str, tuple[int, str]]  # of each kind the number of pairs and an example


def train(config: RunConfig) -> Trained:
    """Train by a config. Writes the run folder `config.run.dir`; resumes it when `train.resume` is set.

    Started by `torchrun`, each process does its share.

    Raises:
        SpanboxError: a fault in the config, the data, the run folder or the training, with its remedy.
    """
    with Ranks(config.train.rank_timeout) as ranks:
        return _train(config, ranks)


def _train(config: RunConfig, ranks: Ranks) -> Trained:
    run_dir = Path(config.run.dir)
    with ranks.main_first():
        resume_from = checkpoint_to_resume(config, run_dir, ranks)
        manifest = open_manifest(config, config.data.train, "data.train", subset=config.data.subset)
        validate = make_validation(config)
    check_batch_size(config, manifest, ranks.world_size)
    torch.manual_seed(config.seed)
    objective = build_objective(config)
    if resume_from:
        model, tokenizer = model_of_checkpoint(resume_from, config, objective)
    else:
        model, tokenizer = new_model(config, objective, manifest)
    if config.train.start:
        config = config.model_copy(update={"model": model.settings})
    trainer = make_trainer(
        config,
        Pretraining(model, objective),
        model,
        tokenizer,
        manifest,
        ranks,
        example=example_batches(config, model),
        validate=validate and partial(validate, tokenizer),
    )
    return run_trainer(
        trainer, config, resume_from, lambda progress: TrainingBatches(config, manifest, tokenizer, trainer, progress)
    )


def make_trainer(
    config: RunConfig,
    task: Task,
    encoder: DualEncoder,
    tokenizer: Any,
    manifest: Manifest,
    ranks: Ranks,
    *,
    example: Callable[[int], Any],
    validate: Validate | None,
    heads: Mapping[str, Any] | None = None,
) -> Trainer:
    """The trainer of a run; its checkpoints hold everything that loading the model needs.

    Args:
        encoder: of the task.
        manifest: of the training.
        example, validate: see `Trainer`.
        heads: entries of a checkpoint's `architecture.json` besides the towers.

    Raises:
        ConfigError: tokenizer, towers and settings do not fit together.
    """
    check_max_tokens(config, encoder)
    check_vocabulary(tokenizer, encoder)
    architecture = {"text": encoder.text.architecture(), "vision": encoder.vision.architecture(), **(heads or {})}
    config_yaml = dump_config(without_actions(config))
    files = CheckpointFiles(config_yaml, tokenizer, architecture, encoder.preprocessing)
    run_dir = Path(config.run.dir)
    precision = precision_of_run(config, task, example, ranks)
    return Trainer(
        task,
        config.train,
        example=example,
        precision=precision,
        seed=config.seed,
        run_dir=run_dir,
        store=CheckpointStore(run_dir / "checkpoints", files, config.train.keep),
        tally=IncidentTally(len(manifest), config.data.broken_limit),
        validate=validate,
        ranks=ranks,
        state_caches=make_state_caches(config, encoder, ranks, precision),
    )


def precision_of_run(config: RunConfig, task: Task, example: Callable[[int], Any], ranks: Ranks) -> torch.dtype:
    """The precision of the towers. On a CPU `auto` measures which is faster; a resumed run keeps its precision."""
    device = choose_device(config.train.device, ranks.local_rank)
    if config.train.precision != "auto" or device.type != "cpu":
        return choose_precision(config.train.precision, device)
    if config.train.resume:  # runs of earlier versions do not name their precision, which was float32 on a CPU
        began = earlier_precision(Path(config.run.dir)) or torch.float32
        if began == torch.bfloat16 and not cpu_computes_in_bfloat16() and ranks.is_main:
            slow = "in which the run began, and which this CPU emulates: train.precision=float32 may be faster"
            print(f"training in bfloat16, {slow}", file=sys.stderr)
        return began
    task.model.train()
    return faster_on_cpu(task, example, ranks)


def run_trainer(
    trainer: Trainer,
    config: RunConfig,
    resume_from: Path | None,
    make_batches: Callable[[Progress], Iterable[Any]],
) -> Trained:
    """Train to the end of a run, and write its folder.

    Args:
        config: of the run.
        resume_from: the checkpoint to go on from; None: a new run.
        make_batches: batches of the steps that are left; called when the trainer stands where it begins.
    """
    run_dir, ranks = trainer.run_dir, trainer.ranks
    if resume_from:
        try:
            trainer.restore(load_trainer_state(resume_from))
        except CheckpointError as error:
            raise CheckpointError(f"{error}{other_version(resume_from)}") from None
        check_best(trainer, config, load_config(str(resume_from / "config.yaml")))
    progress = progress_of_training(trainer)
    batches = make_batches(progress)
    with _folder_of_run(run_dir) if ranks.is_main else nullcontext():
        if ranks.is_main:
            if not resume_from:  # only now that everything fits together: a mistake touches no earlier run
                prepare_run_folder(run_dir, overwrite=config.run.overwrite)
            write_text(run_dir / "config.yaml", trainer.store.files.config_yaml)
            write_environment(run_dir, trainer.precision)
        with progress:
            finished = trainer.fit(batches, progress)
    return Trained(run_dir, ranks.is_main, trainer.step, finished, trainer.best_metrics, trainer.tally.summary())


@contextmanager
def _folder_of_run(run_dir: Path) -> Iterator[None]:
    with only_training(run_dir):
        try:
            yield
        finally:
            settle_replaced(run_dir)


def progress_of_training(trainer: Trainer) -> Progress:
    """Progress in steps or, for a run limited by time, in seconds; shown by the main rank."""
    quiet = not trainer.ranks.is_main
    if trainer.settings.minutes is None:
        return Progress("training", trainer.settings.steps, trainer.step, quiet=quiet)
    return Progress("training, seconds", round(60 * trainer.settings.minutes), round(trainer.seconds), quiet=quiet)


def checkpoint_to_resume(config: RunConfig, run_dir: Path, ranks: Ranks) -> Path | None:
    """The checkpoint to resume from, or None for a new run, which replaces an earlier one only with run.overwrite."""
    if ranks.is_main:
        refuse_running(run_dir)
        if settle_replaced(run_dir) and config.train.resume:  # `config` is that of the new run
            raise CheckpointError(
                f"{run_dir}: the last run ended before its first checkpoint, so the run that it was to replace is back "
                "in this folder; repeat the command to resume that one, or start the last run again"
            )
        if not config.train.resume:
            refuse_earlier_run(run_dir, overwrite=config.run.overwrite)
    if not config.train.resume:
        return None
    found = last_checkpoint(run_dir / "checkpoints")
    if found is None:
        replacing = " and set run.overwrite=true" if files_of_run(run_dir) else ""
        raise CheckpointError(
            f"{run_dir}: nothing to resume, checkpoints/ holds no complete checkpoint; if the run was renamed, set "
            f"run.dir to its folder; to train a new one, leave train.resume out{replacing}"
        )
    if ranks.is_main:
        report_fallback(run_dir / "checkpoints" / "last", found)
    read_architecture(found)  # refuses that of a newer version
    return found.resolve()


def check_best(trainer: Trainer, config: RunConfig, before: RunConfig) -> None:
    """Raises ConfigError if the best checkpoint so far was chosen by another metric, or on other pairs, than later
    checkpoints will be."""
    if trainer.best is None:
        return
    values: dict[str, tuple[Any, Any]] = {"train.best_metric": (before.train.best_metric, config.train.best_metric)}
    if before.data.val != config.data.val and _differ(before.data.val, config.data.val):
        values["data.val"] = before.data.val, config.data.val
    for key, (old, new) in values.items():
        if old != new:
            raise ConfigError(
                f"{key}={new} (the run began with {old}): the best checkpoint so far was chosen by that one, and "
                "values by the two cannot be compared; leave it out, or start a new run"
            )


def _differ(old: str | None, new: str | None) -> bool:
    """Whether two manifests exist and differ in content; a moved manifest does not differ."""
    if old is None or new is None or not Path(old).is_file():
        return False
    return manifest_digest(Path(old)) != manifest_digest(Path(new))


def check_batch_size(config: RunConfig, manifest: Manifest, world_size: int) -> None:
    """Raises ConfigError if the batches cannot be drawn or shared."""
    size, copies = config.train.batch_size, config.data.augment.copies
    together = world_size * copies
    if size % together:
        nearest = max(1, size // together) * together
        in_copies = f" in {copies} copies (data.augment.copies)" if copies > 1 else ""
        raise ConfigError(
            f"train.batch_size: {size} pairs{in_copies} cannot be shared evenly among {world_size} processes; set it "
            f"to {nearest}, or start another number of them"
        )
    if size // copies > len(manifest):
        most = len(manifest) // world_size * together
        raise ConfigError(
            f"train.batch_size: a batch of {size} needs more pairs than the {len(manifest)} of {manifest.path}; "
            + (f"set train.batch_size={most} or less" if most >= 2 else f"{max(2, world_size)} pairs are the fewest")
        )


def check_vocabulary(tokenizer: Any, model: DualEncoder) -> None:
    """Raises ConfigError if the tokenizer has tokens that the text tower does not."""
    known, largest = model.text.model.config.vocab_size, max(tokenizer.get_vocab().values())
    if largest >= known:
        raise ConfigError(
            f"model.text: the tokenizer has the token {largest}, but the tower has embeddings for tokens below "
            f"{known}: they do not belong together; give the folder of one model"
        )


def check_max_tokens(config: RunConfig, model: DualEncoder) -> None:
    """Raises ConfigError if texts may be longer than the tower reads."""
    if config.data.max_tokens > model.text.max_tokens:
        raise ConfigError(
            f"data.max_tokens: {config.data.max_tokens}, but the text tower has positions for {model.text.max_tokens}; "
            "set it to that or less"
        )
