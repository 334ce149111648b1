"""`spanbox demo`: the configs of its runs, and what the two runs of `--compare` differ in."""

from pathlib import Path

import pytest

from command import Command
from spanbox import wiring
from spanbox.cli import demo
from spanbox.config import RunConfig, dump_config, load_config
from spanbox.wiring import Trained


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> dict[str, RunConfig]:
    """The configs of the runs by folder name; nothing is drawn or trained."""
    configs: dict[str, RunConfig] = {}

    def record(config: RunConfig, test: Path) -> dict[str, float]:
        configs[Path(config.run.dir).name] = config
        return dict.fromkeys(demo.HEADLINES, 0.5)

    monkeypatch.setattr(demo, "draw_demo", lambda *arguments: None)
    monkeypatch.setattr(demo, "print_metrics", lambda *arguments: None)
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


class TestRuns:
    @pytest.mark.parametrize("name", ["x: y", "[1]", "{a}", "a #b", 'it\'s "here"', "数据 集", "null", "\U0001f408"])
    def test_a_folder_may_have_any_name(self, spanbox: Command, runs: dict[str, RunConfig], name: str) -> None:
        assert spanbox("demo", "--dir", name).code == 0
        assert runs["demo"].run.dir == f"{name}/demo"
        assert runs["demo"].data.train == f"{name}/demo-data/train.jsonl"

    def test_another_run_folder_is_refused(self, spanbox: Command, runs: dict[str, RunConfig]) -> None:
        """Its metrics would be those of the run in the usual folder."""
        outcome = spanbox("demo", "run.dir=elsewhere")
        assert (outcome.code, runs) == (2, {})
        assert outcome.err == "spanbox: run.dir: the demo trains in runs/demo; choose another folder with --dir\n"

    def test_settings_are_checked_before_scenes_are_drawn(
        self, spanbox: Command, runs: dict[str, RunConfig], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr(demo, "draw_demo")
        assert "train.stpes: unknown key" in spanbox("demo", "train.stpes=3").err
        assert "weight" in spanbox("demo", "--compare", "loss.coarse.weight=0").err

    def test_a_run_on_other_data_is_not_replaced(self, spanbox: Command, runs: dict[str, RunConfig]) -> None:
        write_run("own.jsonl")
        outcome = spanbox("demo")
        assert (outcome.code, runs) == (2, {})
        assert outcome.err.startswith("spanbox: runs/demo: holds a run on own.jsonl; choose another --dir, or replace")
        assert spanbox("demo", "run.overwrite=true").code == 0
        assert runs["demo"].run.overwrite

    def test_an_earlier_demo_is_replaced(self, spanbox: Command, runs: dict[str, RunConfig]) -> None:
        write_run("runs/demo-data/train.jsonl")
        assert spanbox("demo", "--dir", Path.cwd() / "runs").code == 0
        assert runs["demo"].run.overwrite

    def test_a_stopped_demo_says_how_to_continue(self, spanbox: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        stopped = Trained(Path("runs/demo"), is_main=True, step=7, finished=False, best={}, incidents={})
        monkeypatch.setattr(demo, "draw_demo", lambda *arguments: None)
        monkeypatch.setattr(wiring, "train", lambda config: stopped)
        outcome = spanbox("demo")
        assert outcome.code == 130
        assert "stopped after step 7; a checkpoint is saved. Continue with:" in outcome.err
        assert "spanbox train runs/demo/config.yaml --resume" in outcome.err


def write_run(train: str) -> None:
    folder = Path("runs/demo")
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(load_config("demo", [f"data.train={train}"])))
