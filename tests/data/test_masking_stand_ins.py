"""Masked views of degenerate input: what stands in where nothing can be hidden or kept, and any input at all."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import settings as trials
from hypothesis import strategies as st
from torch import Tensor

from drawn_views import (
    CORNERS,
    GRID,
    LINKS,
    NO_LINKS,
    NO_REGIONS,
    REGIONS,
    SHAPES,
    draw,
    kept,
    names,
    only,
    proposals_of,
)
from spanbox.data.masking import STRATEGIES, MaskSettings, Proposals
from spanbox.geometry import box_coverage

WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])


@pytest.mark.parametrize("strategy", ["object", "background"])
@pytest.mark.parametrize("links", [NO_LINKS, torch.zeros(0, 0, dtype=torch.bool)], ids=["no boxes", "no entities"])
def test_without_boxes_a_random_view_stands_in(strategy: str, links: Tensor) -> None:
    plan = draw(only(strategy, ratio=0.5), NO_REGIONS, links)
    assert names(plan) == {"random"}
    assert set(kept(plan)) == {98}


def test_without_entities_an_object_view_hides_a_proposal() -> None:
    plan = draw(only("object", proposal_share=0.0), NO_REGIONS, NO_LINKS, proposals_of(CORNERS[:1], 0.1))
    assert names(plan) == {"object"}
    assert box_coverage(CORNERS[:1], plan.hidden).min() > 1 - 1e-6


def test_without_proposals_an_object_view_hides_an_entity() -> None:
    assert draw(only("object", proposal_share=1.0), links=LINKS[:1]).coverage[:, 0].min() > 1 - 1e-6


def test_a_box_of_the_whole_image_cannot_be_hidden() -> None:
    plan = draw(only("object", ratio=0.5), WHOLE, torch.ones(1, 1, dtype=torch.bool), proposals_of(WHOLE, 1.0))
    assert names(plan) == {"random"}
    assert set(kept(plan)) == {98}


def test_what_can_be_hidden_is_hidden_instead_of_the_whole_image() -> None:
    regions, links = torch.cat([WHOLE, REGIONS[:1]]), torch.eye(2, dtype=torch.bool)
    plan = draw(only("object"), regions, links)
    assert names(plan) == {"object"}
    assert plan.coverage[:, 1].min() > 1 - 1e-6


def test_the_background_of_the_whole_image_is_nothing() -> None:
    plan = draw(only("background", tight=True), WHOLE, torch.ones(1, 1, dtype=torch.bool))
    assert names(plan) == {"background"}
    assert not plan.hidden.any()


def test_a_box_smaller_than_a_cell_hides_and_keeps_its_cell() -> None:
    box, link = torch.tensor([[0.5, 0.5, 0.501, 0.502]]), torch.ones(1, 1, dtype=torch.bool)
    assert draw(only("object"), box, link).coverage.min() > 1 - 1e-6
    assert draw(only("background"), box, link).coverage.max() == 0


def test_boxes_without_area_are_not_there() -> None:
    flat = torch.tensor([[0.2, 0.2, 0.2, 0.6], [0.9, 0.9, 0.1, 0.1]])
    for strategy in ("object", "background"):
        plan = draw(only(strategy), flat, torch.eye(2, dtype=torch.bool), proposals_of(flat, 0.5, 0.5))
        assert names(plan) == {"random"}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_grid_of_one_cell_hides_nothing(strategy: str) -> None:
    assert not draw(only(strategy), grid=1, proposals=proposals_of(CORNERS, 0.5, 0.5)).hidden.any()


def test_no_views() -> None:
    plan = draw(MaskSettings(count=0))
    assert plan.hidden.shape == (0, GRID, GRID)


corner = st.floats(0, 1, width=32)
any_boxes = st.lists(st.tuples(corner, corner, corner, corner), max_size=3).map(
    lambda rows: torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
)


@pytest.mark.slow
@trials(deadline=None)
@given(
    regions=any_boxes,
    proposals=any_boxes,
    grid=st.integers(1, 9),
    strategy=st.sampled_from(STRATEGIES),
    shape=st.sampled_from(SHAPES),
    tight=st.booleans(),
    levels=st.integers(2, 12),
    ratio=st.floats(0.01, 0.99),
    seed=st.integers(0, 99),
)
@example(
    regions=torch.empty(0, 4),
    proposals=torch.tensor([[0.0, 0.0, 1.0, 4.5682e-43]]),  # a height below the smallest normal number
    grid=2,
    strategy="object",
    shape="patch",
    tight=False,
    levels=2,
    ratio=0.5,
    seed=0,
)
def test_whatever_is_asked(
    regions: Tensor,
    proposals: Tensor,
    grid: int,
    strategy: str,
    shape: str,
    tight: bool,
    levels: int,
    ratio: float,
    seed: int,
) -> None:
    """Something stays visible, object views hide an object, background views keep all, others hide something."""
    settings = only(strategy, count=4, shape=shape, tight=tight, levels=levels, ratio=ratio)
    links = torch.eye(len(regions), dtype=torch.bool)
    plan = draw(settings, regions, links, Proposals(proposals, torch.ones(len(proposals))), grid=grid, seed=seed)
    assert min(kept(plan)) >= 1
    objects = torch.cat([plan.coverage, box_coverage(proposals, plan.hidden)], dim=1)
    for view in range(4):
        match STRATEGIES[int(plan.strategy[view])]:
            case "object":
                assert objects[view].max() > 1 - 1e-5
            case "background":
                assert plan.coverage[view].max() == 0
            case _:
                assert grid == 1 or plan.hidden[view].any()
