"""From a config to the objects of a run: the only place that knows all parts."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from spanbox.config import RunConfig, dump_config, parse_config, without_actions
from spanbox.data.collate import Collator
from spanbox.data.dataset import PairDataset, SampleLimits
from spanbox.data.loader import evaluation_batches, training_loader
from spanbox.data.manifest import Manifest
from spanbox.data.sampler import StepSampler
from spanbox.data.tokenizer import load_tokenizer, train_tokenizer
from spanbox.engine.checkpoint import (
    CheckpointFiles,
    CheckpointStore,
    find_checkpoint,
    load_trainer_state,
    load_weights,
    remove_run,
)
from spanbox.engine.tracking import IncidentTally
from spanbox.engine.trainer import Trainer, choose_device, choose_precision
from spanbox.errors import CheckpointError, ConfigError, DataError
from spanbox.evaluation.evaluate import check_selectable, evaluate, metric_value
from spanbox.evaluation.extract import extract
from spanbox.losses.objective import Objective
from spanbox.models.dual_encoder import DualEncoder, ModelSettings
from spanbox.models.preprocessing import Preprocessing
from spanbox.models.pretrained import model_folder
from spanbox.models.towers import build_text_tower, build_vision_tower
from spanbox.progress import Progress
from spanbox.structures import Batch, Features, Incident

EVALUATION_BATCH = 128


@dataclass(frozen=True)
class Trained:
    """How a run ended."""

    run_dir: Path
    step: int
    finished: bool  # False: it was asked to stop, and can be resumed
    best: dict[str, float]  # validation metrics of the best checkpoint; empty without validation


@dataclass(frozen=True)
class Loaded:
    """A trained model with all that it needs to be used."""

    model: DualEncoder  # in evaluation mode
    objective: Objective
    tokenizer: Any
    config: RunConfig
    checkpoint: Path


@dataclass(frozen=True)
class Evaluated:
    """Figures of a checkpoint on a manifest, and what was met in its data."""

    checkpoint: Path
    data: Path
    metrics: dict[str, float]
    incidents: list[Incident]

    def write(self, path: Path) -> None:
        """As JSON: the metrics under their dotted names, and where they come from."""
        content = {"checkpoint": self.checkpoint.name, "data": str(self.data), **self.metrics}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def train(config: RunConfig) -> Trained:
    """Train as the config says. Writes the run folder of `config.run.dir`; resumes it when `train.resume` is set."""
    run_dir = Path(config.run.dir)
    resume_from = _checkpoint_to_resume(config, run_dir)
    manifest = _open_manifest(config, config.data.train, "data.train")
    _check_batch_size(config, manifest)
    torch.manual_seed(config.seed)
    tokenizer = load_tokenizer(str(resume_from / "tokenizer")) if resume_from else make_tokenizer(config, manifest)
    model = build_model(config.model, tokenizer)
    _check_max_tokens(config, model)
    objective = Objective(config.loss)
    config_yaml = dump_config(without_actions(config))
    trainer = Trainer(
        model,
        objective,
        config.train,
        run_dir=run_dir,
        store=CheckpointStore(run_dir / "checkpoints", CheckpointFiles(config_yaml, tokenizer), config.train.keep),
        tally=IncidentTally(len(manifest), config.data.broken_limit),
        validate=_make_validation(config, tokenizer),
    )
    if resume_from:
        load_weights(resume_from, model, objective)
        trainer.restore(load_trainer_state(resume_from))
    else:
        remove_run(run_dir)  # only now that everything fits together: a mistake costs no earlier run
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(config_yaml, encoding="utf-8")
    sampler = StepSampler(len(manifest), config.train.batch_size, config.seed, trainer.step, config.train.steps)
    dataset = PairDataset(
        manifest,
        sample_limits(config, model),
        config.seed,
        replace_broken=True,
        cache_bytes=round(config.data.cache_gb * 2**30),
    )
    batches = training_loader(
        dataset,
        make_collator(config, tokenizer),
        sampler,
        config.data.worker_count(trainer.device),
        pin_memory=trainer.device.type == "cuda",
    )
    with Progress("training", config.train.steps, trainer.step) as progress:
        finished = trainer.fit(batches, progress)
    return Trained(run_dir, trainer.step, finished, trainer.best_metrics)


def load(path: Path | str, device: str = "cpu") -> Loaded:
    """The model of a checkpoint folder, or of the best (else last) checkpoint of a run folder.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    folder = find_checkpoint(Path(path))
    config = parse_config(_read(folder / "config.yaml"), str(folder / "config.yaml"))
    try:
        architecture = json.loads(_read(folder / "architecture.json"))
        preprocessing = Preprocessing.model_validate_json(_read(folder / "preprocessing.json"))
    except ValueError as error:
        raise CheckpointError(f"{folder}: architecture.json or preprocessing.json is damaged ({error})") from None
    settings = config.model.model_copy(
        update={
            part: getattr(config.model, part).model_copy(update={"path": None, "architecture": architecture[part]})
            for part in ("text", "vision")
        }
    )
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    text = build_text_tower(settings.text, pad_token_id=tokenizer.pad_token_id)
    model = DualEncoder(text, build_vision_tower(settings.vision), preprocessing, settings)
    objective = Objective(config.loss)
    load_weights(folder, model, objective)
    return Loaded(model.to(choose_device(device)).eval(), objective, tokenizer, config, folder)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); a checkpoint is copied as a whole") from None


def evaluate_checkpoint(path: Path, manifest: Path, device: str = "auto") -> Evaluated:
    """All metrics of a checkpoint (or the best of a run) on a manifest."""
    loaded = load(path, device)
    opened = _open_manifest(loaded.config, str(manifest), "the manifest")
    metrics, incidents = _evaluate(loaded.model, loaded.config, loaded.tokenizer, opened, show_progress=True)
    return Evaluated(loaded.checkpoint, manifest, metrics, incidents)


def build_model(settings: ModelSettings, tokenizer: Any) -> DualEncoder:
    """A dual encoder with the weights that the towers' folders hold, the rest random from torch's generator."""
    architecture = settings.text.architecture
    if architecture is not None:
        # The tokenizer was made for this tower, so its ids are the ones that count.
        fitted = {**architecture, "pad_token_id": tokenizer.pad_token_id}
        settings = settings.model_copy(update={"text": settings.text.model_copy(update={"architecture": fitted})})
    text = build_text_tower(settings.text, pad_token_id=tokenizer.pad_token_id)
    vision = build_vision_tower(settings.vision)
    folder = model_folder(settings.vision.path, "vision") if settings.vision.path else None
    preprocessing = Preprocessing.from_model_folder(folder, vision.image_size)
    return DualEncoder(text, vision, preprocessing, settings)


def make_tokenizer(config: RunConfig, manifest: Manifest) -> Any:
    """The text tower's tokenizer, or one learned from the training texts when the tower starts from nothing."""
    text = config.model.text
    if text.path is not None:
        return load_tokenizer(str(model_folder(text.path, "text")))
    assert text.architecture is not None
    vocabulary = text.architecture.get("vocab_size")
    if not isinstance(vocabulary, int):
        raise ConfigError("model.text.architecture: needs vocab_size, the tokens to learn from the texts, e.g. 8192")
    return train_tokenizer((record.text for record in manifest), vocabulary)


def make_collator(config: RunConfig, tokenizer: PreTrainedTokenizerFast) -> Collator:
    return Collator(tokenizer, config.data.max_tokens, own_spans=config.model.spans.source == "own")


def sample_limits(config: RunConfig, model: DualEncoder) -> SampleLimits:
    size = model.preprocessing.image_size
    crops = config.model.regions.source == "crop"
    return SampleLimits(
        image_size=size,
        max_spans=config.data.max_spans,
        max_regions=config.data.max_regions,
        proposals=config.data.proposals,
        crop_size=size if crops else None,
        crop_margin=config.model.regions.margin,
    )


def _make_validation(config: RunConfig, tokenizer: Any) -> Any:
    if config.data.val is None:
        return None
    check_selectable(config.train.best_metric, "train.best_metric")
    manifest = _open_manifest(config, config.data.val, "data.val")

    def validate(model: DualEncoder) -> tuple[dict[str, float], float]:
        metrics, _ = _evaluate(model, config, tokenizer, manifest, show_progress=False)
        return metrics, metric_value(metrics, config.train.best_metric)

    return validate


def _evaluate(
    model: DualEncoder, config: RunConfig, tokenizer: Any, manifest: Manifest, *, show_progress: bool
) -> tuple[dict[str, float], list[Incident]]:
    dataset = PairDataset(manifest, sample_limits(config, model), config.seed, replace_broken=False)
    incidents: list[Incident] = []
    device = next(model.parameters()).device
    workers = config.data.worker_count(device)
    batches = evaluation_batches(dataset, make_collator(config, tokenizer), EVALUATION_BATCH, workers, incidents)
    dtype = choose_precision(config.train.precision, device)

    def encode(batch: Batch) -> Features:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            features: Features = model(batch)
        return features

    if show_progress:
        batches = _with_progress(batches, len(manifest))
    return evaluate(extract(encode, batches, device)), incidents


def _with_progress(batches: Iterator[Batch], pairs: int) -> Iterator[Batch]:
    done = 0
    with Progress("encoding", pairs) as progress:
        for batch in batches:
            yield batch
            done += len(batch)
            progress.update(done)


def _open_manifest(config: RunConfig, path: str | None, key: str) -> Manifest:
    """The manifest, after a look whether its images can be there at all."""
    if path is None:
        raise ConfigError(f"{key}: is not set; give the path of a manifest, see docs/data.md")
    manifest = Manifest(path, config.data.inverted_boxes)
    folder = manifest.image_path(manifest[0]).parent
    if not folder.is_dir():
        raise DataError(
            f"{path}: its first image is {manifest[0].image}, but there is no folder {folder}; "
            "paths are relative to the manifest"
        )
    if manifest.inverted_count:
        dropped = f"{manifest.inverted_count} boxes without an area are left out (data.inverted_boxes=drop)"
        print(f"{path}: {dropped}", file=sys.stderr)
    return manifest


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


def _check_batch_size(config: RunConfig, manifest: Manifest) -> None:
    if config.train.batch_size > len(manifest):
        raise ConfigError(
            f"train.batch_size: {config.train.batch_size} pairs are asked for, but {manifest.path} has "
            f"{len(manifest)}; set it to {len(manifest)} or less"
        )


def _check_max_tokens(config: RunConfig, model: DualEncoder) -> None:
    if config.data.max_tokens > model.text.max_tokens:
        raise ConfigError(
            f"data.max_tokens: {config.data.max_tokens}, but the text tower has positions for {model.text.max_tokens}; "
            "set it to that or less"
        )
