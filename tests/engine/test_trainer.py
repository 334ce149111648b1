"""The training run: it learns, stops gently, goes on exactly, and refuses what cannot be trained."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partialmethod
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from pydantic import ValidationError

from encoders import collate, make_model, make_sample, tokenizer
from spanbox.engine import trackers as trackers_module
from spanbox.engine import trainer as trainer_module
from spanbox.engine.checkpoint import CheckpointFiles, CheckpointStore, load_trainer_state, load_weights
from spanbox.engine.device import choose_device, choose_precision
from spanbox.engine.settings import TrainSettings
from spanbox.engine.tracking import IncidentTally
from spanbox.engine.trainer import Trainer, Validate
from spanbox.errors import CheckpointError, ConfigError, TrainingError
from spanbox.losses.objective import LossSettings, Objective
from spanbox.models.dual_encoder import DualEncoder
from spanbox.progress import Progress
from spanbox.structures import Batch, Incident
from spanbox.tasks.pretraining import Pretraining

Loaded = tuple[Batch, list[str], list[Incident]]
STEPS = 6
SIZE = 4  # pairs of a batch


def make_trainer(
    run_dir: Path,
    *,
    validate: Validate | None = None,
    dropout: float = 0.0,
    loss: dict[str, Any] | None = None,
    broken_limit: float = 0.01,
    **settings: Any,
) -> Trainer:
    run_dir.mkdir(exist_ok=True)
    torch.manual_seed(0)
    defaults = {
        "steps": STEPS,
        "batch_size": SIZE,
        "chunk_size": SIZE,
        "device": "cpu",
        "log_every": 1,
        "save_every": 3,
        "validate_every": 2,
    }
    model = make_model(dropout=dropout)
    files = CheckpointFiles("", tokenizer(), {}, model.preprocessing)
    return Trainer(
        Pretraining(model, Objective(LossSettings.model_validate(loss or {}))),
        TrainSettings.model_validate(defaults | settings),
        example=lambda pairs: collate(*(make_sample(number) for number in range(pairs))),
        seed=0,
        run_dir=run_dir,
        store=CheckpointStore(run_dir / "checkpoints", files, keep=2),
        tally=IncidentTally(100, broken_limit),
        validate=validate,
    )


def load(step: int) -> Loaded:
    """The batch of a step, the same in every run."""
    samples = [make_sample(SIZE * step + number) for number in range(SIZE)]
    return collate(*samples), [sample.id for sample in samples], []


def batches(first: int = 0) -> Iterator[Loaded]:
    return map(load, range(first, 1000))


def fit(trainer: Trainer, stream: Iterator[Loaded] | None = None) -> bool:
    with Progress("training", trainer.settings.steps, trainer.step) as progress:
        return trainer.fit(stream or batches(trainer.step), progress)


def log(run_dir: Path, kind: str = "train") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def losses(run_dir: Path) -> list[float]:
    return [line["loss"] for line in log(run_dir)]


def resumed(run_dir: Path, **options: Any) -> Trainer:
    trainer = make_trainer(run_dir, **options)
    last = run_dir / "checkpoints" / "last"
    load_weights(last, trainer.model, trainer.task.objective)
    trainer.restore(load_trainer_state(last))
    return trainer


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


class TestLearning:
    @pytest.mark.slow
    def test_the_loss_falls_on_a_few_pairs(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, steps=60, optimiser={"lr": 3e-3})
        assert fit(trainer, iter([load(0)] * 60))
        first, last = log(tmp_path)[0], log(tmp_path)[-1]
        for term in ("loss", "loss.coarse", "loss.fine"):
            assert last[term] < 0.1 * first[term], term

    def test_the_learning_rate_follows_its_plan(self, tmp_path: Path) -> None:
        assert fit(make_trainer(tmp_path, optimiser={"lr": 1e-3, "tower_lr": 1e-5, "warmup": 0.4, "final_lr": 0.1}))
        rates = [line["lr"] for line in log(tmp_path)]
        assert rates[:2] == pytest.approx([1e-3 * (0.5 / 6) / 0.4, 1e-3 * (1.5 / 6) / 0.4])
        assert max(rates) == rates[2] == pytest.approx(1e-3, rel=0.01)
        assert 1e-4 <= rates[-1] < rates[-2]

    def test_long_gradients_are_shortened(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, optimiser={"clip_norm": 0.01})
        trainer.train_step(*load(0)[:2])
        parameters = [*trainer.model.parameters(), *trainer.task.objective.parameters()]
        norm = torch.stack([parameter.grad.norm() for parameter in parameters]).norm()  # type: ignore[union-attr]
        assert norm == pytest.approx(0.01, rel=1e-3)

    def test_temperatures_stay_above_their_bound(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path)
        with torch.no_grad():
            trainer.task.objective.coarse_log_scale.fill_(9.0)
            trainer.task.objective.fine_log_scale.fill_(9.0)
        trainer.train_step(*load(0)[:2])
        assert trainer.task.objective.temperatures() == pytest.approx({"coarse": 0.01, "fine": 0.01})

    def test_a_fixed_temperature_stays(self, tmp_path: Path) -> None:
        fit(make_trainer(tmp_path, loss={"coarse": {"temperature_schedule": "fixed", "temperature": 0.2}}))
        assert [line["temperature.coarse"] for line in log(tmp_path)] == pytest.approx([0.2] * STEPS)

    def test_bfloat16(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, precision="bfloat16", steps=1)
        assert fit(trainer)
        assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


class TestMemory:
    """A GPU on the CPU: it runs out of memory when a chunk has more than so many rows."""

    def small_gpu(self, trainer: Trainer, most: int) -> list[int]:
        """Returns the numbers of texts that are encoded at a time, as they come."""
        encode, sizes = trainer.task.encode, list[int]()

        def limited(tower: str, rows: Any) -> Any:
            if tower == "text":
                sizes.append(len(rows))
            if len(rows) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return encode(tower, rows)

        trainer.task.encode = limited  # type: ignore[method-assign]
        return sizes

    def test_chunks_are_halved_until_they_fit_and_the_step_is_exact(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        whole, halved = make_trainer(tmp_path / "whole"), make_trainer(tmp_path / "halved")
        sizes = self.small_gpu(halved, 1)
        for trainer in (whole, halved):
            trainer.train_step(*load(0)[:2])
        assert sizes == [4, 2, *[1] * 8]
        assert halved.chunk_sizes == {"text": 1, "image": 1}
        for found, expected in zip(halved.model.parameters(), whole.model.parameters(), strict=True):
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-6)
        printed = capsys.readouterr().err
        assert "chunks of 4 rows (text) and 4 rows (image): going on with 2 rows (text) and 2 rows (image)\n" in printed
        assert "chunks of 2 rows (text) and 2 rows (image): going on with 1 rows (text) and 1 rows (image)\n" in printed

    def test_not_even_one_pair_fits(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path)
        self.small_gpu(trainer, 0)
        with pytest.raises(
            TrainingError, match=r"with a single row in a chunk.*model\.text\.gradient_checkpointing=true"
        ):
            fit(trainer)

    def test_auto_takes_the_batch_where_it_fits(self, tmp_path: Path) -> None:
        assert make_trainer(tmp_path, chunk_size="auto").chunk_sizes == {"text": SIZE, "image": SIZE}

    def test_auto_tells_of_smaller_chunks(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        sizes = make_trainer(tmp_path, chunk_size="auto", batch_size=256, memory_gb=0.01).chunk_sizes
        assert 1 < min(sizes.values()) < 256
        shown = f"{sizes['text']} of 256 rows of the text tower, {sizes['image']} of 256 rows of the image tower"
        assert f"train.chunk_size=auto: {shown} at a time" in capsys.readouterr().err

    @pytest.mark.slow
    def test_towers_are_compiled_after_measuring(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A tower that dynamo first meets under the dispatch mode of the measurement is never compiled."""
        monkeypatch.setattr(DualEncoder, "compile_towers", partialmethod(DualEncoder.compile_towers, "eager"))
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        trainer = make_trainer(tmp_path, chunk_size="auto", compile=True)
        trainer.train_step(*load(0)[:2])
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2  # one per tower
        torch._dynamo.reset()

    def test_a_number_for_each_tower(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, chunk_size={"text": 4, "image": 2})
        assert trainer.chunk_sizes == {"text": 4, "image": 2}
        with pytest.raises(ValidationError, match="a number for each tower"):
            TrainSettings(chunk_size={"text": 4})

    def test_auto_where_nothing_fits(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"^train\.memory_gb: a step needs .* even with one row in a chunk"):
            make_trainer(tmp_path, chunk_size="auto", memory_gb=0.0001)

    @pytest.mark.parametrize("chunk_size", [1, 3])
    def test_chunks_do_not_change_the_run(self, chunk_size: int, tmp_path: Path) -> None:
        fit(make_trainer(tmp_path / "whole"))
        fit(make_trainer(tmp_path / "chunked", chunk_size=chunk_size))
        assert losses(tmp_path / "chunked") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
        assert log(tmp_path / "chunked")[0]["chunk_size"] == {"text": chunk_size, "image": chunk_size}

    def test_naive_accumulation_is_another_run(self, tmp_path: Path) -> None:
        fit(make_trainer(tmp_path / "exact", chunk_size=2))
        fit(make_trainer(tmp_path / "naive", chunk_size=2, accumulation="naive"))
        assert losses(tmp_path / "naive")[0] < 0.8 * losses(tmp_path / "exact")[0]  # fewer negatives


class TestMinutes:
    def test_the_run_ends_with_the_time_and_the_rate_follows_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = [0.0]

        def tick() -> float:
            clock[0] += 1.0
            return clock[0]

        monkeypatch.setattr(trainer_module.time, "perf_counter", tick)
        trainer = make_trainer(tmp_path, minutes=0.5, steps=1, optimiser={"warmup": 0.5, "lr": 1e-3})
        assert fit(trainer)
        seconds = [line["seconds"] for line in log(tmp_path)]
        assert 30 <= seconds[-1] < 30 + seconds[0]
        rates = [line["lr"] for line in log(tmp_path)]
        assert rates[0] == 0.0
        assert max(rates) == max(rates[len(rates) // 2 - 1 : len(rates) // 2 + 2])
        assert load_trainer_state(tmp_path / "checkpoints" / "last")["step"] == trainer.step > 1

    def test_a_resumed_run_has_the_time_that_is_left(self, tmp_path: Path) -> None:
        fit(make_trainer(tmp_path))
        trainer = resumed(tmp_path, minutes=1e-6)
        assert trainer.done > 1
        assert fit(trainer, iter(()))


class TestLog:
    def test_every_so_many_steps_and_at_the_end(self, tmp_path: Path) -> None:
        fit(make_trainer(tmp_path, log_every=4))
        assert [line["step"] for line in log(tmp_path)] == [4, 6]

    def test_a_level_that_is_left_out_has_no_loss(self, tmp_path: Path) -> None:
        fit(make_trainer(tmp_path, steps=1, loss={"fine": {"weight": 0.0}}))
        (line,) = log(tmp_path)
        assert "loss.fine" not in line
        assert line["loss"] == line["loss.coarse"]

    def test_incidents_are_counted(self, tmp_path: Path) -> None:
        stream = ((batch, ids, [Incident("clipped box", ids[0], "")]) for batch, ids, _ in batches())
        fit(make_trainer(tmp_path, steps=3), stream)
        assert [line["incidents"] for line in log(tmp_path)] == [{"clipped box": count} for count in (1, 2, 3)]

    def test_trackers_get_the_same_numbers_also_of_a_resumed_run(self, tmp_path: Path) -> None:
        pytest.importorskip("tensorboard", reason="pip install 'spanbox[tensorboard]'")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        fit(make_trainer(tmp_path, steps=4, track=["tensorboard"]))
        fit(resumed(tmp_path, track=["tensorboard"]))
        events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
        shown = [(event.step, pytest.approx(event.value)) for event in events.Scalars("train/loss.coarse")]
        assert shown == [(line["step"], line["loss.coarse"]) for line in log(tmp_path)]

    def test_a_tracker_that_is_not_installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(trackers_module, "find_spec", lambda name: None)
        with pytest.raises(
            ConfigError, match=r"^train\.track: wandb is not installed; run `pip install 'spanbox\[wandb\]'`"
        ):
            make_trainer(tmp_path, track=["wandb"])

    def test_validation_and_saving_do_not_slow_the_rates(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = [0.0]

        def tick() -> float:
            clock[0] += 0.5
            return clock[0]

        def validate(model: DualEncoder, progress: Progress) -> tuple[dict[str, float], float]:
            clock[0] += 1000.0
            return {}, 0.0

        monkeypatch.setattr(trainer_module.time, "perf_counter", tick)
        fit(make_trainer(tmp_path, validate=validate))
        first, *others = [line["pairs_per_second"] for line in log(tmp_path)]
        assert others == pytest.approx([first] * (STEPS - 1), rel=0.3)


class TestWhatIsNotFinite:
    def test_a_loss(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path)
        trainer.train_step(*load(0)[:2])
        with torch.no_grad():
            trainer.model.text_projection.bias[0] = torch.nan
        before = weights(trainer)
        del before["text_projection.bias"]
        with pytest.raises(TrainingError, match=r"loss of step 1 .*'coarse': 'nan'.* is not finite; .*nonfinite-step-"):
            fit(trainer)
        assert trainer.step == 1
        assert same(before, weights(trainer))
        self.assert_ids(tmp_path, 1)

    def test_a_gradient_while_the_loss_is_finite(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path)
        trainer.model.image_projection.weight.register_hook(lambda gradient: gradient * torch.inf)
        before = weights(trainer)
        with pytest.raises(TrainingError, match=r"its gradient \(inf\) is not finite.*Lower train\.optimiser\.lr"):
            fit(trainer)
        assert same(before, weights(trainer))
        self.assert_ids(tmp_path, 0)

    def assert_ids(self, run_dir: Path, step: int) -> None:
        def refuse(constant: str) -> NoReturn:
            raise AssertionError(f"{constant} is no JSON")

        path = run_dir / f"nonfinite-step-{step:06d}.json"
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
        assert content["step"] == step
        assert content["ids"] == load(step)[1]
        assert content["loss"].keys() == {"coarse", "fine"}


class TestStopping:
    def interrupted(self, number: int, at: int, times: int = 1) -> Iterator[Loaded]:
        """The signal comes while the batch of step `at` (from 0) is being loaded."""
        for step, loaded in enumerate(batches()):
            if step == at:
                for _ in range(times):
                    os.kill(os.getpid(), number)
            yield loaded

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_finishes_the_step_and_saves(self, number: int, tmp_path: Path) -> None:
        handler = signal.getsignal(number)
        trainer = make_trainer(tmp_path)
        assert not fit(trainer, self.interrupted(number, at=3))
        assert trainer.step == 4
        assert load_trainer_state(tmp_path / "checkpoints" / "last")["step"] == 4
        assert signal.getsignal(number) is handler

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

    def test_in_the_last_step_the_run_is_finished(self, tmp_path: Path) -> None:
        assert fit(make_trainer(tmp_path), self.interrupted(signal.SIGINT, at=STEPS - 1))

    def test_broken_images_stop_the_run_with_the_list(self, tmp_path: Path) -> None:
        stream = ((batch, ids, [Incident("broken image", ids[0], "a.jpg: cut off")]) for batch, ids, _ in batches())
        trainer = make_trainer(tmp_path)
        with pytest.raises(TrainingError, match=r"2 images cannot be read.*\n  pair-0: a\.jpg: cut off\n  pair-4"):
            fit(trainer, stream)
        assert trainer.step == 1


class TestResuming:
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

    def test_a_finished_run_has_nothing_left_to_do(self, tmp_path: Path) -> None:
        fit(make_trainer(tmp_path))
        before = losses(tmp_path)
        assert fit(resumed(tmp_path), iter(()))
        assert losses(tmp_path) == before

    def test_a_longer_run_goes_on_from_the_end_of_a_shorter_one(self, tmp_path: Path) -> None:
        fit(make_trainer(tmp_path))
        assert fit(resumed(tmp_path, steps=STEPS + 2))
        assert [line["step"] for line in log(tmp_path)] == list(range(1, STEPS + 3))

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

    def test_the_best_so_far_is_remembered(self, tmp_path: Path) -> None:
        values = iter([0.5, 0.4, 0.45])
        options: dict[str, Any] = {"validate": lambda model, progress: ({"m": 1.0}, next(values)), "save_every": 2}
        fit(make_trainer(tmp_path, steps=2, **options))
        trainer = resumed(tmp_path, **options)
        assert (trainer.best, trainer.best_metrics) == (0.5, {"m": 1.0})
        fit(trainer)
        assert (tmp_path / "checkpoints" / "best").resolve().name == "step-000002"


class TestValidation:
    def recorded(self, values: list[float]) -> tuple[Validate, list[bool]]:
        """A validation that gives these values in turn, and whether the model was training when it was asked."""
        training: list[bool] = []

        def validate(model: DualEncoder, progress: Progress) -> tuple[dict[str, float], float]:
            training.append(model.training)
            value = values[len(training) - 1]
            return {"metric": value}, value

        return validate, training

    def test_every_so_many_steps_and_at_the_end_without_dropout(self, tmp_path: Path) -> None:
        validate, training = self.recorded([0.1, 0.2])
        trainer = make_trainer(tmp_path, validate=validate, validate_every=4)
        fit(trainer)
        assert [(line["step"], line["metric"]) for line in log(tmp_path, "validation")] == [(4, 0.1), (6, 0.2)]
        assert training == [False, False]
        assert trainer.model.training

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

    def test_it_does_not_change_the_trajectory(self, tmp_path: Path) -> None:
        validate, _ = self.recorded([0.1, 0.2, 0.3])
        fit(make_trainer(tmp_path / "with", validate=validate, dropout=0.2))
        fit(make_trainer(tmp_path / "without", dropout=0.2))
        assert losses(tmp_path / "with") == losses(tmp_path / "without")

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

    def test_a_better_value_begins_the_count_anew(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, validate=self.validation([0.3, 0.2, 0.4, 0.1, 0.1, 0.9]), patience=2, steps=12)
        assert fit(trainer)
        assert (trainer.step, trainer.best) == (10, 0.4)

    def test_an_equal_value_is_no_better_one(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, validate=self.validation([0.3, 0.3]), patience=1)
        assert fit(trainer)
        assert trainer.step == 4

    def test_at_the_end_of_the_run_nothing_is_said(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert fit(make_trainer(tmp_path, validate=self.validation([0.3, 0.2, 0.1]), patience=2))
        assert log(tmp_path, "early stop") == []
        assert "the run ends here" not in capsys.readouterr().err

    def test_without_patience_a_run_never_ends_early(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, validate=self.validation([0.3, 0.2, 0.1]))
        assert fit(trainer)
        assert trainer.step == STEPS

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
    def test_of_one_metric_and_of_several(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        rank = "retrieval.t2i.median_rank"

        def validation(model: DualEncoder, progress: Progress) -> tuple[dict[str, float], float]:
            return {rank: 3.0}, -3.0

        fit(make_trainer(tmp_path / "one", validate=validation, best_metric=rank))
        assert f"step 2: {rank} 3.0000 (best)" in capsys.readouterr().err
        fit(make_trainer(tmp_path / "more", validate=validation, best_metric={rank: -1.0, "retrieval.i2t.r1": 0.5}))
        assert f"step 2: -1 {rank} + 0.5 retrieval.i2t.r1 -3.0000 (best)" in capsys.readouterr().err


class TestDeviceAndPrecision:
    @pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:one", "meta", "mps:0", "", "0"])
    def test_no_device(self, name: str) -> None:
        with pytest.raises(ConfigError, match=r"^train\.device: .* expected auto, cpu, cuda or cuda:N$"):
            choose_device(name)

    @pytest.mark.parametrize("name", ["cuda", "cuda:3"])
    def test_a_card_that_is_not_there(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        with pytest.raises(ConfigError, match=rf"^train\.device: '{name}' is set, .* use train\.device=cpu"):
            choose_device(name)

    @pytest.mark.parametrize(("available", "expected"), [(True, "cuda:0"), (False, "cpu")])
    def test_auto(self, available: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
        assert choose_device("auto") == torch.device(expected)

    @pytest.mark.parametrize(
        ("name", "device", "capable", "expected"),
        [
            ("auto", "cpu", True, torch.float32),
            ("auto", "cuda", True, torch.bfloat16),
            ("auto", "cuda", False, torch.float32),
            ("float32", "cuda", True, torch.float32),
            ("bfloat16", "cpu", False, torch.bfloat16),
        ],
    )
    def test_precision(
        self, name: str, device: str, capable: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A GPU of which bfloat16 is emulated, such as a V100 or a T4, counts as one without it."""
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or capable
        )
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
        assert choose_precision(name, torch.device(device)) == expected

    def test_precision_is_that_of_the_chosen_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A machine may have an old GPU beside a new one."""
        current = [torch.device("cuda", 0)]

        @contextmanager
        def on(device: torch.device) -> Iterator[None]:
            current.append(device)
            yield
            current.pop()

        monkeypatch.setattr(torch.cuda, "device", on)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: current[-1].index == 1)
        chosen = [choose_precision("auto", torch.device("cuda", number)) for number in range(2)]
        assert chosen == [torch.float32, torch.bfloat16]
