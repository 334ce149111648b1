"""A run from its config to the features of a loaded model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import batches
import miniature
import spanbox
from spanbox.config import RunConfig, load_config
from spanbox.data.dataset import PairDataset
from spanbox.data.manifest import Manifest, Record, write_manifest
from spanbox.engine.trainer import Trainer
from spanbox.errors import CheckpointError, ConfigError, DataError, TrainingError
from spanbox.structures import Batch, Features, Sample
from spanbox.wiring import Loaded, Trained, evaluate_checkpoint, load, train
from spanbox.wiring.building import build_objective, make_collator, sample_limits

RUN = {"config.yaml", "environment.json", "log.jsonl", "checkpoints", ".lock"}
CHECKPOINT = {"model.safetensors", "config.yaml", "architecture.json", "preprocessing.json", "tokenizer", "trainer.pt"}


@pytest.fixture(scope="module")
def config(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return miniature.demo_config(scenes, tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="module")
def run(config: RunConfig) -> Trained:
    """A finished run. Tests only look at it."""
    return train(config)


@pytest.fixture
def copied(run: Trained, tmp_path: Path) -> Path:
    """The finished run's folder, to be changed."""
    return shutil.copytree(run.run_dir, tmp_path / "copied", symlinks=True)


@pytest.fixture
def copied_scenes(scenes: Path, tmp_path: Path) -> Path:
    return shutil.copytree(scenes, tmp_path / "scenes")


def log(run_dir: Path, kind: str = "train") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["kind"] == kind]


def losses(run_dir: Path) -> list[float]:
    return [line["loss"] for line in log(run_dir)]


def batch_of(loaded: Loaded, manifest: Path) -> Batch:
    """All pairs of a manifest as the model of a run reads them."""
    limits = sample_limits(loaded.config, loaded.model)
    dataset = PairDataset(Manifest(manifest), limits, seed=0, replace_broken=False)
    samples = [dataset[0, index] for index in range(len(dataset))]
    collate = make_collator(loaded.config, loaded.tokenizer)
    return collate([sample for sample in samples if isinstance(sample, Sample)]).batch


@torch.no_grad()
def encode(model: torch.nn.Module, batch: Batch) -> Features:
    features: Features = model(batch)
    return features


def break_images(manifest: Path, count: int) -> list[str]:
    """Cut off the images of the first pairs; returns their ids."""
    records = list(Manifest(manifest))[:count]
    for record in records:
        path = manifest.parent / record.image
        path.write_bytes(path.read_bytes()[:200])
    return [record.id for record in records]


def plain_pairs(scenes: Path, split: str) -> Path:
    """The pairs of a split without their entities and objects, beside it."""
    path = scenes / f"plain-{split}.jsonl"
    records = [Record(id=r.id, image=r.image, text=r.text) for r in Manifest(scenes / f"{split}.jsonl")]
    write_manifest(path, records)
    return path


class TestRunFolder:
    def test_holds_what_a_run_leaves_and_nothing_else(self, run: Trained) -> None:
        assert (run.step, run.finished) == (6, True)
        assert {path.name for path in run.run_dir.iterdir()} == RUN
        checkpoints = run.run_dir / "checkpoints"
        assert {path.name for path in checkpoints.iterdir()} == {"step-000003", "step-000006", "best", "last"}
        for name in ("best", "last"):
            assert {path.name for path in (checkpoints / name).iterdir()} == CHECKPOINT | {"validation.json"}
        assert (checkpoints / "last").resolve().name == "step-000006"

    def test_its_config_is_the_one_that_ran(self, run: Trained, config: RunConfig) -> None:
        for folder in (run.run_dir, run.run_dir / "checkpoints" / "last"):
            assert load_config(str(folder / "config.yaml")) == config

    def test_its_log_has_every_step_and_both_levels(self, run: Trained) -> None:
        lines = log(run.run_dir)
        assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
        assert lines[0].keys() >= {"loss", "loss.coarse", "loss.fine", "temperature.fine", "lr", "pairs_per_second"}
        for line in lines:
            assert line["loss"] == pytest.approx(line["loss.coarse"] + line["loss.fine"])
            assert line["incidents"] == {}

    def test_its_log_has_the_metrics(self, run: Trained) -> None:
        lines = log(run.run_dir, "validation")
        assert [line["step"] for line in lines] == [3, 6]
        assert lines[0].keys() >= {"retrieval.t2i.r1", "retrieval.i2t.r1", "matching.within_image"}
        metric = "retrieval.t2i.r1"
        best = max(lines, key=lambda line: line[metric])
        assert isinstance(best["matching.presence.threshold"], float)
        stored = json.loads((run.run_dir / "checkpoints" / "best" / "validation.json").read_text())
        assert stored == run.best
        assert {**run.best, "step": best["step"], "kind": "validation"} == best
        assert (run.run_dir / "checkpoints" / "best").resolve().name == f"step-{best['step']:06d}"

    def test_equal_seeds_equal_losses(self, run: Trained, config: RunConfig, scenes: Path, tmp_path: Path) -> None:
        train(miniature.demo_config(scenes, tmp_path / "again"))
        assert losses(tmp_path / "again") == losses(run.run_dir)
        train(miniature.demo_config(scenes, tmp_path / "other", "seed=1"))
        assert losses(tmp_path / "other") != losses(run.run_dir)


def test_the_seed_of_a_config_reaches_the_random_negatives() -> None:
    given = ["data.train=pairs.jsonl", "loss.coarse.negatives.per_anchor=2"]
    batch = batches.random_batch(0, pairs=9, spans=2, regions=2)
    generator = torch.Generator().manual_seed(0)
    shapes = (9, 4), (9, 4), (9, 2, 4), (9, 2, 4)
    features = Features(*(torch.randn(shape, generator=generator) for shape in shapes))

    def coarse(seed: int) -> float:
        objective = build_objective(load_config("demo", [*given, f"seed={seed}"]))
        return objective(features, batch).terms["coarse"].item()

    assert coarse(0) == coarse(0) != coarse(1)


class TestLoading:
    def test_same_features_as_the_model_that_was_saved(
        self, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trainers = []

        class Kept(Trainer):
            def __init__(self, *arguments: Any, **options: Any) -> None:
                super().__init__(*arguments, **options)
                trainers.append(self)

        monkeypatch.setattr("spanbox.wiring.training.Trainer", Kept)
        train(miniature.demo_config(scenes, tmp_path / "run", *miniature.DROPOUT))
        loaded = load(tmp_path / "run" / "checkpoints" / "last")
        batch = batch_of(loaded, scenes / "test.jsonl")
        expected, features = encode(trainers[0].model.eval(), batch), encode(loaded.model, batch)
        for name, tensor in features.named_tensors():
            assert torch.equal(tensor, getattr(expected, name)), name
        assert loaded.objective.temperatures() == trainers[0].task.objective.temperatures()

    def test_by_the_package(self, run: Trained, scenes: Path) -> None:
        loaded = spanbox.load(run.run_dir)
        assert loaded.checkpoint == (run.run_dir / "checkpoints" / "best").resolve()
        assert not loaded.model.training
        batch = batch_of(loaded, scenes / "test.jsonl")
        again = spanbox.load(str(loaded.checkpoint))
        assert torch.equal(encode(loaded.model, batch).spans, encode(again.model, batch).spans)

    def test_a_checkpoint_alone_is_enough(self, run: Trained, tmp_path: Path) -> None:
        shutil.copytree(run.run_dir / "checkpoints" / "last", tmp_path / "elsewhere")
        load(tmp_path / "elsewhere")

    def test_draws_nothing_from_the_random_state_of_its_user(self, run: Trained) -> None:
        """It may draw, since towers are built before their weights are read; what is loaded does not depend on it."""
        torch.manual_seed(1)
        first = load(run.run_dir)
        torch.manual_seed(2)
        second = load(run.run_dir)
        pairs = zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="no checkpoint here"):
            load(tmp_path)

    def test_a_pretrained_folder_is_no_checkpoint(self, scenes: Path, tmp_path: Path) -> None:
        miniature.save_pretrained_towers(tmp_path, scenes / "train.jsonl")
        with pytest.raises(CheckpointError, match="no checkpoint here"):
            load(tmp_path / "bert")

    @pytest.mark.parametrize("name", ["config.yaml", "preprocessing.json"])
    def test_a_file_of_a_checkpoint_is_missing(self, name: str, copied: Path) -> None:
        checkpoint = (copied / "checkpoints" / "best").resolve()
        (checkpoint / name).unlink()
        with pytest.raises(CheckpointError, match=rf"{name}: no such file; a checkpoint is copied"):
            load(checkpoint)

    def test_of_an_incomplete_best_is_the_newest_complete_one_and_says_so(
        self, copied: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        best = (copied / "checkpoints" / "best").resolve()
        (best / "config.yaml").unlink()
        other = next(path for path in (copied / "checkpoints").glob("step-*") if path != best)
        assert load(copied).checkpoint == other
        assert f"best: points at no complete checkpoint; {other.name} is used" in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["architecture.json", "preprocessing.json"])
    def test_a_file_is_damaged(self, name: str, copied: Path) -> None:
        path = copied / "checkpoints" / "best" / name
        path.write_text(path.read_text()[:-9])
        with pytest.raises(CheckpointError, match=rf"{name}: cannot be read \(not valid JSON"):
            load(copied)

    def test_its_tokenizer_is_missing(self, copied: Path) -> None:
        checkpoint = (copied / "checkpoints" / "best").resolve()
        shutil.rmtree(checkpoint / "tokenizer")
        with pytest.raises(ConfigError, match="tokenizer: no tokenizer could be loaded"):
            load(checkpoint)


class TestEvaluation:
    def test_gives_the_metrics_of_the_validation(self, run: Trained, scenes: Path) -> None:
        threshold = {name: run.best[name] for name in ["matching.presence.threshold"]}  # chosen by validation alone
        assert evaluate_checkpoint(run.run_dir, scenes / "val.jsonl").metrics | threshold == run.best

    def test_is_written_with_where_it_comes_from(self, run: Trained, scenes: Path, tmp_path: Path) -> None:
        evaluated = evaluate_checkpoint(run.run_dir, scenes / "test.jsonl")
        evaluated.write(tmp_path / "metrics.json")
        written = json.loads((tmp_path / "metrics.json").read_text())
        assert written.pop("checkpoint") == evaluated.checkpoint.name
        assert written.pop("data") == str(scenes / "test.jsonl")
        assert written.pop("fingerprint") == evaluated.fingerprint
        assert written == evaluated.metrics

    def test_without_boxes_the_fine_metrics_are_absent(self, run: Trained, scenes: Path) -> None:
        metrics = evaluate_checkpoint(run.run_dir, plain_pairs(scenes, "test")).metrics
        assert metrics["retrieval.t2i.r1.count"] == 12
        assert {name.partition(".")[0] for name in metrics} == {"retrieval", "embedding"}

    def test_broken_images_are_left_out_and_reported(self, run: Trained, copied_scenes: Path) -> None:
        broken = break_images(copied_scenes / "test.jsonl", 3)
        evaluated = evaluate_checkpoint(run.run_dir, copied_scenes / "test.jsonl")
        assert evaluated.metrics["retrieval.t2i.r1.count"] == 9
        assert [(incident.kind, incident.sample) for incident in evaluated.incidents] == [
            ("broken image", sample) for sample in broken
        ]

    def test_all_images_are_broken(self, run: Trained, copied_scenes: Path) -> None:
        break_images(copied_scenes / "test.jsonl", 12)
        with pytest.raises(DataError, match="nothing to evaluate"):
            evaluate_checkpoint(run.run_dir, copied_scenes / "test.jsonl")


class TestBrokenImages:
    def test_too_many_stop_the_run_with_the_list(self, copied_scenes: Path, tmp_path: Path) -> None:
        broken = break_images(copied_scenes / "train.jsonl", 20)
        with pytest.raises(TrainingError) as raised:
            train(miniature.demo_config(copied_scenes, tmp_path / "run"))
        message = str(raised.value)
        assert "more than data.broken_limit=0.01 allows (0):" in message
        assert any(f"  {name}: {copied_scenes}/images/train/{name}.jpg: broken image" in message for name in broken)

    def test_few_are_replaced_and_counted(self, copied_scenes: Path, tmp_path: Path) -> None:
        break_images(copied_scenes / "train.jsonl", 4)
        assert train(miniature.demo_config(copied_scenes, tmp_path / "run", "data.broken_limit=0.2")).finished
        counts = [line["incidents"].get("broken image", 0) for line in log(tmp_path / "run")]
        assert counts == sorted(counts)
        assert counts[3] == 4  # the first epoch has 4 steps


class TestLevels:
    def test_the_coarse_level_alone_on_plain_pairs(self, scenes: Path, tmp_path: Path) -> None:
        paths = [f"data.{split}={plain_pairs(scenes, split)}" for split in ("train", "val")]
        trained = train(miniature.demo_config(scenes, tmp_path / "run", *paths, "loss.fine.weight=0"))
        assert not any(name.startswith("matching.") for name in trained.best)
        assert all("loss.fine" not in line for line in log(tmp_path / "run"))

    def test_the_fine_level_alone(self, scenes: Path, tmp_path: Path) -> None:
        train(miniature.demo_config(scenes, tmp_path / "run", "loss.coarse.weight=0"))
        assert all(line["loss"] == line["loss.fine"] for line in log(tmp_path / "run"))

    def test_spans_and_regions_read_by_themselves(self, scenes: Path, tmp_path: Path) -> None:
        sources = ["model.spans.source=own", "model.regions.source=crop"]
        trained = train(miniature.demo_config(scenes, tmp_path / "run", *sources))
        evaluated = evaluate_checkpoint(tmp_path / "run", scenes / "val.jsonl").metrics
        threshold = {"matching.presence.threshold"}  # chosen by validation alone
        assert evaluated == {name: value for name, value in trained.best.items() if name not in threshold}

    def test_without_validation(self, scenes: Path, tmp_path: Path) -> None:
        trained = train(miniature.demo_config(scenes, tmp_path / "run", "data.val=null"))
        assert trained.best == {}
        assert load(tmp_path / "run").checkpoint.name == "step-000006"

    def test_another_image_size(self, scenes: Path, tmp_path: Path) -> None:
        train(miniature.demo_config(scenes, tmp_path / "run", "model.vision.image_size=64"))
        assert load(tmp_path / "run").model.preprocessing.image_size == 64


class TestIncidents:
    def test_are_in_the_result_of_training(self, copied_scenes: Path, tmp_path: Path) -> None:
        break_images(copied_scenes / "train.jsonl", 2)
        trained = train(miniature.demo_config(copied_scenes, tmp_path / "run", "data.broken_limit=0.2"))
        count, example = trained.incidents["broken image"]
        assert count == 2
        assert "broken image" in example


class TestNothingToContrast:
    """A level in which no row has both a positive and a negative has a loss of 0, which must not look like success."""

    @staticmethod
    def pairs(scenes: Path, **same: str) -> Path:
        """The training pairs without entities, alike in what `same` gives."""
        path = scenes / f"alike-{'-'.join(same)}.jsonl"
        records = Manifest(scenes / "train.jsonl")
        write_manifest(path, [Record(**{"id": r.id, "image": r.image, "text": r.text, **same}) for r in records])
        return path

    @pytest.mark.parametrize("same", [{"text": "a photo"}, {"text": "一张照片"}, {"group": "album"}])
    def test_one_text_or_one_group_for_all_ends_the_run(
        self, same: dict[str, str], scenes: Path, tmp_path: Path
    ) -> None:
        alike = f"data.train={self.pairs(scenes, **same)}"
        with pytest.raises(TrainingError, match="nothing to contrast: no row of coarse and fine had both"):
            train(miniature.demo_config(scenes, tmp_path / "run", alike))

    def test_one_level_without_boxes_is_reported_and_the_other_learns(
        self, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert train(miniature.demo_config(scenes, tmp_path / "run", f"data.train={self.pairs(scenes)}")).finished
        assert capsys.readouterr().err.count("the fine level has nothing to contrast") == 1

    def test_usual_pairs_are_not_reported(
        self, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        train(miniature.demo_config(scenes, tmp_path / "run", "train.steps=1"))
        assert "nothing to contrast" not in capsys.readouterr().err
