"""GMNER, MNER and EEG by hand-made predictions, English and Chinese."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanbox.data.manifest import Box, Entity, Record, write_manifest
from spanbox.errors import DataError
from spanbox.evaluation.gmner import PredictedEntity, Prediction, Scores, largest_matching, score, score_file

PARK = (12.0, 30.0, 200.0, 310.0)
ENGLISH = Record(
    id="71044",
    image="71044.jpg",
    text="Kevin Durant visits the Garfield Park Conservatory",
    entities=(
        Entity(0, 12, type="PER", boxes=((0.0, 0.0, 100.0, 200.0), (300.0, 0.0, 400.0, 200.0))),
        Entity(24, 50, type="LOC"),
    ),
)
CHINESE = Record(
    id="中-17",
    image="17.jpg",
    text="姚明在北京看球🏀",
    entities=(Entity(0, 2, type="PER", boxes=((10.0, 10.0, 60.0, 110.0),)), Entity(3, 5, type="LOC")),
)


def predicted(start: int, end: int, kind: str, box: Box | None = None) -> PredictedEntity:
    return PredictedEntity(start, end, kind, box)


def scored(record: Record, *entities: PredictedEntity) -> Scores:
    return score([record], {record.id: Prediction(record.id, entities)})


def counts(scores: Scores) -> dict[str, tuple[int, ...]]:
    """Correct, predicted and gold of each task."""
    return {task: tuple(scores.counts[task].sum(axis=0).tolist()) for task in ("gmner", "mner", "eeg")}


class TestOnePrediction:
    """Of the two entities of a pair, one predicted."""

    @pytest.mark.parametrize(
        ("entity", "right"),
        [
            (predicted(0, 12, "PER", (0.0, 0.0, 100.0, 200.0)), {"gmner", "mner", "eeg"}),
            (predicted(0, 12, "PER", (305.0, 0.0, 405.0, 190.0)), {"gmner", "mner", "eeg"}),  # the second of its boxes
            (predicted(0, 12, "LOC", (0.0, 0.0, 100.0, 200.0)), {"eeg"}),
            (predicted(0, 12, "per", (0.0, 0.0, 100.0, 200.0)), {"eeg"}),
            (predicted(0, 12, "PER", None), {"mner"}),
            (predicted(0, 12, "PER", (150.0, 0.0, 250.0, 200.0)), {"mner"}),
            (predicted(0, 5, "PER", (0.0, 0.0, 100.0, 200.0)), set()),
            (predicted(24, 50, "LOC", None), {"gmner", "mner", "eeg"}),
            (predicted(24, 50, "LOC", (0.0, 0.0, 100.0, 200.0)), {"mner"}),
            (predicted(24, 50, "PER", None), {"eeg"}),
        ],
    )
    def test_what_it_is_right_in(self, entity: PredictedEntity, right: set[str]) -> None:
        found = counts(scored(ENGLISH, entity))
        assert found == {task: (int(task in right), 1, 2) for task in ("gmner", "mner", "eeg")}

    @pytest.mark.parametrize(("width", "right"), [(50.0, 0), (50.1, 1), (200.0, 0), (199.9, 1)])
    def test_an_iou_of_one_half_is_too_little(self, width: float, right: int) -> None:
        """The box of the entity is 100 wide."""
        assert counts(scored(ENGLISH, predicted(0, 12, "PER", (0.0, 0.0, width, 200.0))))["gmner"] == (right, 1, 2)

    def test_a_box_without_area_overlaps_nothing_and_is_reported(self) -> None:
        scores = scored(ENGLISH, predicted(0, 12, "PER", (50.0, 50.0, 50.0, 90.0)))
        assert counts(scores)["gmner"] == (0, 1, 2)
        assert scores.notes[0].startswith("1 predicted boxes have no area and overlap nothing; a box is [x0, y0,")


class TestSeveralPredictions:
    def test_a_table_worked_out_by_hand(self) -> None:
        predictions = {
            "71044": Prediction(
                "71044",
                (
                    predicted(0, 12, "PER", (0.0, 0.0, 100.0, 150.0)),  # IoU 0.75: right in all
                    predicted(24, 37, "LOC"),  # another span: wrong in all
                    predicted(24, 50, "ORG"),  # right region, wrong type
                ),
            ),
            "中-17": Prediction("中-17", (predicted(0, 2, "PER"), predicted(3, 5, "LOC"))),  # the first one has no box
        }
        scores = score([ENGLISH, CHINESE], predictions)
        assert counts(scores) == {"gmner": (2, 5, 4), "mner": (3, 5, 4), "eeg": (3, 5, 4)}
        metrics = scores.metrics()
        assert metrics["gmner.precision"] == 2 / 5
        assert metrics["gmner.recall"] == 2 / 4
        assert metrics["gmner.f1"] == pytest.approx(2 * 0.4 * 0.5 / (0.4 + 0.5))
        by_type = {row: tuple(table.sum(axis=0).tolist()) for row, table in scores.counts.items() if ".type." in row}
        assert by_type == {
            "gmner.type.LOC": (1, 2, 2),
            "mner.type.LOC": (1, 2, 2),
            "gmner.type.PER": (1, 2, 2),
            "mner.type.PER": (2, 2, 2),
        }

    def test_repetitions_count_once(self) -> None:
        scores = scored(ENGLISH, *[predicted(24, 50, "LOC")] * 3)
        assert counts(scores) == dict.fromkeys(("gmner", "mner", "eeg"), (1, 1, 2))
        assert scores.notes == ("2 predictions repeat another one of their pair: they count once",)

    def test_another_guess_for_the_same_span_is_a_prediction_of_its_own(self) -> None:
        guesses = [predicted(24, 50, "LOC"), predicted(24, 50, "ORG"), predicted(24, 50, "LOC", PARK)]
        assert counts(scored(ENGLISH, *guesses)) == dict.fromkeys(("gmner", "mner", "eeg"), (1, 3, 2))

    def test_two_boxes_of_one_entity_find_it_once(self) -> None:
        boxes = [predicted(0, 12, "PER", box) for box in ENGLISH.entities[0].boxes]
        assert counts(scored(ENGLISH, *boxes))["gmner"] == (1, 2, 2)

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)])
    def test_entities_that_share_a_span_need_a_prediction_each(self, order: tuple[int, ...]) -> None:
        """Both boxes overlap that of the first entity, the left one that of the second too: both can be found."""
        left, wide = (0.0, 0.0, 60.0, 100.0), (0.0, 0.0, 100.0, 100.0)
        entities = (Entity(0, 5, type="PER", boxes=(left,)), Entity(0, 5, type="LOC", boxes=(wide,)))
        record = Record(id="a", image="a.jpg", text="Paris", entities=entities)
        guesses = [predicted(0, 5, "PER", left), predicted(0, 5, "LOC", (0.0, 0.0, 45.0, 100.0))]
        found = counts(scored(record, *(guesses[i] for i in order)))
        assert found == {"gmner": (1, 2, 2), "mner": (2, 2, 2), "eeg": (2, 2, 2)}

    @pytest.mark.parametrize("space", [" ", "\n", "\u3000"])
    def test_white_space_at_the_ends_of_a_span_does_not_count(self, space: str) -> None:
        """Models read spans without it, so no model could find such an entity."""
        record = Record(id="a", image="a.jpg", text=f"姚明{space}在北京", entities=(Entity(0, 3, type="PER"),))
        assert counts(scored(record, predicted(0, 2, "PER")))["gmner"] == (1, 1, 1)
        repeated = scored(record, predicted(0, 2, "PER"), predicted(0, 3, "PER"))
        assert counts(repeated)["gmner"] == (1, 1, 1)
        assert repeated.notes == ("1 predictions repeat another one of their pair: they count once",)
        assert counts(scored(record, predicted(2, 3, "PER")))["gmner"] == (0, 1, 1)

    def test_an_entity_that_the_data_repeats_counts_once(self) -> None:
        record = Record(id="a", image="a.jpg", text="Paris", entities=(Entity(0, 5, type="LOC"),) * 2)
        assert counts(scored(record, predicted(0, 5, "LOC")))["gmner"] == (1, 1, 1)

    def test_what_the_data_has_is_found_by_itself(self) -> None:
        perfect = {
            record.id: Prediction(
                record.id,
                tuple(predicted(e.start, e.end, e.type, e.boxes[0] if e.boxes else None) for e in record.entities),
            )
            for record in (ENGLISH, CHINESE)
        }
        metrics = score([ENGLISH, CHINESE], perfect).metrics()
        assert {metrics[f"{task}.f1"] for task in ("gmner", "mner", "eeg")} == {1.0}


class TestNothing:
    def test_no_line_for_a_pair(self) -> None:
        scores = score([ENGLISH, CHINESE], {CHINESE.id: Prediction(CHINESE.id, (predicted(3, 5, "LOC"),))})
        assert counts(scores)["gmner"] == (1, 1, 4)
        assert scores.notes == ("1 of 2 pairs have no line of predictions: all their entities are missed",)

    def test_nothing_predicted_at_all(self) -> None:
        metrics = scored(ENGLISH).metrics()
        assert {name: metrics[f"gmner.{name}"] for name in ("precision", "recall", "f1")} == {
            "precision": 0.0,
            "recall": 0.0,
            "f1": 0.0,
        }

    def test_nothing_to_be_found(self) -> None:
        record = Record(id="a", image="a.jpg", text="good morning")
        assert scored(record, predicted(0, 4, "PER")).metrics()["gmner.f1"] == 0.0
        assert scored(record).metrics()["eeg.recall"] == 0.0

    def test_entities_without_a_type_have_no_rows_by_type(self) -> None:
        record = Record(id="a", image="a.jpg", text="Paris", entities=(Entity(0, 5),))
        scores = scored(record, predicted(0, 5, ""))
        assert set(scores.counts) == {"gmner", "mner", "eeg"}
        assert counts(scores)["gmner"] == (1, 1, 1)

    def test_types_that_the_data_does_not_have_are_reported(self) -> None:
        notes = scored(CHINESE, predicted(0, 2, "人物"), predicted(3, 5, "LOC")).notes
        assert notes == ("types that the data does not have: 人物; it has: LOC, PER",)


class TestIntervals:
    def records(self, images: int, pairs: int) -> list[Record]:
        return [
            Record(id=f"{i}-{k}", image=f"{i}.jpg", text="Paris", entities=(Entity(0, 5, type="LOC"),))
            for i in range(images)
            for k in range(pairs)
        ]

    def half_right(self, records: list[Record]) -> Scores:
        """Everything of every other image is found."""
        right = [record for record in records if int(record.image.split(".")[0]) % 2]
        return score(records, {record.id: Prediction(record.id, (predicted(0, 5, "LOC"),)) for record in right})

    def test_they_hold_the_figure(self) -> None:
        metrics = self.half_right(self.records(60, 1)).metrics()
        assert metrics["gmner.recall.low"] < metrics["gmner.recall"] == 0.5 < metrics["gmner.recall.high"]
        assert 0.85 < metrics["gmner.precision.low"] < metrics["gmner.precision.high"] == 1.0

    def test_pairs_of_one_image_move_together(self) -> None:
        """Four captions of each image are no more evidence than one."""
        one, four = (self.half_right(self.records(60, pairs)).metrics() for pairs in (1, 4))
        for end in ("low", "high"):
            assert four[f"mner.recall.{end}"] == pytest.approx(one[f"mner.recall.{end}"])

    def test_of_one_image_there_are_none(self) -> None:
        assert [name for name in self.half_right(self.records(1, 3)).metrics() if name.endswith(("low", "high"))] == []


@given(st.lists(st.lists(st.integers(0, 4), max_size=4), max_size=5))
def test_the_largest_matching_is_that_of_trying_all_orders(choices: list[list[int]]) -> None:
    def greedy(rows: tuple[list[int], ...], taken: frozenset[int] = frozenset()) -> int:
        if not rows:
            return 0
        free = [choice for choice in rows[0] if choice not in taken]
        return max([greedy(rows[1:], taken), *(1 + greedy(rows[1:], taken | {choice}) for choice in free)])

    assert largest_matching(choices) == greedy(tuple(choices))


class TestFiles:
    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        write_manifest(tmp_path / "test.jsonl", [ENGLISH, CHINESE])
        return tmp_path / "test.jsonl"

    def write(self, data: Path, *lines: Any) -> Path:
        path = data.with_name("predictions.jsonl")
        texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
        path.write_text("\n".join(texts), encoding="utf-8")
        return path

    def problem(self, data: Path, *lines: Any) -> str:
        path = self.write(data, *lines)
        with pytest.raises(DataError) as raised:
            score_file(path, data)
        return str(raised.value).removeprefix(f"{path}, ")

    def entity(self, **changes: Any) -> dict[str, Any]:
        return {"start": 0, "end": 2, "type": "PER", "box": None} | changes

    def line(self, *entities: dict[str, Any], name: str = "中-17") -> dict[str, Any]:
        return {"id": name, "entities": list(entities)}

    def test_english_and_chinese_in_any_order_with_blank_lines_between(self, data: Path) -> None:
        chinese = self.line(self.entity(box=[10, 10, 60, 100]), self.entity(start=7, end=8, type="OTHER"))
        english = self.line(self.entity(start=24, end=50, type="LOC"), name="71044")
        scores = score_file(self.write(data, chinese, "", english), data)
        assert counts(scores)["gmner"] == (2, 3, 4)
        assert scores.image.dtype == np.int64
        assert len(set(scores.image.tolist())) == 2

    def test_no_such_file(self, data: Path) -> None:
        with pytest.raises(
            DataError, match=r"nowhere\.jsonl: no such file of predictions; expected JSON Lines, see docs"
        ):
            score_file(data.with_name("nowhere.jsonl"), data)

    def test_an_empty_file_predicts_nothing(self, data: Path) -> None:
        assert counts(score_file(self.write(data, ""), data))["gmner"] == (0, 0, 4)

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"box": [1, 2, 3]}, "entities[0].box: Expected `array` of length 4"),
            ({"box": "none"}, "entities[0].box: Expected `array | null`, got `str`"),
            ({"start": "0"}, "entities[0].start: Expected `int`, got `str`"),
            ({"boxes": []}, "entities[0]: Object contains unknown field `boxes`"),
            ({"start": 2}, "entities[0]: [2, 2) is not a span of a text of 8 characters; offsets are half-open"),
            ({"end": 9}, "entities[0]: [0, 9) is not a span of a text of 8 characters; offsets are half-open"),
        ],
    )
    def test_a_wrong_entity_names_line_and_field(self, changes: dict[str, Any], said: str, data: Path) -> None:
        first = self.line(name="71044")
        assert self.problem(data, first, self.line(self.entity(**changes))).startswith(f"line 2: {said}")

    def test_none_has_to_be_said(self, data: Path) -> None:
        """A misspelt `box` is not taken for an entity that the image does not show."""
        entity = self.entity()
        del entity["box"]
        said = self.problem(data, self.line(entity))
        assert said.startswith("line 1: entities[0]: Object missing required field `box`")

    def test_no_json(self, data: Path) -> None:
        assert self.problem(data, '{"id": ').startswith("line 1: the line: is not JSON")

    def test_an_unknown_id(self, data: Path) -> None:
        said = self.problem(data, self.line(name="71044"), self.line(name="71045"))
        assert said == "line 2: id: '71045' is not the id of a pair in the data; give the manifest of these predictions"

    def test_a_pair_with_two_lines(self, data: Path) -> None:
        said = self.problem(data, self.line(), self.line(name="71044"), self.line())
        assert said == "line 3: id: '中-17' is also in line 1; a pair has one line"

    def test_data_that_gives_two_pairs_one_id(self, data: Path) -> None:
        write_manifest(data, [ENGLISH, CHINESE, ENGLISH])
        assert "1 ids name several pairs, '71044' among them" in self.problem(data, self.line())


class TestGoldSpans:
    """Predictions that took spans and types from the data: whatever their regions, MNER would be perfect."""

    def test_only_their_regions_are_scored(self) -> None:
        records = [record_of_types(0, "PER"), record_of_types(1, "LOC")]
        predictions = {
            "0": Prediction("0", (predicted(0, 1, "PER", (0.0, 0.0, 9.0, 9.0)),), gold_spans=True),
            "1": Prediction("1", (predicted(0, 1, "LOC", None),), gold_spans=True),
        }
        scores = score(records, predictions)
        assert {name: counts.sum(axis=0).tolist() for name, counts in scores.counts.items()} == {
            "eeg_gold_spans": [1, 2, 2]
        }
        assert "spans and types of these predictions were taken from the data" in scores.notes[0]

    def test_one_such_line_is_enough(self) -> None:
        predictions = {"0": Prediction("0", (), gold_spans=True), "1": Prediction("1", ())}
        assert set(score([record_of_types(0, "PER"), record_of_types(1, "LOC")], predictions).counts) == {
            "eeg_gold_spans"
        }


def record_of_types(number: int, *types: str) -> Record:
    entities = tuple(Entity(i, i + 1, type=kind, boxes=((0.0, 0.0, 10.0, 10.0),)) for i, kind in enumerate(types))
    return Record(id=str(number), image=f"{number}.jpg", text="x" * max(1, len(types)), entities=entities)


class TestSizes:
    """Inputs made to take long or much memory."""

    @pytest.mark.slow
    def test_a_thousand_predictions_that_have_to_be_moved_along(self) -> None:
        """Row i can take i or i + 1, the last one only 0: every augmenting path is as long as can be."""
        rows = 3000
        choices = [[i + 1, i] for i in range(rows)] + [[0]]
        assert largest_matching(choices) == rows + 1
        assert largest_matching([*choices, [0]]) == rows + 1

    def test_types_beyond_the_hundred_most_frequent_have_no_rows(self) -> None:
        records = [record_of_types(i, *(f"T{j}" for j in range(i, 130))) for i in range(3)]
        scores = score(records, {})
        kinds = {name.partition(".type.")[2] for name in scores.counts if ".type." in name}
        assert len(kinds) == 100
        assert {"T2", "T99"} <= kinds
        assert "the data has 130 types; the 100 with the most entities" in scores.notes[0]

    @pytest.mark.parametrize(
        ("content", "fault"),
        [
            (b"[" * 100_000, "the line: "),
            (b'{"id": "0", "entities": ' + b"[" * 100_000, "the line|entities"),
            (b" " * (2**24 + 1), "has more than 16,777,216 bytes"),
            (
                b'{"id": "0", "entities": [' + b",".join([b'{"start":0,"end":1,"type":"","box":null}'] * 1001) + b"]}",
                "has 1,001 predictions; at most 1,000",
            ),
        ],
    )
    def test_lines_beyond_the_limits(self, content: bytes, fault: str, tmp_path: Path) -> None:
        write_manifest(tmp_path / "gold.jsonl", [record_of_types(0, "PER")])
        (tmp_path / "p.jsonl").write_bytes(content)
        with pytest.raises(DataError, match=fault):
            score_file(tmp_path / "p.jsonl", tmp_path / "gold.jsonl")

    def test_boxes_beyond_what_areas_can_be(self) -> None:
        boxes = [(0.0, 0.0, 1e300, 1e300), (-1e308, 0.0, 1e308, 1.0)]
        found = tuple(predicted(0, 1, "PER", box) for box in boxes)
        assert score([record_of_types(0, "PER")], {"0": Prediction("0", found)}).counts["gmner"].tolist() == [[0, 2, 1]]
