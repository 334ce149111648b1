"""The time of the towers in each precision."""

import torch

from encoders import collate, make_model, make_sample
from spanbox.engine.speed import seconds_per_pair
from spanbox.losses.objective import LossSettings, Objective
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


def test_of_frozen_towers() -> None:
    model = make_model().train()
    model.requires_grad_(False)
    assert min(seconds_per_pair(Pretraining(model, Objective(LossSettings())), CPU, example).values()) > 0
