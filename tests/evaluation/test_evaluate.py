"""What evaluation gives for a bank: names, what is absent where data are missing, and the table."""

import json
import math
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
import torch
from rich.console import Console

import metric_reference
from banks import make_bank, random_bank
from spanbox.evaluation.evaluate import evaluate, metrics_table
from spanbox.intervals import bootstrap_mean, rate_interval
from spanbox.metric_names import is_rate

FAMILIES = ("retrieval.i2t", "retrieval.t2i", "matching.across_set")
RANKED = ("r1", "r5", "r10", "median_rank", "mean_rank", "map")
WITHIN = ("", ".r5", ".hard", ".size.small", ".size.large", ".candidates.2", ".candidates.3-5", ".candidates.6+")
BANK = random_bank(0, pairs=30)
TYPES = ["PER", "LOC", None] * 20


def test_every_metric_has_its_name() -> None:
    evaluation = evaluate(BANK, TYPES, threshold=0.5)
    means = {f"{family}.{key}" for family in FAMILIES for key in RANKED if key != "median_rank"}
    means |= {f"matching.within_image{key}" for key in (*WITHIN, ".type.PER", ".type.LOC")}
    means |= {"grounding.accuracy", "grounding.pointing", "embedding.coarse.alignment", "embedding.fine.alignment"}
    others = {f"{family}.median_rank" for family in FAMILIES} | {"matching.presence.auc", "matching.presence.f1"}
    others |= {f"embedding.coarse.uniformity.{kind}" for kind in ("sentences", "images")}
    others |= {f"embedding.fine.uniformity.{kind}" for kind in ("spans", "regions")}
    others |= {"embedding.coarse.modality_gap", "embedding.fine.modality_gap"}
    facts = {"matching.presence.count", "matching.presence.threshold"}
    facts |= {"matching.within_image.mean_candidates", "matching.within_image.trivial"}
    parts = {f"{name}.{part}" for name in means | others for part in ("low", "high", "count")}
    parts |= {f"{name}.chance" for name in means} | {
        "matching.presence.auc.chance",
        "matching.presence.f1.baseline",
    }
    parts |= {f"{name}.baseline" for name in means if name.startswith(("matching.within", "grounding"))}
    parts |= {f"retrieval.t2i.r{k}.baseline" for k in (1, 5, 10)} | {"matching.across_set.r1.baseline"}
    assert set(evaluation.metrics) == means | others | facts | parts
    assert set(evaluation.outcomes) == means


@pytest.mark.parametrize("seed", range(5))
def test_all_metrics_equal_the_plain_loops(seed: int) -> None:
    bank = random_bank(seed)
    types = ["PER", "LOC", None] * len(bank.spans)
    expected = metric_reference.retrieval_metrics(bank) | metric_reference.matching_metrics(bank, types, 0.5)
    expected |= metric_reference.embedding_metrics(bank)
    found = evaluate(bank, types[: len(bank.spans)], threshold=0.5, intervals=False)
    assert found.metrics == pytest.approx(expected)


def test_figures_are_made_of_the_outcomes() -> None:
    evaluation = evaluate(BANK, TYPES)
    for name, outcome in evaluation.outcomes.items():
        assert evaluation.metrics[name] == outcome.values.mean()
        assert evaluation.metrics[f"{name}.count"] == len(outcome)
        interval = (rate_interval if is_rate(name) else bootstrap_mean)(outcome.values, outcome.image)
        if interval is None:  # a distance that is the same for all
            assert f"{name}.low" not in evaluation.metrics
        else:
            assert (evaluation.metrics[f"{name}.low"], evaluation.metrics[f"{name}.high"]) == pytest.approx(interval)
        assert outcome.values.dtype == np.float64
        assert outcome.image.dtype == np.int64


def test_without_intervals_the_rest_is_the_same() -> None:
    with_them, without = evaluate(BANK).metrics, evaluate(BANK, intervals=False).metrics
    assert without == {name: value for name, value in with_them.items() if not name.endswith((".low", ".high"))}


def test_metrics_are_plain_numbers() -> None:
    metrics = evaluate(BANK, TYPES, threshold=0.5).metrics
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert all(type(value) in (int, float) for value in metrics.values())


def test_without_boxes_the_fine_metrics_are_absent_not_zero() -> None:
    evaluation = evaluate(make_bank(pairs=3), threshold=0.5)
    for name in (*evaluation.metrics, *evaluation.outcomes):
        assert name.startswith(("retrieval.", "embedding.coarse."))


def test_a_single_pair() -> None:
    metrics = evaluate(make_bank(pairs=1)).metrics
    assert metrics["retrieval.i2t.r1"] == metrics["retrieval.t2i.map"] == 1.0
    assert not any(name.endswith((".low", ".high")) for name in metrics)
    assert json.dumps(metrics, allow_nan=False)


def test_a_single_image_with_several_captions_and_boxes() -> None:
    bank = replace(random_bank(0), group=torch.zeros(7, dtype=torch.int64))
    metrics = evaluate(bank).metrics
    assert metrics["retrieval.i2t.r1"] == metrics["retrieval.t2i.r1"] == 1.0
    assert not any(name.endswith((".low", ".high")) for name in metrics)
    assert "matching.within_image" in metrics
    assert json.dumps(metrics, allow_nan=False)


@pytest.mark.slow
def test_features_that_are_all_nan_rank_last_and_lie_nowhere() -> None:
    names = ("text", "image", "spans", "regions")
    bank = replace(BANK, **{name: torch.full_like(getattr(BANK, name), math.nan) for name in names})
    metrics = evaluate(bank, threshold=0.5).metrics
    assert metrics["retrieval.i2t.r1"] == metrics["matching.within_image.hard"] == metrics["matching.presence.f1"] == 0
    assert metrics["matching.presence.auc"] == 0.5
    assert not any(name.startswith("embedding.") for name in metrics)
    assert json.dumps(metrics, allow_nan=False)


def lines_of_table(metrics: dict[str, float], width: int = 120) -> list[str]:
    terminal = StringIO()
    Console(file=terminal, width=width).print(metrics_table(metrics, "evaluation"))
    return terminal.getvalue().splitlines()


def rows_of_table(metrics: dict[str, float]) -> list[list[str]]:
    columns = [[str(cell) for cell in column.cells] for column in metrics_table(metrics).columns]
    return [list(row) for row in zip(*columns, strict=True)]


def test_table_has_no_empty_columns() -> None:
    table = metrics_table({"retrieval.i2t.r1": 0.5, "retrieval.i2t.r1.count": 12})
    assert [column.header for column in table.columns] == ["metric", "value", "count"]


def test_table_of_no_metrics_is_empty() -> None:
    assert rows_of_table({}) == []


def test_table_shows_what_stands_beside_each_metric() -> None:
    rows = rows_of_table(
        {
            "retrieval.i2t.r1": 0.5,
            "retrieval.i2t.r1.low": 0.43,
            "retrieval.i2t.r1.high": 0.566,
            "retrieval.i2t.r1.chance": 0.001,
            "retrieval.i2t.r1.count": 12345,
            "retrieval.i2t.median_rank": 1.5,
            "retrieval.i2t.median_rank.low": 1.0,
            "retrieval.i2t.median_rank.high": 2.0,
            "embedding.coarse.modality_gap": 0.25,
            "matching.within_image": 0.75,
            "matching.within_image.baseline": 0.25,
            "matching.within_image.count": 40,
            "matching.within_image.type.low": 0.5,  # a breakdown, left out
            "matching.within_image.type.low.count": 8,
            "retrieval.i2t.map": 0.61,
            "matching.presence.count": 60,
            "matching.presence.threshold": 0.125,
            "matching.within_image.mean_candidates": 4.04,
            "matching.within_image.type.object": 1.0,
            "occlusion.fine.object": 0.21,
            "occlusion.fine.share_larger": 0.8,
        }
    )
    assert rows == [
        ["retrieval.i2t", "", "", "", "", ""],
        ["  .r1", "50.0 %", "43.0 to 56.6", "0.1 %", "", "12,345"],
        ["  .median_rank", "1.5", "1.0 to 2.0", "", "", ""],
        ["  .map", "61.0 %", "", "", "", ""],
        ["embedding.coarse", "", "", "", "", ""],
        ["  .modality_gap", "0.250", "", "", "", ""],
        ["matching.within_image", "75.0 %", "", "", "25.0 %", "40"],
        ["  .mean_candidates", "4.0", "", "", "", ""],
        ["matching.presence", "", "", "", "", ""],
        ["  .count", "60", "", "", "", ""],
        ["  .threshold", "0.125", "", "", "", ""],
        ["occlusion.fine", "", "", "", "", ""],
        ["  .object", "0.210", "", "", "", ""],
        ["  .share_larger", "80.0 %", "", "", "", ""],
    ]


def test_table_fits_into_80_columns() -> None:
    metrics = evaluate(
        BANK, ["a type with a name that takes more than its share of the line"] * 60, threshold=0.5
    ).metrics
    metrics |= {"retrieval.t2i.mean_rank": 12_345.6, "retrieval.t2i.mean_rank.count": 500_000}
    lines = lines_of_table(metrics, width=80)
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)


def test_table_of_nothing() -> None:
    assert rows_of_table({}) == []
