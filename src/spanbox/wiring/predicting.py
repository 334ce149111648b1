"""Predictions for `spanbox score`: for every entity of a manifest, the region that a model gives it.

Candidates are the manifest's `objects` alone, also those that overlap an entity's box. Among the entities' own boxes
even an untrained model would find right regions.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from spanbox.data.images import image_size
from spanbox.data.manifest import Manifest, Record
from spanbox.errors import DataError
from spanbox.evaluation.extract import FeatureBank
from spanbox.evaluation.gmner import PredictedEntity, Prediction
from spanbox.evaluation.own_image import score_own_image
from spanbox.evaluation.presence import choose_threshold
from spanbox.files import replacing
from spanbox.geometry import in_pixels
from spanbox.structures import Incident
from spanbox.wiring.embedding import embed_parts, evaluation_dataset
from spanbox.wiring.loading import Loaded


def check_objects(manifest: Manifest) -> None:
    """Check that a manifest has candidates for predictions.

    Raises:
        DataError: no record has `objects`.
    """
    if not any(record.objects for record in manifest):
        raise DataError(
            f"{manifest.path}: --predictions needs candidates, and no pair has `objects`; add the boxes of a detector "
            "(see docs/data.md). The entities' own boxes do not count as candidates, since any choice among them would "
            "look right"
        )


def write_predictions(path: Path, loaded: Loaded, manifest: Manifest, validation: Manifest | None) -> None:
    """Write a file of predictions with the spans and types of the manifest, marked as such (`gold_spans`).

    A box is in pixels of the image as shown. It is null where the best score is below a threshold, where the image has
    no object, and where the entity has no features (a broken image, a span beyond the tokens).

    Args:
        path: the file.
        loaded: the model.
        manifest: the pairs to predict for; see `check_objects`.
        validation: pairs to choose the threshold on, with objects and with entities of both kinds; without, every
            entity of an image with objects gets a region.
    """
    threshold = None
    if validation is not None and any(record.objects for record in validation):
        threshold = choose_threshold(FeatureBank.cat(_parts(loaded, validation)))
    with replacing(path) as file:
        next_place = 0
        for part in chain(_parts(loaded, manifest), [None]):
            boxes = {} if part is None else _predicted_boxes(part, threshold)
            end = len(manifest) if part is None else int(part.place[-1]) + 1
            for place in range(next_place, end):
                prediction = _prediction(manifest, manifest[place], boxes.get(place, {}))
                file.write(msgspec.json.encode(prediction) + b"\n")
            next_place = end


def _parts(loaded: Loaded, manifest: Manifest) -> Iterator[FeatureBank]:
    incidents: list[Incident] = []  # the same as those of the evaluation
    dataset = evaluation_dataset(loaded, manifest, objects_only=True)
    return embed_parts(loaded, dataset, incidents)


def _prediction(manifest: Manifest, record: Record, boxes: dict[int, Tensor]) -> Prediction:
    size = image_size(manifest.image_path(record)) if boxes else (1, 1)
    found = {index: in_pixels(box, *size) for index, box in boxes.items()}
    entities = tuple(
        PredictedEntity(entity.start, entity.end, entity.type, found.get(index))
        for index, entity in enumerate(record.entities)
    )
    return Prediction(record.id, entities, gold_spans=True)


def _predicted_boxes(bank: FeatureBank, threshold: float | None) -> dict[int, dict[int, Tensor]]:
    """The box, normalised, of each entity that gets one, by the place of its pair and its index in the record."""
    predicted: dict[int, dict[int, Tensor]] = {}
    if not (len(bank.regions) and len(bank.spans)):
        return predicted
    own = score_own_image(bank)
    best_S, slot_S = own.ranked_SR.max(dim=1)
    shown_S = best_S > -torch.inf if threshold is None else best_S >= threshold
    place_S = bank.place[bank.span_pair]
    for span in shown_S.nonzero()[:, 0].tolist():
        predicted.setdefault(int(place_S[span]), {})[int(bank.span_entity[span])] = own.boxes_SR4[span, slot_S[span]]
    return predicted
