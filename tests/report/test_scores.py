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
    assert (scores[name].floor, scores[name].against_floor) == (0.2, "above")


def test_a_count_beside_a_family_is_that_of_its_figures() -> None:
    scores = parse_scores({"retrieval.i2t.r1": 0.5, "retrieval.i2t.r5": 0.7, "retrieval.i2t.count": 8.0})
    assert list(scores) == ["retrieval.i2t.r1", "retrieval.i2t.r5"]
    assert scores["retrieval.i2t.r5"].count == 8.0
    assert scores["retrieval.i2t.r1"].against_floor is None


def test_a_count_by_itself_is_a_figure() -> None:
    assert list(parse_scores({"matching.presence.count": 3.0})) == ["matching.presence.count"]


@pytest.mark.parametrize(
    ("low", "high", "where"),
    [(0.1, 0.9, "overlaps"), (0.3, 0.9, "above"), (0.0, 0.1, "below"), (0.2, 0.3, "overlaps"), (0.1, 0.2, "overlaps")],
)
def test_where_an_interval_lies_relative_to_chance(low: float, high: float, where: str) -> None:
    score = parse_scores({"a": 0.5, "a.low": low, "a.high": high, "a.chance": 0.2, "a.baseline": 0.1})["a"]
    assert score.against_floor == where


def test_without_boxes_there_is_no_headline_of_the_fine_level() -> None:
    scores = parse_scores({"retrieval.i2t.r1": 0.5})
    assert [score.name for score in headline(scores, "coarse")] == ["retrieval.i2t.r1"]
    assert headline(scores, "fine") == []


def test_groups_stand_weakest_first_whatever_they_are_called() -> None:
    names = {"LOC.city": 0.9, "object": 0.2, "<script>": 0.5}
    metrics = {f"{WITHIN}.type.{name}": value for name, value in names.items()} | {WITHIN: 0.6}
    scores = parse_scores(metrics | {f"{WITHIN}.type.{name}.count": 20.0 for name in names})
    large, small = breakdown(scores, "type")
    assert [name for name, _ in large] == ["object", "<script>", "LOC.city"]
    assert small == []
    assert breakdown(scores, "size") == ([], [])
    assert is_part(f"{WITHIN}.type.object")
    assert not is_part(f"{WITHIN}.hard")


def test_a_group_may_have_the_name_of_an_annotation() -> None:
    names = ("low", "high", "chance", "baseline", "count", "chance_r1", "PER", "PER.x")
    metrics = {f"{WITHIN}.type.{name}": 0.5 for name in names}
    metrics |= {f"{WITHIN}.type.{name}.{part}": 30.0 for name in names for part in ("low", "count")}
    large, _ = breakdown(parse_scores(metrics), "type")
    assert [name for name, _ in large] == list(names)
    assert all((score.low, score.count) == (30.0, 30.0) for _, score in large)


def test_groups_of_few_queries_stand_apart() -> None:
    counts = {"rare": (0.0, 19.0), "common": (0.5, 20.0), "rarer": (0.2, 1.0)}
    metrics = {f"{WITHIN}.type.{name}": value for name, (value, _) in counts.items()}
    metrics |= {f"{WITHIN}.type.{name}.count": count for name, (_, count) in counts.items()}
    large, small = breakdown(parse_scores(metrics), "type")
    assert [name for name, _ in large] == ["common"]
    assert [name for name, _ in small] == ["rare", "rarer"]


def test_many_dotted_names_are_parsed_in_linear_time() -> None:
    """Every name has as many dots as fit, each with an annotation of its own."""
    metrics = {f"{'a.' * 100}{index}{end}": 0.5 for index in range(3000) for end in ("", ".low", ".count")}
    assert len(parse_scores(metrics)) == 3000


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


def run(name: str, values: list[float], image: list[int] | None = None, content: str = "x", chance: float = 0.1) -> Run:
    array = np.array(values, dtype=np.float64)
    outcomes = {} if image is None else {name: Outcomes(array, np.array(image))}
    metrics = {name: float(array.mean()), f"{name}.chance": chance}
    return Run("run", Path("run"), data="test.jsonl", fingerprint=content, metrics=metrics, outcomes=outcomes)


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
    ("name", "better"),
    [("x.mean_rank", False), ("embedding.fine.uniformity.spans", False), ("x.mean_candidates", None)],
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
    """The name of the manifest is the same, its content is not; with the outcomes of the same images even."""
    assert difference(run("a", [1.0], content="y"), run("a", [0.0]), "a") is None
    assert difference(run("a", [1.0] * 8, IMAGES, content="y"), run("a", [0.0] * 8, IMAGES), "a") is None
    assert difference(run("a", [1.0], content=""), run("a", [0.0], content=""), "a") is None
    assert difference(run("a", [1.0]), run("b", [0.0]), "a") is None


@pytest.mark.parametrize("name", ["a", f"{WITHIN}.type.PER", "matching.across_set.mean_rank"])
def test_other_candidates_have_no_difference(name: str) -> None:
    assert difference(run(name, [1.0], chance=0.2), run(name, [0.0]), name) is None


def test_other_candidates_have_no_difference_of_medians() -> None:
    """A median rank has no chance level; that of the mean rank says how many candidates there are."""
    runs = []
    for chance in (20.0, 30.0):
        ranks = {"x.median_rank": 3.0, "x.mean_rank": 4.0, "x.mean_rank.chance": chance}
        runs.append(Run("run", Path("run"), fingerprint="x", metrics=ranks))
    assert difference(runs[0], runs[1], "x.median_rank") is None
    assert difference(runs[0], runs[0], "x.median_rank") is not None


def test_distances_by_chance_do_not_depend_on_candidates() -> None:
    name = "embedding.coarse.alignment"
    assert difference(run(name, [1.0], chance=0.2), run(name, [0.0]), name) is not None


def test_a_single_image_has_a_difference_without_an_interval() -> None:
    found = difference(run("a", [1.0, 1.0], [5, 5]), run("a", [0.0, 0.0], [5, 5]), "a")
    assert found is not None
    assert (found.value, found.interval, found.is_better) == (1.0, None, None)
