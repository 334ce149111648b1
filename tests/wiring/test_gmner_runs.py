"""GMNER from pretraining to scores: training, resuming, prediction, texts alone, and everything that can be wrong."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import miniature
from spanbox.data.manifest import Entity, Manifest
from spanbox.data.tagged import tokenize
from spanbox.data.tokenizer import train_tokenizer
from spanbox.engine.trainer import Trainer
from spanbox.errors import CheckpointError, ConfigError, DataError, OutputError, SpanboxError
from spanbox.evaluation.gmner import score_file
from spanbox.wiring import GmnerStart, Trained, config_to_resume, load, predict_gmner, train, train_gmner
from spanbox.wiring.gmner_predicting import entities_of_tags

SMALL = ["train.batch_size=8", "train.steps=4", "train.log_every=1", "train.validate_every=2", "train.save_every=2"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.write_scenes(tmp_path_factory.mktemp("scenes"), languages=("en", "zh"))


@pytest.fixture(scope="module")
def pretrained(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "pretrained"
    return train(miniature.demo_config(scenes, run, "data.val=null", "train.steps=1")).run_dir


def train_small(start: GmnerStart, data: Path, run: Path, *overrides: str) -> Trained:
    return train_gmner(start.config([*miniature.paths(data, run), *SMALL, *overrides]), start.run)


@pytest.fixture(scope="module")
def trained(scenes: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run. Tests only look at it."""
    run = tmp_path_factory.mktemp("runs") / "ner"
    assert train_small(GmnerStart(pretrained), scenes, run).finished
    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "last" / "model.safetensors")


def changed(manifest: Path, out: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a manifest with each record changed, beside the images."""
    records = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    for record in records:
        change(record)
    out.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return out


def test_the_heads_start_on_the_pretrained_encoder(scenes: Path, pretrained: Path, tmp_path: Path) -> None:
    frozen = ["model.text.freeze=all", "model.vision.freeze=all"]
    train_small(GmnerStart(pretrained), scenes, tmp_path / "ner", "train.steps=1", "data.val=null", *frozen)
    before, after = weights(pretrained), weights(tmp_path / "ner")
    towers = [name for name in before if name.startswith(("model.text.", "model.vision.", "model.text_projection"))]
    assert towers
    for name in towers:
        assert torch.equal(before[name], after[name.replace("model.", "model.encoder.", 1)]), name


def test_low_rank_updates_of_the_pretrained_encoder(scenes: Path, pretrained: Path, tmp_path: Path) -> None:
    run = tmp_path / "ner"
    train_small(GmnerStart(pretrained), scenes, run, "data.val=null", "model.text.lora={rank: 2}")
    before, after = weights(pretrained), weights(run)
    plain = {name.replace(".base_layer.", "."): tensor for name, tensor in after.items()}
    layers = [name for name in before if name.startswith("model.text.model.encoder.")]
    assert layers
    for name in layers:
        assert torch.equal(before[name], plain[name.replace("model.", "model.encoder.", 1)]), name
    assert any(tensor.any() for name, tensor in after.items() if ".lora_B." in name)
    assert len(predict_gmner(run, scenes / "test.jsonl", device="cpu").predictions) == 12


def test_the_temperature_is_set_where_no_fine_level_learned_one(scenes: Path, tmp_path: Path) -> None:
    coarse = ["data.val=null", "train.steps=1", "loss.fine.weight=0"]
    train(miniature.demo_config(scenes, tmp_path / "coarse", *coarse))
    given = ["data.val=null", "train.steps=1", "gmner.temperature=0.3"]
    train_small(GmnerStart(tmp_path / "coarse"), scenes, tmp_path / "ner", *given)
    line = json.loads((tmp_path / "ner" / "log.jsonl").read_text().splitlines()[0])
    assert line["temperature.regions"] == pytest.approx(0.3, rel=0.01)


def test_the_temperature_is_that_which_a_schedule_reached(scenes: Path, tmp_path: Path) -> None:
    schedule = ["temperature=0.2", "temperature_end=0.02", "temperature_schedule=linear"]
    settings = ["data.val=null", "train.steps=5", *(f"loss.fine.{one}" for one in schedule)]
    train(miniature.demo_config(scenes, tmp_path / "cooled", *settings))
    train_small(GmnerStart(tmp_path / "cooled"), scenes, tmp_path / "ner", "data.val=null", "train.steps=1")
    line = json.loads((tmp_path / "ner" / "log.jsonl").read_text().splitlines()[0])
    assert line["temperature.regions"] == pytest.approx(0.2 - 0.18 * 0.9, rel=0.02)  # of the last of five steps


def test_the_log_and_the_best_checkpoint(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    assert {"loss.tags", "loss.regions", "temperature.regions"} <= steps[0].keys()
    assert [line["step"] for line in lines if line["kind"] == "validation"] == [2, 4]
    assert {"gmner.f1", "mner.f1", "eeg.f1"} <= next(line for line in lines if line["kind"] == "validation").keys()
    assert (trained / "checkpoints" / "best").exists()


def test_a_resumed_run_is_the_same_bit_for_bit(
    scenes: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, run = GmnerStart(pretrained), tmp_path / "parts"
    train_small(start, scenes, tmp_path / "whole")
    step = Trainer.train_step

    def stopped_at_three(trainer: Trainer, *arguments: Any) -> Any:
        losses = step(trainer, *arguments)
        trainer._stop.received = trainer.step == 3
        return losses

    monkeypatch.setattr(Trainer, "train_step", stopped_at_three)
    assert not train_small(start, scenes, run).finished
    monkeypatch.undo()
    assert train_gmner(config_to_resume(run, [])).finished
    whole, parts = weights(tmp_path / "whole"), weights(run)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_predictions_are_what_spanbox_score_reads(scenes: Path, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "predictions.jsonl"
    found = predict_gmner(trained, scenes / "test.jsonl", out=out, device="cpu")
    again = score_file(out, scenes / "test.jsonl")
    assert again.metrics() == found.scores.metrics()
    manifest = Manifest(scenes / "test.jsonl")
    assert [one.id for one in found.predictions] == [record.id for record in manifest]
    for prediction, record in zip(found.predictions, manifest, strict=True):
        objects = [tuple(map(round, proposal.box)) for proposal in record.objects]
        for entity in prediction.entities:
            assert 0 <= entity.start < entity.end <= len(record.text)
            assert entity.box is None or tuple(map(round, entity.box)) in objects


@pytest.mark.parametrize("name", ["cafe\u0301", "❤\ufe0f", "咖啡"])
def test_an_entity_ends_with_the_marks_that_the_tokenizer_removes(name: str) -> None:
    text = f"{name} bar"
    tokens = tokenize(train_tokenizer([text] * 3, 100), [text], 16)
    inside = tokens.offsets[0][tokens.tagged[0]].tolist()
    tags = [1, *[2] * (len(inside) - 2), 0]
    assert entities_of_tags(text, tags, inside, ["place"]) == (Entity(0, len(name), type="place"),)


def test_predictions_do_not_replace_the_manifest(scenes: Path, trained: Path, tmp_path: Path) -> None:
    manifest = changed(scenes / "test.jsonl", tmp_path / "data.jsonl", lambda record: None)
    before = manifest.read_bytes()
    with pytest.raises(OutputError, match=r"data\.jsonl: is read by this command, so it is not replaced"):
        predict_gmner(trained, manifest, out=manifest, device="cpu")
    assert manifest.read_bytes() == before


def test_a_pair_without_objects_gets_no_box(scenes: Path, trained: Path) -> None:
    def without_objects(record: dict[str, Any]) -> None:
        if not record["id"].endswith("3"):
            record.pop("objects")

    manifest = changed(scenes / "test.jsonl", scenes / "few-objects.jsonl", without_objects)
    found = predict_gmner(trained, manifest, device="cpu")
    for prediction, record in zip(found.predictions, Manifest(manifest), strict=True):
        assert record.objects or all(entity.box is None for entity in prediction.entities)


def test_a_broken_image_costs_the_boxes_alone(scenes: Path, trained: Path) -> None:
    manifest = changed(scenes / "test.jsonl", scenes / "broken.jsonl", lambda record: None)
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    lines[0]["image"] = "nowhere.jpg"
    (scenes / "nowhere.jpg").write_bytes(b"no image")
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = predict_gmner(trained, manifest, device="cpu")
    assert [incident.kind for incident in found.incidents] == ["broken image"]
    assert all(entity.box is None for entity in found.predictions[0].entities)
    assert len(found.predictions) == len(lines)


def test_texts_alone_need_no_image(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for split in ("train", "val"):
        shutil.copy(scenes / f"{split}.jsonl", tmp_path / "texts")
    start = GmnerStart(recipe="demo", text_only=True)
    towers = [*miniature.TOWERS, "train.device=cpu"]
    trained = train_small(start, tmp_path / "texts", tmp_path / "ner", *towers)
    assert trained.best.keys() == {"mner.f1", "mner.precision", "mner.recall"}
    found = predict_gmner(tmp_path / "ner", tmp_path / "texts" / "val.jsonl", device="cpu")
    assert not found.grounds
    assert found.boxes == 0
    assert "loss.regions" not in (tmp_path / "ner" / "log.jsonl").read_text()


def test_a_model_that_grounds_predicts_for_texts_alone_too(scenes: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copy(scenes / "val.jsonl", tmp_path)
    found = predict_gmner(trained, tmp_path / "val.jsonl", text_only=True, device="cpu")
    assert found.boxes == 0


def test_each_kind_of_run_is_refused_by_the_other(scenes: Path, pretrained: Path, trained: Path) -> None:
    with pytest.raises(CheckpointError, match="is a pretrained model without entity types"):
        predict_gmner(pretrained, scenes / "test.jsonl", device="cpu")
    with pytest.raises(CheckpointError, match="is a GMNER model"):
        load(trained)
    with pytest.raises(CheckpointError, match="is a GMNER model"):
        train_small(GmnerStart(trained), scenes, trained.parent / "again")
    with pytest.raises(ConfigError, match="is not a run of `spanbox gmner train`"):
        config_to_resume(pretrained, [])


@pytest.mark.parametrize("types", [[], "PER", [1], ["PER"] * 501, {"PER": 1}, ["PER"]])
def test_types_that_are_damaged(types: object, trained: Path, scenes: Path, tmp_path: Path) -> None:
    """The last ones are names, but fewer than the weights have tags."""
    folder = shutil.copytree((trained / "checkpoints" / "last").resolve(), tmp_path / "checkpoint")
    architecture = json.loads((folder / "architecture.json").read_text())
    (folder / "architecture.json").write_text(json.dumps(architecture | {"types": types}))
    with pytest.raises(CheckpointError, match=r"types is not a list|another architecture"):
        predict_gmner(folder, scenes / "test.jsonl", device="cpu")


def without_types(record: dict[str, Any]) -> None:
    for entity in record["entities"]:
        entity.pop("type")


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no types": (without_types, "entities without a type"),
    "no entities": (lambda record: record.update(entities=[]), "no pair has entities"),
    "no candidates": (lambda record: record.update(objects=[]), "no pair has `objects`"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_data_that_cannot_be_trained_on(fault: str, scenes: Path, pretrained: Path, tmp_path: Path) -> None:
    change, message = FAULTS[fault]
    changed(scenes / "train.jsonl", scenes / f"{fault}.jsonl", change)
    overrides = [f"data.train={scenes}/{fault}.jsonl", "data.val=null"]
    with pytest.raises(DataError, match=message):
        train_small(GmnerStart(pretrained), scenes, tmp_path / "ner", *overrides)
    assert not (tmp_path / "ner").exists()


@pytest.mark.parametrize(
    "setting",
    [
        "train.start=runs/other",
        "train.cache_frozen=cache",
        "data.views.count=2",
        "data.neighbours=neighbours.npy",
        "data.mining.every=1",
        "data.augment={copies: 2, image: {preset: light}}",
    ],
)
def test_settings_of_pretraining_alone_are_refused(
    setting: str, scenes: Path, pretrained: Path, tmp_path: Path
) -> None:
    key = setting.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"^{re.escape(key)}.*: is (used|read) by `spanbox train` alone; "):
        train_small(GmnerStart(pretrained), scenes, tmp_path / "ner", setting)
    assert not (tmp_path / "ner").exists()


def test_a_metric_that_is_not_measured(scenes: Path, pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(SpanboxError, match=r"train.best_metric: 'retrieval.t2i.r1' is not measured here"):
        train_small(GmnerStart(pretrained), scenes, tmp_path / "ner", "train.best_metric=retrieval.t2i.r1")
