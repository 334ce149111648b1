"""Masked views as they are drawn: numbers of cells, boxes hidden and kept, strategies by weight; settings."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
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
from spanbox.data.masking import MaskSettings, MixSettings, kept_levels
from spanbox.geometry import box_coverage, cell_shares

# What is drawn


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("strategy", ["random", "block", "centre"])
def test_the_ratio_is_kept_to_half_a_level(strategy: str, shape: str) -> None:
    plan = draw(only(strategy, ratio=0.7, shape=shape))
    assert names(plan) == {strategy}
    assert plan.hidden.float().mean(dim=(1, 2)).tolist() == pytest.approx([0.7] * 40, abs=1 / 16)


def test_a_range_of_ratios_is_drawn_evenly() -> None:
    hidden = draw(only("random", count=400, ratio=(0.25, 0.75))).hidden.float().mean(dim=(1, 2))
    assert hidden.mean().item() == pytest.approx(0.5, abs=0.03)
    assert hidden.min().item() == pytest.approx(0.25, abs=1 / 16)
    assert hidden.max().item() == pytest.approx(0.75, abs=1 / 16)


def test_random_views_hide_each_cell_as_often() -> None:
    often = draw(only("random", count=2000, ratio=0.5), grid=4).hidden.float().mean(dim=0)
    torch.testing.assert_close(often, torch.full((4, 4), 0.5), atol=0.05, rtol=0)


@pytest.mark.parametrize("ratio", [0.001, (0.001, 0.01)], ids=str)
@pytest.mark.parametrize("strategy", ["random", "block", "centre"])
def test_a_small_ratio_hides_something(strategy: str, ratio: Any) -> None:
    assert set(kept(draw(only(strategy, ratio=ratio)))) == {kept_levels(8, GRID**2)[-2]}


def test_a_large_ratio_leaves_the_lowest_level() -> None:
    assert set(kept(draw(only("random", ratio=0.999)))) == {kept_levels(8, GRID**2)[0]}


@pytest.mark.parametrize("shape", ["rectangle", "ellipse"])
def test_the_centre_is_hidden_from_within(shape: str) -> None:
    """No visible cell is nearer to the centre, as the shape measures it, than a hidden one."""
    from_centre = (torch.arange(GRID) - (GRID - 1) / 2).abs()
    down, across = torch.meshgrid(from_centre, from_centre, indexing="ij")
    distance = torch.maximum(down, across) if shape == "rectangle" else torch.hypot(down, across)
    for hidden in draw(only("centre", shape=shape)).hidden:
        assert distance[hidden].max() <= distance[~hidden].min() + 1e-6


@pytest.mark.parametrize("ratio", [0.25, 0.75])
def test_a_block_is_a_rectangle_but_for_its_last_line(ratio: float) -> None:
    for hidden in draw(only("block", shape="rectangle", ratio=ratio)).hidden:
        rows, columns = hidden.any(dim=1), hidden.any(dim=0)
        spare = int(rows.sum() * columns.sum() - hidden.sum())
        assert spare < max(rows.sum(), columns.sum())


def test_a_block_of_patches_has_a_ragged_edge_around_a_dense_middle() -> None:
    often = draw(only("centre", count=400, shape="patch"), grid=9).hidden.float().mean(dim=0)
    assert often[4, 4] == 1
    assert 0 < often[0, 0] < often[2, 2] < often[3, 4]


@pytest.mark.parametrize("tight", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_object_views_hide_all_boxes_of_an_entity(shape: str, tight: bool) -> None:
    plan = draw(only("object", shape=shape, tight=tight, ratio=0.5))
    assert names(plan) == {"object"}
    first = plan.coverage[:, 0] > 1 - 1e-6
    second = (plan.coverage[:, 1:3] > 1 - 1e-6).all(dim=1)
    assert (first | second).all()
    assert first.any()
    assert second.any()


@pytest.mark.parametrize("tight", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_background_views_keep_all_boxes_of_all_entities(shape: str, tight: bool) -> None:
    plan = draw(only("background", shape=shape, tight=tight, ratio=0.5))
    assert names(plan) == {"background"}
    assert plan.coverage[:, :3].max() == 0
    assert plan.coverage[:, 3].max() > 0, "a region that shows no entity is background"


def touched_cells(regions: Tensor) -> int:
    rows, columns = cell_shares(regions, GRID)
    return int((rows[:, :, None] * columns[:, None] > 0).any(dim=0).sum())


def test_tight_views_hide_and_keep_less_than_a_level_too_much() -> None:
    step = math.ceil(GRID**2 / 8)
    links = LINKS[:1]
    cells = touched_cells(REGIONS[:1])
    hidden = draw(only("object", tight=True, ratio=0.9), links=links).hidden.sum(dim=(1, 2))
    assert ((hidden >= cells) & (hidden < cells + step)).all()
    visible = (~draw(only("background", tight=True, ratio=0.1), links=links).hidden).sum(dim=(1, 2))
    assert ((visible >= cells) & (visible < cells + step)).all()


@pytest.mark.parametrize("strategy", ["object", "background"])
def test_views_that_are_not_tight_come_near_the_ratio(strategy: str) -> None:
    plan = draw(only(strategy, tight=False, ratio=0.6), links=LINKS[:1])
    assert plan.hidden.float().mean(dim=(1, 2)).tolist() == pytest.approx([0.6] * 40, abs=1 / 16)


@pytest.mark.parametrize("shape", ["rectangle", "ellipse"])
def test_what_is_hidden_besides_an_object_lies_next_to_it(shape: str) -> None:
    box = torch.tensor([[0.0, 0.0, 0.2, 0.2]])
    hidden = draw(only("object", shape=shape, tight=False, ratio=0.25), box, torch.ones(1, 1, dtype=torch.bool)).hidden
    assert not hidden[:, 9:].any()
    assert not hidden[:, :, 9:].any()


def test_a_proposal_is_hidden_as_often_as_asked() -> None:
    proposal = proposals_of(torch.tensor([[0.8, 0.0, 1.0, 0.2]]), 0.5)
    plan = draw(only("object", count=1000, tight=True, proposal_share=0.3), links=LINKS[:1], proposals=proposal)
    proposal_hidden = box_coverage(proposal.boxes, plan.hidden)[:, 0] > 1 - 1e-6
    assert (proposal_hidden | (plan.coverage[:, 0] > 1 - 1e-6)).all()
    assert (plan.coverage[:, 0] < 0.9).float().mean().item() == pytest.approx(0.3, abs=0.05)


def share_of_the_first(scores: tuple[float, float]) -> float:
    plan = draw(
        only("object", count=400, shape="rectangle", tight=True), NO_REGIONS, NO_LINKS, proposals_of(CORNERS, *scores)
    )
    hidden = box_coverage(CORNERS, plan.hidden) > 1 - 1e-6
    assert (hidden.sum(dim=1) == 1).all()
    return hidden[:, 0].float().mean().item()


@pytest.mark.parametrize(
    ("scores", "first"),
    [((0.75, 0.25), 0.75), ((0.0, 0.4), 0.0), ((0.0, 0.0), 0.5), ((-1.0, -2.0), 0.5)],
    ids=["by score", "one of score zero", "all scores zero", "scores below zero"],
)
def test_proposals_are_hidden_by_score(scores: tuple[float, float], first: float) -> None:
    assert share_of_the_first(scores) == pytest.approx(first, abs=0.07)


def test_strategies_are_drawn_by_weight() -> None:
    mix = MixSettings(random=1, block=2, centre=0, object=3, background=4)
    plan = draw(MaskSettings(count=2000, mix=mix))
    shares = torch.bincount(plan.strategy, minlength=5) / 2000
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.2, 0.0, 0.3, 0.4]), atol=0.05, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_plan_depends_on_the_generator_alone(shape: str) -> None:
    everything = MixSettings(random=1, block=1, centre=1, object=1, background=1)
    settings = MaskSettings(count=20, mix=everything, ratio=(0.2, 0.8), shape=shape)
    proposals = proposals_of(CORNERS, 0.3, 0.6)
    first = draw(settings, proposals=proposals, seed=3)
    torch.rand(5)
    again = draw(settings, proposals=proposals, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.hidden, draw(settings, proposals=proposals, seed=4).hidden)


# Settings


@pytest.mark.parametrize("ratio", [0, 1, 1.0, -0.1, (0.0, 0.5), (0.5, 1.0), (0.6, 0.5), [0.1, 0.2, 0.3]], ids=str)
def test_ratios_that_are_refused(ratio: Any) -> None:
    with pytest.raises(ValidationError):
        MaskSettings.model_validate({"ratio": ratio})


def test_a_ratio_that_is_refused_says_how_to_fix_it() -> None:
    with pytest.raises(ValidationError, match=r"above 0 and below 1, lowest first.*count=0 draws no views"):
        MaskSettings(ratio=1.0)


def test_a_mix_of_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="raise one, or set count=0"):
        MixSettings(random=0, object=0, background=0)


def test_a_view_cannot_hide_and_keep() -> None:
    with pytest.raises(ValidationError, match="lower keep_coverage"):
        MaskSettings(min_coverage=0.5, keep_coverage=0.5)


def test_settings_survive_being_written_down() -> None:
    settings = MaskSettings(count=2, ratio=(0.2, 0.8), fill="blur", patch=32)
    assert MaskSettings.model_validate(settings.model_dump(mode="json")) == settings
