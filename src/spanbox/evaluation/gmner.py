"""The official figures of grounded multimodal named-entity recognition, from a file of predictions.

A prediction is a span, its type and its region: a box, or None for an entity that the image does not show. It is right
(Yu et al., "Grounded Multimodal Named Entity Recognition on Social Media", ACL 2023) when it agrees with an entity of
the manifest in

    GMNER   span, type and region
    MNER    span and type
    EEG     span and region        (entity extraction and grounding)

Regions agree when the box overlaps one of the entity's boxes by an IoU above 0.5, or when both are none. Precision,
recall and F1 are over all predictions and entities of the set.

Where one prediction is made for a span, the figures are those of the published code. It keeps the last one of several;
here all count: an entity is found once at most, a prediction finds one entity at most, and the largest number of such
pairs is taken. Repetitions of the same span, type and region count once, predicted or gold. Of entities that share a
span each has to be found by a prediction of its own. A pair without predictions misses all its entities.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from spanbox.data.manifest import Box, Entity, Manifest, Record, is_inverted, line_error, manifest_lines
from spanbox.errors import DataError
from spanbox.geometry import box_iou
from spanbox.intervals import ratio_interval
from spanbox.structures import stable_id

LEAST_IOU = 0.5
"""Boxes overlap when their IoU is above it; at exactly 0.5 they do not, as in the published code."""


class PredictedEntity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a model says is an entity. No field has a default: a misspelt `box` would read as none."""

    start: int  # half-open, in Unicode code points of the text
    end: int
    type: str
    box: Box | None  # x0 y0 x1 y1 in pixels of the image, as in the manifest; None: the image does not show it


class Prediction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a file of predictions: all that a model finds in a pair."""

    id: str
    entities: tuple[PredictedEntity, ...]


class Counts(NamedTuple):
    """Of one pair, in one task."""

    correct: int
    predicted: int
    gold: int


@dataclass(frozen=True)
class Scores:
    """Counts of every pair of a manifest by task, and by type under `TASK.type.TYPE`."""

    image: NDArray[np.int64]  # (N,) hash of what the pair's image is: pairs of one image are resampled together
    counts: dict[str, NDArray[np.int64]]  # (N, 3) correct, predicted, gold
    notes: tuple[str, ...]  # what a reader of the figures should know of the predictions

    def metrics(self) -> dict[str, float]:
        """`.precision .recall .f1` of each row, each with `.low` and `.high` (95 % over images), and its counts.

        They are ratios of sums, and 0 where nothing was predicted or nothing is to be found, as in the published code.
        Of a single image there are no intervals.
        """
        metrics: dict[str, float] = {}
        for row, counts in self.counts.items():
            correct, predicted, gold = counts.T
            ratios = {
                "precision": (correct, predicted),
                "recall": (correct, gold),
                "f1": (2 * correct, predicted + gold),
            }
            for name, (numerator, denominator) in ratios.items():
                total = int(denominator.sum())
                metrics[f"{row}.{name}"] = int(numerator.sum()) / total if total else 0.0
                interval = ratio_interval(numerator, denominator, self.image)
                if interval:
                    metrics |= {f"{row}.{name}.low": interval.low, f"{row}.{name}.high": interval.high}
            metrics |= {f"{row}.{name}": int(counts[:, i].sum()) for i, name in enumerate(Counts._fields)}
        return metrics


def read_predictions(path: Path, texts: Mapping[str, str]) -> dict[str, Prediction]:
    """The predictions of a JSON Lines file, `{"id", "entities": [{"start", "end", "type", "box"}]}` a line, by id.

    Args:
        texts: the sentence of each pair that may be predicted for, by id.

    Raises:
        DataError: no such file, or a wrong line: its fields, an id that is unknown or was there before, or a span
            outside of its text.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file of predictions; expected JSON Lines, see docs/scoring.md")
    predictions: dict[str, Prediction] = {}
    lines: dict[str, int] = {}
    for number, _, line in manifest_lines(path):
        prediction = _decoded(line, path, number)
        if prediction.id in predictions:
            first = lines[prediction.id]
            raise line_error(path, number, "id", f"{prediction.id!r} is in line {first} too; a pair has one line")
        if prediction.id not in texts:
            fault = f"{prediction.id!r} is no pair of the data; give the manifest that was predicted for"
            raise line_error(path, number, "id", fault)
        _check_spans(prediction, len(texts[prediction.id]), path, number)
        predictions[prediction.id], lines[prediction.id] = prediction, number
    return predictions


def score_file(predictions: Path, manifest: Path) -> Scores:
    """Score a file of predictions for the pairs of a manifest.

    Raises:
        DataError: either file is wrong, with the line.
    """
    records = list(Manifest(manifest))
    repeated = [name for name, count in Counter(record.id for record in records).items() if count > 1]
    if repeated:
        raise DataError(
            f"{manifest}: {len(repeated)} ids name several pairs, {repeated[0]!r} among them; predictions are matched "
            "by id, so give each pair its own"
        )
    found = read_predictions(predictions, {record.id: record.text for record in records})
    return score(records, found)


def score(records: Sequence[Record], predictions: Mapping[str, Prediction]) -> Scores:
    """Score predictions, by id, for the pairs with these records."""
    types = sorted({entity.type for record in records for entity in record.entities if entity.type})
    rows: dict[str, list[Counts]] = {}
    for record in records:
        gold, found = _without_repetitions(record, predictions.get(record.id))
        for task, agrees in _TASKS.items():
            rows.setdefault(task, []).append(_count(found, gold, agrees))
        for kind in types:
            found_kind = [entity for entity in found if entity.type == kind]
            gold_kind = [entity for entity in gold if entity.type == kind]
            for task in ("gmner", "mner"):  # EEG knows no types
                rows.setdefault(f"{task}.type.{kind}", []).append(_count(found_kind, gold_kind, _TASKS[task]))
    image = np.array([stable_id(record.group_key) for record in records], dtype=np.int64)
    counts = {row: np.array(numbers, dtype=np.int64) for row, numbers in rows.items()}
    return Scores(image, counts, tuple(_notes(records, predictions, types)))


def _decoded(line: bytes, path: Path, number: int) -> Prediction:
    try:
        return msgspec.json.decode(line, type=Prediction)
    except msgspec.ValidationError as error:
        problem, _, field = str(error).partition(" - at ")
        raise line_error(path, number, field.strip("`$.") or "the line", problem) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise line_error(path, number, "the line", f"is no JSON ({error}); every line is one JSON object") from None


def _check_spans(prediction: Prediction, characters: int, path: Path, number: int) -> None:
    for i, entity in enumerate(prediction.entities):
        if not 0 <= entity.start < entity.end <= characters:
            fault = (
                f"[{entity.start}, {entity.end}) is no span of a text of {characters} characters; offsets are half-"
                "open and count Unicode code points from 0"
            )
            raise line_error(path, number, f"entities[{i}]", fault)


def _without_repetitions(record: Record, prediction: Prediction | None) -> tuple[list[Entity], list[PredictedEntity]]:
    gold = {(entity.start, entity.end, entity.type, frozenset(entity.boxes)): entity for entity in record.entities}
    return list(gold.values()), list(dict.fromkeys(prediction.entities if prediction else ()))


def _same_span(found: PredictedEntity, gold: Entity) -> bool:
    return (found.start, found.end) == (gold.start, gold.end)


def _same_type(found: PredictedEntity, gold: Entity) -> bool:
    return found.type == gold.type


def _same_region(found: PredictedEntity, gold: Entity) -> bool:
    if found.box is None or not gold.boxes:
        return found.box is None and not gold.boxes
    boxes, own = torch.tensor(gold.boxes, dtype=torch.float64), torch.tensor([found.box], dtype=torch.float64)
    return bool((box_iou(own, boxes) > LEAST_IOU).any())


Agrees = Callable[[PredictedEntity, Entity], bool]

_TASKS: dict[str, tuple[Agrees, ...]] = {
    "gmner": (_same_span, _same_type, _same_region),
    "mner": (_same_span, _same_type),
    "eeg": (_same_span, _same_region),
}


def _count(found: Sequence[PredictedEntity], gold: Sequence[Entity], agrees: tuple[Agrees, ...]) -> Counts:
    right = [[i for i, entity in enumerate(gold) if all(agree(one, entity) for agree in agrees)] for one in found]
    return Counts(largest_matching(right), len(found), len(gold))


def largest_matching(choices: Sequence[Sequence[int]]) -> int:
    """How many of the rows can get one of their choices when no two may take the same (augmenting paths, Kuhn 1955)."""
    taken_by: dict[int, int] = {}

    def find(row: int, tried: set[int]) -> bool:
        for choice in choices[row]:
            if choice not in tried:
                tried.add(choice)
                if choice not in taken_by or find(taken_by[choice], tried):
                    taken_by[choice] = row
                    return True
        return False

    return sum(find(row, set()) for row in range(len(choices)))


def _notes(records: Sequence[Record], predictions: Mapping[str, Prediction], types: Sequence[str]) -> Iterable[str]:
    entities = [entity for prediction in predictions.values() for entity in prediction.entities]
    missing = sum(record.id not in predictions for record in records)
    if missing:
        yield f"{missing:,} of {len(records):,} pairs have no line of predictions: nothing is found in them"
    repeated = sum(len(one.entities) - len(set(one.entities)) for one in predictions.values())
    if repeated:
        yield f"{repeated:,} predictions repeat another one of their pair: they count once"
    flat = sum(entity.box is not None and is_inverted(entity.box) for entity in entities)
    if flat:
        yield f"{flat:,} predicted boxes have no area and overlap nothing; a box is [x0, y0, x1, y1], x0 < x1, y0 < y1"
    unknown = sorted({entity.type for entity in entities} - set(types))
    if unknown:
        yield f"types that the data does not have: {', '.join(unknown)}; it has: {', '.join(types)}"
