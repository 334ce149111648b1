"""Evaluations of unusual data and runs: without boxes, of one image, unfinished, older."""

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

import miniature
from evaluations import LIGHT, read
from spanbox.data.manifest import Manifest, write_manifest
from spanbox.errors import CheckpointError, DataError
from spanbox.wiring import EvaluationOptions, evaluate_to_folder, train


def without_boxes(scenes: Path, *, spans: bool) -> Path:
    """The test scenes with nothing that is shown, beside them."""
    path = scenes / f"plain-{spans}.jsonl"
    records = []
    for record in Manifest(scenes / "test.jsonl"):
        entities = tuple(msgspec.structs.replace(entity, boxes=()) for entity in record.entities) if spans else ()
        records.append(msgspec.structs.replace(record, entities=entities, objects=()))
    write_manifest(path, records)
    return path


def first_pairs(scenes: Path, count: int) -> Path:
    path = scenes / f"first-{count}.jsonl"
    write_manifest(path, Manifest(scenes / "test.jsonl")[:count])
    return path


class TestData:
    @pytest.mark.parametrize("spans", [True, False])
    def test_without_boxes(self, spans: bool, run: Path, scenes: Path, tmp_path: Path) -> None:
        manifest = without_boxes(scenes, spans=spans)
        evaluate_to_folder(run, manifest, tmp_path, LIGHT, "cpu")
        metrics = read(tmp_path / "metrics.json")
        assert not [name for name in metrics if name.startswith(("matching", "occlusion", "grounding"))]
        assert "retrieval.i2t.r1.low" in metrics
        examples = read(tmp_path / "evaluation" / "examples.json")
        assert examples["similarity"].keys() == {"coarse"}
        assert "matching" not in examples
        assert ("heatmaps" in examples) == spans  # a span can be looked for where nobody says where it is

    def test_a_single_image(self, run: Path, scenes: Path, tmp_path: Path) -> None:
        evaluate_to_folder(run, first_pairs(scenes, 1), tmp_path, LIGHT, "cpu")
        metrics = read(tmp_path / "metrics.json")
        assert metrics["retrieval.i2t.r1"] == 1.0
        assert "retrieval.i2t.r1.low" not in metrics
        examples = read(tmp_path / "evaluation" / "examples.json")
        assert [one["kind"] for one in examples["retrieval"]["i2t"]] == ["best"]
        assert np.array(examples["similarity"]["coarse"]["matrix"]).shape == (1, 1)

    def test_no_such_manifest(self, run: Path, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"no\.jsonl: no such manifest"):
            evaluate_to_folder(run, tmp_path / "no.jsonl", tmp_path / "out", LIGHT, "cpu")
        assert not (tmp_path / "out").exists()

    def test_no_such_manifest_for_the_threshold(self, run: Path, scenes: Path, tmp_path: Path) -> None:
        options = EvaluationOptions(threshold_from=tmp_path / "no.jsonl", examples=0, occlusion=0)
        with pytest.raises(DataError, match=r"no\.jsonl: no such manifest"):
            evaluate_to_folder(run, scenes / "test.jsonl", tmp_path / "m.json", options, "cpu")

    def test_all_images_are_broken(self, run: Path, copied_scenes: Path, tmp_path: Path) -> None:
        for record in Manifest(copied_scenes / "test.jsonl"):
            (copied_scenes / record.image).write_bytes(b"")
        with pytest.raises(DataError, match="nothing to evaluate"):
            evaluate_to_folder(run, copied_scenes / "test.jsonl", tmp_path, LIGHT, "cpu")
        assert not (tmp_path / "metrics.json").exists()


class TestRuns:
    def test_one_that_is_still_going(self, copied: Path, scenes: Path) -> None:
        """There is no best checkpoint before the first validation."""
        (copied / "checkpoints" / "best").unlink()
        evaluated, _ = evaluate_to_folder(copied, scenes / "test.jsonl", options=LIGHT, device="cpu")
        assert evaluated.checkpoint.name == "step-000006"

    def test_one_without_a_checkpoint_yet(self, copied: Path, scenes: Path) -> None:
        shutil.rmtree(copied / "checkpoints")
        with pytest.raises(CheckpointError, match="no checkpoint here"):
            evaluate_to_folder(copied, scenes / "test.jsonl", options=LIGHT, device="cpu")

    def test_one_of_an_older_version(self, copied: Path, scenes: Path) -> None:
        """It has figures without intervals, and no folder of an evaluation."""
        (copied / "metrics.json").write_text('{"checkpoint": "step-000003", "retrieval.i2t.chance_r1": 0.1}', "utf-8")
        evaluate_to_folder(copied, scenes / "test.jsonl", options=LIGHT, device="cpu")
        metrics = read(copied / "metrics.json")
        assert "retrieval.i2t.chance_r1" not in metrics
        assert "retrieval.i2t.r1.low" in metrics

    def test_regions_from_crops_and_spans_by_themselves(self, scenes: Path, tmp_path: Path) -> None:
        sources = ["model.spans.source=own", "model.regions.source=crop", "model.text.architecture.vocab_size=512"]
        train(miniature.demo_config(scenes, tmp_path / "run", *sources, "train.steps=2"))
        evaluate_to_folder(tmp_path / "run", scenes / "test.jsonl", options=LIGHT, device="cpu")
        assert "occlusion.fine.object" in read(tmp_path / "run" / "metrics.json")

    def test_the_random_state_of_its_user_stays(self, run: Path, scenes: Path, tmp_path: Path) -> None:
        torch.manual_seed(3)
        first, _ = evaluate_to_folder(run, scenes / "test.jsonl", tmp_path / "1", LIGHT, "cpu")
        torch.manual_seed(4)
        second, _ = evaluate_to_folder(run, scenes / "test.jsonl", tmp_path / "2", LIGHT, "cpu")
        assert first.metrics == second.metrics
