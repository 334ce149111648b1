"""Training of a GMNER model, on the towers of a pretrained run or of a recipe."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from spanbox.config import RunConfig, load_config
from spanbox.data.dataset import PairDataset
from spanbox.data.loader import training_batches
from spanbox.data.manifest import Manifest
from spanbox.data.sampler import StepSampler
from spanbox.data.tagged import TaggedBatch, TaggingCollator, TextSamples, entity_types
from spanbox.engine.checkpoint import find_checkpoint, last_checkpoint
from spanbox.engine.distributed import Ranks
from spanbox.engine.trainer import Trainer, Validate
from spanbox.errors import ConfigError
from spanbox.evaluation.gmner import check_ids
from spanbox.models.dual_encoder import DualEncoder
from spanbox.models.gmner import GmnerModel
from spanbox.progress import Progress
from spanbox.structures import PADDING_ID, Batch
from spanbox.tasks.gmner import Gmner
from spanbox.wiring.beginning import check_changes, model_of_another_run
from spanbox.wiring.building import build_model, build_objective, example_batches, make_collator, make_tokenizer
from spanbox.wiring.gmner_models import LoadedGmner, open_gmner
from spanbox.wiring.gmner_predicting import candidate_limits, open_gmner_manifest, predict
from spanbox.wiring.loading import TYPES, read_architecture
from spanbox.wiring.training import Trained, check_batch_size, checkpoint_to_resume, make_trainer, run_trainer

DEFAULTS = (
    "train.batch_size=32",
    "train.steps=1000",
    "train.minutes=null",
    "train.validate_every=100",
    "train.save_every=100",
    "train.best_metric=gmner.f1",
    "train.patience=null",
    "train.accumulation=exact",
    "train.start=null",
    "train.cache_frozen=null",
    "data.val=null",
    "data.subset=null",
    "data.views.count=0",
    "data.neighbours=null",
    "data.mining.every=null",
    "data.augment.copies=1",
)
"""Overrides of the config of a run or recipe: the schedule, and settings that only pretraining uses."""
TEXT_ONLY = ("gmner.regions=false", "train.best_metric=mner.f1")
EXAMPLE_CANDIDATES = 16  # regions of a pair in the measurement of memory, a usual number of detections


@dataclass(frozen=True)
class GmnerStart:
    """Where the towers come from: a pretrained run or checkpoint, or a recipe or YAML file."""

    run: Path | None = None
    recipe: str | None = None
    text_only: bool = False

    def config(self, overrides: Sequence[str]) -> RunConfig:
        """The config of a new run of GMNER."""
        resolved = [*DEFAULTS, *(TEXT_ONLY if self.text_only else ()), *overrides]
        source = self.recipe if self.run is None else str(find_checkpoint(self.run) / "config.yaml")
        assert source is not None
        return load_config(source, resolved)


def config_to_resume(run_dir: Path, overrides: Sequence[str]) -> RunConfig:
    """The config of a GMNER run to resume.

    Raises:
        ConfigError: there is none, or it is not a run of GMNER.
    """
    config = load_config(str(run_dir / "config.yaml"), [*overrides, "train.resume=true"])
    checkpoint = last_checkpoint(run_dir / "checkpoints")
    if checkpoint is not None and TYPES not in read_architecture(checkpoint):
        raise ConfigError(f"{run_dir}: is not a run of `spanbox gmner train`; resume it with `spanbox train`")
    return config


def train_gmner(config: RunConfig, pretrained: Path | None = None) -> Trained:
    """Train a GMNER model by a config. Writes the run folder `config.run.dir`; resumes it when `train.resume` is set.

    Args:
        config: see `GmnerStart.config`.
        pretrained: the run or checkpoint whose encoder is trained on; None: that of `config.model`.

    Raises:
        SpanboxError: a fault in the config, the data, the run folder or the training, with its remedy.
    """
    with Ranks(config.train.rank_timeout) as ranks:
        return _train(config, pretrained, ranks)


def _train(config: RunConfig, pretrained: Path | None, ranks: Ranks) -> Trained:
    settings = config.gmner
    _check_settings_used(config)
    if config.train.best_metric not in _figures(config):
        raise ConfigError(
            f"train.best_metric: {config.train.best_metric!r} is not measured here; set it to one of "
            f"{', '.join(_figures(config))}"
        )
    run_dir = Path(config.run.dir)
    with ranks.main_first():
        resume_from = checkpoint_to_resume(config, run_dir, ranks)
        manifest = open_gmner_manifest(
            config, config.data.train, "data.train", grounds=settings.regions, subset=config.data.subset
        )
        validation = None
        if config.data.val is not None:
            validation = open_gmner_manifest(config, config.data.val, "data.val", grounds=settings.regions)
            check_ids(list(validation), validation.path)
    check_batch_size(config, manifest, ranks.world_size)
    torch.manual_seed(config.seed)
    if resume_from:
        check_changes(config, load_config(str(resume_from / "config.yaml")), resume_from)
    start = open_gmner(resume_from, config) if resume_from else _new_model(config, pretrained, manifest)
    model, tokenizer = start.model, start.tokenizer
    config = config.model_copy(update={"model": model.encoder.settings})
    trainer = make_trainer(
        config,
        Gmner(model, settings),
        model.encoder,
        tokenizer,
        manifest,
        ranks,
        example=partial(_example, config, model.encoder),
        validate=_validation(config, tokenizer, validation),
        heads={TYPES: list(model.types)},
    )
    return run_trainer(trainer, config, resume_from, lambda progress: _batches(config, manifest, tokenizer, trainer))


def _check_settings_used(config: RunConfig) -> None:
    """Raises ConfigError for a setting that pretraining alone uses."""
    if config.train.start is not None:
        raise ConfigError("train.start: is read by `spanbox train` alone; here give the pretrained run by --from RUN")
    data = config.data
    given = {
        "train.cache_frozen": config.train.cache_frozen is not None,
        "data.views.count": data.views.count > 0,
        "data.neighbours": data.neighbours is not None,
        "data.mining.every": data.mining.every is not None,
        "data.augment.copies": data.augment.copies > 1,
    }
    for key, is_given in given.items():
        if is_given:
            raise ConfigError(f"{key}: is used by `spanbox train` alone; leave it out here")


def _new_model(config: RunConfig, pretrained: Path | None, manifest: Manifest) -> LoadedGmner:
    """A model with new heads for the types of the training data."""
    settings, types = config.gmner, entity_types(manifest)
    temperature = settings.temperature
    if pretrained is not None:
        objective = build_objective(config)
        encoder, tokenizer = model_of_another_run(find_checkpoint(pretrained), config, objective, "--from")
        if config.loss.fine.used:  # else nothing learned the temperature of spans and regions
            temperature = objective.temperatures()["fine"]
    else:
        tokenizer = make_tokenizer(config, manifest)
        encoder = build_model(config.model, tokenizer.pad_token_id)
    model = GmnerModel(encoder, types, scale=1 / temperature, grounds=settings.regions)
    return LoadedGmner(model, tokenizer, config, Path(config.run.dir))


def _batches(config: RunConfig, manifest: Manifest, tokenizer: Any, trainer: Trainer) -> Any:
    """This rank's share of the batches of the steps that are left."""
    model: GmnerModel = trainer.model
    dataset: Dataset[Any]
    if model.grounds:
        dataset = PairDataset(
            manifest,
            candidate_limits(config, model, training=True),
            config.seed,
            replace_broken=True,
            cache_bytes=round(config.data.cache_gb * 2**30),
        )
    else:
        dataset = TextSamples(manifest, config.data.augment.text, config.seed)
    sampler = StepSampler(
        len(manifest),
        config.train.batch_size,
        config.seed,
        trainer.step,
        None if config.train.minutes else config.train.steps,
        rank=trainer.ranks.rank,
        world_size=trainer.ranks.world_size,
    )
    collator = TaggingCollator(make_collator(config, tokenizer, sort_by_length=True), manifest, model.types)
    workers = config.data.worker_count(trainer.device)
    return training_batches(dataset, collator, sampler, workers, pin_memory=trainer.device.type == "cuda")


def _validation(config: RunConfig, tokenizer: Any, manifest: Manifest | None) -> Validate | None:
    if manifest is None:
        return None

    def validate(model: GmnerModel, progress: Progress) -> tuple[dict[str, float], float]:
        loaded = LoadedGmner(model, tokenizer, config, Path(config.run.dir))
        found = predict(loaded, manifest, grounds=model.grounds, progress=progress.part)
        figures = found.scores.metrics(intervals=False)
        metrics = {name: figures[name] for name in _figures(config)}
        assert isinstance(config.train.best_metric, str)
        return metrics, metrics[config.train.best_metric]

    return validate


def _figures(config: RunConfig) -> list[str]:
    """Metrics of a validation."""
    tasks = ("gmner", "mner", "eeg") if config.gmner.regions else ("mner",)
    return [f"{task}.{figure}" for task in tasks for figure in ("f1", "precision", "recall")]


def _example(config: RunConfig, encoder: DualEncoder, pairs: int) -> TaggedBatch:
    """A synthetic batch for the measurement of memory."""
    sized = config.model_copy(update={"data": config.data.model_copy(update={"max_regions": EXAMPLE_CANDIDATES})})
    batch: Batch = example_batches(sized, encoder)(pairs)
    values = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    return TaggedBatch(**values, tags=torch.full_like(batch.token_ids, PADDING_ID + 1))
