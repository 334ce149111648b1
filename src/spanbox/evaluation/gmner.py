"""The official metrics of grounded multimodal named-entity recognition, from a file of predictions.

A prediction is a span, its type and its region: a box, or None for an entity that the image does not show. It is right
(Yu et al., "Grounded Multimodal Named Entity Recognition on Social Media", ACL 2023) when it agrees with an entity of
the manifest in

    GMNER   span, type and region
    MNER    span and type
    EEG     span and region        (entity extraction and grounding)

Regions agree when the box overlaps one of the entity's boxes by an IoU above 0.5, or when both are none. Precision,
recall and F1 are over all predictions and entities of the set.

With one prediction per span, the metrics are those of the published code. Of several, that code keeps the last one;
here all count: an entity is found once at most, a prediction finds one entity at most, and the largest number of such
matches is taken. Repetitions of the same span, type and region count once, predicted or gold. Entities that share a
span each need their own prediction. A pair without predictions misses all its entities. White space at the
ends of a span does not count.

Predictions with `gold_spans` took spans and types from the manifest. MNER would be perfect and GMNER equal to EEG, so
only EEG is computed, under another name (`GOLD_SPANS`).
"""

import codecs
import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from spanbox.data.manifest import Box, Entity, Manifest, Record, is_inverted, line_error
from spanbox.errors import DataError
from spanbox.geometry import area_of, shared_area
from spanbox.intervals import ratio_interval
from spanbox.spans import trim_span
from spanbox.structures import stable_id

LEAST_IOU = 0.5
"""Boxes overlap when their IoU is above it; at exactly 0.5 they do not, as in the published code."""

GOLD_SPANS = "eeg_gold_spans"
"""Row of predictions whose spans and types are those of the manifest."""

LONGEST_LINE = 2**24
"""Bytes of a line of predictions."""
MOST_ENTITIES = 1000
"""Predicted entities of a pair."""
SHOWN_TYPES = 20
"""Types that a note names."""
MOST_TYPES = 100
"""Number of types that are scored one by one: those with the most entities."""


class PredictedEntity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A predicted entity. No field has a default: a misspelt `box` would count as null."""

    start: int  # half-open, in Unicode code points of the text
    end: int
    type: str
    box: Box | None  # x0 y0 x1 y1 in pixels of the image, as in the manifest; None: the image does not show it


class Prediction(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One line of a file of predictions: all entities that a model finds in a pair."""

    id: str
    entities: tuple[PredictedEntity, ...]
    gold_spans: bool = False  # spans and types were taken from the manifest: only the regions are predictions


Trimmable = TypeVar("Trimmable", Entity, PredictedEntity)


class Counts(NamedTuple):
    """Numbers of entities of one pair, in one task."""

    correct: int
    predicted: int
    gold: int


@dataclass(frozen=True)
class Scores:
    """Counts of every pair of a manifest by task, and by type under `TASK.type.TYPE`."""

    image: NDArray[np.int64]  # (N,) hash of the pair's image: pairs of one image are resampled together
    counts: dict[str, NDArray[np.int64]]  # (N, 3) correct, predicted, gold
    notes: tuple[str, ...]  # remarks on the predictions that matter for reading the metrics

    def metrics(self, *, intervals: bool = True) -> dict[str, float]:
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
                interval = ratio_interval(numerator, denominator, self.image) if intervals else None
                if interval:
                    metrics |= {f"{row}.{name}.low": interval.low, f"{row}.{name}.high": interval.high}
            metrics |= {f"{row}.{name}": int(counts[:, i].sum()) for i, name in enumerate(Counts._fields)}
        return metrics


def read_predictions(path: Path, texts: Mapping[str, str]) -> dict[str, Prediction]:
    """The predictions of a JSON Lines file by id; a line is `{"id", "entities": [{"start", "end", "type", "box"}]}`.

    Args:
        texts: the sentence of each pair that may be predicted for, by id.

    Raises:
        DataError: no such file, or a wrong line: its fields or size, an unknown or repeated id, or a span outside of
            its text.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file of predictions; expected JSON Lines, see docs/scoring.md")
    predictions: dict[str, Prediction] = {}
    lines: dict[str, int] = {}
    for number, line in _lines(path):
        prediction = _decoded(line, path, number)
        if prediction.id in predictions:
            first = lines[prediction.id]
            raise line_error(path, number, "id", f"{prediction.id!r} is also in line {first}; a pair has one line")
        if prediction.id not in texts:
            fault = f"{prediction.id!r} is not the id of a pair in the data; give the manifest of these predictions"
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
    check_ids(records, manifest)
    found = read_predictions(predictions, {record.id: record.text for record in records})
    return score(records, found)


def check_ids(records: Sequence[Record], manifest: Path) -> None:
    """Raises DataError if two pairs have the same id."""
    repeated = [name for name, count in Counter(record.id for record in records).items() if count > 1]
    if repeated:
        raise DataError(
            f"{manifest}: {len(repeated)} ids name several pairs, {repeated[0]!r} among them; predictions are matched "
            "by id, so give each pair its own"
        )


def score(records: Sequence[Record], predictions: Mapping[str, Prediction]) -> Scores:
    """Score predictions, by id, for the pairs with these records."""
    types = Counter(entity.type for record in records for entity in record.entities if entity.type)
    kinds = sorted(sorted(types, key=lambda kind: -types[kind])[:MOST_TYPES])
    gold_spans = any(prediction.gold_spans for prediction in predictions.values())
    tasks = {GOLD_SPANS: _TASKS["eeg"]} if gold_spans else _TASKS
    typed = [] if gold_spans else ["gmner", "mner"]  # EEG has no types
    counts = {task: np.zeros((len(records), 3), dtype=np.int64) for task in tasks}
    counts |= {f"{task}.type.{kind}": np.zeros((len(records), 3), dtype=np.int64) for kind in kinds for task in typed}
    for place, record in enumerate(records):
        gold, found = _without_repetitions(record, predictions.get(record.id))
        for task, agrees in tasks.items():
            counts[task][place] = _count(found, gold, agrees)
        for kind in {entity.type for entity in gold} | {entity.type for entity in found}:
            found_kind = [entity for entity in found if entity.type == kind]
            gold_kind = [entity for entity in gold if entity.type == kind]
            for task in typed:
                if f"{task}.type.{kind}" in counts:
                    counts[f"{task}.type.{kind}"][place] = _count(found_kind, gold_kind, tasks[task])
    image = np.array([stable_id(record.group_key) for record in records], dtype=np.int64)
    return Scores(image, counts, tuple(_notes(records, predictions, types, gold_spans=gold_spans)))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Every line that is not blank, with its number. Raises DataError for one that is too long to read."""
    with path.open("rb") as file:
        for number in itertools.count(1):
            line = file.readline(LONGEST_LINE + 1)
            if len(line) > LONGEST_LINE:
                raise line_error(path, number, "the line", f"has more than {LONGEST_LINE:,} bytes; expected one pair")
            if not line:
                return
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                yield number, line


def _decoded(line: bytes, path: Path, number: int) -> Prediction:
    try:
        prediction = msgspec.json.decode(line, type=Prediction)
    except msgspec.ValidationError as error:
        problem, _, field = str(error).partition(" - at ")
        raise line_error(path, number, field.strip("`$.") or "the line", problem) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise line_error(path, number, "the line", f"is not JSON ({error}); every line is one JSON object") from None
    if len(prediction.entities) > MOST_ENTITIES:
        fault = f"has {len(prediction.entities):,} predictions; at most {MOST_ENTITIES:,} are read for a pair"
        raise line_error(path, number, "entities", fault)
    return prediction


def _check_spans(prediction: Prediction, characters: int, path: Path, number: int) -> None:
    for i, entity in enumerate(prediction.entities):
        if not 0 <= entity.start < entity.end <= characters:
            fault = (
                f"[{entity.start}, {entity.end}) is not a span of a text of {characters} characters; offsets are half-"
                "open and count Unicode code points from 0"
            )
            raise line_error(path, number, f"entities[{i}]", fault)


def _without_repetitions(record: Record, prediction: Prediction | None) -> tuple[list[Entity], list[PredictedEntity]]:
    entities = [_trimmed(record.text, entity) for entity in record.entities]
    gold = {(entity.start, entity.end, entity.type, frozenset(entity.boxes)): entity for entity in entities}
    found = [_trimmed(record.text, entity) for entity in prediction.entities] if prediction else []
    return list(gold.values()), list(dict.fromkeys(found))


def _trimmed(text: str, entity: Trimmable) -> Trimmable:
    """The entity without white space at the ends of its span."""
    start, end = trim_span(text, (entity.start, entity.end))
    return msgspec.structs.replace(entity, start=start, end=end)


def _same_span(found: PredictedEntity, gold: Entity) -> bool:
    return (found.start, found.end) == (gold.start, gold.end)


def _same_type(found: PredictedEntity, gold: Entity) -> bool:
    return found.type == gold.type


def _same_region(found: PredictedEntity, gold: Entity) -> bool:
    if found.box is None or not gold.boxes:
        return found.box is None and not gold.boxes
    return any(_iou(found.box, box) > LEAST_IOU for box in gold.boxes)


def _iou(first: Box, second: Box) -> float:
    """IoU of two boxes in float64; 0 where one of them has no area."""
    if is_inverted(first) or is_inverted(second):
        return 0.0
    shared = shared_area(first, second)
    return shared / (area_of(first) + area_of(second) - shared) if shared > 0 else 0.0


Agrees = Callable[[PredictedEntity, Entity], bool]

_TASKS: dict[str, tuple[Agrees, ...]] = {
    "gmner": (_same_span, _same_type, _same_region),
    "mner": (_same_span, _same_type),
    "eeg": (_same_span, _same_region),
}


def _count(found: Sequence[PredictedEntity], gold: Sequence[Entity], agrees: tuple[Agrees, ...]) -> Counts:
    of_span: dict[tuple[int, int], list[int]] = {}
    for i, entity in enumerate(gold):
        of_span.setdefault((entity.start, entity.end), []).append(i)
    right = [
        [i for i in of_span.get((one.start, one.end), ()) if all(agree(one, gold[i]) for agree in agrees)]
        for one in found
    ]
    return Counts(largest_matching(right), len(found), len(gold))


def largest_matching(choices: Sequence[Sequence[int]]) -> int:
    """Size of the largest matching of rows and their choices (breadth-first augmenting paths; Kuhn 1955)."""
    taken_by: dict[int, int] = {}
    matched = 0
    for start in range(len(choices)):
        row_before: dict[int, int] = {}  # the row from which each choice was reached
        queue = deque([start])
        free = None
        while queue and free is None:
            row = queue.popleft()
            for choice in choices[row]:
                if choice not in row_before:
                    row_before[choice] = row
                    if choice not in taken_by:
                        free = choice
                        break
                    queue.append(taken_by[choice])
        if free is None:
            continue
        matched += 1
        choice_of = {row: choice for choice, row in taken_by.items()}
        while free is not None:  # along the path, every row gives its choice to the row before it
            row = row_before[free]
            taken_by[free] = row
            free = choice_of.get(row)
    return matched


def _notes(
    records: Sequence[Record], predictions: Mapping[str, Prediction], types: Counter[str], *, gold_spans: bool
) -> Iterable[str]:
    if gold_spans:
        yield (
            "spans and types of these predictions were taken from the data, so only regions are scored: MNER would be "
            "perfect and GMNER equal to EEG. Do not compare this with published results"
        )
    if len(types) > MOST_TYPES:
        yield f"the data has {len(types):,} types; the {MOST_TYPES} with the most entities are scored one by one"
    entities = [entity for prediction in predictions.values() for entity in prediction.entities]
    missing = sum(record.id not in predictions for record in records)
    if missing:
        yield f"{missing:,} of {len(records):,} pairs have no line of predictions: all their entities are missed"
    texts = {record.id: record.text for record in records}
    repeated = sum(
        len(one.entities) - len({_trimmed(texts[one.id], entity) for entity in one.entities})
        for one in predictions.values()
        if one.id in texts
    )
    if repeated:
        yield f"{repeated:,} predictions repeat another one of their pair: they count once"
    flat = sum(entity.box is not None and is_inverted(entity.box) for entity in entities)
    if flat:
        yield f"{flat:,} predicted boxes have no area and overlap nothing; a box is [x0, y0, x1, y1], x0 < x1, y0 < y1"
    unknown = sorted({entity.type for entity in entities} - set(types))
    if unknown:
        yield f"types that the data does not have: {_listed(unknown)}; it has: {_listed(sorted(types))}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN_TYPES])
    return shown if len(names) <= SHOWN_TYPES else f"{shown} and {len(names) - SHOWN_TYPES:,} more"
