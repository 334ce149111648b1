"""Validation in a training run: when it comes, which checkpoint is the best, and the end when patience is used up."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spanbox.engine.trainer import Validate
from spanbox.errors import ConfigError
from spanbox.models.dual_encoder import DualEncoder
from spanbox.progress import Progress
from trainers import STEPS, Loaded, fit, load, log, losses, make_trainer, resumed, same, weights


class TestValidation:
    def recorded(self, values: list[float]) -> tuple[Validate, list[bool]]:
        """A validation that gives these values in turn, and whether the model was training when it was asked."""
        training: list[bool] = []

        def validate(model: DualEncoder, progress: Progress) -> tuple[dict[str, float], float]:
            training.append(model.training)
            value = values[len(training) - 1]
            return {"metric": value}, value

        return validate, training

    @pytest.mark.slow
    def test_every_so_many_steps_and_at_the_end_without_dropout(self, tmp_path: Path) -> None:
        validate, training = self.recorded([0.1, 0.2])
        trainer = make_trainer(tmp_path, validate=validate, validate_every=4)
        fit(trainer)
        assert [(line["step"], line["metric"]) for line in log(tmp_path, "validation")] == [(4, 0.1), (6, 0.2)]
        assert training == [False, False]
        assert trainer.model.training

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("values", "best"), [([0.3, 0.2, 0.1], 2), ([0.1, 0.3, 0.2], 4), ([0.1, 0.2, 0.3], 6), ([0.2, 0.2, 0.2], 2)]
    )
    def test_the_best_is_kept_the_earlier_one_of_equals(self, values: list[float], best: int, tmp_path: Path) -> None:
        validate, _ = self.recorded(values)
        trainer = make_trainer(tmp_path, validate=validate)
        fit(trainer)
        assert (tmp_path / "checkpoints" / "best").resolve().name == f"step-{best:06d}"
        assert (tmp_path / "checkpoints" / "last").resolve().name == "step-000006"
        assert trainer.best_metrics == {"metric": max(values)}

    @pytest.mark.slow
    def test_it_does_not_change_the_trajectory(self, tmp_path: Path) -> None:
        validate, _ = self.recorded([0.1, 0.2, 0.3])
        fit(make_trainer(tmp_path / "with", validate=validate, dropout=0.2))
        fit(make_trainer(tmp_path / "without", dropout=0.2))
        assert losses(tmp_path / "with") == losses(tmp_path / "without")

    @pytest.mark.slow
    def test_without_one_no_checkpoint_is_the_best(self, tmp_path: Path) -> None:
        fit(make_trainer(tmp_path))
        assert not (tmp_path / "checkpoints" / "best").exists()
        assert log(tmp_path, "validation") == []


class TestPatience:
    """Validations are two steps apart; the run has six."""

    def validation(self, values: list[float]) -> Validate:
        left = iter(values)

        def validate(model: DualEncoder, progress: Progress) -> tuple[dict[str, float], float]:
            value = next(left)
            return {"retrieval.t2i.r1": value}, value

        return validate

    def test_a_run_ends_when_it_is_used_up_and_counts_as_finished(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        trainer = make_trainer(tmp_path, validate=self.validation([0.3, 0.2]), patience=1, save_every=100)
        assert fit(trainer)
        assert trainer.step == 4
        assert [line["step"] for line in log(tmp_path, "early stop")] == [4]
        assert "step 4: no better retrieval.t2i.r1 in 1 validations, so the run ends here" in capsys.readouterr().err
        assert {name: (tmp_path / "checkpoints" / name).resolve().name for name in ("best", "last")} == {
            "best": "step-000002",
            "last": "step-000004",
        }

    @pytest.mark.slow
    def test_a_better_value_begins_the_count_anew(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, validate=self.validation([0.3, 0.2, 0.4, 0.1, 0.1, 0.9]), patience=2, steps=12)
        assert fit(trainer)
        assert (trainer.step, trainer.best) == (10, 0.4)

    @pytest.mark.slow
    def test_an_equal_value_is_no_better_one(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, validate=self.validation([0.3, 0.3]), patience=1)
        assert fit(trainer)
        assert trainer.step == 4

    @pytest.mark.slow
    def test_at_the_end_of_the_run_nothing_is_said(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert fit(make_trainer(tmp_path, validate=self.validation([0.3, 0.2, 0.1]), patience=2))
        assert log(tmp_path, "early stop") == []
        assert "the run ends here" not in capsys.readouterr().err

    @pytest.mark.slow
    def test_without_patience_a_run_never_ends_early(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, validate=self.validation([0.3, 0.2, 0.1]))
        assert fit(trainer)
        assert trainer.step == STEPS

    @pytest.mark.slow
    def test_a_resumed_run_ends_where_the_whole_one_does(self, tmp_path: Path) -> None:
        options: dict[str, Any] = {"patience": 2, "steps": 12, "dropout": 0.2, "save_every": 5}
        whole = make_trainer(tmp_path / "whole", validate=self.validation([0.3, 0.2, 0.1]), **options)
        fit(whole)

        def killed() -> Iterator[Loaded]:
            yield from map(load, range(5))
            raise RuntimeError("killed")

        with pytest.raises(RuntimeError, match="killed"):
            fit(make_trainer(tmp_path / "two", validate=self.validation([0.3, 0.2]), **options), killed())
        second = resumed(tmp_path / "two", validate=self.validation([0.1]), **options)
        assert (second.step, second.since_best) == (5, 1)
        assert fit(second)
        assert second.step == whole.step == 6
        assert losses(tmp_path / "two") == losses(tmp_path / "whole")
        assert same(weights(whole), weights(second))

    @pytest.mark.slow
    def test_what_ended_early_goes_on_with_more_patience_only(self, tmp_path: Path) -> None:
        fit(make_trainer(tmp_path, validate=self.validation([0.3, 0.2]), patience=1))
        still = resumed(tmp_path, validate=self.validation([]), patience=1)
        assert fit(still, iter(()))
        assert still.step == 4
        on = resumed(tmp_path, validate=self.validation([0.1]), patience=5)
        assert fit(on)
        assert on.step == STEPS

    def test_a_checkpoint_from_before_there_was_patience(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path)
        state = trainer.state()
        del state["since_best"]
        trainer.restore(state)
        assert trainer.since_best == 0

    def test_without_validation_it_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"^train\.patience: nothing is validated; give data\.val, or set"):
            make_trainer(tmp_path, patience=1)


class TestBestName:
    @pytest.mark.slow
    def test_of_one_metric_and_of_several(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        rank = "retrieval.t2i.median_rank"

        def validation(model: DualEncoder, progress: Progress) -> tuple[dict[str, float], float]:
            return {rank: 3.0}, -3.0

        fit(make_trainer(tmp_path / "one", validate=validation, best_metric=rank))
        assert f"step 2: {rank} 3.0000 (best)" in capsys.readouterr().err
        fit(make_trainer(tmp_path / "more", validate=validation, best_metric={rank: -1.0, "retrieval.i2t.r1": 0.5}))
        assert f"step 2: -1 {rank} + 0.5 retrieval.i2t.r1 -3.0000 (best)" in capsys.readouterr().err
