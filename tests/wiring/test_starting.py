"""Runs that begin with the weights of another run."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import miniature
from spanbox.config import load_config
from spanbox.errors import CheckpointError, ConfigError
from spanbox.wiring import load, plan, train
from spanbox.wiring.gmner_training import train_gmner

STILL = ("train.optimiser.lr=1e-12", "train.optimiser.weight_decay=0")
FUSED = ("model.fusion.kind=gated", "model.fusion.width=16", "model.fusion.heads=2")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.write_scenes(tmp_path_factory.mktemp("scenes"), languages=("en", "zh"))


@pytest.fixture(scope="module")
def first(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(miniature.demo_config(scenes, tmp_path_factory.mktemp("runs") / "first")).run_dir


def started(first: Path, scenes: Path, folder: Path, *more: str) -> Any:
    return train(miniature.demo_config(scenes, folder, f"train.start={first}", *more))


def start_of(first: Path) -> dict[str, Tensor]:
    """The weights that a run begins with: of the best checkpoint."""
    return load_file(load(first).checkpoint / "model.safetensors")


def end_of(run: Path) -> dict[str, Tensor]:
    return load_file(run / "checkpoints" / "last" / "model.safetensors")


def test_towers_projections_and_learned_numbers_are_those_of_the_first_run(
    first: Path, scenes: Path, tmp_path: Path
) -> None:
    run = started(first, scenes, tmp_path / "second", *STILL, "seed=5").run_dir
    before, after = start_of(first), end_of(run)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, msg=name)


def test_a_fusion_is_added(first: Path, scenes: Path, tmp_path: Path) -> None:
    run = started(first, scenes, tmp_path / "fused", *STILL, *FUSED).run_dir
    before, after = start_of(first), end_of(run)
    added = after.keys() - before.keys()
    assert {name.rsplit(".fusion.", 1)[0] for name in added} == {"model", "objective"}
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, msg=name)
    assert load(run).tokenizer.get_vocab() == load(first).tokenizer.get_vocab()


def test_a_fusion_of_another_width_begins_at_random(first: Path, scenes: Path, tmp_path: Path) -> None:
    fused = started(first, scenes, tmp_path / "fused", *FUSED, "train.steps=1").run_dir
    wider = started(fused, scenes, tmp_path / "wider", *FUSED, "model.fusion.width=32", "train.steps=1").run_dir
    assert load(wider).model.fusion.patch_projection[0].out_features == 16


@pytest.mark.parametrize("other", ["model.fusion.kind=cross_attention", "model.fusion.layers=1"])
def test_no_part_of_another_fusion_is_taken_over(other: str, first: Path, scenes: Path, tmp_path: Path) -> None:
    """Nor its temperature: parts that fit by their shape alone belong to what they were trained with."""
    fused = started(first, scenes, tmp_path / "fused", *FUSED, "model.fusion.layers=2", "train.steps=1").run_dir
    learned = "model.fusion.content_projection.1.bias", "objective.fusion.log_scale"
    begun = end_of(started(first, scenes, tmp_path / "new", *FUSED, *STILL, other, "train.steps=1").run_dir)
    run = started(fused, scenes, tmp_path / "other", *FUSED, *STILL, other, "train.steps=1").run_dir
    for name in learned:
        assert not torch.allclose(end_of(fused)[name], begun[name], atol=1e-4)
        torch.testing.assert_close(end_of(run)[name], begun[name], atol=1e-5, rtol=0)


def test_a_temperature_of_another_loss_of_the_fusion_begins_anew(first: Path, scenes: Path, tmp_path: Path) -> None:
    fused = started(first, scenes, tmp_path / "fused", *FUSED, "train.steps=1").run_dir
    assert load(fused).objective.temperatures()["fusion"] != pytest.approx(0.07, rel=1e-6)
    run = started(
        fused, scenes, tmp_path / "other", *FUSED, *STILL, "loss.fusion.loss=sup_con", "train.steps=1"
    ).run_dir
    assert load(run).objective.temperatures()["fusion"] == pytest.approx(0.07, rel=1e-6)


def test_towers_may_be_frozen(first: Path, scenes: Path, tmp_path: Path) -> None:
    frozen = ("model.text.freeze=all", "model.vision.freeze=all")
    after = end_of(started(first, scenes, tmp_path / "frozen", *frozen, *FUSED).run_dir)
    for name, tensor in start_of(first).items():
        in_towers = name.startswith(("model.text.", "model.vision."))
        assert not in_towers or torch.equal(after[name], tensor), name


def test_a_temperature_of_the_config_counts(first: Path, scenes: Path, tmp_path: Path) -> None:
    fixed = ("loss.coarse.temperature=0.5", "loss.coarse.temperature_schedule=fixed", "loss.fine.temperature=0.2")
    run = started(first, scenes, tmp_path / "second", *STILL, *fixed, "train.steps=1").run_dir
    assert load(run).objective.temperatures() == pytest.approx({"coarse": 0.5, "fine": 0.2})


def test_a_bias_of_another_loss_begins_as_published(first: Path, scenes: Path, tmp_path: Path) -> None:
    run = started(first, scenes, tmp_path / "second", *STILL, "loss.coarse.loss=sigmoid", "train.steps=1").run_dir
    objective = load(run).objective
    assert objective.temperatures()["coarse"] == pytest.approx(0.07)  # that of the recipe
    assert objective.biases["coarse"].item() == pytest.approx(-10)


def test_updates_of_lora_are_added(first: Path, scenes: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    lora = ("model.text.lora={rank: 2}", "model.vision.lora={rank: 2}")
    run = started(first, scenes, tmp_path / "adapted", *STILL, *lora).run_dir
    before, after = start_of(first), {name.replace(".base_layer.", "."): one for name, one in end_of(run).items()}
    assert all(".lora_" in name for name in after.keys() - before.keys())
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, msg=name)
    with pytest.raises(
        CheckpointError, match=r"train\.start: .* another architecture (.|\n)*lora as in .*config\.yaml"
    ):
        started(run, scenes, tmp_path / "without", "train.steps=1")
    with pytest.raises(CheckpointError, match=r"lora_A.* is \(2, 32\) in the checkpoint and \(4, 32\) in the model"):
        started(run, scenes, tmp_path / "wider", "model.text.lora={rank: 4}", lora[1])


def test_another_image_size_counts_where_it_is_given(first: Path, scenes: Path, tmp_path: Path) -> None:
    larger = started(first, scenes, tmp_path / "larger", "model.vision.image_size=64", "train.steps=1").run_dir
    assert load(larger).model.preprocessing.image_size == 64
    with pytest.raises(CheckpointError, match=r"the vision tower takes 48 pixels; set model\.vision\.image_size=64"):
        started(larger, scenes, tmp_path / "smaller")


@pytest.mark.parametrize("how", ["its config", "its command"])
def test_the_run_can_be_resumed_when_the_first_one_is_gone(how: str, first: Path, scenes: Path, tmp_path: Path) -> None:
    """By its config.yaml, or as it was begun: the towers are those of its checkpoint, whatever the recipe has."""
    gone = shutil.copytree(first, tmp_path / "first", symlinks=True)
    begun = [*FUSED, "model.text.architecture.hidden_size=64", f"train.start={gone}"]
    half = train(miniature.demo_config(scenes, tmp_path / "run", *begun, "train.steps=2")).run_dir
    shutil.rmtree(gone)
    more = ["train.steps=4", "train.resume=true"]
    own = load_config(str(half / "config.yaml"), more)
    config = own if how == "its config" else miniature.demo_config(scenes, tmp_path / "run", *begun, *more)
    assert train(config).step == 4
    with pytest.raises(ConfigError, match=r"train\.start=gone \(the run began with .*first\): .* would be ignored"):
        train(load_config(str(half / "config.yaml"), [*more, "train.start=gone"]))


def test_plan_measures_the_towers_of_the_first_run(first: Path, scenes: Path, tmp_path: Path) -> None:
    own = plan(miniature.demo_config(scenes, tmp_path))
    other = ("model.text.architecture.hidden_size=64", "model.vision.architecture.hidden_size=64")
    found = plan(miniature.demo_config(scenes, tmp_path, *other, f"train.start={first}"))
    assert found.trained == own.trained


def test_gmner_names_its_own_option(first: Path, scenes: Path, tmp_path: Path) -> None:
    config = miniature.demo_config(scenes, tmp_path / "run", f"train.start={first}", "train.best_metric=gmner.f1")
    with pytest.raises(ConfigError, match="--from RUN"):
        train_gmner(config, first)


def test_a_gmner_model_is_no_beginning(first: Path, scenes: Path, tmp_path: Path) -> None:
    tagged = shutil.copytree(load(first).checkpoint, tmp_path / "gmner")
    architecture = json.loads((tagged / "architecture.json").read_text(encoding="utf-8"))
    (tagged / "architecture.json").write_text(json.dumps(architecture | {"types": ["PER"]}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"train\.start: .* is a GMNER model"):
        started(tagged, scenes, tmp_path / "run")


def test_a_first_run_that_does_not_exist_is_named(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        started(tmp_path / "nowhere", scenes, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_projections_of_another_dimension_are_refused(first: Path, scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"image_projection\.weight is \(16, 32\) in the checkpoint"):
        started(first, scenes, tmp_path / "run", "model.dim=20")
    assert not (tmp_path / "run").exists()
