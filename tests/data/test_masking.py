"""Masked views as they are drawn: numbers of cells, boxes hidden and kept, stand-ins, and their grid."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import settings as trials
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

import geometry_reference
from spanbox.data.masking import (
    STRATEGIES,
    MaskSettings,
    MixSettings,
    Proposals,
    ViewPlan,
    draw_views,
    kept_levels,
    mask_grid,
)
from spanbox.errors import ConfigError
from spanbox.geometry import box_coverage, by_kept_count, cell_shares, kept_indices

GRID = 14
REGIONS = torch.tensor([[0.1, 0.1, 0.4, 0.5], [0.5, 0.2, 0.8, 0.9], [0.6, 0.6, 0.7, 0.7], [0.0, 0.0, 0.2, 0.1]])
LINKS = torch.tensor([[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]).bool()  # region 3 shows no entity
WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
NO_REGIONS, NO_LINKS = torch.zeros(0, 4), torch.zeros(1, 0, dtype=torch.bool)
SHAPES = ["patch", "rectangle", "ellipse"]


def only(strategy: str, **others: Any) -> MaskSettings:
    """Settings with which 40 views are drawn by one strategy."""
    mix = dict.fromkeys(STRATEGIES, 0.0) | {strategy: 1.0}
    return MaskSettings.model_validate({"count": 40, "mix": mix} | others)


def draw(
    settings: MaskSettings,
    regions: Tensor = REGIONS,
    links: Tensor = LINKS,
    proposals: Proposals | None = None,
    *,
    grid: int = GRID,
    seed: int = 0,
) -> ViewPlan:
    generator = np.random.default_rng(seed)
    plan = draw_views(settings, grid, regions, links, proposals or Proposals.none(), generator)
    views = settings.count
    assert (plan.hidden.shape, plan.hidden.dtype) == ((views, grid, grid), torch.bool)
    assert (plan.strategy.shape, plan.strategy.dtype) == ((views,), torch.int64)
    assert (plan.coverage.shape, plan.coverage.dtype) == ((views, len(regions)), torch.float32)
    assert set(kept(plan)) <= set(kept_levels(settings.levels, grid**2))
    return plan


def kept(plan: ViewPlan) -> list[int]:
    counts: list[int] = (~plan.hidden).sum(dim=(1, 2)).tolist()
    return counts


def names(plan: ViewPlan) -> set[str]:
    return {STRATEGIES[index] for index in plan.strategy.tolist()}


def proposals_of(boxes: Tensor, *scores: float) -> Proposals:
    return Proposals(boxes, torch.tensor(scores))


# On the grid


edges = st.integers(0, 24)
raster_boxes = st.lists(st.tuples(edges, edges, edges, edges), max_size=4)


@trials(deadline=None)
@given(boxes=raster_boxes, grid=st.sampled_from([1, 2, 3, 4, 6, 8]), seed=st.integers(0, 1000))
def test_coverage_equals_the_count_of_pixels(boxes: list[tuple[int, int, int, int]], grid: int, seed: int) -> None:
    hidden = torch.rand(3, grid, grid, generator=torch.Generator().manual_seed(seed)) < 0.5
    expected = torch.tensor(geometry_reference.box_coverage(boxes, hidden, side=24), dtype=torch.float64)
    normalised = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4) / 24
    torch.testing.assert_close(box_coverage(normalised, hidden), expected.reshape(3, -1), rtol=1e-9, atol=1e-12)


def test_shares_of_the_rows_and_columns() -> None:
    rows, columns = cell_shares(torch.tensor([[0.25, 0.0, 1.0, 0.125], [0.3, 0.3, 0.31, 0.3]]), grid=4)
    torch.testing.assert_close(rows, torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    torch.testing.assert_close(columns, torch.tensor([[0.0, 1 / 3, 1 / 3, 1 / 3], [0.0, 1.0, 0.0, 0.0]]))


def test_coverage_without_boxes_and_without_views() -> None:
    assert box_coverage(NO_REGIONS, torch.ones(2, 3, 3, dtype=torch.bool)).shape == (2, 0)
    assert box_coverage(REGIONS, torch.ones(0, 3, 3, dtype=torch.bool)).shape == (0, 4)


def test_kept_indices_go_row_by_row() -> None:
    hidden = torch.tensor([[[True, False], [True, False]], [[False, True], [False, True]]])
    assert kept_indices(hidden).tolist() == [[1, 3], [0, 2]]


def test_kept_indices_without_views() -> None:
    assert kept_indices(torch.zeros(0, 2, 2, dtype=torch.bool)).shape == (0, 0)


def test_kept_indices_of_unequal_masks_are_refused() -> None:
    with pytest.raises(AssertionError, match="group the masks"):
        kept_indices(torch.tensor([[[True, False]], [[False, False]]]))


def test_views_by_kept_count() -> None:
    hidden = torch.tensor([[[False, False]], [[True, False]], [[False, False]]])
    groups = by_kept_count(hidden)
    assert {count: rows.tolist() for count, rows in groups.items()} == {1: [1], 2: [0, 2]}
    assert list(groups) == [1, 2]
    assert by_kept_count(hidden[:0]) == {}


def test_groups_of_a_plan_can_be_gathered() -> None:
    hidden = draw(MaskSettings(count=60, ratio=(0.1, 0.9))).hidden
    for count, rows in by_kept_count(hidden).items():
        indices = kept_indices(hidden[rows])
        assert indices.shape == (len(rows), count)
        assert not hidden[rows].flatten(1).gather(1, indices).any()


@pytest.mark.parametrize(
    ("levels", "grid", "expected"),
    [(8, 4, [2, 4, 6, 8, 10, 12, 14, 16]), (4, 3, [3, 5, 7, 9]), (8, 2, [1, 2, 3, 4]), (8, 1, [1])],
)
def test_levels(levels: int, grid: int, expected: list[int]) -> None:
    assert kept_levels(levels, grid**2) == expected


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


CORNERS = torch.tensor([[0.0, 0.0, 0.2, 0.2], [0.8, 0.8, 1.0, 1.0]])


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


# Degenerate input


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


@pytest.mark.parametrize(
    ("settings", "tower_patch", "grid"),
    [
        (MaskSettings(), 16, 14),
        (MaskSettings(patch=16), 16, 14),
        (MaskSettings(fill="mean"), 16, 14),
        (MaskSettings(fill="mean", patch=32), 16, 7),
        (MaskSettings(fill="mean", patch=224), None, 1),
    ],
)
def test_the_grid_follows_the_patches(settings: MaskSettings, tower_patch: int | None, grid: int) -> None:
    assert mask_grid(settings, 224, tower_patch) == grid


@pytest.mark.parametrize(
    ("settings", "tower_patch", "remedy"),
    [
        (MaskSettings(), None, "set fill of the masked views to mean"),
        (MaskSettings(fill="zero"), None, "set patch of the masked views, in pixels"),
        (MaskSettings(patch=32), 16, "remove patch, or set fill to mean"),
        (MaskSettings(fill="zero", patch=30), 16, "does not divide the image size of 224 pixels"),
    ],
)
def test_grids_that_are_refused(settings: MaskSettings, tower_patch: int | None, remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        mask_grid(settings, 224, tower_patch)
