from pathlib import Path

import numpy as np
import pytest

from spanbox.metric_names import is_part, is_rate
from spanbox.report.reading import Outcomes, Run
from spanbox.report.scores import breakdown, difference, headline, parse_scores

WITHIN = "matching.within_image"


def test_a_score_has_all_that_stands_beside_it() -> None:
    name = "retrieval.i2t.r1"
    metrics = {name: 0.5, f"{name}.low": 0.4, f"{name}.high": 0.6, f"{name}.chance": 0.1, f"{name}.baseline": 0.2}
    scores = parse_scores(metrics | {f"{name}.count": 9.0})
    assert list(scores) == [name]
    assert (scores[name].low, scores[name].high, scores[name].count) == (0.4, 0.6, 9.0)
    assert (scores[name].floor, scores[name].is_above_floor) == (0.2, True)


def test_the_older_form_names_chance_and_count_beside_a_family() -> None:
    metrics = {"retrieval.i2t.r1": 0.5, "retrieval.i2t.r5": 0.7, "retrieval.i2t.count": 8.0}
    scores = parse_scores(metrics | {"retrieval.i2t.chance_r1": 0.1})
    assert list(scores) == ["retrieval.i2t.r1", "retrieval.i2t.r5"]
    assert (scores["retrieval.i2t.r1"].chance, scores["retrieval.i2t.r5"].chance) == (0.1, None)
    assert scores["retrieval.i2t.r5"].count == 8.0
    assert scores["retrieval.i2t.r1"].is_above_floor is None


def test_a_count_by_itself_is_a_figure() -> None:
    assert list(parse_scores({"matching.presence.count": 3.0})) == ["matching.presence.count"]


def test_an_interval_that_reaches_chance_is_not_above_it() -> None:
    score = parse_scores({"a": 0.5, "a.low": 0.1, "a.high": 0.9, "a.chance": 0.2})["a"]
    assert score.is_above_floor is False


def test_without_boxes_there_is_no_headline_of_the_fine_level() -> None:
    scores = parse_scores({"retrieval.i2t.r1": 0.5})
    assert [score.name for score in headline(scores, "coarse")] == ["retrieval.i2t.r1"]
    assert headline(scores, "fine") == []


def test_groups_stand_weakest_first_whatever_they_are_called() -> None:
    names = {"LOC.city": 0.9, "object": 0.2, "<script>": 0.5}
    scores = parse_scores({f"{WITHIN}.type.{name}": value for name, value in names.items()} | {WITHIN: 0.6})
    assert [name for name, _ in breakdown(scores, "type")] == ["object", "<script>", "LOC.city"]
    assert breakdown(scores, "size") == []
    assert is_part(f"{WITHIN}.type.object")
    assert not is_part(f"{WITHIN}.hard")


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("retrieval.i2t.r1", True),
        ("retrieval.i2t.median_rank", False),
        ("embedding.coarse.alignment", False),
        ("embedding.fine.uniformity.spans", False),
        ("occlusion.fine.object", False),
        ("occlusion.fine.share_larger", True),
        (f"{WITHIN}.type.object", True),
        ("matching.presence.threshold", False),
    ],
)
def test_which_metrics_are_read_in_percent(name: str, rate: bool) -> None:
    assert is_rate(name) is rate


def run(name: str, values: list[float], image: list[int] | None = None, data: str = "test.jsonl") -> Run:
    array = np.array(values, dtype=np.float64)
    outcomes = {} if image is None else {name: Outcomes(array, np.array(image))}
    return Run("run", Path("run"), data=data, metrics={name: float(array.mean())}, outcomes=outcomes)


IMAGES = list(range(8))


def test_a_difference_is_paired_by_image() -> None:
    first, other = run("a", [0, 0, 1, 0] * 2, IMAGES), run("a", [1, 1, 1, 1] * 2, IMAGES)
    found = difference(other, first, "a")
    assert found is not None
    assert found.interval is not None
    assert found.value == 0.75
    assert found.interval.low < 0.75 < found.interval.high
    assert found.is_better is True
    back = difference(first, other, "a")
    assert back is not None
    assert back.is_better is False


def test_a_difference_that_may_be_chance_has_no_better_side() -> None:
    found = difference(run("a", [0, 1] * 4, IMAGES), run("a", [1, 0] * 4, IMAGES), "a")
    assert found is not None
    assert found.interval is not None
    assert found.is_better is None


@pytest.mark.parametrize(
    ("name", "better"), [("x.mean_rank", False), ("embedding.fine.uniformity.spans", False), ("x.candidates", None)]
)
def test_larger_is_not_always_better(name: str, better: bool | None) -> None:
    found = difference(run(name, [3.0] * 8, IMAGES), run(name, [1.0, 2.0] * 4, IMAGES), name)
    assert found is not None
    assert found.is_better is better


@pytest.mark.parametrize("image", [None, [*IMAGES[:-1], 99], IMAGES[:-1]])
def test_outcomes_of_other_images_are_not_paired(image: list[int] | None) -> None:
    values = [1.0] * (8 if image is None else len(image))
    found = difference(run("a", values, image), run("a", [0.0] * 8, IMAGES), "a")
    assert found is not None
    assert (found.value, found.interval, found.is_better) == (1.0, None, None)


def test_other_data_has_no_difference() -> None:
    assert difference(run("a", [1.0], data="other.jsonl"), run("a", [0.0]), "a") is None
    assert difference(run("a", [1.0]), run("b", [0.0]), "a") is None


def test_a_single_image_has_a_difference_without_an_interval() -> None:
    found = difference(run("a", [1.0, 1.0], [5, 5]), run("a", [0.0, 0.0], [5, 5]), "a")
    assert found is not None
    assert (found.value, found.interval, found.is_better) == (1.0, None, None)
