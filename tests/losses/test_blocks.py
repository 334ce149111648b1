"""Tile by tile equals the whole matrix: values and gradients, whatever the tile, and on degenerate input."""

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import loss_reference
from batches import make_batch, random_batch
from spanbox.losses.blocks import tiled_statistics
from spanbox.losses.formulas import info_nce_of
from spanbox.losses.kernel import Statistics, mean_over_counted, row_statistics
from spanbox.losses.levels import Contrast
from spanbox.losses.relations import WHOLE, BlockRelation, Relation, sentence_image_relation, span_region_relation
from spanbox.structures import PADDING_ID, Batch

Case = tuple[Tensor, Tensor, Tensor, BlockRelation]
Level = Callable[[Batch, int], Case]
Sides = tuple[Sequence[Tensor], Sequence[Tensor]]


def fine(batch: Batch, seed: int = 0, dtype: torch.dtype = torch.float64) -> Case:
    """Random unit features of spans and regions, a scale, and their relation."""
    generator = torch.Generator().manual_seed(seed)
    pairs, spans, regions = batch.links.shape
    features = [
        normalize(torch.randn(pairs, number, 5, generator=generator, dtype=torch.float64), dim=-1).to(dtype)
        for number in (spans, regions)
    ]
    scale = torch.tensor(7.0, dtype=dtype).requires_grad_()
    return features[0].requires_grad_(), features[1].requires_grad_(), scale, partial(span_region_relation, batch)


def coarse(batch: Batch, seed: int = 0) -> Case:
    one = fine(random_batch(seed, pairs=len(batch), spans=1, regions=1), seed)
    return *one[:3], partial(sentence_image_relation, batch)


def tiled(queries: Tensor, keys: Tensor, scale: Tensor, relation: BlockRelation, tile_pairs: int) -> list[Statistics]:
    return tiled_statistics(Contrast(queries, keys, relation), scale, tile_pairs)


def whole(queries: Tensor, keys: Tensor, scale: Tensor, relation: BlockRelation) -> tuple[Statistics, Statistics]:
    """From the whole matrix at once."""
    logits = scale * (queries.flatten(0, 1) @ keys.flatten(0, 1).T)
    of_rows = relation(WHOLE, WHOLE)
    return row_statistics(logits, of_rows), row_statistics(logits.T, of_rows.transposed())


def by_loops(queries: Tensor, keys: Tensor, scale: Tensor, relation: BlockRelation) -> Sides:
    logits = scale * (queries.flatten(0, 1) @ keys.flatten(0, 1).T)
    positives, candidates, _ = relation(WHOLE, WHOLE)
    return (
        loss_reference.row_statistics(logits, positives, candidates),
        loss_reference.row_statistics(logits.T, positives.T, candidates.T),
    )


def gradients(case: Case, sides: Sides) -> tuple[Tensor, ...]:
    """At queries, keys and scale, from random gradients at every mass and sum."""
    generator = torch.Generator().manual_seed(1)
    nothing = 0 * sum(leaf.sum() for leaf in case[:3])
    every = [values for rows in sides for values in rows[:3]]
    weighted = [values @ torch.randn(values.shape, generator=generator, dtype=torch.float64) for values in every]
    return torch.autograd.grad(sum(weighted, start=nothing), case[:3])


def assert_equal(case: Case, sides: Sides, expected: Sides) -> None:
    for rows, expected_rows in zip(sides, expected, strict=True):
        torch.testing.assert_close(tuple(rows[:4]), tuple(expected_rows[:4]), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradients(case, sides), gradients(case, expected), rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tile_pairs", [1, 2, 3, 6, 7, 100])
@pytest.mark.parametrize("level", [coarse, fine])
def test_equals_the_whole_matrix(level: Level, tile_pairs: int, seed: int) -> None:
    """Seven pairs: tiles of one pair, uneven last tiles, a tile that is larger than the batch."""
    case = level(random_batch(seed, pairs=7, spans=3, regions=2), seed)
    assert_equal(case, tiled(*case, tile_pairs), whole(*case))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("level", [coarse, fine])
def test_equals_the_plain_loops(level: Level, seed: int) -> None:
    """Any number of pairs, spans and regions, none of them included."""
    case = level(random_batch(seed), seed)
    assert_equal(case, tiled(*case, 2), by_loops(*case))


def test_a_batch_of_several_large_tiles() -> None:
    case = fine(random_batch(2, pairs=150, spans=3, regions=4))
    assert_equal(case, tiled(*case, 64), whole(*case))


@pytest.mark.parametrize(("spans", "regions"), [(0, 2), (2, 0), (0, 0)], ids=["no queries", "no keys", "neither"])
def test_without_queries_or_keys(spans: int, regions: int) -> None:
    case = fine(random_batch(0, pairs=3, spans=spans, regions=regions))
    rows, columns = tiled(*case, 2)
    assert rows.positive_count.tolist() == [0] * 3 * spans
    assert columns.positive_count.tolist() == [0] * 3 * regions
    for side in (rows, columns):
        assert (side.negative_mass == torch.finfo(torch.float64).min).all()
    assert_equal(case, (rows, columns), whole(*case))


def test_one_pair() -> None:
    """Its sentence and image have no negative."""
    case = coarse(make_batch([[]], [0], []))
    rows, columns = tiled(*case, 1)
    assert rows.negative_mass.item() == columns.negative_mass.item() == torch.finfo(torch.float64).min
    assert info_nce_of(rows)[0].item() == info_nce_of(columns)[0].item() == 0
    assert_equal(case, (rows, columns), whole(*case))


def test_no_negatives_anywhere() -> None:
    """Every pair shows the same image."""
    case = coarse(make_batch([[]] * 5, [0] * 5, [], group=[3] * 5))
    assert_equal(case, tiled(*case, 2), whole(*case))


def test_no_pair_is_linked() -> None:
    case = fine(make_batch([[1, 2], [3]], [2, 1], []))
    statistics = tiled(*case, 1)
    for rows in statistics:
        loss, counted = info_nce_of(rows)
        assert loss.tolist() == [0] * 4
        assert not counted.any()
    assert_equal(case, statistics, whole(*case))


def test_all_padding() -> None:
    case = fine(make_batch([[PADDING_ID, PADDING_ID], [PADDING_ID]], [0, 1], []))
    assert_equal(case, tiled(*case, 1), whole(*case))
    assert all((gradient == 0).all() for gradient in gradients(case, tiled(*case, 1)))


def test_features_in_any_order_of_memory() -> None:
    queries, keys, scale, relation = fine(random_batch(1, pairs=5, spans=3, regions=2))
    permuted = [values.detach().permute(2, 1, 0).contiguous().permute(2, 1, 0) for values in (queries, keys)]
    case = permuted[0].requires_grad_(), permuted[1].requires_grad_(), scale, relation
    assert_equal(case, tiled(*case, 2), whole(*case))


@pytest.mark.parametrize("frozen", [0, 1, 2], ids=["queries", "keys", "scale"])
def test_what_is_frozen_gets_no_gradient(frozen: int) -> None:
    case = fine(random_batch(1, pairs=3, spans=2, regions=2))
    case[frozen].requires_grad_(False)
    rows, _ = tiled(*case, 2)
    mean_over_counted(*info_nce_of(rows)).backward()
    assert [leaf.grad is None for leaf in case[:3]] == [leaf is case[frozen] for leaf in case[:3]]


def test_every_tile_is_small_and_computed_once_a_pass() -> None:
    *features, relation = fine(random_batch(1, pairs=7, spans=2, regions=2))
    seen: list[tuple[int, ...]] = []

    def watched(rows: slice, columns: slice) -> Relation:
        if rows.stop:  # an empty block is asked whether there are weights
            seen.append((rows.start, rows.stop, columns.start, columns.stop))
        return relation(rows, columns)

    rows, _ = tiled(*features, watched, 3)
    edges = [(0, 3), (3, 6), (6, 7)]
    tiles = [(*first, *second) for first in edges for second in edges]
    assert seen == tiles
    mean_over_counted(*info_nce_of(rows)).backward()
    assert seen == 2 * tiles


def test_large_logits_stay_finite() -> None:
    """In gradients, too, and without nan on the way, or a run under anomaly detection would stop."""
    queries, keys, _, relation = fine(random_batch(3, pairs=5, spans=3, regions=3), dtype=torch.float32)
    scale = torch.tensor(1e5, requires_grad=True)
    with torch.autograd.set_detect_anomaly(True):
        losses = [mean_over_counted(*info_nce_of(rows)) for rows in tiled(queries, keys, scale, relation, 2)]
        sum(losses).backward()
    assert all(loss.isfinite() for loss in losses)
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in (queries, keys, scale))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised_to_float32(dtype: torch.dtype) -> None:
    queries, keys, scale, relation = fine(random_batch(3, pairs=5, spans=3, regions=3), dtype=dtype)
    statistics = tiled(queries, keys, scale, relation, 2)
    raised = tiled(queries.float(), keys.float(), scale.float(), relation, 2)
    for rows, expected in zip(statistics, raised, strict=True):
        assert {values.dtype for values in rows[:3]} == {torch.float32}
        assert all(torch.equal(*values) for values in zip(rows[:4], expected[:4], strict=True))
    mean_over_counted(*info_nce_of(statistics[0])).backward()
    assert queries.grad is not None
    assert queries.grad.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wider_precision_is_kept(dtype: torch.dtype) -> None:
    for rows in tiled(*fine(random_batch(3, pairs=3, spans=2, regions=2), dtype=dtype), 2):
        assert {values.dtype for values in rows[:3]} == {dtype}
