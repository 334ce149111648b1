"""A run with fusion: trained, evaluated in two stages, looked at, resumed, opened."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import miniature
import spanbox
from spanbox.data.manifest import Manifest
from spanbox.errors import ConfigError
from spanbox.explore.opening import open_session
from spanbox.export import export_model
from spanbox.report.page import make_report
from spanbox.wiring import EvaluationOptions, evaluate_to_folder, fusing, load, plan, train
from spanbox.wiring.embedding import embed, evaluation_dataset

KINDS = ("gated", "cross_attention", "conditioned_pooling")
SMALL = ["model.fusion.width=16", "model.fusion.heads=2", "model.fusion.dropout=0.1"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences in English and in Chinese."""
    return miniature.write_scenes(tmp_path_factory.mktemp("scenes"), languages=("en", "zh"))


def config(scenes: Path, folder: Path, kind: str, *more: str) -> Any:
    return miniature.demo_config(scenes, folder, f"model.fusion.kind={kind}", *SMALL, *more)


@pytest.fixture(scope="module", params=KINDS)
def run(request: pytest.FixtureRequest, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(config(scenes, tmp_path_factory.mktemp("runs") / request.param, request.param)).run_dir


def kind_of(run: Path) -> str:
    return run.name


def test_evaluation_has_both_stages_and_the_report_what_they_look_at(run: Path, scenes: Path, tmp_path: Path) -> None:
    options = EvaluationOptions(examples=1, occlusion=0, rerank=5)
    metrics = evaluate_to_folder(run, scenes / "test.jsonl", tmp_path, options, "cpu")[0].metrics
    for way in ("i2t", "t2i"):
        assert 0 <= metrics[f"retrieval.{way}.reranked.r1"] <= 1
        gain = metrics[f"retrieval.{way}.reranked.r1"] - metrics[f"retrieval.{way}.r1"]
        assert metrics[f"retrieval.{way}.reranked.r1.gain"] == pytest.approx(gain)
    assert ("matching.in_context" in metrics) == (kind_of(run) != "conditioned_pooling")
    (bank,) = (tmp_path / "evaluation").glob("features-test-*")
    assert np.load(bank / "tokens.npy").dtype == np.float16
    examples = json.loads((tmp_path / "evaluation" / "examples.json").read_text())
    assert all("fusion" in one["maps"] for one in examples["heatmaps"])
    assert all(("gate" in one) == (kind_of(run) == "gated") for one in examples["heatmaps"])
    of_text = {record.id: record.text for record in Manifest(scenes / "test.jsonl")}
    for one in examples["heatmaps"]:  # the words that the entity's box looks at
        words = one["words"]
        assert "".join(of_text[one["id"]][start:end] for start, end, _ in words) == of_text[one["id"]].replace(" ", "")
        assert 0 < sum(share for _, _, share in words) <= 1


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_report_shows_maps_gates_and_both_stages(run: Path, scenes: Path, tmp_path: Path, language: Any) -> None:
    copied = shutil.copytree(run, tmp_path / "run", symlinks=True)
    options = EvaluationOptions(examples=1, occlusion=0, rerank=5)
    evaluate_to_folder(copied, scenes / "test.jsonl", None, options, "cpu")
    page = make_report([copied], language).html
    assert {"en": "fusion attention", "zh": "融合注意力"}[language] in page
    assert {"en": "words that the box attends to", "zh": "框所关注的词"}[language] in page
    assert '<span class="word" style="--share: 100.00%"' in page
    assert ({"en": ">gate ", "zh": "门控值"}[language] in page) == (kind_of(run) == "gated")
    assert {"en": "R@1, gain over the towers alone", "zh": "R@1，相对于仅用双塔的增益"}[language] in page


def test_nothing_is_kept_for_re_ranking_where_it_is_off(run: Path, scenes: Path, tmp_path: Path) -> None:
    options = EvaluationOptions(examples=0, occlusion=0, rerank=0)
    metrics = evaluate_to_folder(run, scenes / "test.jsonl", tmp_path, options, "cpu")[0].metrics
    assert not [name for name in metrics if "reranked" in name]
    (bank,) = (tmp_path / "evaluation").glob("features-test-*")
    assert not (bank / "tokens.npy").exists()
    again = EvaluationOptions(examples=0, occlusion=0, rerank=3)  # a bank without tokens does not do
    assert (
        "retrieval.t2i.reranked.r1" in evaluate_to_folder(run, scenes / "test.jsonl", tmp_path, again, "cpu")[0].metrics
    )


def test_the_size_of_what_is_kept_is_told_before(
    run: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fusing, "TELL_FROM", 1)
    options = EvaluationOptions(examples=0, occlusion=0, rerank=3)
    evaluate_to_folder(run, scenes / "test.jsonl", tmp_path, options, "cpu")
    assert "tokens and patches for re-ranking take up to 0 MiB" in capsys.readouterr().err


def test_a_resumed_run_is_the_same_bit_for_bit(run: Path, scenes: Path, tmp_path: Path) -> None:
    """From the checkpoint in the middle, with dropout in the fusion and a random choice of negatives."""
    cut = shutil.copytree(run, tmp_path / "cut", symlinks=True)
    shutil.rmtree(cut / "checkpoints" / "step-000006")
    for name in ("best", "last"):
        (cut / "checkpoints" / name).unlink()
    train(config(scenes, cut, kind_of(run), "train.resume=true"))
    whole, resumed = (load_file(folder / "checkpoints" / "last" / "model.safetensors") for folder in (run, cut))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert any("fusion" in name for name in whole)


def test_a_model_is_opened_with_its_fusion(run: Path) -> None:
    loaded = load(run)
    assert loaded.model.fusion is not None
    assert loaded.model.fusion.settings.kind == kind_of(run)
    assert spanbox.load(run).encode_texts(["a kite", "一只风筝"]).shape == (2, 16)


def test_an_export_states_that_it_lacks_the_fusion(run: Path, tmp_path: Path) -> None:
    (note,) = [note for note in export_model(spanbox.load(run), "transformers", tmp_path / "out") if "fusion" in note]
    assert note in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_a_checkpoint_without_fusion_is_not_resumed_with_one(scenes: Path, tmp_path: Path) -> None:
    train(miniature.demo_config(scenes, tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"model.fusion.kind: gated, but .* was trained with none"):
        train(config(scenes, tmp_path / "run", "gated", "train.resume=true"))


def test_states_of_a_frozen_tower_are_not_cached_with_fusion(scenes: Path, tmp_path: Path) -> None:
    """They pass through a projection that learns."""
    frozen = ["model.vision.freeze=all", f"train.cache_frozen={tmp_path / 'cache'}"]
    with pytest.raises(ConfigError, match=r"train.cache_frozen: not with model.fusion"):
        train(config(scenes, tmp_path / "run", "gated", *frozen))


def test_the_temperature_is_learned_and_not_set_again_on_resume(run: Path, scenes: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(run, tmp_path / "run", symlinks=True)
    with pytest.raises(ConfigError, match=r"loss.fusion.temperature=0.1 \(the run began with 0.07\)"):
        train(config(scenes, copied, kind_of(run), "train.resume=true", "loss.fusion.temperature=0.1"))


def test_a_plan_counts_the_fusion(scenes: Path, tmp_path: Path) -> None:
    """Parameters, cached tokens and patches, and a block of scored pairs."""
    plain = plan(miniature.demo_config(scenes, tmp_path / "run"))
    fused = plan(config(scenes, tmp_path / "run", "cross_attention"))
    assert fused.parameters > plain.parameters
    assert fused.plain.pair > plain.plain.pair
    assert fused.plain.losses(64) > plain.plain.losses(64)


def test_scores_of_any_texts_and_images_are_those_of_an_evaluation(run: Path, scenes: Path) -> None:
    """The bank of an evaluation holds tokens and patches in half precision."""
    model, manifest = spanbox.load(run), Manifest(scenes / "test.jsonl")
    texts = [record.text for record in manifest]
    images = [manifest.image_path(record) for record in manifest]
    scores = model.pair_scores(texts, images)
    dataset = evaluation_dataset(model, manifest)
    bank, _ = embed(model, dataset, keep_states=True)
    of_bank = fusing.pair_scores(model.model, bank)
    assert of_bank is not None
    sentences, pictures = torch.cartesian_prod(torch.arange(len(texts)), torch.arange(len(images))).T
    expected = of_bank(sentences, pictures).reshape(len(texts), len(images))
    torch.testing.assert_close(torch.from_numpy(scores), expected, rtol=0, atol=2e-3)
    assert scores.std() > 0
    torch.testing.assert_close(model.pair_scores(texts, images, batch_size=3), scores, rtol=0, atol=1e-5)
    tensor = model.pair_scores(texts[0], images[1], convert_to_tensor=True)
    torch.testing.assert_close(tensor, torch.tensor(scores[:1, 1:2]), rtol=0, atol=1e-5)
    assert model.pair_scores([], images).shape == (0, len(images))
    assert model.pair_scores(texts, []).shape == (len(texts), 0)


@pytest.mark.parametrize("off", ["weight", "parts_weight"])
def test_scores_that_were_not_trained_are_not_reported(off: str, scenes: Path, tmp_path: Path) -> None:
    run = train(config(scenes, tmp_path / "run", "gated", f"loss.fusion.{off}=0")).run_dir
    metrics = evaluate_to_folder(run, scenes / "test.jsonl", tmp_path, EvaluationOptions(occlusion=0), "cpu")[0].metrics
    assert ("retrieval.i2t.reranked.r1" in metrics) == (off != "weight")
    assert ("matching.in_context" in metrics) == (off != "parts_weight")


def test_a_model_without_fusion_has_no_fused_scores(scenes: Path, tmp_path: Path) -> None:
    model = spanbox.load(train(miniature.demo_config(scenes, tmp_path / "run")).run_dir)
    with pytest.raises(ConfigError, match=r"no fused scores: it was trained with model.fusion.kind=none"):
        model.pair_scores("a kite", [])


def test_the_explorer_shows_the_order_of_the_fusion(run: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, model = Manifest(scenes / "test.jsonl"), spanbox.load(run)
    images = [manifest.image_path(record) for record in manifest]
    monkeypatch.setattr("spanbox.explore.session.RERANKED", 5)
    session = open_session([run], manifest.path, "cpu")
    for query in ("a kite", "一只风筝"):
        proposed = np.argsort(-model.similarity(model.encode_texts(query), model.encode_images(images))[0])[:5]
        scores = model.pair_scores(query, [images[place] for place in proposed])[0]
        hits = session.search_text(query)["models"][0]["hits"]
        assert [hit["pair"] for hit in hits] == proposed[np.argsort(-scores, kind="stable")].tolist()
        np.testing.assert_allclose([hit["score"] for hit in hits], np.sort(scores)[::-1], atol=2e-3)
    hits = session.search_picture(images[0].read_bytes())["models"][0]["hits"]
    assert len(hits) == 5
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
