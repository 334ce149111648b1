"""bfloat16 from the first measurement to the metrics, for pooled states of either type."""

from pathlib import Path

import pytest

import miniature
from spanbox.wiring import GmnerStart, evaluate_checkpoint, plan, predict_gmner, train, train_gmner

BFLOAT16 = ["train.precision=bfloat16", "train.chunk_size=auto", "train.steps=2"]


@pytest.mark.parametrize("fusion", ["none", "gated", "conditioned_pooling"])
@pytest.mark.parametrize("pool", ["cls", "mean", "pooler"])
def test_pretraining(pool: str, fusion: str, scenes: Path, tmp_path: Path) -> None:
    pools = [f"model.{tower}.pool={pool}" for tower in ("text", "vision")]
    fused = [f"model.fusion.kind={fusion}", "model.fusion.width=16", "model.fusion.heads=2"]
    config = miniature.demo_config(scenes, tmp_path / "run", *BFLOAT16, *pools, *fused)
    assert plan(config).plain.losses(8) > 0
    assert train(config).finished
    assert 0 <= evaluate_checkpoint(tmp_path / "run", scenes / "test.jsonl").metrics["retrieval.i2t.r1"] <= 1


@pytest.mark.parametrize("pool", ["cls", "pooler"])
def test_gmner(pool: str, scenes: Path, tmp_path: Path) -> None:
    pools = [f"model.{tower}.pool={pool}" for tower in ("text", "vision")]
    pretrained = train(miniature.demo_config(scenes, tmp_path / "pretrained", *BFLOAT16, *pools)).run_dir
    start = GmnerStart(pretrained)
    overrides = [*miniature.paths(scenes, tmp_path / "ner"), *BFLOAT16, "train.batch_size=8"]
    assert train_gmner(start.config(overrides), start.run).finished
    predict_gmner(tmp_path / "ner", scenes / "test.jsonl", out=tmp_path / "predictions.jsonl")
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 12
