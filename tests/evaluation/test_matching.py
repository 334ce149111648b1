"""Entity-object matching against cases worked out by hand and plain loops."""

import math

import pytest
import torch

import metric_reference
from banks import make_bank, random_bank
from spanbox.evaluation.evaluate import evaluate
from spanbox.evaluation.extract import FeatureBank
from spanbox.evaluation.matching import within_image_outcomes
from spanbox.evaluation.own_image import OwnImage, score_own_image
from spanbox.evaluation.ranking import BLOCK_ELEMENTS
from spanbox.metric_names import WITHIN


def matching_metrics(
    bank: FeatureBank, types: list[str | None] | None = None, block_elements: int = BLOCK_ELEMENTS
) -> dict[str, float]:
    """What is measured of spans and regions, but for `embedding`."""
    metrics = evaluate(bank, types, intervals=False, block_elements=block_elements).metrics
    return {name: value for name, value in metrics.items() if name.startswith(("matching.", "grounding."))}


def along_axes(*axes: int, features: int = 4) -> torch.Tensor:
    return torch.eye(features)[list(axes)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_matching_equals_the_plain_loop(seed: int) -> None:
    bank = random_bank(seed)
    types = ["PER", "LOC", None] * len(bank.spans)
    found = matching_metrics(bank, types[: len(bank.spans)])
    assert found == pytest.approx(metric_reference.matching_metrics(bank, types))


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
    assert metrics["matching.within_image.mean_candidates"] == pytest.approx(5 / 3)
    assert metrics["matching.within_image.trivial"] == pytest.approx(1 / 3)
    assert metrics["matching.within_image.hard"] == 0.5
    assert metrics["matching.within_image.hard.count"] == 2
    assert metrics["matching.within_image.hard.chance"] == 0.5
    assert metrics["matching.within_image.candidates.2"] == 0.5
    assert metrics["matching.within_image.candidates.2.count"] == 2
    assert metrics["matching.within_image.r5"] == metrics["matching.within_image.r5.chance"] == 1.0
    assert not any(name.startswith("matching.presence") for name in metrics)  # all are shown


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
    assert metrics["matching.across_set.r1"] == metrics["matching.across_set.r1.chance"] == 1.0


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
    assert metrics["matching.across_set.r1.chance"] == 0.75


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
    assert metrics["matching.across_set.r1.chance"] == 0.5


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
    assert metrics["matching.across_set.r1.chance"] == 0.5


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
    assert metrics["matching.presence.auc"] == 0.5


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


def bank_of_boxes(*boxes: list[float], right: int = 0, scores: list[float] | None = None, span: int = 1) -> FeatureBank:
    """One image with these boxes, of which each of `span` spans is shown by the one that is right."""
    return make_bank(
        text=torch.ones(1, 1),
        spans=torch.ones(span, 1),
        span_pair=(0,) * span,
        span_identity=tuple(range(span)),
        regions=torch.tensor(scores or [0.0] * len(boxes))[:, None],
        region_pair=(0,) * len(boxes),
        region_box=torch.tensor(boxes),
        links=tuple((one, right) for one in range(span)),
    )


WHOLE, HALF, LEFT = [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.5], [0.0, 0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("boxes", "right", "baseline"),
    [((WHOLE, HALF), 0, 1.0), ((WHOLE, HALF), 1, 0.0), ((HALF, LEFT), 0, 0.0), ((HALF,), 0, 1.0)],
    ids=["largest", "smaller", "equal", "alone"],
)
def test_the_baseline_takes_the_largest_box(boxes: tuple[list[float], ...], right: int, baseline: float) -> None:
    metrics = matching_metrics(bank_of_boxes(*boxes, right=right))
    assert metrics["matching.within_image.baseline"] == baseline


@pytest.mark.parametrize(
    ("area", "size"), [(1 / 301, "small"), (1 / 299, "medium"), (0.029, "medium"), (0.031, "large"), (1.0, "large")]
)
def test_sizes(area: float, size: str) -> None:
    metrics = matching_metrics(bank_of_boxes([0.0, 0.0, 1.0, area]))
    assert metrics[f"matching.within_image.size.{size}.count"] == 1
    others = {"small", "medium", "large"} - {size}
    assert not any(f"matching.within_image.size.{other}" in metrics for other in others), "absent, not zero"


def test_the_size_of_an_entity_is_that_of_its_largest_box() -> None:
    bank = make_bank(
        text=torch.ones(1, 1),
        spans=torch.ones(1, 1),
        span_pair=(0,),
        span_identity=(1,),
        regions=torch.ones(3, 1),
        region_pair=(0, 0, 0),
        region_box=torch.tensor([[0.0, 0.0, 0.01, 0.01], [0.0, 0.0, 0.1, 0.1], WHOLE]),
        links=((0, 0), (0, 1)),
    )
    assert matching_metrics(bank)["matching.within_image.size.medium.count"] == 1


@pytest.mark.parametrize(("count", "group"), [(1, None), (2, "2"), (3, "3-5"), (5, "3-5"), (6, "6+"), (40, "6+")])
def test_numbers_of_candidates(count: int, group: str | None) -> None:
    metrics = matching_metrics(bank_of_boxes(*[WHOLE] * count))
    counted = {name for name in metrics if ".candidates." in name and name.endswith(".count")}
    assert counted == ({f"matching.within_image.candidates.{group}.count"} if group else set())


def test_types_worked_out_by_hand() -> None:
    # The right box scores highest for all three spans of one image.
    bank = bank_of_boxes(WHOLE, HALF, scores=[1.0, 0.0], span=3)
    metrics = matching_metrics(bank, ["PER", None, "地点"])
    assert metrics["matching.within_image.type.PER"] == metrics["matching.within_image.type.地点"] == 1.0
    assert metrics["matching.within_image.type.PER.count"] == metrics["matching.within_image.type.地点.count"] == 1
    assert metrics["matching.within_image.count"] == 3


@pytest.mark.parametrize("types", [None, [None]])
def test_unknown_types_have_no_figures(types: list[None] | None) -> None:
    assert not any(".type." in name for name in matching_metrics(bank_of_boxes(WHOLE), types))


def test_a_type_is_compared_once_for_each_span_however_many_there_are() -> None:
    class Name(str):
        compared = 0
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            Name.compared += 1
            return str.__eq__(self, other)

    spans, types = 400, 200
    right = torch.tensor([True, False]).expand(spans, 2)
    known = torch.ones(spans, 2, dtype=torch.bool)
    own = OwnImage(torch.rand(spans, 2), known, right, torch.rand(spans, 2, 4), torch.arange(spans))
    outcomes = within_image_outcomes(own, [Name(f"type {span % types}") for span in range(spans)])
    assert sum(name.startswith(f"{WITHIN}.type.") for name in outcomes) == types
    assert Name.compared <= 4 * spans


def test_queries_are_distinguished_by_their_image() -> None:
    """Pairs of one group show one image: their spans move together in the bootstrap."""
    bank = random_bank(1)
    outcome = within_image_outcomes(score_own_image(bank))["matching.within_image"]
    asks = bank.links[:, 0].unique()
    assert outcome.image.tolist() == bank.group[bank.span_pair[asks]].tolist()


def test_the_constant_answer_across_the_set_worked_out_by_hand() -> None:
    # Identity 1 is asked for twice, identity 2 once: a region that shows 1 is right for two of three.
    metrics = matching_metrics(
        make_bank(
            text=torch.eye(4)[:3],
            spans=along_axes(0, 1, 2),
            span_pair=(0, 1, 2),
            span_identity=(1, 1, 2),
            regions=along_axes(0, 1, 2),
            region_pair=(0, 1, 2),
            links=((0, 0), (1, 1), (2, 2)),
        )
    )
    assert metrics["matching.across_set.r1.baseline"] == pytest.approx(2 / 3)
    # The spans of identity 1 find their own region first; the other of theirs ties with the wrong one.
    assert metrics["matching.across_set.map"] == pytest.approx((2 * (1 + 2 / 3) / 2 + 1) / 3)
