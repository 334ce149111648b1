"""Runs that go on, that replace an earlier one, and that were moved; what a run going on refuses to change."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import miniature
from spanbox.config import dump_config, load_config, parse_config
from spanbox.engine import run_folder
from spanbox.engine.trainer import Trainer
from spanbox.errors import CheckpointError, ConfigError, DataError, TrainingError
from spanbox.wiring import Trained, train

RUN = {"config.yaml", "environment.json", "log.jsonl", "checkpoints", run_folder.LOCK}


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A finished run. Tests only look at it."""
    return train(miniature.demo_config(scenes, tmp_path_factory.mktemp("runs") / "demo"))


@pytest.fixture
def copied(run: Trained, tmp_path: Path) -> Path:
    """The finished run's folder, to be changed."""
    return shutil.copytree(run.run_dir, tmp_path / "copied", symlinks=True)


def log(run_dir: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["kind"] == "train"]


def losses(run_dir: Path) -> list[float]:
    return [line["loss"] for line in log(run_dir)]


class TestEarlierRun:
    def test_is_not_overwritten_unasked(self, copied: Path, scenes: Path) -> None:
        with pytest.raises(ConfigError, match=r"holds a run already \(.+\); resume it \(--resume\)"):
            train(miniature.demo_config(scenes, copied))

    def test_is_replaced_when_asked(self, copied: Path, scenes: Path) -> None:
        (copied / "metrics.json").write_text("{}")
        (copied / "notes.txt").write_text("mine")
        trained = train(miniature.demo_config(scenes, copied, "run.overwrite=true", "train.steps=2"))
        assert (trained.step, len(log(copied))) == (2, 2)
        assert {path.name for path in copied.iterdir()} == {*RUN, "notes.txt"}
        assert (copied / "checkpoints" / "best").resolve().name == "step-000002"

    @pytest.mark.parametrize(
        "mistake",
        [
            "data.train=nothing.jsonl",
            "data.val=nothing.jsonl",
            "train.batch_size=64",
            "data.max_tokens=99",
            "model.vision.architecture.patchsize=8",
            "train.device=tpu",
        ],
    )
    def test_is_still_there_after_a_start_that_failed(self, mistake: str, copied: Path, scenes: Path) -> None:
        before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
        with pytest.raises((ConfigError, DataError)):
            train(miniature.demo_config(scenes, copied, "run.overwrite=true", mistake))
        assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before

    @pytest.mark.parametrize("way", ["train.resume=true", "run.overwrite=true"])
    def test_is_left_alone_while_it_runs(
        self, way: str, copied: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(run_folder, "LAST_SECONDS", 0.1)
        (copied / run_folder.REPLACED).mkdir()  # as in a run whose first checkpoint is to come
        with run_folder.only_training(copied):
            before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
            with pytest.raises(ConfigError, match="another training runs in this folder"):
                train(miniature.demo_config(scenes, copied, way))
            assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before
            assert (copied / run_folder.REPLACED).is_dir()

    def test_is_not_resumed_with_the_settings_of_the_run_that_was_to_replace_it(
        self, copied: Path, scenes: Path, run: Trained
    ) -> None:
        """As after a kill before the first checkpoint: the folder has the config of the new run."""
        run_folder.prepare_run_folder(copied, overwrite=True)
        newer = miniature.demo_config(scenes, copied, "train.optimiser.lr=1", "train.steps=9")
        (copied / "config.yaml").write_text(dump_config(newer))
        command = partial(load_config, str(copied / "config.yaml"), ["train.resume=true"])
        with pytest.raises(CheckpointError, match=r"ended before its first checkpoint.*repeat the command"):
            train(command())
        assert train(command()).step == 6
        assert losses(copied) == losses(run.run_dir)

    def test_resumed_at_its_end_says_so(self, copied: Path, scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
        trained = train(miniature.demo_config(scenes, copied, "train.resume=true"))
        assert trained.finished
        assert f"nothing left to train: the run ended at step {trained.step}" in capsys.readouterr().err

    def test_there_is_none_to_resume(self, scenes: Path, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"nothing to resume, checkpoints/ holds no complete"):
            train(miniature.demo_config(scenes, tmp_path / "run", "train.resume=true"))

    def test_the_advice_for_a_run_without_a_checkpoint_can_be_followed(self, copied: Path, scenes: Path) -> None:
        """As after a run that was killed before its first one: it cannot be resumed, so this is not advised."""
        shutil.rmtree(copied / "checkpoints")
        with pytest.raises(CheckpointError, match=r"leave train.resume out and set run.overwrite=true$"):
            train(miniature.demo_config(scenes, copied, "train.resume=true"))
        with pytest.raises(ConfigError, match=r"holds a run already \(.+\); replace it \(run.overwrite=true\)"):
            train(miniature.demo_config(scenes, copied))
        assert train(miniature.demo_config(scenes, copied, "run.overwrite=true", "train.steps=1")).step == 1


class TestResuming:
    def test_a_finished_run_stays_as_it_is(self, copied: Path, scenes: Path, run: Trained) -> None:
        trained = train(miniature.demo_config(scenes, copied, "train.resume=true"))
        assert (trained.step, trained.finished, trained.best) == (6, True, run.best)
        assert losses(copied) == losses(run.run_dir)

    def test_from_its_own_config(self, copied: Path, run: Trained) -> None:
        text = (copied / "config.yaml").read_text(encoding="utf-8")
        overrides = [f"run.dir={copied}", "train.resume=true", "train.steps=8"]
        assert train(parse_config(text, "config", overrides)).step == 8
        assert losses(copied)[:6] == losses(run.run_dir)

    def test_with_another_architecture(self, copied: Path, scenes: Path) -> None:
        config_yaml, lines = (copied / "config.yaml").read_text(), (copied / "log.jsonl").read_text()
        with pytest.raises(CheckpointError) as raised:
            train(miniature.demo_config(scenes, copied, "train.resume=true", "model.dim=24"))
        message = str(raised.value)
        assert "holds a model of another architecture than the config asks for" in message
        assert "model.image_projection.bias is (16,) in the checkpoint and (24,) in the model" in message
        assert (copied / "config.yaml").read_text() == config_yaml
        assert (copied / "log.jsonl").read_text() == lines


class TestMovedRuns:
    """A config.yaml inside a run folder means that folder, whatever its name was."""

    def resumed(self, folder: Path, *more: str) -> Trained:
        return train(load_config(str(folder / "config.yaml"), ["train.resume=true", "train.steps=8", *more]))

    def test_a_renamed_run_is_resumed_where_it_is(self, copied: Path, run: Trained) -> None:
        trained = self.resumed(copied)
        assert (trained.step, trained.run_dir) == (8, copied)
        assert losses(copied)[:6] == losses(run.run_dir)
        assert load_config(str(copied / "config.yaml")).run.dir == str(copied)

    @pytest.mark.parametrize("name", ["小 😀", "a: b #1"])
    def test_whatever_the_folder_is_called(self, name: str, copied: Path) -> None:
        folder = copied.rename(copied.with_name(name))
        assert load_config(str(folder / "config.yaml")).run.dir == str(folder)

    def test_run_dir_on_the_command_line_counts(self, copied: Path, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="other: nothing to resume"):
            self.resumed(copied, f"run.dir={tmp_path / 'other'}")

    @pytest.mark.parametrize("lost", [["last"], ["best", "last"]])
    def test_a_run_that_lost_its_links_goes_on_from_the_newest_step(
        self, lost: list[str], copied: Path, run: Trained
    ) -> None:
        for name in lost:
            (copied / "checkpoints" / name).unlink()
        assert self.resumed(copied).step == 8
        assert losses(copied)[:6] == losses(run.run_dir)

    def test_an_incomplete_last_checkpoint_is_reported(self, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """As after a copy that was cut off: the run goes on from an earlier step, and its log too."""
        newest = (copied / "checkpoints" / "last").resolve()
        shutil.copytree(newest, newest.with_name("step-000005"))
        (newest / "trainer.pt").unlink()
        assert self.resumed(copied).step == 8
        assert "checkpoints/last: points at no complete checkpoint; step-000005 is used" in capsys.readouterr().err

    def test_a_copy_that_followed_the_links_goes_on(self, run: Trained, tmp_path: Path) -> None:
        copy = shutil.copytree(run.run_dir, tmp_path / "copy")
        assert self.resumed(copy).step == 8
        assert (copy / "checkpoints" / "last").resolve().name == "step-000008"
        assert self.resumed(copy, "train.steps=9").step == 9

    def test_a_copy_of_the_best_checkpoint_alone_goes_on_from_it(self, copied: Path, tmp_path: Path) -> None:
        best = copied / "checkpoints" / "best"
        copy = tmp_path / "copy"
        shutil.copytree(best, copy / "checkpoints" / "best")
        shutil.copy(copied / "config.yaml", copy)
        assert self.resumed(copy).step == 8
        assert (copy / "checkpoints" / "last").resolve().name == "step-000008"

    @pytest.mark.parametrize("lost", [["last"], ["best", "last"], ["config.yaml"]])
    def test_a_damaged_run_is_not_replaced_unasked(self, lost: list[str], copied: Path, scenes: Path) -> None:
        for name in lost:
            (copied / (name if name == "config.yaml" else f"checkpoints/{name}")).unlink()
        before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
        with pytest.raises(ConfigError, match="holds a run already"):
            train(miniature.demo_config(scenes, copied))
        assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before

    def test_a_replacing_run_that_fails_before_its_first_checkpoint_gives_the_old_one_back(
        self, copied: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}

        def fail(*arguments: object) -> None:
            raise TrainingError("out of memory")

        monkeypatch.setattr(Trainer, "train_step", fail)
        with pytest.raises(TrainingError, match="out of memory"):
            train(miniature.demo_config(scenes, copied, "run.overwrite=true"))
        assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


class TestChangedSettings:
    """A setting that a run going on would ignore is refused."""

    @pytest.mark.parametrize(
        ("override", "old"),
        [
            ("loss.coarse.temperature=0.5", "0.07"),
            ("loss.fine.temperature=0.2", "0.07"),
            ("train.start=elsewhere", "None"),
        ],
    )
    def test_what_counts_at_the_beginning_alone(self, override: str, old: str, copied: Path) -> None:
        config = load_config(str(copied / "config.yaml"), ["train.resume=true", override])
        with pytest.raises(ConfigError, match=rf"^{override} \(the run began with {old}\): .* this would be ignored"):
            train(config)

    def test_another_pretrained_tower(self, scenes: Path, tmp_path: Path) -> None:
        """The weights are those of the checkpoint; its folder may be gone."""
        towers = miniature.save_pretrained_towers(tmp_path, scenes / "train.jsonl")
        recipe = ["model.text.architecture=null", "model.vision.architecture=null", *towers]
        overrides = [*miniature.paths(scenes, tmp_path / "run"), *miniature.SCHEDULE, *recipe, "train.steps=2"]
        train(load_config("demo", overrides))
        for name in ("bert", "vit"):
            shutil.rmtree(tmp_path / name)
        more = ["train.resume=true", "train.steps=3"]
        other = [*overrides, *more, "model.vision.path=other/vit"]
        with pytest.raises(ConfigError, match=r"^model\.vision\.path=other/vit \(the run began with .*/vit\)"):
            train(load_config("demo", other))
        assert train(load_config("demo", [*overrides, *more])).step == 3

    def test_the_metric_of_the_best_checkpoint(self, copied: Path) -> None:
        overrides = ["train.resume=true", "train.steps=8", "train.best_metric=retrieval.i2t.median_rank"]
        with pytest.raises(ConfigError, match=r"^train\.best_metric=retrieval\.i2t\.median_rank .* cannot be compared"):
            train(load_config(str(copied / "config.yaml"), overrides))

    def test_the_pairs_that_the_best_checkpoint_was_chosen_on(self, copied: Path, scenes: Path, tmp_path: Path) -> None:
        config = str(copied / "config.yaml")
        other = ["train.resume=true", "train.steps=7", f"data.val={scenes / 'test.jsonl'}"]
        with pytest.raises(ConfigError, match=r"^data\.val=.*test\.jsonl .* cannot be compared"):
            train(load_config(config, other))
        moved = Path(shutil.copytree(scenes, tmp_path / "moved")) / "val.jsonl"
        assert train(load_config(config, [*other, f"data.val={moved}"])).step == 7

    def test_a_rate_can_be_set_on_resume(self, copied: Path) -> None:
        overrides = ["train.resume=true", "train.steps=7", "train.optimiser.lr=1e-5"]
        assert train(load_config(str(copied / "config.yaml"), overrides)).step == 7

    def test_a_fixed_temperature_can_be_set_on_resume(self, scenes: Path, tmp_path: Path) -> None:
        fixed = ["train.steps=2", "train.log_every=1", "loss.coarse.temperature_schedule=fixed"]
        train(miniature.demo_config(scenes, tmp_path / "run", *fixed))
        overrides = ["train.resume=true", "train.steps=3", "loss.coarse.temperature=0.5"]
        train(load_config(str(tmp_path / "run" / "config.yaml"), overrides))
        assert [line["temperature.coarse"] for line in log(tmp_path / "run")] == pytest.approx([0.07, 0.07, 0.5])
