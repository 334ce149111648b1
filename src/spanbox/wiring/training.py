"""A training run from its config."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from spanbox.config import RunConfig, dump_config, without_actions
from spanbox.data.manifest import Manifest
from spanbox.data.tokenizer import load_tokenizer
from spanbox.engine.checkpoint import CheckpointFiles, CheckpointStore, load_trainer_state, load_weights, remove_run
from spanbox.engine.distributed import Ranks
from spanbox.engine.environment import write_environment
from spanbox.engine.tracking import IncidentTally
from spanbox.engine.trainer import Trainer
from spanbox.errors import CheckpointError, ConfigError
from spanbox.losses.objective import Objective
from spanbox.models.dual_encoder import DualEncoder
from spanbox.progress import Progress
from spanbox.wiring.batches import TrainingBatches
from spanbox.wiring.building import (
    build_model,
    example_batches,
    make_tokenizer,
    open_manifest,
)
from spanbox.wiring.evaluating import make_validation


@dataclass(frozen=True)
class Trained:
    """How a run ended."""

    run_dir: Path
    is_main: bool  # whether this process is the one of several that speaks for all
    step: int
    finished: bool  # False: it was asked to stop, and can be resumed
    best: dict[str, float]  # validation metrics of the best checkpoint; empty without validation


def train(config: RunConfig) -> Trained:
    """Train as the config says. Writes the run folder of `config.run.dir`; resumes it when `train.resume` is set.

    Started by `torchrun`, each process does its share.
    """
    ranks = Ranks()
    run_dir = Path(config.run.dir)
    with ranks.main_first():
        resume_from = _checkpoint_to_resume(config, run_dir)
        manifest = open_manifest(config, config.data.train, "data.train", subset=config.data.subset)
        validate = make_validation(config)
    _check_batch_size(config, manifest, ranks.world_size)
    torch.manual_seed(config.seed)
    tokenizer = load_tokenizer(str(resume_from / "tokenizer")) if resume_from else make_tokenizer(config, manifest)
    model = build_model(config.model, tokenizer.pad_token_id)
    _check_max_tokens(config, model)
    _check_views(config, ranks.world_size)
    objective = Objective(config.loss, config.model.dim)
    if resume_from:
        load_weights(resume_from, model, objective)
    config_yaml = dump_config(without_actions(config))
    architecture = {"text": model.text.architecture(), "vision": model.vision.architecture()}
    files = CheckpointFiles(config_yaml, tokenizer, architecture, model.preprocessing)
    trainer = Trainer(
        model,
        objective,
        config.train,
        example=example_batches(config, model),
        seed=config.seed,
        run_dir=run_dir,
        store=CheckpointStore(run_dir / "checkpoints", files, config.train.keep),
        tally=IncidentTally(len(manifest), config.data.broken_limit),
        validate=validate and partial(validate, tokenizer),
        ranks=ranks,
    )
    if resume_from:
        trainer.restore(load_trainer_state(resume_from))
    progress = _progress(trainer)
    batches = TrainingBatches(config, manifest, tokenizer, trainer, progress)
    if ranks.is_main:
        if not resume_from:
            remove_run(run_dir)  # only now that everything fits together: a mistake costs no earlier run
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "config.yaml").write_text(config_yaml, encoding="utf-8")
        write_environment(run_dir)
    with progress:
        finished = trainer.fit(batches, progress)
    ranks.close()
    return Trained(run_dir, ranks.is_main, trainer.step, finished, trainer.best_metrics)


def _progress(trainer: Trainer) -> Progress:
    """In steps, or in seconds when that is how long the run is; shown by the main rank."""
    quiet = not trainer.ranks.is_main
    if trainer.settings.minutes is None:
        return Progress("training", trainer.settings.steps, trainer.step, quiet=quiet)
    return Progress("training, seconds", round(60 * trainer.settings.minutes), round(trainer.seconds), quiet=quiet)


def _checkpoint_to_resume(config: RunConfig, run_dir: Path) -> Path | None:
    """The checkpoint to resume from, or None for a new run, which does not take the place of another one unasked."""
    last = run_dir / "checkpoints" / "last"
    if config.train.resume:
        if not last.exists():
            raise CheckpointError(f"{run_dir}: nothing to resume, no checkpoints/last; start without train.resume")
        return last.resolve()
    if last.exists() and not config.run.overwrite:
        raise ConfigError(
            f"{run_dir}: holds a run already; go on with it (--resume), remove it (run.overwrite=true), or choose "
            "another run.dir"
        )
    return None


def _check_batch_size(config: RunConfig, manifest: Manifest, world_size: int) -> None:
    size = config.train.batch_size
    if size % world_size:
        nearest = max(1, size // world_size) * world_size
        raise ConfigError(
            f"train.batch_size: {size} pairs cannot be shared evenly among {world_size} processes; set it to "
            f"{nearest}, or start another number of them"
        )
    if size > len(manifest):
        raise ConfigError(
            f"train.batch_size: a batch of {size} needs more pairs than the {len(manifest)} of {manifest.path}; set "
            f"train.batch_size={len(manifest) // world_size * world_size} or less"
        )


def _check_views(config: RunConfig, world_size: int) -> None:
    if config.data.views.count and config.train.parallel == "fsdp" and world_size > 1:
        raise ConfigError(
            "data.views.count: with train.parallel=fsdp all processes must encode in step, and masked views are "
            "encoded in groups that differ between them; use train.parallel=ddp"
        )


def _check_max_tokens(config: RunConfig, model: DualEncoder) -> None:
    if config.data.max_tokens > model.text.max_tokens:
        raise ConfigError(
            f"data.max_tokens: {config.data.max_tokens}, but the text tower has positions for {model.text.max_tokens}; "
            "set it to that or less"
        )
