"""Entity-object matching against cases worked out by hand and plain loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from banks import make_bank, random_bank
from spanbox.evaluation.matching import area_under_curve, matching_metrics


def along_axes(*axes: int, features: int = 4) -> torch.Tensor:
    return torch.eye(features)[list(axes)]


@pytest.mark.parametrize("seed", range(20))
def test_matching_equals_the_plain_loop(seed: int) -> None:
    bank = random_bank(seed)
    assert matching_metrics(bank) == pytest.approx(reference.matching_metrics(bank))


@pytest.mark.parametrize("block_elements", [1, 50, 400])
def test_blocked_equals_unblocked(block_elements: int) -> None:
    bank = random_bank(5, pairs=19)
    assert matching_metrics(bank, block_elements=block_elements) == matching_metrics(bank)


def test_within_image_worked_out_by_hand() -> None:
    # Pair 0: span 0 scores its region above the other, span 1 below it. Pair 1: one region, cannot go wrong.
    metrics = matching_metrics(
        make_bank(
            pairs=2,
            spans=torch.tensor([[1.0, 0.0], [1.0, 0.5], [0.0, 1.0]]),
            span_pair=(0, 0, 1),
            span_identity=(1, 2, 3),
            regions=torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, -9.0]]),
            region_pair=(0, 0, 1),
            links=((0, 0), (1, 1), (2, 2)),
        )
    )
    assert metrics["matching.within_image"] == pytest.approx(2 / 3)
    assert metrics["matching.within_image.count"] == 3
    assert metrics["matching.within_image.chance"] == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)
    assert metrics["matching.within_image.candidates"] == pytest.approx(5 / 3)
    assert metrics["matching.within_image.trivial"] == pytest.approx(1 / 3)
    assert metrics["matching.within_image.hard"] == 0.5
    assert metrics["matching.within_image.hard.count"] == 2
    assert metrics["matching.within_image.hard.chance"] == 0.5
    assert metrics["matching.without_box.count"] == 0
    assert "matching.without_box.auc" not in metrics


def test_only_trivial_queries_have_no_hard_metrics() -> None:
    metrics = matching_metrics(
        make_bank(
            spans=torch.ones(1, 1),
            span_pair=(0,),
            span_identity=(1,),
            regions=torch.ones(1, 1),
            region_pair=(0,),
            links=((0, 0),),
        )
    )
    assert metrics["matching.within_image"] == metrics["matching.within_image.trivial"] == 1.0
    assert not any(name.startswith("matching.within_image.hard") for name in metrics)
    assert metrics["matching.across_set.r1"] == metrics["matching.across_set.chance_r1"] == 1.0


def test_an_entity_with_three_boxes_is_found_by_any_of_them() -> None:
    metrics = matching_metrics(
        make_bank(
            text=torch.eye(4)[:1],
            spans=along_axes(2),
            span_pair=(0,),
            span_identity=(1,),
            regions=along_axes(0, 1, 2, 3),
            region_pair=(0, 0, 0, 0),
            links=((0, 0), (0, 1), (0, 2)),
        )
    )
    assert metrics["matching.within_image"] == metrics["matching.within_image.hard"] == 1.0
    assert metrics["matching.within_image.chance"] == 0.75
    assert metrics["matching.across_set.median_rank"] == 1.0
    assert metrics["matching.across_set.chance_r1"] == 0.75


def test_one_identity_with_boxes_in_several_images() -> None:
    # Each span matches the region of the other image that shows the same identity, not its own.
    metrics = matching_metrics(
        make_bank(
            text=torch.eye(4)[:2],
            spans=along_axes(1, 0),
            span_pair=(0, 1),
            span_identity=(1, 1),
            regions=along_axes(0, 2, 1, 3),
            region_pair=(0, 0, 1, 1),
            links=((0, 0), (1, 2)),
        )
    )
    assert metrics["matching.within_image"] == 0.0, "both regions of the image score 0: a tie"
    assert metrics["matching.across_set.r1"] == 1.0
    assert metrics["matching.across_set.chance_r1"] == 0.5


def test_a_region_repeated_under_another_caption_is_no_negative() -> None:
    # Two captions of one image call the same box by different names; a third pair shows another image.
    metrics = matching_metrics(
        make_bank(
            text=torch.eye(4)[:3],
            group=[8, 8, 9],
            spans=along_axes(0, 0),
            span_pair=(0, 1),
            span_identity=(1, 2),
            regions=along_axes(0, 0, 1),
            region_pair=(0, 1, 2),
            links=((0, 0), (1, 1)),
        )
    )
    assert metrics["matching.across_set.r1"] == 1.0
    assert metrics["matching.across_set.chance_r1"] == 0.5


def test_collapsed_features_rank_last() -> None:
    point = torch.nn.functional.normalize(torch.rand(1, 33, generator=torch.Generator().manual_seed(2)), dim=1)
    metrics = matching_metrics(
        make_bank(
            pairs=2,
            spans=point.repeat(3, 1),
            span_pair=(0, 1, 1),
            span_identity=(1, 2, 3),
            regions=point.repeat(6, 1),
            region_pair=(0, 0, 0, 1, 1, 1),
            links=((0, 0), (1, 5)),
        )
    )
    assert metrics["matching.within_image"] == 0.0
    assert metrics["matching.across_set.median_rank"] == 6.0
    assert metrics["matching.without_box.auc"] == 0.5


def test_scores_that_are_nan_rank_last() -> None:
    metrics = matching_metrics(
        make_bank(
            spans=torch.tensor([[1.0], [math.nan]]),
            span_pair=(0, 0),
            span_identity=(1, 2),
            regions=torch.tensor([[-1.0], [math.nan]]),
            region_pair=(0, 0),
            links=((0, 0), (1, 1)),
        )
    )
    assert metrics["matching.within_image"] == 0.5
    assert metrics["matching.across_set.median_rank"] == 1.5


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"spans": torch.ones(1, 1), "span_pair": (0,), "span_identity": (1,)},
        {"regions": torch.ones(1, 1), "region_pair": (0,)},
        {
            "spans": torch.ones(1, 1),
            "span_pair": (0,),
            "span_identity": (1,),
            "regions": torch.ones(1, 1),
            "region_pair": (0,),
        },
    ],
    ids=["neither", "no regions", "no spans", "no links"],
)
def test_without_links_there_are_no_fine_metrics(parts: dict) -> None:
    assert matching_metrics(make_bank(**parts)) == {}


def test_entities_without_a_box_worked_out_by_hand() -> None:
    # With a box: best scores 3 and 1. Without: 1 and -1, and one in an image without any region.
    metrics = matching_metrics(
        make_bank(
            pairs=3,
            spans=torch.tensor([[3.0], [1.0], [1.0], [-1.0], [9.0]]),
            span_pair=(0, 1, 0, 1, 2),
            span_identity=(1, 2, 3, 4, 5),
            regions=torch.ones(2, 1),
            region_pair=(0, 1),
            links=((0, 0), (1, 1)),
        )
    )
    assert metrics["matching.without_box.count"] == 3
    assert metrics["matching.without_box.auc"] == (1 + 1 + 0.5 + 1) / 4


def test_entities_without_a_box_only_in_images_without_regions_have_no_auc() -> None:
    metrics = matching_metrics(
        make_bank(
            pairs=2,
            spans=torch.ones(2, 1),
            span_pair=(0, 1),
            span_identity=(1, 2),
            regions=torch.ones(1, 1),
            region_pair=(0,),
            links=((0, 0),),
        )
    )
    assert metrics["matching.without_box.count"] == 1
    assert "matching.without_box.auc" not in metrics


SCORES = st.lists(st.sampled_from([-1.0, 0.0, 0.25, 2.0, -math.inf, math.inf]), min_size=1, max_size=12)


@given(SCORES, SCORES)
@settings(max_examples=100, deadline=None)
def test_area_under_curve_equals_the_plain_loop(positive: list[float], negative: list[float]) -> None:
    found = area_under_curve(torch.tensor(positive), torch.tensor(negative))
    assert found == pytest.approx(reference.auc(positive, negative))
