"""Examples and predictions that an evaluation leaves: of which pairs, and right as the figures are."""

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import miniature
from evaluations import LIGHT, read
from geometry_reference import iou
from spanbox.data.manifest import Manifest, ObjectBox, Record, write_manifest
from spanbox.errors import DataError
from spanbox.evaluation.gmner import Prediction, score_file
from spanbox.report.reading import read_run
from spanbox.wiring import EvaluationOptions, evaluate_to_folder, train


class TestExamples:
    def test_retrievals_agree_with_the_figures(self, examples: Any, records: dict[str, Record]) -> None:
        assert examples["retrieval"].keys() == {"i2t", "t2i"}
        for found in examples["retrieval"].values():
            assert [one["kind"] for one in found] == ["best", "best", "median", "median", "worst", "worst"]
            for one in found:
                assert one["query"] in records
                assert one["right"]["id"] == one["query"]  # every scene has an image of its own
                assert len(one["found"]) == 5
                assert all(found["right"] == (found["id"] == one["query"]) for found in one["found"])
                assert (one["rank"] <= 5) == any(found["right"] for found in one["found"])

    def test_matches_are_of_entities_and_their_boxes(self, examples: Any, records: dict[str, Record]) -> None:
        assert [one["right"] for one in examples["matching"]] == sorted(one["right"] for one in examples["matching"])
        for one in examples["matching"]:
            boxes = records[one["id"]].entities[one["entity"]].boxes
            linked = [candidate["box"] for candidate in one["candidates"] if candidate["linked"]]
            expected = [[edge / 64 for edge in box] for box in boxes]  # scenes are 64 pixels wide and high
            assert sorted(linked) == [pytest.approx(box, abs=1e-5) for box in sorted(expected)]
            scores = [candidate["score"] for candidate in one["candidates"]]
            assert scores == sorted(scores, reverse=True)
            assert one["right"] == one["candidates"][0]["linked"]

    def test_similarities_of_both_levels(self, examples: Any, records: dict[str, Record]) -> None:
        coarse, fine = examples["similarity"]["coarse"], examples["similarity"]["fine"]
        assert np.array(coarse["matrix"]).shape == (len(coarse["ids"]),) * 2 == (12, 12)
        assert set(coarse["ids"]) <= records.keys()
        shape = len(fine["spans"]), len(fine["regions"])
        assert np.array(fine["matrix"]).shape == np.array(fine["linked"]).shape == shape
        for row, span in enumerate(fine["spans"]):
            for column, region in enumerate(fine["regions"]):
                boxes = [[edge / 64 for edge in box] for box in records[span["id"]].entities[span["entity"]].boxes]
                shown = region["id"] == span["id"] and any(
                    region["box"] == pytest.approx(box, abs=1e-5) for box in boxes
                )
                assert fine["linked"][row][column] == shown

    def test_heatmaps_of_the_matches(self, examples: Any, evaluated: Path) -> None:
        assert [(one["id"], one["entity"]) for one in examples["heatmaps"]] == [
            (one["id"], one["entity"]) for one in examples["matching"]
        ]
        with np.load(evaluated / "evaluation" / "heatmaps.npz", allow_pickle=False) as maps:
            named = [key for one in examples["heatmaps"] for key in one["maps"].values()]
            assert sorted(named) == sorted(maps.files)
            for one in examples["heatmaps"]:
                assert one["maps"].keys() == {"similarity", "rollout"}
            for key in maps.files:
                assert (maps[key].dtype, maps[key].shape) == (np.float32, (3, 3))
                assert (maps[key].min(), maps[key].max()) == (0.0, 1.0)

    def test_name_the_manifest_for_any_working_folder(self, examples: Any, scenes: Path) -> None:
        assert examples["manifest"] == str((scenes / "test.jsonl").absolute())

    def test_name_the_manifest_as_seen_from_their_folder(self, examples: Any, evaluated: Path, scenes: Path) -> None:
        found = evaluated / "evaluation" / examples["manifest_from_here"]
        assert found.resolve() == (scenes / "test.jsonl").resolve()

    def test_none(self, run: Path, scenes: Path, tmp_path: Path) -> None:
        options = EvaluationOptions(examples=0, occlusion=0)
        evaluate_to_folder(run, scenes / "test.jsonl", tmp_path, options, "cpu")
        assert not {"examples.json", "heatmaps.npz"} & {path.name for path in (tmp_path / "evaluation").iterdir()}
        assert not any(name.startswith("occlusion") for name in read(tmp_path / "metrics.json"))

    def test_of_a_crowd_the_report_can_read(self, copied: Path, copied_scenes: Path) -> None:
        path = copied_scenes / "test.jsonl"
        first, *others = Manifest(path)
        crowd = tuple((float(x), float(y), x + 9.5, y + 9.5) for x in range(40) for y in range(30))
        entities = (msgspec.structs.replace(first.entities[0], boxes=crowd), *first.entities[1:])
        write_manifest(path, [msgspec.structs.replace(first, entities=entities), *others])
        evaluate_to_folder(copied, path, options=EvaluationOptions(examples=30, occlusion=0), device="cpu")
        run = read_run(copied)
        assert run.problems == ()
        assert run.examples is not None
        assert first.id in [match.id for match in run.examples.matching]

    def test_those_of_an_earlier_evaluation_are_removed(self, copied: Path, scenes: Path) -> None:
        evaluate_to_folder(copied, scenes / "test.jsonl", options=LIGHT, device="cpu")
        assert (copied / "evaluation" / "examples.json").exists()
        nothing = EvaluationOptions(examples=0, occlusion=0)
        evaluate_to_folder(copied, scenes / "val.jsonl", options=nothing, device="cpu")
        assert not (copied / "evaluation" / "examples.json").exists()

    def test_two_evaluations_show_the_same(self, evaluated: Path, run: Path, scenes: Path, tmp_path: Path) -> None:
        options = EvaluationOptions(examples=2, occlusion=10)
        evaluate_to_folder(run, scenes / "test.jsonl", tmp_path, options, "cpu")
        for name in ("metrics.json", "evaluation/examples.json", "evaluation/audit.json"):
            first, second = read(tmp_path / name), read(evaluated / name)
            assert first | {"manifest_from_here": None} == second | {"manifest_from_here": None}


class TestPredictions:
    def predictions(self, path: Path) -> dict[str, Prediction]:
        lines = path.read_bytes().splitlines()
        decoded = [msgspec.json.decode(line, type=Prediction) for line in lines]
        return {prediction.id: prediction for prediction in decoded}

    def test_are_of_the_gold_spans(self, evaluated: Path, scenes: Path) -> None:
        predictions = self.predictions(evaluated / "predictions.jsonl")
        manifest = Manifest(scenes / "test.jsonl")
        assert list(predictions) == [record.id for record in manifest]
        for record in manifest:
            for entity, predicted in zip(record.entities, predictions[record.id].entities, strict=True):
                assert (predicted.start, predicted.end, predicted.type) == (entity.start, entity.end, entity.type)

    def test_take_the_best_object_in_pixels(self, evaluated: Path, scenes: Path) -> None:
        predictions = self.predictions(evaluated / "predictions.jsonl")
        given = 0
        for record in Manifest(scenes / "test.jsonl"):
            objects = [proposal.box for proposal in record.objects]
            for predicted in predictions[record.id].entities:
                given += predicted.box is not None
                assert predicted.box is None or any(predicted.box == pytest.approx(box, abs=1e-3) for box in objects)
        assert given

    def test_without_a_threshold_every_entity_has_a_region(self, run: Path, scenes: Path, tmp_path: Path) -> None:
        copied = shutil.copytree(run / "checkpoints" / "last", tmp_path / "alone")
        config = copied / "config.yaml"
        config.write_text(config.read_text(encoding="utf-8").replace(str(scenes / "val.jsonl"), "no.jsonl"), "utf-8")
        options = EvaluationOptions(examples=0, occlusion=0, predictions=tmp_path / "deep" / "p.jsonl")
        evaluate_to_folder(copied, scenes / "test.jsonl", options=options, device="cpu")
        for prediction in self.predictions(tmp_path / "deep" / "p.jsonl").values():
            assert all(entity.box is not None for entity in prediction.entities)

    def test_entities_that_the_model_did_not_read_have_none(
        self, run: Path, copied_scenes: Path, tmp_path: Path
    ) -> None:
        for place in (2, 11):  # in the middle, and the last
            broken = Manifest(copied_scenes / "test.jsonl")[place]
            (copied_scenes / broken.image).write_bytes(b"")
        options = EvaluationOptions(examples=0, occlusion=0, predictions=tmp_path / "p.jsonl")
        evaluate_to_folder(run, copied_scenes / "test.jsonl", tmp_path / "m.json", options, "cpu")
        predictions = self.predictions(tmp_path / "p.jsonl")
        assert list(predictions) == [record.id for record in Manifest(copied_scenes / "test.jsonl")]
        entities = predictions[broken.id].entities
        assert len(entities) == len(broken.entities)
        assert all(entity.box is None for entity in entities)

    def test_are_refused_without_candidates(self, run: Path, scenes: Path, tmp_path: Path) -> None:
        """The entities' own boxes are none: any choice among them would look right."""
        path = scenes / "no-objects.jsonl"
        write_manifest(path, [msgspec.structs.replace(one, objects=()) for one in Manifest(scenes / "test.jsonl")])
        options = EvaluationOptions(examples=0, occlusion=0, predictions=tmp_path / "p.jsonl")
        with pytest.raises(DataError, match=r"needs candidates, and no pair has `objects`; add the boxes"):
            evaluate_to_folder(run, path, tmp_path / "m.json", options, "cpu")
        assert not (tmp_path / "m.json").exists()

    def test_an_untrained_model_scores_near_chance(self, scenes: Path, tmp_path: Path) -> None:
        """Among the entities' own boxes it would find everything: here every entity's box has decoys, and the figures
        say that spans and types were given."""
        generator = np.random.default_rng(0)
        records = []
        for record in Manifest(scenes / "train.jsonl"):
            decoys = [ObjectBox((x, y, x + 14.0, y + 14.0)) for x, y in generator.uniform(0, 50, (12, 2)).tolist()]
            shifted = [ObjectBox((x0 + 1, y0, x1 + 1, y1)) for one in record.objects for x0, y0, x1, y1 in [one.box]]
            shown = tuple(entity for entity in record.entities if entity.boxes)  # not shown would be easy to get right
            records.append(msgspec.structs.replace(record, entities=shown, objects=(*shifted, *decoys)))
        manifest = scenes / "decoys.jsonl"
        write_manifest(manifest, records)
        chance = np.mean(
            [
                np.mean([max(iou(list(one.box), list(box)) for box in entity.boxes) > 0.5 for one in record.objects])
                for record in records
                for entity in record.entities
            ]
        )
        untrained = ["train.steps=1", "train.optimiser.lr=1e-12"]
        train(miniature.demo_config(scenes, tmp_path / "run", *untrained, "data.val=null"))
        options = EvaluationOptions(examples=0, occlusion=0, predictions=tmp_path / "p.jsonl")
        evaluate_to_folder(tmp_path / "run", manifest, tmp_path / "m.json", options, "cpu")
        scores = score_file(tmp_path / "p.jsonl", manifest)
        metrics = scores.metrics()
        assert not any(name.startswith(("gmner", "mner", "eeg.")) for name in metrics)
        assert 0 < chance < 0.2
        assert metrics["eeg_gold_spans.f1"] < 2 * chance
        assert "Do not compare this with published results" in scores.notes[0]
