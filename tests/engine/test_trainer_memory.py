"""Memory and chunks of a training run: they change neither its steps nor its losses."""

from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from spanbox.engine.settings import TrainSettings
from spanbox.engine.trainer import Trainer
from spanbox.errors import ConfigError, TrainingError
from spanbox.models.dual_encoder import DualEncoder
from trainers import SIZE, fit, load, log, losses, make_trainer


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

    @pytest.mark.slow
    @pytest.mark.parametrize("chunk_size", [1, 3])
    def test_chunks_do_not_change_the_run(self, chunk_size: int, tmp_path: Path) -> None:
        fit(make_trainer(tmp_path / "whole"))
        fit(make_trainer(tmp_path / "chunked", chunk_size=chunk_size))
        assert losses(tmp_path / "chunked") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
        assert log(tmp_path / "chunked")[0]["chunk_size"] == {"text": chunk_size, "image": chunk_size}

    @pytest.mark.slow
    def test_naive_accumulation_is_another_run(self, tmp_path: Path) -> None:
        fit(make_trainer(tmp_path / "exact", chunk_size=2))
        fit(make_trainer(tmp_path / "naive", chunk_size=2, accumulation="naive"))
        assert losses(tmp_path / "naive")[0] < 0.8 * losses(tmp_path / "exact")[0]  # fewer negatives
