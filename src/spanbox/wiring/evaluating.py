"""Measuring a model on a manifest: its figures alone, as during training, or with all that a report shows of it.

FOLDER/metrics.json                figures under flat, dotted names
FOLDER/evaluation/outcomes.npz     what they are means of, query by query: NAME/values and NAME/image
FOLDER/evaluation/features-STEM/   features of the manifest STEM.jsonl, see `evaluation/bank_files.py`
FOLDER/evaluation/...              examples, heatmaps and the audit, see `artefacts.py`
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spanbox.config import RunConfig
from spanbox.data.dataset import PairDataset
from spanbox.engine.device import choose_precision, make_encode
from spanbox.errors import ConfigError
from spanbox.evaluation.bank_files import StoredBank
from spanbox.evaluation.evaluate import evaluate
from spanbox.evaluation.examples import DIRECTIONS, RetrievalExample, retrieval_examples
from spanbox.evaluation.extract import FeatureBank
from spanbox.evaluation.occlusion import Query, draw_linked_spans, measure_falls, occlusion_outcomes
from spanbox.evaluation.outcomes import Outcome, figures_of
from spanbox.evaluation.presence import choose_threshold
from spanbox.evaluation.selection import check_selectable, selection_value
from spanbox.models.dual_encoder import DualEncoder
from spanbox.progress import Progress, StartProgress, track
from spanbox.structures import Incident
from spanbox.wiring.artefacts import (
    Pairs,
    data_fingerprint,
    write_arrays,
    write_audit,
    write_examples,
    write_json,
    write_predictions,
)
from spanbox.wiring.building import make_collator, open_manifest
from spanbox.wiring.embedding import embed, embed_to_disk, evaluation_dataset
from spanbox.wiring.loading import Loaded, load


@dataclass(frozen=True)
class Evaluated:
    """Figures of a checkpoint on a manifest, and the incidents in its data."""

    checkpoint: Path
    data: Path
    fingerprint: str  # of the content of the manifest and of the sizes of its images
    metrics: dict[str, float]
    incidents: list[Incident]

    def write(self, path: Path) -> None:
        """As JSON: the metrics under their dotted names, the checkpoint and the data."""
        source = {"checkpoint": self.checkpoint.name, "data": str(self.data), "fingerprint": self.fingerprint}
        write_json(path, source | self.metrics)


@dataclass(frozen=True)
class EvaluationOptions:
    """What an evaluation does besides its figures.

    Attributes:
        threshold_from: manifest on which to choose the score from which an entity counts as shown; None: the config's
            data.val, where it is there.
        examples: retrievals of each kind and direction, and half of the wrong and of the right matches; 0: none.
        occlusion: entities whose object is hidden; 0: none.
        predictions: file for the regions that the model gives the manifest's entities.
    """

    threshold_from: Path | None = None
    examples: int = 4
    occlusion: int = 500
    predictions: Path | None = None


def evaluate_checkpoint(path: Path, manifest: Path, device: str = "auto") -> Evaluated:
    """The figures of a checkpoint (or the best of a run) on a manifest, as validation gives them."""
    loaded = load(path, device)
    opened = open_manifest(loaded.config, str(manifest), "the manifest")
    dataset = evaluation_dataset(loaded.config, loaded.model, opened)
    bank, incidents = embed(loaded.model, loaded.config, loaded.tokenizer, dataset)
    return Evaluated(
        loaded.checkpoint, manifest, data_fingerprint(opened), _figures_alone(bank, dataset, Progress), incidents
    )


def evaluate_to_folder(
    path: Path,
    manifest: Path,
    out: Path | None = None,
    options: EvaluationOptions | None = None,
    device: str = "auto",
) -> tuple[Evaluated, Path]:
    """Evaluate a checkpoint (or the best of a run) with intervals, and write all that a report shows of it.

    Args:
        path: a run folder or a checkpoint folder.
        manifest: the pairs to evaluate on.
        out: folder for the files; None: the run's, or that of a checkpoint which belongs to no run. A file that ends in
            `.json` gets the figures, and nothing else is written.
        options: what else is done.
        device: where the towers run.

    Returns:
        What was found, and where the figures are.
    """
    options = options or EvaluationOptions()
    loaded = load(path, device)
    opened = open_manifest(loaded.config, str(manifest), "the manifest")
    metrics_path, folder = _destination(path, out)
    _make_folder(folder or metrics_path.parent)
    dataset = evaluation_dataset(loaded.config, loaded.model, opened)
    stored = _features(loaded, dataset, folder)
    pairs = Pairs(stored.bank, dataset)
    threshold = _threshold(loaded, stored.bank, options.threshold_from, folder)
    device_of_model = next(loaded.model.parameters()).device
    evaluation = evaluate(
        stored.bank, pairs.entity_types(), threshold=threshold, device=device_of_model, progress=Progress
    )
    occluded, facts = _occlude(loaded, pairs, options.occlusion)
    outcomes = {**evaluation.outcomes, **occluded}
    metrics = {**evaluation.metrics, **facts}
    for name, figure in figures_of(occluded).items():
        metrics |= figure.named(name)
    if options.predictions is not None:
        write_predictions(options.predictions, pairs, threshold)
    if folder is not None:
        _remove(folder, ("outcomes.npz", "examples.json", "heatmaps.npz", "audit.json"))
        _write_outcomes(folder / "outcomes.npz", outcomes)
        if options.examples:
            retrievals = _retrievals(stored.bank, outcomes, options.examples, loaded.config.seed)
            write_examples(folder, pairs, retrievals, loaded, 2 * options.examples)
        write_audit(folder / "audit.json", _manifests(loaded.config, manifest))
    evaluated = Evaluated(loaded.checkpoint, manifest, data_fingerprint(opened), metrics, stored.incidents)
    evaluated.write(metrics_path)  # last: where it is, the rest is complete
    return evaluated, metrics_path


def make_validation(config: RunConfig) -> Callable[[Any, DualEncoder, Progress], tuple[dict[str, float], float]] | None:
    if config.data.val is None:
        return None
    check_selectable(config.train.best_metric, "train.best_metric")
    manifest = open_manifest(config, config.data.val, "data.val")

    def validate(tokenizer: Any, model: DualEncoder, progress: Progress) -> tuple[dict[str, float], float]:
        dataset = evaluation_dataset(config, model, manifest)
        bank, _ = embed(model, config, tokenizer, dataset, progress.part)
        metrics = _figures_alone(bank, dataset, progress.part)
        return metrics, selection_value(metrics, config.train.best_metric)

    return validate


def _figures_alone(bank: FeatureBank, dataset: PairDataset, progress: StartProgress) -> dict[str, float]:
    """Every metric that a validation can choose by, without intervals."""
    return evaluate(bank, Pairs(bank, dataset).entity_types(), intervals=False, progress=progress).metrics


def _destination(path: Path, out: Path | None) -> tuple[Path, Path | None]:
    """Where the figures go, and the folder of all else; None: nowhere."""
    if out is not None and out.suffix == ".json":
        return out, None
    belongs_to_a_run = path.parent.name == "checkpoints"
    folder = out or (path.parent.parent if belongs_to_a_run else path)
    return folder / "metrics.json", folder / "evaluation"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made ({error.strerror}); name another place with --out") from None


def _remove(folder: Path, names: Iterable[str]) -> None:
    """Remove what an earlier evaluation left: it may be of another checkpoint."""
    for name in names:
        (folder / name).unlink(missing_ok=True)


def _features(loaded: Loaded, dataset: PairDataset, folder: Path | None) -> StoredBank:
    if folder is not None:
        return embed_to_disk(loaded, dataset, folder / f"features-{dataset.manifest.path.stem}")
    return StoredBank(*embed(loaded.model, loaded.config, loaded.tokenizer, dataset))


def _threshold(loaded: Loaded, bank: FeatureBank, given: Path | None, folder: Path | None) -> float | None:
    """The score from which an entity counts as shown, chosen on other data; None where there are none, or no scores."""
    val = loaded.config.data.val
    if not (len(bank.spans) and len(bank.regions)) or (given is None and (val is None or not Path(val).is_file())):
        return None
    opened = open_manifest(loaded.config, str(given or val), "--threshold-from")
    dataset = evaluation_dataset(loaded.config, loaded.model, opened)
    return choose_threshold(_features(loaded, dataset, folder).bank)


def _occlude(loaded: Loaded, pairs: Pairs, entities: int) -> tuple[dict[str, Outcome], dict[str, float]]:
    """How far scores fall when objects are hidden, and how many of the entities could not be asked."""
    config, model = loaded.config, loaded.model
    spans = draw_linked_spans(pairs.bank, entities, config.seed).tolist()
    if not spans:
        return {}, {}
    pair, entity = pairs.bank.span_pair.tolist(), pairs.bank.span_entity.tolist()
    device = next(model.parameters()).device
    collate = make_collator(config, loaded.tokenizer)
    falls = measure_falls(
        make_encode(model, device, choose_precision(config.train.precision, device)),
        lambda samples: collate(samples).batch,
        (Query(pairs.sample(pair[span]), entity[span]) for span in track(spans, "hiding objects", len(spans))),
        model.preprocessing.image_size // model.vision.stride,
        crop_margin=config.model.regions.margin,
        seed=config.seed,
    )
    return occlusion_outcomes(falls), {"occlusion.too_large.count": falls.too_large}


def _retrievals(
    bank: FeatureBank, outcomes: Mapping[str, Outcome], count: int, seed: int
) -> dict[str, list[RetrievalExample]]:
    """Examples of both directions; all queries have a rank, since each pair's own is right."""
    ranks = {way: torch.from_numpy(outcomes[f"retrieval.{way}.mean_rank"].values).long() for way in DIRECTIONS}
    return {way: retrieval_examples(bank, way, ranks[way], count, seed) for way in DIRECTIONS}


def _write_outcomes(path: Path, outcomes: Mapping[str, Outcome]) -> None:
    """What means are made of: intervals and differences between runs are computed from it."""
    means = {name: outcome for name, outcome in outcomes.items() if outcome.summary == "mean"}
    arrays = {f"{name}/values": outcome.values for name, outcome in means.items()}
    images = {f"{name}/image": outcome.image for name, outcome in means.items()}
    write_arrays(path, arrays | images)


def _manifests(config: RunConfig, evaluated: Path) -> dict[str, Path]:
    """The manifests of a run by part; the one that was evaluated is `test`, whatever else it is."""
    given = {"train": config.data.train, "val": config.data.val}
    others = {part: Path(path) for part, path in given.items() if path is not None}
    return {part: path for part, path in others.items() if path.resolve() != evaluated.resolve()} | {"test": evaluated}
