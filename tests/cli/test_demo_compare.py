"""`spanbox demo --compare`: what the two runs differ in."""

from pathlib import Path

import pytest

from command import Command
from spanbox.cli import demo
from spanbox.config import RunConfig, load_config


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> dict[str, RunConfig]:
    """The configs of the runs by folder name; nothing is drawn or trained."""
    configs: dict[str, RunConfig] = {}

    def record(run: Path, data: Path, overrides: list[str]) -> dict[str, float]:
        configs[run.name] = load_config("demo", overrides)
        return dict.fromkeys(demo.HEADLINES, 0.5)

    monkeypatch.setattr(demo, "draw_demo", lambda *arguments: None)
    monkeypatch.setattr(demo, "report", lambda *arguments: None)
    monkeypatch.setattr(demo, "_train_and_evaluate", record)
    return configs


class TestCompare:
    def test_the_baseline_has_its_own_learning_rate(self, spanbox: Command, runs: dict[str, RunConfig]) -> None:
        assert spanbox("demo", "--compare").code == 0
        both, baseline = runs["demo"], runs["demo-coarse"]
        assert both.train.optimiser.lr == load_config("demo", []).train.optimiser.lr
        assert baseline.train.optimiser.lr == demo.BASELINE_LR != both.train.optimiser.lr
        assert baseline.loss.fine.weight == 0
        assert baseline.train.steps == both.train.steps

    def test_a_rate_of_the_user_holds_for_both(self, spanbox: Command, runs: dict[str, RunConfig]) -> None:
        assert spanbox("demo", "--compare", "train.optimiser.lr=7e-4").code == 0
        assert [config.train.optimiser.lr for config in runs.values()] == [7e-4, 7e-4]
