"""What an evaluation leaves in a folder: figures, features that are used again, examples, predictions, the audit."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

import miniature
from geometry_reference import iou
from spanbox.data.manifest import Manifest, ObjectBox, Record, write_manifest
from spanbox.errors import CheckpointError, DataError, OutputError
from spanbox.evaluation.gmner import Prediction, score_file
from spanbox.intervals import bootstrap_mean, rate_interval
from spanbox.metric_names import is_rate
from spanbox.structures import stable_id
from spanbox.wiring import Evaluated, EvaluationOptions, evaluate_checkpoint, evaluate_to_folder, train
from spanbox.wiring.artefacts import data_fingerprint
from spanbox.wiring.embedding import features_folder

FILES = {"metrics.json", "evaluation"}
LIGHT = EvaluationOptions(examples=1, occlusion=4)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences in English and in Chinese."""
    return miniature.write_scenes(tmp_path_factory.mktemp("scenes"), languages=("en", "zh"))


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run. Tests only look at it."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    vocabulary = "model.text.architecture.vocab_size=512"
    return train(miniature.demo_config(scenes, folder, vocabulary, "data.proposals=2")).run_dir


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / "copied", symlinks=True)


@pytest.fixture
def copied_scenes(scenes: Path, tmp_path: Path) -> Path:
    return shutil.copytree(scenes, tmp_path / "scenes")


@pytest.fixture(scope="module")
def evaluated(run: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that an evaluation on the test scenes writes."""
    out = tmp_path_factory.mktemp("evaluated")
    options = EvaluationOptions(examples=2, occlusion=10, predictions=out / "predictions.jsonl")
    evaluate_to_folder(run, scenes / "test.jsonl", out, options, "cpu")
    return out


@pytest.fixture
def examples(evaluated: Path) -> Any:
    return read(evaluated / "evaluation" / "examples.json")


@pytest.fixture(scope="module")
def records(scenes: Path) -> dict[str, Record]:
    return {record.id: record for record in Manifest(scenes / "test.jsonl")}


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


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

    def test_no_validation_data_no_threshold(self, copied: Path, copied_scenes: Path, scenes: Path) -> None:
        best = copied / "checkpoints" / "best" / "config.yaml"
        best.write_text(best.read_text(encoding="utf-8").replace(str(scenes / "val.jsonl"), "nothing.jsonl"), "utf-8")
        metrics = evaluate_to_folder(copied, scenes / "test.jsonl", options=LIGHT, device="cpu")[0].metrics
        assert "matching.presence.f1" not in metrics
        assert "matching.presence.auc" in metrics


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


class TestFeatures:
    def test_are_used_again(self, copied: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first, _ = evaluate_to_folder(copied, scenes / "test.jsonl", options=LIGHT, device="cpu")
        before = [times(folder) for folder in sorted((copied / "evaluation").glob("features-*"))]
        assert len(before) == 2  # of the test and of the validation data
        monkeypatch.setattr("spanbox.wiring.embedding.extract_parts", self.not_again)
        again, _ = evaluate_to_folder(copied, scenes / "test.jsonl", options=LIGHT, device="cpu")
        assert [times(folder) for folder in sorted((copied / "evaluation").glob("features-*"))] == before
        assert again.metrics == first.metrics

    @staticmethod
    def not_again(*arguments: Any) -> Any:
        raise AssertionError("features are there")

    def test_come_with_what_was_met_in_the_data(self, copied: Path, copied_scenes: Path) -> None:
        broken = Manifest(copied_scenes / "test.jsonl")[0]
        (copied_scenes / broken.image).write_bytes(b"")
        runs = [evaluate_to_folder(copied, copied_scenes / "test.jsonl", options=LIGHT, device="cpu") for _ in range(2)]
        for evaluated, _ in runs:
            assert [(incident.kind, incident.sample) for incident in evaluated.incidents] == [
                ("broken image", broken.id)
            ]

    @pytest.mark.parametrize("change", ["manifest", "image", "checkpoint", "settings", "damage", "half"])
    def test_are_made_anew(self, change: str, copied: Path, copied_scenes: Path) -> None:
        manifest = copied_scenes / "test.jsonl"
        checkpoint = (copied / "checkpoints" / "best").resolve()

        def evaluate() -> Evaluated:
            return evaluate_to_folder(copied, manifest, options=LIGHT, device="cpu")[0]

        evaluate()
        folder = features_folder(copied / "evaluation", manifest)
        before = times(folder)
        changes: dict[str, Callable[[], object]] = {
            "manifest": lambda: write_manifest(manifest, Manifest(manifest)[:11]),
            "image": lambda: (copied_scenes / Manifest(manifest)[3].image).touch(),
            "checkpoint": lambda: (checkpoint / "model.safetensors").touch(),
            "settings": lambda: self.replace(checkpoint / "config.yaml", "proposals: 2", "proposals: 1"),
            "damage": lambda: (folder / "regions.npy").write_bytes((folder / "regions.npy").read_bytes()[:-4]),
            "half": lambda: (folder / "bank.json").unlink(),
        }
        changes[change]()
        metrics = evaluate().metrics
        after = times(folder)
        assert after.keys() == before.keys()
        assert all(after[name] != before[name] for name in after)
        assert metrics["retrieval.t2i.r1.count"] == (11 if change == "manifest" else 12)

    @staticmethod
    def replace(path: Path, old: str, new: str) -> None:
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")

    def test_are_no_use_without_the_images(self, copied: Path, copied_scenes: Path) -> None:
        evaluate_to_folder(copied, copied_scenes / "test.jsonl", options=LIGHT, device="cpu")
        for record in Manifest(copied_scenes / "test.jsonl"):
            (copied_scenes / record.image).unlink()
        with pytest.raises(DataError, match="none of its images can be read"):
            evaluate_to_folder(copied, copied_scenes / "test.jsonl", options=LIGHT, device="cpu")


class TestAudit:
    def test_counts_each_part_and_what_is_wrong_in_all(self, evaluated: Path) -> None:
        audit = read(evaluated / "evaluation" / "audit.json")
        assert audit.keys() == {"train", "val", "test", "all"}
        assert [audit[part]["pairs"] for part in ("train", "val", "test")] == [32, 12, 12]
        assert audit["all"]["pairs"] == 56
        assert audit["test"]["entities"] == audit["test"]["entities_with_box"] + audit["test"]["entities_without_box"]

    def test_findings(self, copied: Path, copied_scenes: Path) -> None:
        """The training scenes are looked for where the config has them, the test scenes where they are."""
        manifest = copied_scenes / "test.jsonl"
        (copied_scenes / Manifest(manifest)[0].image).unlink()
        evaluate_to_folder(copied, manifest, options=LIGHT, device="cpu")
        audit = read(copied / "evaluation" / "audit.json")
        assert audit["all"]["missing image"] == 1

    def test_manifests_that_are_gone(self, copied: Path, copied_scenes: Path, scenes: Path) -> None:
        for name in ("train", "val"):
            TestFeatures.replace(
                (copied / "checkpoints" / "best" / "config.yaml").resolve(), str(scenes / f"{name}.jsonl"), "no.jsonl"
            )
        evaluate_to_folder(copied, copied_scenes / "test.jsonl", options=LIGHT, device="cpu")
        assert read(copied / "evaluation" / "audit.json").keys() == {"test", "all"}

    def test_the_validation_data_themselves(self, run: Path, scenes: Path, tmp_path: Path) -> None:
        evaluate_to_folder(run, scenes / "val.jsonl", tmp_path, LIGHT, "cpu")
        audit = read(tmp_path / "evaluation" / "audit.json")
        assert audit.keys() == {"train", "test", "all"}
        assert "id used twice" not in audit["all"]


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
        TestFeatures.replace(checkpoint / "config.yaml", "max_regions: 4", "max_regions: 1")
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


class TestPlaces:
    def test_into_the_run(self, copied: Path, scenes: Path) -> None:
        before = {path.name for path in copied.iterdir()}
        _, path = evaluate_to_folder(copied, scenes / "test.jsonl", options=LIGHT, device="cpu")
        assert path == copied / "metrics.json"
        assert {path.name for path in copied.iterdir()} - before == FILES
        assert {path.name for path in (copied / "evaluation").iterdir()} == {
            "outcomes.npz",
            "examples.json",
            "heatmaps.npz",
            "audit.json",
            *(features_folder(Path(), scenes / f"{name}.jsonl").name for name in ("test", "val")),
        }

    def test_of_a_checkpoint_of_a_run_into_the_run(self, copied: Path, scenes: Path) -> None:
        checkpoint = copied / "checkpoints" / "step-000003"
        _, path = evaluate_to_folder(checkpoint, scenes / "test.jsonl", options=LIGHT, device="cpu")
        assert path == copied / "metrics.json"
        assert read(path)["checkpoint"] == "step-000003"
        assert "metrics.json" not in {path.name for path in checkpoint.iterdir()}

    def test_of_a_checkpoint_alone_into_its_folder(self, run: Path, scenes: Path, tmp_path: Path) -> None:
        alone = shutil.copytree(run / "checkpoints" / "last", tmp_path / "alone")
        _, path = evaluate_to_folder(alone, scenes / "test.jsonl", options=LIGHT, device="cpu")
        assert path == alone / "metrics.json"
        assert (alone / "evaluation" / "outcomes.npz").exists()

    def test_elsewhere(self, run: Path, scenes: Path, tmp_path: Path) -> None:
        _, path = evaluate_to_folder(run, scenes / "test.jsonl", tmp_path / "deep" / "out", LIGHT, "cpu")
        assert path == tmp_path / "deep" / "out" / "metrics.json"
        assert {path.name for path in path.parent.iterdir()} == FILES
        assert not FILES & {path.name for path in run.iterdir()}

    def test_the_figures_alone(self, run: Path, scenes: Path, tmp_path: Path) -> None:
        _, path = evaluate_to_folder(run, scenes / "test.jsonl", tmp_path / "deep" / "m.json", LIGHT, "cpu")
        assert [path.name for path in path.parent.iterdir()] == ["m.json"]
        assert "matching.presence.f1" in read(path)
        assert not FILES & {path.name for path in run.iterdir()}

    def test_where_nothing_can_be_written(self, run: Path, scenes: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        (tmp_path / "metrics.json").mkdir()
        with pytest.raises(OutputError, match=r"file: cannot be written .* name another place"):
            evaluate_to_folder(run, scenes / "test.jsonl", tmp_path / "file", LIGHT, "cpu")
        with pytest.raises(OutputError, match=r"metrics.json: cannot be written"):
            evaluate_to_folder(run, scenes / "test.jsonl", tmp_path, LIGHT, "cpu")
        options = EvaluationOptions(examples=0, occlusion=0, predictions=tmp_path)
        with pytest.raises(OutputError, match=r"cannot be written .* is a folder"):
            evaluate_to_folder(run, scenes / "test.jsonl", tmp_path / "m.json", options, "cpu")

    def test_a_full_disk_leaves_the_evaluation_before(
        self, copied: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        def content() -> dict[str, bytes]:
            return {str(path): path.read_bytes() for path in sorted(copied.rglob("*")) if path.is_file()}

        evaluate_to_folder(copied, scenes / "test.jsonl", options=LIGHT, device="cpu")
        before = content()
        monkeypatch.setattr("spanbox.wiring.evaluating.write_audit", full)
        with pytest.raises(OutputError, match=r"evaluation: cannot be written \(No space left on device\)"):
            evaluate_to_folder(copied, scenes / "test.jsonl", options=LIGHT, device="cpu")
        assert content() == before

    def test_two_manifests_of_one_name(self, copied: Path, scenes: Path, tmp_path: Path) -> None:
        """Their features do not replace each other."""
        other = shutil.copytree(scenes, tmp_path / "other") / "test.jsonl"
        for manifest in (scenes / "test.jsonl", other):
            evaluate_to_folder(copied, manifest, options=EvaluationOptions(None, 0, 0), device="cpu")
        assert len(list((copied / "evaluation").glob("features-test-*"))) == 2


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
