"""Evaluation of a model on a manifest: the figures alone, as during training, or with all files that a report needs.

FOLDER/metrics.json                    metrics under flat, dotted names
FOLDER/evaluation/outcomes.npz         values of the means, query by query: NAME/values and NAME/image
FOLDER/evaluation/features-STEM-HASH/  features of the manifest STEM.jsonl, see `evaluation/bank_files.py`
FOLDER/evaluation/...                  examples, heatmaps and the audit, see `artefacts.py`

Outputs are checked before anything is encoded. The files of an evaluation are written aside first, so that a full disk
does not damage the previous evaluation.
"""

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from spanbox.config import RunConfig
from spanbox.data.annotate import annotate
from spanbox.data.dataset import PairDataset
from spanbox.data.images import open_picture
from spanbox.data.limits import SampleLimits
from spanbox.data.manifest import Manifest
from spanbox.errors import ConfigError, DataError
from spanbox.evaluation.bank_files import StoredBank
from spanbox.evaluation.evaluate import evaluate
from spanbox.evaluation.examples import DIRECTIONS, RetrievalExample, retrieval_examples
from spanbox.evaluation.extract import FeatureBank
from spanbox.evaluation.occlusion import Query, draw_linked_spans, measure_falls, occlusion_outcomes
from spanbox.evaluation.outcomes import Outcome, figures_of
from spanbox.evaluation.presence import THRESHOLD, choose_threshold
from spanbox.evaluation.reranking import RERANKED
from spanbox.evaluation.selection import (
    UNIFORMITY,
    check_measurable,
    check_selectable,
    counted_in_pair,
    selection_value,
)
from spanbox.files import (
    PARTIAL,
    check_no_input,
    check_no_other_output,
    check_writable_file,
    check_writable_folder,
    explained,
    one_at_a_time,
    write_json,
)
from spanbox.models.dual_encoder import DualEncoder
from spanbox.progress import Progress, StartProgress, track
from spanbox.structures import Incident
from spanbox.wiring.artefacts import (
    Pairs,
    data_fingerprint,
    write_arrays,
    write_examples,
)
from spanbox.wiring.auditing import AUDIT, INPUTS, write_audit
from spanbox.wiring.building import make_collator, open_manifest
from spanbox.wiring.embedding import embed, embed_to_disk, evaluation_dataset, features_folder
from spanbox.wiring.fusing import matches_in_context, pair_scores
from spanbox.wiring.inference import Inference
from spanbox.wiring.loading import Loaded, load
from spanbox.wiring.predicting import check_objects, write_predictions

FILES = ("outcomes.npz", "examples.json", "heatmaps.npz", AUDIT, INPUTS)
"""Files of an evaluation that replace those of the one before it."""


@dataclass(frozen=True)
class Evaluated:
    """Metrics of a checkpoint on a manifest, and the incidents in its data."""

    checkpoint: Path
    data: Path
    fingerprint: str  # of the content of the manifest and of the sizes of its images
    metrics: dict[str, float]
    incidents: list[Incident]

    def write(self, path: Path) -> None:
        """Write JSON: the metrics under their dotted names, the checkpoint and the data."""
        source = {"checkpoint": self.checkpoint.name, "data": str(self.data), "fingerprint": self.fingerprint}
        write_json(path, source | self.metrics)


@dataclass(frozen=True)
class EvaluationOptions:
    """Parts of an evaluation besides its metrics.

    Attributes:
        threshold_from: manifest used to choose the visibility threshold, not the evaluated one; None: the config's
            data.val, if it is another one that exists.
        examples: retrievals of each kind and direction, and half of the wrong and of the right matches; 0: none.
        occlusion: entities in the occlusion test; 0: no test.
        rerank: candidates that the towers propose and the fusion re-ranks, if the model has one; 0: none.
        predictions: file for the regions that the model gives the manifest's entities, see `predicting.py`.
    """

    threshold_from: Path | None = None
    examples: int = 4
    occlusion: int = 500
    rerank: int = RERANKED
    predictions: Path | None = None


def evaluate_checkpoint(path: Path, manifest: Path, device: str = "auto") -> Evaluated:
    """The figures of a checkpoint (or the best of a run) on a manifest, as validation gives them."""
    loaded = load(path, device)
    opened = open_manifest(loaded.config, str(manifest), "the manifest")
    dataset = evaluation_dataset(loaded, opened)
    bank, incidents = embed(loaded, dataset)
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
    """Evaluate a checkpoint (or the best of a run) with intervals, and write the files that a report needs.

    Args:
        path: a run folder or a checkpoint folder.
        manifest: the pairs to evaluate on.
        out: folder for the files; None: the run's, or that of a checkpoint which belongs to no run. A file that ends in
            `.json` gets the figures, and nothing else is written.
        options: further parts.
        device: where the towers run.

    Returns:
        The figures, and the path of their file.

    Raises:
        OutputError: an output cannot be written; raised before anything is encoded, where that is possible.
        DataError: the manifest is wrong, or predictions are wanted and it has no candidates for them.
        ConfigError: the threshold is to be chosen on the pairs that are evaluated.
    """
    options = options or EvaluationOptions()
    loaded = load(path, device)
    opened = open_manifest(loaded.config, str(manifest), "the manifest")
    metrics_path, folder = _destination(path, out)
    inputs = {*_manifests(loaded.config, manifest).values(), options.threshold_from}
    _check_outputs(metrics_path, folder, options.predictions, inputs)
    if options.predictions is not None:
        check_objects(opened)
    validation = _validation(loaded, options.threshold_from, manifest)
    dataset = evaluation_dataset(loaded, opened)
    reranked = options.rerank if loaded.reranks else 0
    stored = _features(loaded, dataset, folder, keep_states=reranked > 0)
    pairs = Pairs(stored.bank, dataset)
    threshold = _threshold(loaded, stored.bank, validation, folder)
    metrics, outcomes = _measure(loaded, pairs, threshold, reranked, options.occlusion)
    if options.predictions is not None:
        write_predictions(options.predictions, loaded, opened, validation)
    evaluated = Evaluated(loaded.checkpoint, manifest, data_fingerprint(opened), metrics, stored.incidents)
    if folder is None:
        evaluated.write(metrics_path)
        return evaluated, metrics_path
    with one_at_a_time(folder):  # so that all files are of one evaluation
        with _replacing_files(folder, FILES) as aside:
            _write_outcomes(aside / "outcomes.npz", outcomes)
            if options.examples:
                retrievals = _retrievals(stored.bank, outcomes, options.examples, loaded.config.seed)
                write_examples(aside, pairs, retrievals, loaded, 2 * options.examples, folder)
            write_audit(aside, _manifests(loaded.config, manifest), folder)
        evaluated.write(metrics_path)  # last: if it exists, the rest is complete
    return evaluated, metrics_path


def make_validation(config: RunConfig) -> Callable[[Any, DualEncoder, Progress], tuple[dict[str, float], float]] | None:
    """The validation of a run, which gives the metrics of a model and the value that chooses the best; None without
    `data.val`.

    Raises:
        ConfigError: `train.best_metric` is unknown, or cannot be measured on these pairs.
        DataError: the manifest is wrong.
    """
    if config.data.val is None:
        return None
    check_selectable(config.train.best_metric)
    manifest = open_manifest(config, config.data.val, "data.val")
    in_context = matches_in_context(config)
    check_measurable(config.train.best_metric, _counted(config, manifest), in_context=in_context)

    def validate(tokenizer: Any, model: DualEncoder, progress: Progress) -> tuple[dict[str, float], float]:
        inference = Inference(model, tokenizer, config)
        dataset = evaluation_dataset(inference, manifest)
        bank, _ = embed(inference, dataset, progress.part)
        metrics = _figures_alone(bank, dataset, progress.part)
        threshold = choose_threshold(bank)
        if threshold is not None:  # kept for decisions on images without annotations
            metrics[THRESHOLD] = threshold
        return metrics, selection_value(metrics, config.train.best_metric)

    return validate


def _counted(config: RunConfig, manifest: Manifest) -> Iterator[str]:
    """For each pair the metrics that it contributes to, of those that not all data have. Reads only headers of images.

    Raises:
        DataError: while iterating; no image can be read.
    """
    data = config.data
    limits = SampleLimits(
        image_size=1,  # any: boxes are fractions
        max_spans=None if data.max_spans else 0,
        max_regions=None if data.max_regions else 0,
        proposals=data.proposals,
    )
    first_image: dict[str, str] = {}  # with features of each kind
    for record in manifest:
        try:
            with open_picture(manifest.image_path(record)) as picture:
                size = picture.size
        except DataError:
            continue  # such a pair is left out of a validation
        found = annotate(record.text, record.entities, record.objects, size, limits)
        entities = [record.entities[entity] for entity in found.entities]
        types, ambiguous = [entity.type or None for entity in entities], [entity.ambiguous for entity in entities]
        yield from counted_in_pair(found.regions, found.links, found.shown, types, ambiguous)
        features = {"sentences": 1, "images": 1, "spans": len(entities), "regions": len(found.regions)}
        for kind, number in features.items():
            if number and first_image.setdefault(kind, record.group_key) != record.group_key:
                yield UNIFORMITY[kind]
    if not first_image:
        raise DataError(
            f"{manifest.path}: none of its images can be read; `spanbox data check {manifest.path}` lists them"
        )


def _figures_alone(bank: FeatureBank, dataset: PairDataset, progress: StartProgress) -> dict[str, float]:
    """Every metric that validation can use, without intervals."""
    pairs = Pairs(bank, dataset)
    return evaluate(bank, pairs.entity_types(), pairs.ambiguous(), intervals=False, progress=progress).metrics


def _destination(path: Path, out: Path | None) -> tuple[Path, Path | None]:
    """The file of the metrics, and the folder of all other files; None: they are not written."""
    if out is not None and out.suffix == ".json":
        return out, None
    checkpoints = path.absolute().parent  # a checkpoint may be named from inside of this folder
    folder = out or (checkpoints.parent if checkpoints.name == "checkpoints" else path)
    return folder / "metrics.json", folder / "evaluation"


def _check_outputs(
    metrics: Path, folder: Path | None, predictions: Path | None, inputs: Collection[Path | None]
) -> None:
    check_no_input(metrics, inputs)
    check_no_other_output(metrics, [predictions])
    check_writable_file(metrics, ".json")
    if predictions is not None:
        check_no_input(predictions, inputs)
        check_writable_file(predictions, ".jsonl")
    if folder is not None:
        check_writable_folder(folder)


@contextmanager
def _replacing_files(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """A folder for new files, which replace all of these names in `folder` when the block succeeds.

    Raises:
        OutputError: they cannot be written; the older files stay.
    """
    with explained(folder), TemporaryDirectory(prefix=".", suffix=PARTIAL, dir=folder) as aside:
        yield Path(aside)
        for name in names:
            if (Path(aside) / name).exists():
                (Path(aside) / name).replace(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)  # of an earlier evaluation, perhaps of another checkpoint


def _features(loaded: Loaded, dataset: PairDataset, folder: Path | None, *, keep_states: bool) -> StoredBank:
    if folder is not None:
        of_manifest = features_folder(folder, dataset.manifest.path)
        return embed_to_disk(loaded, dataset, of_manifest, keep_states=keep_states)
    return StoredBank(*embed(loaded, dataset, keep_states=keep_states))


def _validation(loaded: Loaded, given: Path | None, evaluated: Path) -> Manifest | None:
    """The manifest used to choose the visibility threshold: never the evaluated one, which would bias the metrics.

    Raises:
        ConfigError: the given one is the evaluated one.
    """
    val = loaded.config.data.val
    chosen = given if given is not None or val is None else Path(val)
    if chosen is None or (given is None and not chosen.is_file()):
        return None
    if chosen.resolve() != evaluated.resolve():
        return open_manifest(loaded.config, str(chosen), "--threshold-from")
    if given is not None:
        raise ConfigError(
            f"--threshold-from: {given} is the evaluated manifest, on which no threshold may be chosen; give another "
            "manifest, or leave it out"
        )
    print(
        f"{evaluated}: data.val of this run, so no threshold of visibility is chosen on it; --threshold-from names "
        "other data",
        file=sys.stderr,
    )
    return None


def _threshold(loaded: Loaded, bank: FeatureBank, validation: Manifest | None, folder: Path | None) -> float | None:
    """The score from which an entity counts as shown; None without validation data or without scores."""
    if validation is None or not (len(bank.spans) and len(bank.regions)):
        return None
    dataset = evaluation_dataset(loaded, validation)
    return choose_threshold(_features(loaded, dataset, folder, keep_states=False).bank)


def _measure(
    loaded: Loaded, pairs: Pairs, threshold: float | None, reranked: int, occluded: int
) -> tuple[dict[str, float], dict[str, Outcome]]:
    """Every metric with its interval, and the outcomes of the queries.

    Args:
        threshold: see `_threshold`.
        reranked, occluded: numbers of candidates and of entities, see `EvaluationOptions`.
    """
    evaluation = evaluate(
        pairs.bank,
        pairs.entity_types(),
        pairs.ambiguous(),
        threshold=threshold,
        device=loaded.device,
        progress=Progress,
        fused_scores=pair_scores(loaded.model, pairs.bank),
        reranked=reranked,
    )
    occlusion, facts = _occlude(loaded, pairs, occluded)
    metrics = evaluation.metrics | facts
    for name, figure in figures_of(occlusion).items():
        metrics |= figure.named(name)
    return metrics, evaluation.outcomes | occlusion


def _occlude(loaded: Loaded, pairs: Pairs, entities: int) -> tuple[dict[str, Outcome], dict[str, float]]:
    """The occlusion test, and the number of entities whose object is too large for it."""
    config, model = loaded.config, loaded.model
    spans = draw_linked_spans(pairs.bank, entities, config.seed).tolist()
    if not spans:
        return {}, {}
    pair, entity = pairs.bank.span_pair.tolist(), pairs.bank.span_entity.tolist()
    collate = make_collator(config, loaded.tokenizer)
    falls = measure_falls(
        loaded.encode_batch,
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
    """Examples of both directions; every query has a rank, since its own pair is right."""
    ranks = {way: torch.from_numpy(outcomes[f"retrieval.{way}.mean_rank"].values).long() for way in DIRECTIONS}
    return {way: retrieval_examples(bank, way, ranks[way], count, seed) for way in DIRECTIONS}


def _write_outcomes(path: Path, outcomes: Mapping[str, Outcome]) -> None:
    """Write the values of metrics that are means: intervals and differences between runs are computed from them."""
    arrays = {f"{name}/values": outcome.values for name, outcome in outcomes.items()}
    images = {f"{name}/image": outcome.image for name, outcome in outcomes.items()}
    write_arrays(path, arrays | images)


def _manifests(config: RunConfig, evaluated: Path) -> dict[str, Path]:
    """The manifests of a run by part; the evaluated one is `test`, even if it is also data.train or data.val."""
    given = {"train": config.data.train, "val": config.data.val}
    others = {part: Path(path) for part, path in given.items() if path is not None}
    return {part: path for part, path in others.items() if path.resolve() != evaluated.resolve()} | {"test": evaluated}
