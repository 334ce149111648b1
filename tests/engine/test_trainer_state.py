"""The state of training from a file: what a run writes is accepted, and every damage is refused with its place."""

from copy import deepcopy
from typing import Any

import pytest
import torch

from spanbox.engine.optimiser import restore_optimiser, whole_state
from spanbox.engine.trainer_state import check_trainer_state
from spanbox.errors import CheckpointError

STATE: dict[str, Any] = {
    "step": 3,
    "seconds": 1.5,
    "best": 0.5,
    "best_metrics": {"retrieval.t2i.r1": 0.5},
    "since_best": 0,
    "incidents": {"samples": {"cut text": torch.tensor([7])}, "broken": {"a": "no such file"}, "examples": {}},
    "optimiser": {},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The state with one value replaced."""
    state = deepcopy(STATE)
    *parents, last = path.split(".")
    node = state
    for parent in parents:
        node = node[parent]
    node[last] = value
    return state


def optimiser_after_a_step() -> torch.optim.AdamW:
    parameters = [torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(3))]
    optimiser = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    return optimiser


class TestState:
    def test_of_a_run(self) -> None:
        check_trainer_state(STATE)
        check_trainer_state(changed("best", None))
        check_trainer_state({key: value for key, value in STATE.items() if key != "since_best"})

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("step", -1),
            ("step", 2**60),
            ("step", 10**400),
            ("step", "3"),
            ("step", 1.5),
            ("step", torch.zeros(3)),
            ("seconds", float("nan")),
            ("seconds", float("inf")),
            ("seconds", -1.0),
            ("seconds", 10**400),
            ("best", "high"),
            ("best_metrics", []),
            ("best_metrics", {"a": "b"}),
            ("since_best", None),
            ("incidents", None),
            ("incidents.samples", []),
            ("incidents.samples", {"kind": [1]}),
            ("incidents.samples", {"kind": torch.zeros(2)}),
            ("incidents.samples", {"kind": torch.zeros(2, 2, dtype=torch.int64)}),
            ("incidents.broken", {"a": 1}),
            ("optimiser", None),
        ],
    )
    def test_damaged(self, path: str, value: Any) -> None:
        with pytest.raises(CheckpointError, match=r"^trainer\.pt: the state of training is damaged \(.+\); copy"):
            check_trainer_state(changed(path, value))

    @pytest.mark.parametrize("state", [None, 5, [], torch.zeros(3), {}, {"step": 3}])
    def test_something_else(self, state: Any) -> None:
        with pytest.raises(CheckpointError, match=r"trainer\.pt"):
            check_trainer_state(state)


class TestMoments:
    def test_of_a_run(self) -> None:
        optimiser = optimiser_after_a_step()
        saved = whole_state(optimiser)
        restore_optimiser(optimiser, saved)
        assert torch.equal(optimiser.state_dict()["state"][0]["exp_avg"], saved["state"][0]["exp_avg"])

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("exp_avg", None),
            ("exp_avg", torch.zeros(3, 2)),
            ("exp_avg", torch.zeros(2, 3, dtype=torch.int64)),
            ("exp_avg", torch.full((2, 3), float("nan"))),
            ("exp_avg_sq", torch.full((2, 3), -1.0)),
            ("step", torch.tensor(-1.0)),
            ("step", torch.zeros(2)),
            ("step", 2**70),
            ("more", torch.zeros(2, 3)),
        ],
    )
    def test_damaged(self, name: str, value: Any) -> None:
        optimiser = optimiser_after_a_step()
        saved = whole_state(optimiser)
        saved["state"][0][name] = value
        with pytest.raises(CheckpointError, match="of the parameter 0"):
            restore_optimiser(optimiser, saved)

    @pytest.mark.parametrize("index", [-1, 2, "0", None])
    def test_of_no_parameter(self, index: Any) -> None:
        optimiser = optimiser_after_a_step()
        saved = whole_state(optimiser)
        saved["state"][index] = saved["state"].pop(0)
        with pytest.raises(CheckpointError, match="moments of the parameter"):
            restore_optimiser(optimiser, saved)

    @pytest.mark.parametrize("key", ["state", "param_groups"])
    @pytest.mark.parametrize("value", [None, 5, "x", [None], [{"params": 5}]])
    def test_of_another_type(self, key: str, value: Any) -> None:
        optimiser = optimiser_after_a_step()
        with pytest.raises(CheckpointError):
            restore_optimiser(optimiser, whole_state(optimiser) | {key: value})
