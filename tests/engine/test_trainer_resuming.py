"""A training run that stops gently, and one that goes on exactly."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from spanbox.engine.checkpoint import load_trainer_state
from spanbox.errors import CheckpointError, TrainingError
from spanbox.structures import Incident
from trainers import STEPS, Loaded, batches, fit, load, log, losses, make_trainer, resumed, same, weights


class TestStopping:
    def interrupted(self, number: int, at: int, times: int = 1) -> Iterator[Loaded]:
        """The signal comes while the batch of step `at` (from 0) is being loaded."""
        for step, loaded in enumerate(batches()):
            if step == at:
                for _ in range(times):
                    os.kill(os.getpid(), number)
            yield loaded

    @pytest.mark.slow
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_finishes_the_step_and_saves(self, number: int, tmp_path: Path) -> None:
        handler = signal.getsignal(number)
        trainer = make_trainer(tmp_path)
        assert not fit(trainer, self.interrupted(number, at=3))
        assert trainer.step == 4
        assert load_trainer_state(tmp_path / "checkpoints" / "last")["step"] == 4
        assert signal.getsignal(number) is handler

    @pytest.mark.slow
    def test_what_was_stopped_goes_on_as_if_nothing_had_happened(self, tmp_path: Path) -> None:
        fit(make_trainer(tmp_path / "whole", dropout=0.2))
        assert not fit(make_trainer(tmp_path / "stopped", dropout=0.2), self.interrupted(signal.SIGINT, at=3))
        assert fit(resumed(tmp_path / "stopped", dropout=0.2))
        assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")

    def test_a_second_signal_ends_at_once(self, tmp_path: Path) -> None:
        handler = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            fit(make_trainer(tmp_path), self.interrupted(signal.SIGINT, at=3, times=2))
        assert signal.getsignal(signal.SIGINT) is handler
        assert (tmp_path / "checkpoints" / "last").resolve().name == "step-000003"

    @pytest.mark.slow
    def test_in_the_last_step_the_run_is_finished(self, tmp_path: Path) -> None:
        assert fit(make_trainer(tmp_path), self.interrupted(signal.SIGINT, at=STEPS - 1))

    def test_a_signal_in_a_validation_stops_after_the_next_step_in_which_ranks_agree(self, tmp_path: Path) -> None:
        """Another rank, which got no signal, is on its way to that step already."""

        def validate(model: object, progress: object) -> tuple[dict[str, float], float]:
            os.kill(os.getpid(), signal.SIGTERM)
            return {}, 0.0

        trainer = make_trainer(tmp_path, validate=validate, validate_every=2)
        assert not fit(trainer)
        assert trainer.step == 3

    def test_a_signal_after_that_of_another_rank_is_a_first_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trainer = make_trainer(tmp_path)
        monkeypatch.setattr(trainer.ranks, "largest", lambda *values: [*values[:-1], 1.0])
        monkeypatch.setattr(trainer, "_save", lambda best: os.kill(os.getpid(), signal.SIGTERM))
        assert not fit(trainer)
        assert trainer.step == 1

    def test_broken_images_stop_the_run_with_the_list(self, tmp_path: Path) -> None:
        stream = ((batch, ids, [Incident("broken image", ids[0], "a.jpg: cut off")]) for batch, ids, _ in batches())
        trainer = make_trainer(tmp_path)
        with pytest.raises(TrainingError, match=r"2 images cannot be read.*\n  pair-0: a\.jpg: cut off\n  pair-4"):
            fit(trainer, stream)
        assert trainer.step == 1


class TestResuming:
    @pytest.mark.slow
    @pytest.mark.parametrize("at", [1, 3, 5])
    def test_same_trajectory_bit_for_bit(self, at: int, tmp_path: Path) -> None:
        whole = make_trainer(tmp_path / "whole", dropout=0.2)
        fit(whole)
        torch.rand(at)  # the resumed process has another random state
        first = make_trainer(tmp_path / "two", dropout=0.2, save_every=at)
        with pytest.raises(RuntimeError, match="killed"):
            fit(first, self.cut_off(at))
        second = resumed(tmp_path / "two", dropout=0.2)
        assert second.step == at
        fit(second)
        assert losses(tmp_path / "two") == losses(tmp_path / "whole")
        assert same(weights(whole), weights(second))

    def cut_off(self, at: int) -> Iterator[Loaded]:
        yield from map(load, range(at))
        raise RuntimeError("killed")

    @pytest.mark.slow
    def test_a_finished_run_has_nothing_left_to_do(self, tmp_path: Path) -> None:
        fit(make_trainer(tmp_path))
        before = losses(tmp_path)
        assert fit(resumed(tmp_path), iter(()))
        assert losses(tmp_path) == before

    @pytest.mark.slow
    def test_a_longer_run_goes_on_from_the_end_of_a_shorter_one(self, tmp_path: Path) -> None:
        fit(make_trainer(tmp_path))
        assert fit(resumed(tmp_path, steps=STEPS + 2))
        assert [line["step"] for line in log(tmp_path)] == list(range(1, STEPS + 3))

    @pytest.mark.slow
    def test_rates_and_decay_are_those_of_the_settings(self, tmp_path: Path) -> None:
        fit(make_trainer(tmp_path, steps=2, optimiser={"lr": 1e-3, "weight_decay": 0.1}))
        trainer = resumed(tmp_path, steps=4, optimiser={"lr": 1e-5, "weight_decay": 0.2, "warmup": 0.0})
        assert {group["weight_decay"] for group in trainer.optimiser.param_groups} == {0.0, 0.2}
        fit(trainer)
        assert max(line["lr"] for line in log(tmp_path)[2:]) <= 1e-5

    def test_with_other_parameters_to_train(self, tmp_path: Path) -> None:
        fit(make_trainer(tmp_path, steps=1))
        with pytest.raises(
            CheckpointError, match=r"trained parameters of the checkpoint differ.*loss and model settings of its"
        ):
            resumed(tmp_path, loss={"fine": {"weight": 0.0}})

    @pytest.mark.slow
    def test_the_best_so_far_is_remembered(self, tmp_path: Path) -> None:
        values = iter([0.5, 0.4, 0.45])
        options: dict[str, Any] = {"validate": lambda model, progress: ({"m": 1.0}, next(values)), "save_every": 2}
        fit(make_trainer(tmp_path, steps=2, **options))
        trainer = resumed(tmp_path, **options)
        assert (trainer.best, trainer.best_metrics) == (0.5, {"m": 1.0})
        fit(trainer)
        assert (tmp_path / "checkpoints" / "best").resolve().name == "step-000002"
