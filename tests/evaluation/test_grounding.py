"""Grounding over proposals: boxes worked out by hand. Against the plain loop it stands in `test_matching`."""

import pytest
import torch

from banks import make_bank
from spanbox.evaluation.grounding import grounding_outcomes
from spanbox.evaluation.own_image import score_own_image

OWN = [0.0, 0.0, 0.4, 0.4]
TWICE_AS_WIDE = [0.0, 0.0, 0.8, 0.4]  # IoU 0.5, centre on the edge
WIDER = [0.0, 0.0, 0.82, 0.4]
INSIDE = [0.1, 0.1, 0.3, 0.3]  # IoU 0.25, centre in it
ELSEWHERE = [0.6, 0.6, 1.0, 1.0]


def grounded(*best: list[float], own: tuple[list[float], ...] = (OWN,)) -> dict[str, float]:
    """Figures of a span whose own boxes score 0 and the others 1."""
    boxes = [*own, *best]
    bank = make_bank(
        text=torch.ones(1, 1),
        spans=torch.ones(1, 1),
        span_pair=(0,),
        span_identity=(1,),
        regions=torch.tensor([[0.0]] * len(own) + [[1.0]] * len(best)),
        region_pair=(0,) * len(boxes),
        region_box=torch.tensor(boxes),
        links=tuple((0, region) for region in range(len(own))),
    )
    outcomes = grounding_outcomes(score_own_image(bank))
    return {name.removeprefix("grounding."): float(outcome.values.mean()) for name, outcome in outcomes.items()}


@pytest.mark.parametrize(
    ("best", "accuracy", "pointing"),
    [
        (TWICE_AS_WIDE, 1.0, 1.0),
        (WIDER, 0.0, 0.0),
        (INSIDE, 0.0, 1.0),
        (ELSEWHERE, 0.0, 0.0),
        (OWN, 1.0, 1.0),
    ],
    ids=["IoU of one half", "just below", "centre inside", "elsewhere", "the same box"],
)
def test_the_best_region_worked_out_by_hand(best: list[float], accuracy: float, pointing: float) -> None:
    assert grounded(best) == {"accuracy": accuracy, "pointing": pointing}


def test_of_several_best_regions_all_have_to_be_right() -> None:
    assert grounded(OWN, TWICE_AS_WIDE) == {"accuracy": 1.0, "pointing": 1.0}
    assert grounded(OWN, ELSEWHERE) == {"accuracy": 0.0, "pointing": 0.0}


def test_any_of_the_entitys_boxes_will_do() -> None:
    assert grounded(ELSEWHERE, own=(OWN, ELSEWHERE)) == {"accuracy": 1.0, "pointing": 1.0}


def test_a_linked_region_without_an_area_is_right() -> None:
    point = [0.5, 0.5, 0.5, 0.5]
    assert grounded(own=(point,)) == {"accuracy": 1.0, "pointing": 1.0}


def test_boxes_of_other_spans_are_candidates_like_any_other() -> None:
    bank = make_bank(
        text=torch.ones(1, 1),
        spans=torch.ones(2, 1),
        span_pair=(0, 0),
        span_identity=(1, 2),
        regions=torch.tensor([[0.0], [1.0]]),
        region_pair=(0, 0),
        region_box=torch.tensor([OWN, ELSEWHERE]),
        links=((0, 0), (1, 1)),
    )
    outcome = grounding_outcomes(score_own_image(bank))["grounding.accuracy"]
    assert outcome.values.tolist() == [0.0, 1.0]
    assert outcome.chance is not None
    assert outcome.chance.tolist() == [0.5, 0.5]
