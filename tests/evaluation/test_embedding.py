"""Alignment, uniformity and modality gap against plain loops, and what they say of features that are known."""

import math
from dataclasses import replace

import pytest
import torch

import metric_reference
from banks import make_bank, random_bank
from spanbox.evaluation import embedding
from spanbox.evaluation.embedding import Kind, alignment_outcomes, embedding_figures, modality_gap, uniformity
from spanbox.evaluation.extract import FeatureBank
from spanbox.evaluation.outcomes import figures_of


def embedding_metrics(bank: FeatureBank) -> dict[str, float]:
    figures = figures_of(alignment_outcomes(bank), intervals=False) | embedding_figures(bank, intervals=False)
    return {key: value for name, figure in figures.items() for key, value in figure.named(name).items()}


def on_the_sphere(rows: int, features: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, features, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("seed", range(20))
def test_all_equal_the_plain_loop(seed: int) -> None:
    bank = random_bank(seed)
    assert embedding_metrics(bank) == pytest.approx(metric_reference.embedding_metrics(bank))


def test_worked_out_by_hand() -> None:
    # Sentences (1, 0) and (0, 1), images (1, 0) and (-1, 0).
    bank = make_bank(text=torch.eye(2), image=torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    metrics = embedding_metrics(bank)
    assert metrics["embedding.coarse.alignment"] == (0 + 2) / 2
    assert metrics["embedding.coarse.alignment.chance"] == (0 + 4 + 2 + 2) / 4
    assert metrics["embedding.coarse.uniformity.sentences"] == pytest.approx(-2 * 2)
    assert metrics["embedding.coarse.uniformity.images"] == pytest.approx(-2 * 4)
    assert metrics["embedding.coarse.modality_gap"] == pytest.approx(math.hypot(0.5, 0.5))


@pytest.mark.slow
def test_features_spread_over_the_sphere() -> None:
    bank = make_bank(text=on_the_sphere(1000, seed=1), image=on_the_sphere(1000, seed=2))
    metrics = embedding_metrics(bank)
    assert metrics["embedding.coarse.alignment"] == pytest.approx(2.0, abs=0.05)
    assert metrics["embedding.coarse.alignment.chance"] == pytest.approx(2.0, abs=0.05)
    assert metrics["embedding.coarse.uniformity.images"] == pytest.approx(-3.88, abs=0.02)
    assert metrics["embedding.coarse.modality_gap"] < 0.1


def test_collapsed_features() -> None:
    metrics = embedding_metrics(make_bank(text=on_the_sphere(1).repeat(5, 1)))
    assert metrics["embedding.coarse.alignment"] == 0.0
    assert metrics["embedding.coarse.uniformity.sentences"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["embedding.coarse.modality_gap"] == 0.0


def test_a_single_image_has_no_uniformity() -> None:
    metrics = embedding_metrics(make_bank(text=torch.eye(3), group=[4, 4, 4]))
    assert not any(".uniformity." in name for name in metrics)
    assert metrics["embedding.coarse.alignment.count"] == 3


def test_a_sample_of_a_single_image_has_no_uniformity(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a set in which nearly all regions are of one image; the mean over no pair would be NaN."""
    monkeypatch.setattr(embedding, "SAMPLE", 1)
    assert not any(".uniformity." in name for name in embedding_metrics(make_bank(text=torch.eye(3))))


def test_features_that_are_nan_leave_their_level_out() -> None:
    bank = random_bank(0)
    bank = replace(bank, regions=bank.regions.index_fill(0, torch.tensor([0]), math.nan))
    metrics = embedding_metrics(bank)
    assert not any(name.startswith("embedding.fine.") for name in metrics)
    assert "embedding.coarse.alignment" in metrics


def test_without_links_there_is_no_fine_level() -> None:
    assert not any(".fine." in name for name in embedding_metrics(make_bank(pairs=3)))


def test_a_large_set_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = make_bank(text=on_the_sphere(600))
    whole = embedding_metrics(bank)["embedding.coarse.uniformity.sentences"]
    monkeypatch.setattr(embedding, "SAMPLE", 300)
    metrics = embedding_metrics(bank)
    assert metrics["embedding.coarse.uniformity.sentences.count"] == 300
    assert metrics["embedding.coarse.uniformity.sentences"] == pytest.approx(whole, abs=0.02)
    assert metrics["embedding.coarse.modality_gap.count"] == 1200


def test_intervals_hold_their_figure() -> None:
    first = Kind(on_the_sphere(200, seed=1) + 0.05, torch.arange(200) // 2)
    second = Kind(on_the_sphere(100, seed=2), torch.arange(100))
    for figure in (modality_gap(first, second), uniformity(first)):
        assert figure.interval is not None
        assert figure.interval.low < figure.value < figure.interval.high


def test_no_gap_has_an_interval_without_width() -> None:
    kind = Kind(torch.eye(3), torch.arange(3))
    assert modality_gap(kind, kind).value == 0.0
