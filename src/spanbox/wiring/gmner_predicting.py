"""Predictions of a GMNER model for the pairs of a manifest, in the form that `spanbox score` reads.

First the entities are found in the texts; then each chooses one of the manifest's `objects` of its pair, or none. So
spans are encoded as in training, with any `model.spans` setting.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import torch

from spanbox.config import RunConfig
from spanbox.data.dataset import PairDataset
from spanbox.data.images import image_size
from spanbox.data.limits import SampleLimits
from spanbox.data.loader import evaluation_batches
from spanbox.data.manifest import Box, Entity, Manifest
from spanbox.data.tagged import tokenize
from spanbox.data.words import end_of_marks
from spanbox.engine.device import autocast, choose_precision
from spanbox.errors import DataError
from spanbox.evaluation.gmner import LEAST_IOU, PredictedEntity, Prediction, Scores, check_ids, score
from spanbox.files import check_no_input, check_writable_file, replacing
from spanbox.geometry import in_pixels
from spanbox.models.gmner import GmnerModel
from spanbox.models.inputs import Texts
from spanbox.progress import Progress, StartProgress
from spanbox.spans import trim_span
from spanbox.structures import Incident
from spanbox.tags import tagged_spans
from spanbox.wiring.building import make_collator, open_manifest, sample_limits
from spanbox.wiring.embedding import EVALUATION_BATCH
from spanbox.wiring.gmner_models import LoadedGmner, load_gmner


@dataclass(frozen=True)
class GmnerPredictions:
    """The predictions for the pairs of a manifest.

    Attributes:
        predictions: of each pair, in the order of the manifest.
        scores: of the predictions, against the entities of the manifest.
        incidents: in the data.
        grounds: whether regions were chosen.
    """

    predictions: list[Prediction]
    scores: Scores
    incidents: list[Incident]
    grounds: bool

    @property
    def entities(self) -> int:
        return sum(len(prediction.entities) for prediction in self.predictions)

    @property
    def boxes(self) -> int:
        return sum(entity.box is not None for prediction in self.predictions for entity in prediction.entities)


def predict_gmner(
    path: Path, manifest: Path, *, out: Path | None = None, text_only: bool = False, device: str = "auto"
) -> GmnerPredictions:
    """Find the entities of a manifest's texts and their regions, and score them by the official measure.

    Args:
        path: a run of `spanbox gmner train`, or one of its checkpoints.
        manifest: the pairs; their entities are only used to score.
        out: file for the predictions.
        text_only: find entities only; no image is read.
        device: where the model runs.

    Raises:
        DataError: the manifest is wrong, or has no candidates.
        CheckpointError: `path` holds no GMNER model.
        OutputError: `out` cannot be written, or is the manifest; raised before the model runs.
    """
    loaded = load_gmner(path, device)
    grounds = loaded.model.grounds and not text_only
    if out is not None:
        check_no_input(out, [manifest])
        check_writable_file(out, ".jsonl")
    opened = open_gmner_manifest(loaded.config, str(manifest), "DATA", grounds=grounds)
    check_ids(list(opened), opened.path)
    found = predict(loaded, opened, grounds=grounds)
    if out is not None:
        with replacing(out) as file:
            for prediction in found.predictions:
                file.write(msgspec.json.encode(prediction) + b"\n")
    return found


def open_gmner_manifest(
    config: RunConfig, path: str | None, key: str, *, grounds: bool, subset: int | None = None
) -> Manifest:
    """Open a manifest; one whose images are read must have candidates.

    Raises:
        DataError: no pair has `objects`.
    """
    if not grounds and path is not None:
        return Manifest(path, config.data.inverted_boxes, subset=subset)
    manifest = open_manifest(config, path, key, subset=subset)
    if not any(record.objects for record in manifest):
        raise DataError(
            f"{path}: no pair has `objects`, so there are no candidates for the regions; add the boxes of a detector "
            "(see docs/data.md), or leave regions out (--text-only)"
        )
    return manifest


def predict(
    loaded: LoadedGmner, manifest: Manifest, *, grounds: bool, progress: StartProgress = Progress
) -> GmnerPredictions:
    """Predictions for every pair of a manifest. The model is in evaluation mode."""
    incidents: list[Incident] = []
    entities = _find_entities(loaded, manifest, incidents, progress)
    boxes: dict[tuple[int, int], Box] = {}
    if grounds:
        boxes = _choose_boxes(loaded, manifest, entities, incidents, progress)
    predictions = [
        Prediction(
            record.id,
            tuple(
                PredictedEntity(entity.start, entity.end, entity.type, boxes.get((place, number)))
                for number, entity in enumerate(entities[place])
            ),
        )
        for place, record in enumerate(manifest)
    ]
    scores = score(list(manifest), {prediction.id: prediction for prediction in predictions})
    return GmnerPredictions(predictions, scores, incidents, grounds)


def _find_entities(
    loaded: LoadedGmner, manifest: Manifest, incidents: list[Incident], progress: StartProgress
) -> list[tuple[Entity, ...]]:
    """The entities of each text."""
    found: list[tuple[Entity, ...]] = []
    with progress("finding entities", len(manifest)) as shown:
        for start in range(0, len(manifest), EVALUATION_BATCH):
            records = manifest[start : start + EVALUATION_BATCH]
            texts = [record.text for record in records]
            tokens = tokenize(loaded.tokenizer, texts, loaded.config.data.max_tokens)
            for row in tokens.truncated:
                limit = f"only its first {loaded.config.data.max_tokens} tokens are read"
                incidents.append(Incident("truncated text", records[row].id, limit))
            no_spans = tokens.tagged.new_zeros(len(texts), 0, tokens.tagged.shape[1])
            with torch.no_grad(), _precision(loaded.model, loaded.config):
                rows = loaded.model.tag(Texts(tokens.token_ids, tokens.token_mask, no_spans), tokens.tagged)
            for text, tags, tagged, offsets in zip(texts, rows, tokens.tagged, tokens.offsets, strict=True):
                found.append(entities_of_tags(text, tags, offsets[tagged].tolist(), loaded.model.types))
            shown.update(len(found))
    return found


def entities_of_tags(
    text: str, tags: Sequence[int], offsets: Sequence[tuple[int, int]], types: Sequence[str]
) -> tuple[Entity, ...]:
    """The entities of a text from the tags of its tokens; spans of white space alone are none."""
    entities = []
    for first, end, kind in tagged_spans(tags):
        span = trim_span(text, (offsets[first][0], end_of_marks(text, offsets[end - 1][1])))
        if span[0] < span[1]:
            entities.append(Entity(*span, type=types[kind]))
    return tuple(entities)


def _choose_boxes(
    loaded: LoadedGmner,
    manifest: Manifest,
    entities: Sequence[tuple[Entity, ...]],
    incidents: list[Incident],
    progress: StartProgress,
) -> dict[tuple[int, int], Box]:
    """The box of each entity that gets one, in pixels, by the place of its pair and its number there."""
    config, model = loaded.config, loaded.model
    dataset = PairDataset(
        manifest, candidate_limits(config, model), config.seed, replace_broken=False, entities=entities
    )
    workers = config.data.worker_count(model.encoder.device)
    chosen: dict[tuple[int, int], Box] = {}
    done = 0
    with progress("choosing regions", len(dataset)) as shown:
        collator = make_collator(config, loaded.tokenizer)
        for batch in evaluation_batches(dataset, collator, EVALUATION_BATCH, workers, incidents):
            with torch.no_grad(), _precision(model, config):
                columns = model.choose_regions(batch).cpu()
            boxes = batch.boxes_of_images
            for row, span in (batch.span_valid & (columns >= 0)).nonzero().tolist():
                place, number = int(batch.place[row]), int(batch.span_entity[row, span])
                size = image_size(manifest.image_path(manifest[place]))
                chosen[place, number] = in_pixels(boxes[row, columns[row, span]], *size)
            done += len(batch)
            shown.update(done)
    return chosen


def candidate_limits(config: RunConfig, model: GmnerModel, *, training: bool = False) -> SampleLimits:
    """Limits of a sample: all entities, and all objects as candidates.

    In training they are linked to the entities whose boxes they match, and images and texts may be augmented.
    """
    limits = sample_limits(config, model.encoder, objects_only=True)
    limits = replace(limits, max_spans=None, max_regions=None)
    return replace(limits, link_iou=LEAST_IOU, augment=config.data.augment) if training else limits


def _precision(model: GmnerModel, config: RunConfig) -> torch.autocast:
    device = model.encoder.device
    return autocast(device, choose_precision(config.train.precision, device))
