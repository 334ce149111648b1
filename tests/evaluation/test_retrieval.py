"""Retrieval both ways against plain loops and cases worked out by hand."""

import math

import pytest
import torch

import metric_reference
from banks import make_bank, random_bank
from spanbox.evaluation.extract import FeatureBank
from spanbox.evaluation.outcomes import figures_of
from spanbox.evaluation.ranking import BLOCK_ELEMENTS
from spanbox.evaluation.retrieval import retrieval_outcomes


def retrieval_metrics(bank: FeatureBank, block_elements: int = BLOCK_ELEMENTS) -> dict[str, float]:
    figures = figures_of(retrieval_outcomes(bank, block_elements=block_elements), intervals=False)
    return {key: value for name, figure in figures.items() for key, value in figure.named(name).items()}


@pytest.mark.parametrize("seed", range(10))
def test_retrieval_equals_the_plain_loop(seed: int) -> None:
    bank = random_bank(seed)
    assert retrieval_metrics(bank) == pytest.approx(metric_reference.retrieval_metrics(bank))


@pytest.mark.parametrize("block_elements", [1, 13, 100])
def test_blocked_equals_unblocked(block_elements: int) -> None:
    bank = random_bank(3, pairs=23)
    assert retrieval_metrics(bank, block_elements=block_elements) == retrieval_metrics(bank)


def test_retrieval_worked_out_by_hand_with_several_captions_of_an_image() -> None:
    # Pairs 0 and 2 show the image of group 5; the feature that stands at pair 2 must not be used.
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    image = torch.tensor([[1.0, 0.5], [0.0, 1.0], [-9.0, -9.0]])
    metrics = retrieval_metrics(make_bank(text=text, image=image, group=[5, 7, 5]))
    # Image 0 scores its texts 1, 1 and the other 0.5: first. Image 1 scores its text 1, the others 0 and 2: second.
    assert metrics["retrieval.i2t.r1"] == 0.5
    assert metrics["retrieval.i2t.median_rank"] == metrics["retrieval.i2t.mean_rank"] == 1.5
    # Its texts stand at 1 and 2; that of image 1 at 2.
    assert metrics["retrieval.i2t.map"] == pytest.approx((1 + 1 / 2) / 2)
    assert metrics["retrieval.i2t.r1.count"] == 2
    assert metrics["retrieval.i2t.r1.chance"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    # Text 0: images 1, 0, right. Text 1: 0.5, 1, right. Text 2: 1, 2, wrong.
    assert metrics["retrieval.t2i.r1"] == pytest.approx(2 / 3)
    assert metrics["retrieval.t2i.r5"] == 1.0
    assert metrics["retrieval.t2i.map"] == pytest.approx((1 + 1 + 1 / 2) / 3)
    assert metrics["retrieval.t2i.r1.count"] == 3
    assert metrics["retrieval.t2i.r1.chance"] == pytest.approx(1 / 2)
    # Image 0 has most texts: answered always, it is right for two of three. Both images are among the first five.
    assert metrics["retrieval.t2i.r1.baseline"] == pytest.approx(2 / 3)
    assert metrics["retrieval.t2i.r5.baseline"] == 1.0


def test_collapsed_features_rank_last() -> None:
    point = torch.nn.functional.normalize(torch.rand(1, 65, generator=torch.Generator().manual_seed(1)), dim=1)
    metrics = retrieval_metrics(make_bank(text=point.repeat(20, 1)))
    for direction in ("i2t", "t2i"):
        assert metrics[f"retrieval.{direction}.r10"] == 0.0
        assert metrics[f"retrieval.{direction}.median_rank"] == 20.0
        assert metrics[f"retrieval.{direction}.r1.chance"] == pytest.approx(0.05)


def test_features_that_are_nan_rank_last() -> None:
    metrics = retrieval_metrics(make_bank(text=torch.full((4, 2), math.nan)))
    assert metrics["retrieval.i2t.median_rank"] == 4.0


def test_one_sample() -> None:
    metrics = retrieval_metrics(make_bank(pairs=1))
    assert metrics["retrieval.i2t.r1"] == metrics["retrieval.i2t.r1.chance"] == 1.0


def test_images_with_equally_many_sentences_have_no_baseline() -> None:
    metrics = retrieval_metrics(make_bank(text=torch.eye(4), group=[5, 7, 5, 7]))
    assert not any(name.endswith(".baseline") for name in metrics)


def test_images_with_equally_many_sentences_share_a_place_in_the_baseline() -> None:
    # Seven images: one with three sentences, six with one. Of the six, four are among the first five.
    metrics = retrieval_metrics(make_bank(text=torch.eye(9), group=[0, 0, 0, 1, 2, 3, 4, 5, 6]))
    assert metrics["retrieval.t2i.r1.baseline"] == pytest.approx(3 / 9)
    assert metrics["retrieval.t2i.r5.baseline"] == pytest.approx((3 + 6 * 4 / 6) / 9)


def test_a_single_image_with_several_sentences() -> None:
    metrics = retrieval_metrics(make_bank(text=torch.eye(3), group=[5, 5, 5]))
    assert metrics["retrieval.i2t.r1"] == metrics["retrieval.i2t.map"] == metrics["retrieval.t2i.r1"] == 1.0
    assert (metrics["retrieval.i2t.r1.count"], metrics["retrieval.t2i.r1.count"]) == (1, 3)


def test_queries_bring_the_image_that_they_are_of() -> None:
    outcomes = retrieval_outcomes(make_bank(text=torch.eye(3), group=[5, 7, 5]))
    assert outcomes["retrieval.i2t.r1"].image.tolist() == [5, 7]
    assert outcomes["retrieval.t2i.r1"].image.tolist() == [5, 7, 5]
