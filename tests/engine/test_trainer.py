"""The training run: it learns, keeps to its time, logs what it does, and ends on what is not finite."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from spanbox.engine import trackers as trackers_module
from spanbox.engine import trainer as trainer_module
from spanbox.engine.checkpoint import load_trainer_state
from spanbox.engine.device import casting_once
from spanbox.errors import ConfigError, TrainingError
from spanbox.models.dual_encoder import DualEncoder
from spanbox.progress import Progress
from spanbox.structures import Incident
from trainers import SIZE, STEPS, batches, fit, load, log, make_trainer, resumed, same, weights


class Casts(TorchDispatchMode):
    """Counts how often a weight is cast to bfloat16."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight, self.count = weight, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        is_cast = func is torch.ops.aten._to_copy.default and result.dtype == torch.bfloat16
        self.count += is_cast and args[0].data_ptr() == self.weight.data_ptr()
        return result


class TestLearning:
    @pytest.mark.slow
    def test_the_loss_falls_on_a_few_pairs(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, steps=60, optimiser={"lr": 3e-3})
        assert fit(trainer, iter([load(0)] * 60))
        first, last = log(tmp_path)[0], log(tmp_path)[-1]
        for term in ("loss", "loss.coarse", "loss.fine"):
            assert last[term] < 0.1 * first[term], term

    @pytest.mark.slow
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

    @pytest.mark.slow
    def test_a_fixed_temperature_stays(self, tmp_path: Path) -> None:
        fit(make_trainer(tmp_path, loss={"coarse": {"temperature_schedule": "fixed", "temperature": 0.2}}))
        assert [line["temperature.coarse"] for line in log(tmp_path)] == pytest.approx([0.2] * STEPS)

    def test_bfloat16(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, precision="bfloat16", steps=1)
        assert fit(trainer)
        assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}

    @pytest.mark.slow
    def test_chunks_share_the_weights_that_are_cast_to_bfloat16(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With as many casts as one chunk takes in two passes, and the gradients of casts for each chunk."""
        counts, gradients = {}, {}
        for name, context in {"shared": casting_once, "each": lambda device: nullcontext()}.items():
            monkeypatch.setattr(trainer_module, "casting_once", context)
            trainer = make_trainer(tmp_path / name, precision="bfloat16", chunk_size=1, dropout=0.1)
            trainer.model.train()
            weight = next(one for one in trainer.model.text.layers[0].parameters() if one.ndim == 2)
            with Casts(weight) as casts:
                trainer.train_step(*load(0)[:2])
            counts[name] = casts.count
            gradients[name] = [parameter.grad for parameter in trainer.model.parameters()]
        assert counts == {"shared": 2, "each": 2 * SIZE}
        torch.testing.assert_close(gradients["shared"], gradients["each"], rtol=0, atol=0)


class TestMinutes:
    @pytest.mark.slow
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

    @pytest.mark.slow
    def test_a_resumed_run_has_the_time_that_is_left(self, tmp_path: Path) -> None:
        fit(make_trainer(tmp_path))
        trainer = resumed(tmp_path, minutes=1e-6)
        assert trainer.done > 1
        assert fit(trainer, iter(()))


class TestLog:
    @pytest.mark.slow
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

    @pytest.mark.slow
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

    @pytest.mark.slow
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
