"""The grid of masked views: coverage of boxes by its cells, kept cells and their levels, and how many cells it has."""

import pytest
import torch
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st

import geometry_reference
from drawn_views import NO_REGIONS, REGIONS, draw
from spanbox.data.masking import MaskSettings, kept_levels, mask_grid
from spanbox.errors import ConfigError
from spanbox.geometry import box_coverage, by_kept_count, cell_shares, kept_indices

edges = st.integers(0, 24)
raster_boxes = st.lists(st.tuples(edges, edges, edges, edges), max_size=4)


@pytest.mark.slow
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
    [
        (8, 4, [2, 4, 6, 8, 10, 12, 14, 16]),
        (4, 3, [3, 5, 7, 9]),
        (8, 2, [1, 2, 3, 4]),
        (8, 1, [1]),
        (10**30, 2, [1, 2, 3, 4]),
    ],
)
def test_levels(levels: int, grid: int, expected: list[int]) -> None:
    assert kept_levels(levels, grid**2) == expected


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
