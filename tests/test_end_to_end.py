"""Whole runs in miniature: each recipe and language, and runs that are killed and go on as if nothing had happened."""

import json
import multiprocessing
import os
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel

import miniature
from spanbox.config import RunConfig, load_config, recipe_names
from spanbox.data.manifest import Manifest
from spanbox.data.neighbours import MiningSettings
from spanbox.engine.checkpoint import CheckpointStore
from spanbox.engine.tracking import JsonLog
from spanbox.engine.trainer import Trainer
from spanbox.errors import DataError
from spanbox.structures import Losses
from spanbox.wiring import evaluate_checkpoint, load, train
from spanbox.wiring.mining import mine_checkpoint

TIMINGS = ("pairs_per_second", "data_wait", "seconds")


def log(run_dir: Path) -> list[dict[str, Any]]:
    """Every line, training and validation, but for how long things took."""
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


class TestRecipes:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", recipe_names())
    def test_in_miniature(self, name: str, scenes: Path, tmp_path: Path) -> None:
        schedule = [*miniature.SCHEDULE, "train.steps=2", "train.validate_every=2", "train.save_every=2"]
        if name == "demo":
            towers = miniature.TOWERS
        else:
            towers = miniature.save_pretrained_towers(tmp_path / "models", scenes / "train.jsonl")
        config = load_config(name, [*miniature.paths(scenes, tmp_path / "run"), *towers, *schedule])
        trained = train(config)
        assert (trained.step, trained.finished) == (2, True)
        assert config.train.best_metric in trained.best
        assert any(metric.startswith("matching.") for metric in trained.best) == (config.loss.fine.weight > 0)
        if name != "demo":
            (tmp_path / "models").rename(tmp_path / "gone")  # a checkpoint needs nothing else
        evaluated = evaluate_checkpoint(tmp_path / "run", scenes / "val.jsonl").metrics
        threshold = {"matching.presence.threshold"}  # chosen by validation alone
        assert evaluated == {name: value for name, value in trained.best.items() if name not in threshold}

    @pytest.mark.slow
    def test_pretrained_weights_are_where_training_starts(self, scenes: Path, tmp_path: Path) -> None:
        towers = miniature.save_pretrained_towers(tmp_path / "models", scenes / "train.jsonl")
        still = ["train.steps=1", "train.optimiser.lr=1e-12", "train.optimiser.tower_lr=1e-12"]
        train(load_config("gmner", [*miniature.paths(scenes, tmp_path / "run"), *towers, *miniature.SCHEDULE, *still]))
        model = load(tmp_path / "run").model
        for tower, folder in ((model.text, "bert"), (model.vision, "vit")):
            expected = AutoModel.from_pretrained(tmp_path / "models" / folder).state_dict()
            for key, tensor in tower.model.state_dict().items():
                torch.testing.assert_close(tensor, expected[key], rtol=0, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(("languages", "size"), [(("zh",), 256), (("en", "zh"), 512)])
def test_languages(languages: Any, size: int, tmp_path: Path) -> None:
    scenes = miniature.write_scenes(tmp_path / "scenes", languages=languages)
    met = {record.lang for record in Manifest(scenes / "train.jsonl")}
    assert met == set(languages)
    trained = train(miniature.demo_config(scenes, tmp_path / "run", f"model.text.architecture.vocab_size={size}"))
    assert trained.best["matching.within_image.count"] > 0
    assert log(tmp_path / "run")[0]["incidents"] == {}


@pytest.mark.slow
def test_it_learns(tmp_path: Path) -> None:
    """A few scenes by heart: every sentence finds its image, nearly every entity its object."""
    scenes = miniature.write_scenes(tmp_path / "scenes")
    schedule = ["train.steps=150", "train.validate_every=150", "train.batch_size=32", "train.optimiser.lr=5e-3"]
    overrides = [f"data.val={scenes}/train.jsonl", "model.dim=32", *schedule]
    trained = train(miniature.demo_config(scenes, tmp_path / "run", *overrides))
    assert trained.best["retrieval.t2i.r1"] > 0.9
    assert trained.best["retrieval.i2t.r1"] > 0.9
    assert trained.best["matching.within_image"] > 0.9


def ten_steps(workers: int) -> list[str]:
    """With dropout, a checkpoint after every second step, a validation after every fourth and the last."""
    every = ["train.save_every=2", "train.validate_every=4", "train.steps=10", f"data.workers={workers}"]
    return [*miniature.DROPOUT, *every]


@pytest.fixture(scope="module")
def whole(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The log of a run that nothing disturbed."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    train(miniature.demo_config(scenes, run_dir, *ten_steps(workers=0)))
    return log(run_dir)


class TestKilledAndResumed:
    """A run that is killed, at whatever moment, goes on bit for bit as if it had never stopped."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("workers", "moments"),
        [
            pytest.param(0, ["in step 4", "in step 8"], id="in the middle"),
            pytest.param(1, ["in step 7"], id="with one worker"),
            pytest.param(2, ["in step 3", "in step 6", "in step 9"], id="with two workers"),
            pytest.param(0, ["while logging step 5"], id="half a line of the log"),
            pytest.param(0, ["while saving step 4"], id="half a checkpoint"),
            pytest.param(0, ["before pointing at step 8"], id="a whole one that nothing points at"),
        ],
    )
    def test_same_log(
        self, workers: int, moments: list[str], whole: list[dict[str, Any]], scenes: Path, tmp_path: Path
    ) -> None:
        overrides = ten_steps(workers)
        for moment in moments:
            config = miniature.demo_config(scenes, tmp_path / "run", *overrides)
            assert exit_code_of_run_killed(moment, config) == -signal.SIGKILL
            overrides = [*ten_steps(workers), "train.resume=true"]
        assert train(miniature.demo_config(scenes, tmp_path / "run", *overrides)).finished
        assert log(tmp_path / "run") == whole
        checkpoints = tmp_path / "run" / "checkpoints"
        assert (checkpoints / "last").resolve().name == "step-000010"
        best = max((line for line in whole if line["kind"] == "validation"), key=lambda line: line["retrieval.t2i.r1"])
        assert (checkpoints / "best").resolve().name == f"step-{best['step']:06d}"

    @pytest.mark.slow
    @pytest.mark.parametrize("workers", [1, 2])
    def test_workers_change_nothing(
        self, workers: int, whole: list[dict[str, Any]], scenes: Path, tmp_path: Path
    ) -> None:
        train(miniature.demo_config(scenes, tmp_path / "run", *ten_steps(workers)))
        assert log(tmp_path / "run") == whole


MINING = ("data.mining.every=0.5", "data.mining.count=3", "train.keep=9")


@pytest.fixture(scope="module")
def mining_run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that mined neighbours after every second step, and that nothing disturbed."""
    run_dir = tmp_path_factory.mktemp("runs") / "mining"
    train(miniature.demo_config(scenes, run_dir, *ten_steps(workers=0), *MINING))
    return run_dir


class TestMiningWhileTraining:
    @pytest.mark.slow
    def test_begins_after_the_first_half_epoch(self, mining_run: Path, scenes: Path, tmp_path: Path) -> None:
        train(miniature.demo_config(scenes, tmp_path / "plain", *ten_steps(workers=0)))
        mined, plain = (
            [line["loss"] for line in log(run) if line["kind"] == "train"] for run in (mining_run, tmp_path / "plain")
        )
        assert mined[:2] == plain[:2]
        assert mined[2] != plain[2]

    @pytest.mark.slow
    def test_what_was_mined_is_what_the_checkpoint_would_mine(
        self, mining_run: Path, scenes: Path, tmp_path: Path
    ) -> None:
        at_step_8 = np.load(mining_run / "neighbours" / "step-000008.npy")
        checkpoint = mining_run / "checkpoints" / "step-000008"
        out, settings = tmp_path / "mined.npy", MiningSettings(count=3)
        result = mine_checkpoint(checkpoint, scenes / "train.jsonl", out, settings, device="cpu")
        assert np.array_equal(result.neighbours, at_step_8)

    def test_what_no_resumed_run_needs_is_removed(self, mining_run: Path) -> None:
        # When step 8 was reached its checkpoint was the last one, so only what was mined there counts.
        assert [path.name for path in sorted((mining_run / "neighbours").glob("*.npy"))] == [
            "step-000006.npy",
            "step-000008.npy",
        ]

    @pytest.mark.slow
    @pytest.mark.parametrize("moment", ["in step 6", "in step 7", "while saving step 6", "before pointing at step 8"])
    @pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
    def test_killed_and_resumed(
        self, moment: str, workers: int, mining_run: Path, scenes: Path, tmp_path: Path
    ) -> None:
        overrides = [*ten_steps(workers), *MINING]
        config = miniature.demo_config(scenes, tmp_path / "run", *overrides)
        assert exit_code_of_run_killed(moment, config) == -signal.SIGKILL
        train(miniature.demo_config(scenes, tmp_path / "run", *overrides, "train.resume=true"))
        assert log(tmp_path / "run") == log(mining_run)

    @pytest.mark.slow
    def test_goes_on_in_a_copy_that_followed_the_links(self, mining_run: Path, scenes: Path, tmp_path: Path) -> None:
        """As on file systems without links, `last` does not tell its step."""
        run = shutil.copytree(mining_run, tmp_path / "run", symlinks=False)
        late = ["train.steps=13", "train.save_every=50", "train.resume=true"]
        train(miniature.demo_config(scenes, run, *ten_steps(workers=0), *MINING, *late))
        assert (run / "neighbours" / "step-000012.npy").is_file()

    @pytest.mark.slow
    def test_every_checkpoint_that_is_kept_can_go_on(self, scenes: Path, tmp_path: Path) -> None:
        config = partial(miniature.demo_config, scenes, tmp_path / "run", *ten_steps(workers=0), *MINING)
        train(config("train.save_every=5"))
        last = tmp_path / "run" / "checkpoints" / "last"
        last.unlink()
        last.symlink_to("step-000005")
        whole = log(tmp_path / "run")
        train(config("train.save_every=5", "train.resume=true"))
        assert log(tmp_path / "run") == whole

    @pytest.mark.slow
    def test_the_file_that_a_resumed_run_needs_is_missing(self, scenes: Path, tmp_path: Path) -> None:
        overrides = [*ten_steps(workers=0), "data.mining.every=0.75"]
        config = miniature.demo_config(scenes, tmp_path / "run", *overrides)
        assert exit_code_of_run_killed("in step 5", config) == -signal.SIGKILL
        shutil.rmtree(tmp_path / "run" / "neighbours")
        with pytest.raises(DataError, match=r"step-000003\.npy: no such file of neighbours"):
            train(miniature.demo_config(scenes, tmp_path / "run", *overrides, "train.resume=true"))

    @pytest.mark.slow
    def test_a_resumed_run_that_mines_at_other_steps_names_the_key(self, mining_run: Path, scenes: Path) -> None:
        changed = [*ten_steps(workers=0), *MINING, "train.steps=12", "data.mining.every=1.75", "train.resume=true"]
        with pytest.raises(DataError, match=r"step-000007\.npy: .* from step 10\. If data\.mining\.every"):
            train(miniature.demo_config(scenes, mining_run, *changed))

    @pytest.mark.slow
    def test_a_subset_is_mined_by_itself(self, scenes: Path, tmp_path: Path) -> None:
        train(miniature.demo_config(scenes, tmp_path / "run", "data.subset=16", *MINING))
        assert len(np.load(tmp_path / "run" / "neighbours" / "step-000005.npy")) == 16

    @pytest.mark.slow
    def test_with_masked_views_and_broken_images(self, scenes: Path, tmp_path: Path) -> None:
        copied = shutil.copytree(scenes, tmp_path / "scenes")
        (copied / "images" / "train" / "train-000003.jpg").write_bytes(b"no image")
        overrides = ["data.views.count=2", "data.broken_limit=0.1", *MINING]
        train(miniature.demo_config(copied, tmp_path / "run", *overrides))
        mined = np.load(tmp_path / "run" / "neighbours" / "step-000004.npy")
        assert (mined[3] == -1).all()
        assert not (mined == 3).any()
        assert (mined[[0, 1, 2, 4]] >= 0).all()


def exit_code_of_run_killed(moment: str, config: RunConfig) -> int | None:
    process = multiprocessing.get_context("fork").Process(target=_train_until, args=(moment, config))
    process.start()
    process.join()
    return process.exitcode


def _train_until(moment: str, config: RunConfig) -> None:
    """Train, and die at the moment. Runs in a process of its own, so nothing is put back."""
    kind, _, number = moment.partition(" step ")
    {"in": _die_in, "while logging": _die_logging, "while saving": _die_saving, "before pointing at": _die_pointing}[
        kind
    ](int(number))
    train(config)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_in(step: int) -> None:
    original = Trainer.train_step

    def train_step(self: Trainer, *arguments: Any) -> Losses:
        if self.step == step - 1:
            _die()
        return original(self, *arguments)

    Trainer.train_step = train_step  # type: ignore[method-assign]


def _die_logging(step: int) -> None:
    original = JsonLog.write

    def write(self: JsonLog, at: int, *arguments: Any) -> None:
        if at == step:
            with self.path.open("a") as file:
                file.write('{"step": 5, "ki')
            _die()
        original(self, at, *arguments)

    JsonLog.write = write  # type: ignore[method-assign]


def _die_saving(step: int) -> None:
    original = torch.save

    def save(state: dict[str, Any], path: Path) -> None:
        if state["step"] == step:
            path.write_bytes(b"half")
            _die()
        original(state, path)

    torch.save = save


def _die_pointing(step: int) -> None:
    original = CheckpointStore._point

    def point(self: CheckpointStore, name: str, target: Path) -> None:
        if target.name == f"step-{step:06d}":
            _die()
        original(self, name, target)

    CheckpointStore._point = point  # type: ignore[method-assign]
