"""Names of the metrics, their table and their lookup."""

import json
from io import StringIO

import pytest
from rich.console import Console

from banks import make_bank, random_bank
from spanbox.errors import ConfigError
from spanbox.evaluation.evaluate import evaluate, metric_value, metrics_table
from spanbox.evaluation.matching import matching_metrics
from spanbox.evaluation.retrieval import retrieval_metrics

RANKING = {"r1", "r5", "r10", "median_rank", "count", "chance_r1"}


def test_every_metric_has_its_name() -> None:
    expected = {
        f"{family}.{key}" for family in ("retrieval.i2t", "retrieval.t2i", "matching.across_set") for key in RANKING
    }
    expected |= {"matching.within_image", "matching.without_box.count", "matching.without_box.auc"}
    expected |= {f"matching.within_image.{key}" for key in ("count", "chance", "candidates", "trivial")}
    expected |= {f"matching.within_image.{key}" for key in ("hard", "hard.count", "hard.chance")}
    assert set(evaluate(random_bank(0))) == expected


def test_evaluate_is_retrieval_and_matching_together() -> None:
    bank = random_bank(1)
    assert evaluate(bank) == retrieval_metrics(bank) | matching_metrics(bank)


def test_without_boxes_only_retrieval_is_left() -> None:
    assert evaluate(make_bank(pairs=2)) == retrieval_metrics(make_bank(pairs=2))


def test_metrics_are_plain_numbers() -> None:
    metrics = evaluate(random_bank(2))
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert all(type(value) in (int, float) for value in metrics.values())


def test_a_known_metric_is_found() -> None:
    assert metric_value({"retrieval.i2t.r1": 0.5}, "retrieval.i2t.r1") == 0.5


def test_an_unknown_metric_names_the_nearest() -> None:
    metrics = evaluate(random_bank(0))
    with pytest.raises(
        ConfigError, match=r"unknown metric 'retrieval\.i2t\.r@1'\. Did you mean 'retrieval\.i2t\.r1'\?"
    ):
        metric_value(metrics, "retrieval.i2t.r@1")


def test_an_unknown_metric_that_resembles_none_lists_all() -> None:
    with pytest.raises(ConfigError, match=r"unknown metric 'zzz'\. Known: a, b$"):
        metric_value({"b": 1.0, "a": 2.0}, "zzz")


def test_a_matching_metric_without_boxes_says_what_is_missing() -> None:
    with pytest.raises(ConfigError, match="needs entities with boxes"):
        metric_value(evaluate(make_bank(pairs=2)), "matching.within_image")


def rows_of_table(metrics: dict[str, float]) -> dict[str, list[str]]:
    terminal = StringIO()
    Console(file=terminal, width=120).print(metrics_table(metrics, "evaluation"))
    lines = [line.strip("│").split("│") for line in terminal.getvalue().splitlines() if "│" in line]
    return {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines}


def test_table_shows_rates_in_percent_beside_chance_and_count() -> None:
    rows = rows_of_table(
        {
            "retrieval.i2t.r1": 0.5,
            "retrieval.i2t.r5": 0.875,
            "retrieval.i2t.median_rank": 1.5,
            "retrieval.i2t.count": 12345,
            "retrieval.i2t.chance_r1": 0.001,
            "matching.within_image": 0.75,
            "matching.within_image.count": 40,
            "matching.within_image.chance": 0.25,
            "matching.within_image.candidates": 4.04,
            "matching.within_image.hard": 0.7,
            "matching.within_image.hard.count": 30,
            "matching.within_image.hard.chance": 0.2,
            "matching.without_box.count": 60,
        }
    )
    assert rows == {
        "retrieval.i2t.r1": ["50.0 %", "0.1 %", "12,345"],
        "retrieval.i2t.r5": ["87.5 %", "", "12,345"],
        "retrieval.i2t.median_rank": ["1.5", "", "12,345"],
        "matching.within_image": ["75.0 %", "25.0 %", "40"],
        "matching.within_image.candidates": ["4.0", "", "40"],
        "matching.within_image.hard": ["70.0 %", "20.0 %", "30"],
        "matching.without_box.count": ["60", "", ""],
    }


def test_table_of_nothing() -> None:
    assert rows_of_table({}) == {}
