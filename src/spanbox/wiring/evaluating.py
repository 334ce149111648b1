"""Loading a checkpoint, and measuring a model on a manifest."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spanbox.config import RunConfig, parse_config
from spanbox.data.dataset import PairDataset
from spanbox.data.loader import evaluation_batches
from spanbox.data.manifest import Manifest
from spanbox.data.tokenizer import load_tokenizer
from spanbox.engine.checkpoint import find_checkpoint, load_weights
from spanbox.engine.device import choose_device, choose_precision, make_encode
from spanbox.errors import CheckpointError
from spanbox.evaluation.evaluate import check_selectable, evaluate, metric_value
from spanbox.evaluation.extract import FeatureBank, extract
from spanbox.losses.objective import Objective
from spanbox.models.dual_encoder import DualEncoder
from spanbox.models.preprocessing import Preprocessing
from spanbox.models.towers import build_text_tower, build_vision_tower
from spanbox.progress import Progress
from spanbox.structures import Batch, Incident
from spanbox.wiring.building import make_collator, open_manifest, sample_limits

EVALUATION_BATCH = 128


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
    objective = Objective(config.loss, config.model.dim)
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
    opened = open_manifest(loaded.config, str(manifest), "the manifest")
    metrics, incidents = _evaluate(loaded.model, loaded.config, loaded.tokenizer, opened, show_progress=True)
    return Evaluated(loaded.checkpoint, manifest, metrics, incidents)


def make_validation(config: RunConfig) -> Callable[[Any, DualEncoder], tuple[dict[str, float], float]] | None:
    if config.data.val is None:
        return None
    check_selectable(config.train.best_metric, "train.best_metric")
    manifest = open_manifest(config, config.data.val, "data.val")

    def validate(tokenizer: Any, model: DualEncoder) -> tuple[dict[str, float], float]:
        metrics, _ = _evaluate(model, config, tokenizer, manifest, show_progress=False)
        return metrics, metric_value(metrics, config.train.best_metric)

    return validate


def _evaluate(
    model: DualEncoder, config: RunConfig, tokenizer: Any, manifest: Manifest, *, show_progress: bool
) -> tuple[dict[str, float], list[Incident]]:
    bank, incidents = embed(model, config, tokenizer, manifest, show_progress=show_progress)
    return evaluate(bank), incidents


def embed(
    model: DualEncoder, config: RunConfig, tokenizer: Any, manifest: Manifest, *, show_progress: bool
) -> tuple[FeatureBank, list[Incident]]:
    """The features of a manifest's pairs, without those whose image is broken, and what was met in the data.

    Args:
        model: in evaluation mode.
    """
    dataset = PairDataset(manifest, sample_limits(config, model), config.seed, replace_broken=False)
    incidents: list[Incident] = []
    device = next(model.parameters()).device
    workers = config.data.worker_count(device)
    batches = evaluation_batches(dataset, make_collator(config, tokenizer), EVALUATION_BATCH, workers, incidents)
    encode = make_encode(model, device, choose_precision(config.train.precision, device))
    if show_progress:
        batches = _with_progress(batches, len(manifest))
    return extract(encode, batches, device), incidents


def _with_progress(batches: Iterator[Batch], pairs: int) -> Iterator[Batch]:
    done = 0
    with Progress("encoding", pairs) as progress:
        for batch in batches:
            yield batch
            done += len(batch)
            progress.update(done)
