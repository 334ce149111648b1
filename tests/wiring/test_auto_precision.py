"""The precision of a run: what `auto` is on a CPU, and that a resumed run keeps it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import miniature
from encoders import collate, make_model, make_sample
from spanbox.engine import speed
from spanbox.engine.distributed import Ranks
from spanbox.losses.objective import LossSettings, Objective
from spanbox.tasks.pretraining import Pretraining
from spanbox.wiring import plan, train
from spanbox.wiring.training import precision_of_run

LARGE, NATIVE = {"WORTH_MEASURING": 0}, {"cpu_computes_in_bfloat16": lambda: True}


def measured(monkeypatch: pytest.MonkeyPatch, ratio: float, **changed: Any) -> list[object]:
    """Let bfloat16 take `ratio` of the time of float32; returns a list that grows with each measurement."""
    calls: list[object] = []

    def seconds(task: object, *_: object) -> dict[str, float]:
        calls.append(task)
        return {"float32": 1.0, "bfloat16": ratio}

    for name, value in (LARGE | NATIVE | changed).items():
        monkeypatch.setattr(speed, name, value)
    monkeypatch.setattr(speed, "seconds_per_pair", seconds)
    return calls


def faster() -> torch.dtype:
    task = Pretraining(make_model().train(), Objective(LossSettings()))
    return speed.faster_on_cpu(task, lambda pairs: collate(*(make_sample(n) for n in range(pairs))), Ranks())


@pytest.mark.parametrize(
    ("ratio", "expected"), [(0.6, torch.bfloat16), (0.89, torch.bfloat16), (0.95, torch.float32), (2.0, torch.float32)]
)
def test_auto_is_bfloat16_where_it_is_clearly_faster(
    ratio: float, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(measured(monkeypatch, ratio)) == 0
    assert faster() is expected
    name = str(expected).removeprefix("torch.")
    assert f"training in {name}: bfloat16 takes {ratio:.2f}x" in capsys.readouterr().err


@pytest.mark.parametrize("changed", [{"cpu_computes_in_bfloat16": lambda: False}, {"WORTH_MEASURING": 10_000_000}])
def test_small_models_and_older_cpus_are_not_measured(changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = measured(monkeypatch, 0.1, **changed)
    assert faster() is torch.float32
    assert calls == []


def test_ranks_choose_by_the_slowest(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, 0.8)
    monkeypatch.setattr(Ranks, "largest", lambda self, *seconds: [seconds[0], 1.2])  # slower on another rank
    assert faster() is torch.float32
    monkeypatch.setattr(Ranks, "everyones", lambda self, items: [*items, False])
    assert faster() is torch.float32


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_a_given_precision_is_not_measured(name: str, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = measured(monkeypatch, 0.5)
    config = miniature.demo_config(scenes, scenes / "unused", f"train.precision={name}")
    task = Pretraining(make_model(), Objective(LossSettings()))
    assert precision_of_run(config, task, lambda pairs: None, Ranks()) is getattr(torch, name)
    assert calls == []


def test_a_resumed_run_keeps_what_it_began_with(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, 0.5)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(miniature.demo_config(scenes, whole, "train.steps=4"))
    train(miniature.demo_config(scenes, parts, "train.steps=4", "train.save_every=2"))
    assert json.loads((parts / "environment.json").read_text())["precision"] == "bfloat16"
    (parts / "checkpoints" / "last").unlink()
    for folder in (parts / "checkpoints").glob("step-000004"):
        folder.rename(tmp_path / folder.name)
    calls = measured(monkeypatch, 2.0)  # the machine is busy with other work now
    train(miniature.demo_config(scenes, parts, "train.steps=4", "train.resume=true"))
    assert calls == []
    assert json.loads((parts / "environment.json").read_text())["precision"] == "bfloat16"
    last = [(run / "checkpoints" / "step-000004" / "model.safetensors").read_bytes() for run in (whole, parts)]
    assert last[0] == last[1]


@pytest.mark.parametrize("content", ["", "[]", '{"precision": "int4"}', '{"precision": null}', '{"torch": "2.13"}'])
def test_a_run_of_an_earlier_version_goes_on_in_float32(
    content: str, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not name its precision, which was float32 on every CPU."""
    calls = measured(monkeypatch, 0.5)
    (tmp_path / "environment.json").write_text(content)
    config = miniature.demo_config(scenes, tmp_path, "train.resume=true")
    task = Pretraining(make_model(), Objective(LossSettings()))
    assert precision_of_run(config, task, lambda pairs: None, Ranks()) is torch.float32
    assert calls == []


@pytest.mark.parametrize(
    ("native", "precision", "said"), [(False, "bfloat16", True), (True, "bfloat16", False), (False, "float32", False)]
)
def test_a_run_that_goes_on_where_its_precision_is_emulated_says_so(
    native: bool,
    precision: str,
    said: bool,
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("spanbox.wiring.training.cpu_computes_in_bfloat16", lambda: native)
    (tmp_path / "environment.json").write_text(json.dumps({"precision": precision}))
    config = miniature.demo_config(scenes, tmp_path, "train.resume=true")
    task = Pretraining(make_model(), Objective(LossSettings()))
    assert precision_of_run(config, task, lambda pairs: None, Ranks()) is getattr(torch, precision)
    assert ("train.precision=float32 may be faster" in capsys.readouterr().err) is said


def test_a_plan_has_the_precision_of_the_run(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = miniature.demo_config(scenes, scenes / "unused")
    assert plan(config).precision is torch.float32
    for name in (*LARGE, *NATIVE):
        monkeypatch.setattr(speed, name, (LARGE | NATIVE)[name])
    monkeypatch.setattr("spanbox.wiring.planning.seconds_per_pair", lambda *_: {"float32": 1.0, "bfloat16": 0.5})
    assert plan(config).precision is torch.bfloat16
