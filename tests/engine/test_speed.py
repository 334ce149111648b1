"""The time of the towers in each precision."""

from typing import Any

import pytest
import torch

from encoders import collate, make_model, make_sample
from spanbox.engine.speed import seconds_per_pair
from spanbox.engine.task import Forward
from spanbox.losses.objective import LossSettings, Objective
from spanbox.models.dual_encoder import RegionSettings
from spanbox.structures import Batch
from spanbox.tasks.pretraining import Pretraining

CPU = torch.device("cpu")


def example(pairs: int) -> Batch:
    return collate(*(make_sample(number) for number in range(pairs)))


def test_of_both_precisions_leaves_no_trace() -> None:
    asked = []
    model = make_model(dropout=0.3).train()
    weights = [parameter.clone() for parameter in model.parameters()]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    def counted(pairs: int) -> Batch:
        asked.append(pairs)
        return example(pairs)

    found = seconds_per_pair(Pretraining(model, Objective(LossSettings())), CPU, counted)
    assert set(found) == {"float32", "bfloat16"}
    assert min(found.values()) > 0
    assert asked == sorted(asked)
    assert asked[0] == 1
    assert max(asked) <= 64
    assert torch.equal(torch.rand(3), expected)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(now, before) for now, before in zip(model.parameters(), weights, strict=True))


def test_many_crops_of_a_pair_are_not_encoded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row of each group is encoded at a time, and counts for all of them."""
    clock = 0.0
    chunks = []

    def second_per_row(forward: Forward, tower: str, rows: Any) -> None:
        nonlocal clock
        clock += len(rows)
        chunks.append(len(rows))

    monkeypatch.setattr(Forward, "measured_pass", second_per_row)
    monkeypatch.setattr("time.perf_counter", lambda: clock)
    model = make_model(regions=RegionSettings(source="crop")).train()
    found = seconds_per_pair(
        Pretraining(model, Objective(LossSettings())), CPU, lambda _: collate(make_sample(0, regions=7))
    )
    assert found == {"float32": 9.0, "bfloat16": 9.0}  # a text, an image and seven crops
    assert set(chunks) == {1}


def test_of_frozen_towers() -> None:
    model = make_model().train()
    model.requires_grad_(False)
    assert min(seconds_per_pair(Pretraining(model, Objective(LossSettings())), CPU, example).values()) > 0
