"""Figures of an evaluation, of which data they are, and their intervals and counts."""

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from evaluations import LIGHT, read, replace
from spanbox.data.manifest import Manifest, Record, write_manifest
from spanbox.errors import ConfigError
from spanbox.intervals import bootstrap_mean, rate_interval
from spanbox.metric_names import is_rate
from spanbox.structures import stable_id
from spanbox.wiring import EvaluationOptions, evaluate_checkpoint, evaluate_to_folder
from spanbox.wiring.artefacts import data_fingerprint


class TestFigures:
    def test_those_of_the_checkpoint_alone_are_among_them(self, evaluated: Path, run: Path, scenes: Path) -> None:
        metrics = read(evaluated / "metrics.json")
        assert metrics.pop("checkpoint") == (run / "checkpoints" / "best").resolve().name
        assert metrics.pop("data") == str(scenes / "test.jsonl")
        assert metrics.pop("fingerprint") == data_fingerprint(Manifest(scenes / "test.jsonl"))
        assert all(isinstance(value, int | float) for value in metrics.values())
        alone = evaluate_checkpoint(run, scenes / "test.jsonl", "cpu").metrics
        assert metrics.keys() > alone.keys()
        for name, value in alone.items():
            assert metrics[name] == pytest.approx(value), name

    def test_the_fingerprint_is_of_the_data_and_not_of_their_place(self, copied_scenes: Path, tmp_path: Path) -> None:
        manifest = copied_scenes / "test.jsonl"
        first = data_fingerprint(Manifest(manifest))
        moved = shutil.move(copied_scenes, tmp_path / "elsewhere") / manifest.name
        assert data_fingerprint(Manifest(moved)) == first
        image = moved.parent / Manifest(moved)[0].image
        image.write_bytes(image.read_bytes() + b" ")
        assert data_fingerprint(Manifest(moved)) != first
        image.unlink()
        assert data_fingerprint(Manifest(moved)) != first

    def test_have_intervals_types_and_a_threshold_of_the_validation_data(self, evaluated: Path, scenes: Path) -> None:
        metrics = read(evaluated / "metrics.json")
        for name in ("retrieval.i2t.r1", "matching.within_image", "occlusion.fine.object"):
            assert metrics[f"{name}.low"] <= metrics[name] <= metrics[f"{name}.high"]
        types = {
            entity.type for record in Manifest(scenes / "test.jsonl") for entity in record.entities if entity.boxes
        }
        assert {name.split(".")[3] for name in metrics if name.startswith("matching.within_image.type.")} == types
        assert "matching.presence.f1" in metrics
        assert -1.0 <= metrics["matching.presence.threshold"] <= 1.0

    def test_say_what_hiding_the_object_does(self, evaluated: Path) -> None:
        metrics = read(evaluated / "metrics.json")
        for level in ("coarse", "fine"):
            assert metrics[f"occlusion.{level}.share_larger.chance"] == 0.5
            count = metrics[f"occlusion.{level}.object.count"]
            assert count + metrics["occlusion.too_large.count"] == 10
            assert 0.0 <= metrics[f"occlusion.{level}.share_larger"] <= 1.0

    def test_are_means_of_the_outcomes(self, evaluated: Path, scenes: Path) -> None:
        metrics = read(evaluated / "metrics.json")
        groups = {stable_id(record.group_key) for record in Manifest(scenes / "test.jsonl")}
        with np.load(evaluated / "evaluation" / "outcomes.npz", allow_pickle=False) as outcomes:
            names = [key.removesuffix("/values") for key in outcomes.files if key.endswith("/values")]
            assert {"retrieval.t2i.r1", "matching.within_image", "occlusion.coarse.share_larger"} <= set(names)
            assert len(outcomes.files) == 2 * len(names)
            for name in names:
                values, image = outcomes[f"{name}/values"], outcomes[f"{name}/image"]
                assert (values.dtype, image.dtype) == (np.float64, np.int64)
                assert metrics[name] == pytest.approx(values.mean())
                assert set(image.tolist()) <= groups
                interval = (rate_interval if is_rate(name) else bootstrap_mean)(values, image)
                if interval is not None:
                    assert metrics[f"{name}.low"] == pytest.approx(interval.low), name

    def test_a_threshold_of_other_data(self, run: Path, scenes: Path, tmp_path: Path) -> None:
        thresholds = []
        for given in (None, scenes / "val.jsonl", scenes / "train.jsonl"):
            options = EvaluationOptions(threshold_from=given, examples=0, occlusion=0)
            figures, _ = evaluate_to_folder(run, scenes / "test.jsonl", tmp_path / "m.json", options, "cpu")
            thresholds.append(figures.metrics["matching.presence.threshold"])
        assert thresholds[0] == thresholds[1] != thresholds[2]

    def test_no_threshold_of_the_data_that_are_measured(
        self, run: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        validation, out = scenes / "val.jsonl", tmp_path / "m.json"
        metrics = evaluate_to_folder(run, validation, out, LIGHT, "cpu")[0].metrics
        assert "matching.presence.auc" in metrics
        assert not {"matching.presence.f1", "matching.presence.threshold"} & metrics.keys()
        assert "val.jsonl: data.val of this run, so no threshold" in capsys.readouterr().err
        again = EvaluationOptions(threshold_from=scenes / "." / "val.jsonl", examples=0, occlusion=0)
        with pytest.raises(ConfigError, match=r"^--threshold-from: .*val\.jsonl is the evaluated manifest"):
            evaluate_to_folder(run, validation, out, again, "cpu")
        other = EvaluationOptions(threshold_from=scenes / "test.jsonl", examples=0, occlusion=0)
        assert "matching.presence.f1" in evaluate_to_folder(run, validation, out, other, "cpu")[0].metrics

    def test_no_validation_data_no_threshold(self, copied: Path, copied_scenes: Path, scenes: Path) -> None:
        best = copied / "checkpoints" / "best" / "config.yaml"
        best.write_text(best.read_text(encoding="utf-8").replace(str(scenes / "val.jsonl"), "nothing.jsonl"), "utf-8")
        metrics = evaluate_to_folder(copied, scenes / "test.jsonl", options=LIGHT, device="cpu")[0].metrics
        assert "matching.presence.f1" not in metrics
        assert "matching.presence.auc" in metrics


class TestRecords:
    def test_two_pairs_of_one_id(self, run: Path, copied_scenes: Path, tmp_path: Path) -> None:
        """The first of them has a broken image; entities, types and boxes are those of the second."""
        records = list(Manifest(copied_scenes / "test.jsonl"))
        second = msgspec.structs.replace(records[5], id=records[0].id, text=f"{records[5].text} ", entities=())
        longest = max(records, key=lambda record: len(record.entities))
        longest = msgspec.structs.replace(longest, id=records[0].id)
        write_manifest(copied_scenes / "test.jsonl", [second, longest, *records[1:5]])
        (copied_scenes / second.image).write_bytes(b"")
        metrics = evaluate_to_folder(run, copied_scenes / "test.jsonl", tmp_path, LIGHT, "cpu")[0].metrics
        counts = [value for name, value in metrics.items() if ".type." in name and name.endswith(".count")]
        assert sum(counts) == metrics["matching.within_image.count"]
        matching = read(tmp_path / "evaluation" / "examples.json")["matching"]
        assert all(one["entity"] < len(longest.entities) for one in matching)

    def test_more_boxes_than_training_uses(self, copied: Path, copied_scenes: Path) -> None:
        """The limits of training do not hold, and boxes outside of the image say nothing on presence."""
        checkpoint = (copied / "checkpoints" / "best").resolve()
        replace(checkpoint / "config.yaml", "max_regions: 4", "max_regions: 1")
        records = list(Manifest(copied_scenes / "test.jsonl"))
        metrics = evaluate_to_folder(copied, copied_scenes / "test.jsonl", options=LIGHT, device="cpu")[0].metrics
        boxed = [entity for record in records for entity in record.entities if entity.boxes]
        assert metrics["matching.within_image.count"] == len(boxed)
        assert metrics["matching.presence.count"] == sum(len(record.entities) for record in records) - len(boxed)

        def outside(record: Record) -> Record:
            entities = [
                one if one.boxes else msgspec.structs.replace(one, boxes=((900.0, 900.0, 990.0, 990.0),))
                for one in record.entities
            ]
            return msgspec.structs.replace(record, entities=tuple(entities))

        write_manifest(copied_scenes / "test.jsonl", [outside(record) for record in records])
        metrics = evaluate_to_folder(copied, copied_scenes / "test.jsonl", options=LIGHT, device="cpu")[0].metrics
        assert metrics["matching.within_image.count"] == len(boxed)
        assert not any(name.startswith("matching.presence") for name in metrics)

    def test_ambiguous_entities_have_figures_of_their_own(self, run: Path, copied_scenes: Path, tmp_path: Path) -> None:
        records = list(Manifest(copied_scenes / "test.jsonl"))
        ambiguous = msgspec.structs.replace(
            records[0], entities=tuple(msgspec.structs.replace(one, ambiguous=True) for one in records[0].entities)
        )
        write_manifest(copied_scenes / "test.jsonl", [ambiguous, *records[1:]])
        metrics = evaluate_to_folder(run, copied_scenes / "test.jsonl", tmp_path / "m.json", LIGHT, "cpu")[0].metrics
        prefix = "matching.within_image"
        assert metrics[f"{prefix}.links.ambiguous.count"] == sum(bool(one.boxes) for one in ambiguous.entities)
        both = metrics[f"{prefix}.links.ambiguous.count"] + metrics[f"{prefix}.links.certain.count"]
        assert both == metrics[f"{prefix}.count"]
