"""Relations of masked views, by table and by loops, and what of them is contrasted."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import relation_reference
from batches import make_batch, random_batch
from spanbox.losses.blocks import tiled_statistics
from spanbox.losses.kernel import row_statistics
from spanbox.losses.levels import coarse_contrast, fine_contrast
from spanbox.losses.objective import Objective
from spanbox.losses.relations import (
    WHOLE,
    Relation,
    sentence_image_relation,
    sentence_view_relation,
    span_region_relation,
    span_view_relation,
)
from spanbox.losses.views import ViewLossSettings
from spanbox.structures import Batch
from view_batches import CANDIDATE, MARGIN, features_of, objective_of, with_views


def view_relation(batch: Batch, settings: ViewLossSettings, *block: slice, of_columns: bool = False) -> Relation:
    """Of sentences to images and views, of which these settings use some."""
    used = {"keeping": settings.positives, "hiding": settings.negatives}
    return sentence_view_relation(batch, *block, **used, of_columns=of_columns)


def table(relation: Relation, keys_of_a_pair: int) -> list[str]:
    """A row for each query, a letter for each key: P positive, N negative, . neither; a space between pairs."""
    positives, candidates, _ = relation
    assert (candidates | ~positives).all(), "every positive is a candidate"
    letters = [
        "".join("P" if positive else "N" if candidate else "." for positive, candidate in zip(*row, strict=True))
        for row in zip(positives.tolist(), candidates.tolist(), strict=True)
    ]
    return [
        " ".join(row[start : start + keys_of_a_pair] for start in range(0, len(row), keys_of_a_pair)) for row in letters
    ]


# Relations


def test_views_of_sentences_by_table() -> None:
    """Behind each image a view that keeps, one that hides, one that says nothing. Pairs 1 and 2 are of one group."""
    batch = with_views(make_batch([[]] * 3, [0] * 3, [], group=[5, 6, 6]), [[1, -1, 0]] * 3)
    assert table(view_relation(batch, CANDIDATE), 4) == ["PPN. N... N...", "N... PPN. P...", "N... P... PPN."]
    of_columns = view_relation(batch, CANDIDATE, of_columns=True)
    assert table(of_columns, 4) == ["PPN. NN.. NN..", "NN.. PPN. P...", "NN.. P... PPN."]


def test_views_of_sentences_without_positives() -> None:
    batch = with_views(make_batch([[]] * 2, [0] * 2, []), [[1, -1, 0]] * 2)
    settings = ViewLossSettings(positives=False)
    for of_columns in (False, True):
        assert table(view_relation(batch, settings, of_columns=of_columns), 4) == ["P.N. N...", "N... P.N."]


def test_views_that_are_ranked_are_no_candidates() -> None:
    batch = with_views(make_batch([[]] * 2, [0] * 2, []), [[1, -1, 0]] * 2)
    assert table(view_relation(batch, MARGIN), 4) == ["PP.. N...", "N... PP.."]


def test_a_view_is_not_contrasted_with_the_same_words_about_another_image() -> None:
    batch = with_views(make_batch([[]] * 2, [0] * 2, []), [[1], [1]])
    same = replace(batch, wording=torch.zeros(2, dtype=torch.int64))
    assert table(view_relation(same, CANDIDATE, of_columns=True), 2) == ["PP ..", ".. PP"]


def test_views_of_spans_by_table() -> None:
    """1 and 3 have a region, 2 has none, the last is padding. Each image's region is followed by two views."""
    batch = make_batch([[1, 2], [3]], [1, 1], [(0, 0, 0), (1, 0, 0)])
    batch = with_views(batch, [[0, 0]] * 2, [[[-1, -1], [1, -1]], [[0, -1], [-1, -1]]])
    assert table(span_view_relation(batch), 3) == ["PN. N..", "N.. N..", "N.. P.N", "... ..."]


@pytest.mark.parametrize("seed", range(20))
def test_relations_equal_the_plain_loops(seed: int) -> None:
    batch = random_batch(seed, views=3)
    for settings in (CANDIDATE, MARGIN, ViewLossSettings(positives=False)):
        expected = relation_reference.sentence_view_masks(batch, settings.positives, settings.form == "candidate")
        positives, of_rows, _ = view_relation(batch, settings)
        assert [positives.tolist(), of_rows.tolist()] == [*expected[:2]]
        positives, of_columns, _ = view_relation(batch, settings, of_columns=True)
        assert [positives.tolist(), of_columns.tolist()] == [expected[0], expected[2]]
    for mask, expected_mask in zip(
        span_view_relation(batch)[:2], relation_reference.span_view_masks(batch), strict=True
    ):
        assert mask.tolist() == expected_mask


@pytest.mark.parametrize("seed", range(10))
def test_a_block_is_cut_from_the_whole(seed: int) -> None:
    batch = random_batch(seed, pairs=5, views=2)
    spans, regions = batch.links.shape[1:]
    rows, columns = slice(1, 4), slice(0, 3)
    for of_columns in (False, True):
        blocks = view_relation(batch, CANDIDATE, rows, columns, of_columns=of_columns)
        for block, whole in zip(blocks[:2], view_relation(batch, CANDIDATE, of_columns=of_columns)[:2], strict=True):
            assert torch.equal(block, whole[1:4, : 3 * 3])
    for block, whole in zip(span_view_relation(batch, rows, columns)[:2], span_view_relation(batch)[:2], strict=True):
        assert torch.equal(block, whole[spans : 4 * spans, : 3 * (regions + 2)])


def test_relations_of_no_views_are_those_without() -> None:
    batch = random_batch(1, pairs=4, spans=2, regions=2, views=0)
    for of_columns in (False, True):
        relation = view_relation(batch, CANDIDATE, of_columns=of_columns)
        assert all(map(torch.equal, relation[:2], sentence_image_relation(batch)[:2]))
    assert all(map(torch.equal, span_view_relation(batch)[:2], span_region_relation(batch)[:2]))


# What is contrasted


def test_views_join_the_keys_only_where_they_have_a_use() -> None:
    batch = random_batch(1, pairs=4, spans=2, regions=3, views=2)
    features = features_of(batch)

    def keys(**settings: Any) -> tuple[int, int]:
        views = ViewLossSettings(**settings)
        return coarse_contrast(features, batch, views).keys.shape[1], fine_contrast(features, batch, views).keys.shape[
            1
        ]

    assert keys() == (3, 5)
    assert keys(positives=False) == (3, 5)
    assert keys(form="margin") == (3, 3)
    assert keys(form="margin", positives=False) == (1, 3)
    assert keys(form="none") == (1, 3)


@pytest.mark.parametrize("form", ["candidate", "margin", "none"])
def test_without_views_all_is_as_it_was(form: str) -> None:
    """Absent, or none of any image."""
    batch = random_batch(2, pairs=4, spans=2, regions=2, views=0)
    features = features_of(batch)
    absent = replace(features, views=None), replace(batch, view_sentence=None, view_spans=None)
    expected = Objective(objective_of().settings).double()(*absent).terms
    for case in ((features, batch), absent):
        assert objective_of(form=form)(*case).terms == expected


def test_views_that_say_nothing_change_nothing() -> None:
    batch = random_batch(2, pairs=4, spans=2, regions=2, views=3)
    silent = replace(
        batch, view_sentence=torch.zeros_like(batch.view_sentence), view_spans=torch.zeros_like(batch.view_spans)
    )
    features = features_of(batch)
    expected = objective_of(form="none")(features, silent).terms
    torch.testing.assert_close(objective_of()(features, silent).terms, expected)
    ranked = objective_of(form="margin")(features, silent).terms
    assert ranked.pop("views") == 0
    torch.testing.assert_close(ranked, expected)


@pytest.mark.parametrize("tile_pairs", [1, 2, 5, 100])
@pytest.mark.parametrize("seed", range(3))
def test_tiles_equal_the_whole_matrix_whose_columns_have_candidates_of_their_own(seed: int, tile_pairs: int) -> None:
    batch = random_batch(seed, pairs=7, views=3)
    features = features_of(batch, seed)
    contrast = coarse_contrast(features, batch, CANDIDATE)
    assert contrast.column_relation is not None
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    tiled = tiled_statistics(contrast, scale, tile_pairs)
    logits = scale * contrast.queries.flatten(0, 1) @ contrast.keys.flatten(0, 1).T
    of_columns = contrast.column_relation(WHOLE, WHOLE).transposed()
    whole = row_statistics(logits, contrast.relation(WHOLE, WHOLE)), row_statistics(logits.T, of_columns)
    for one, other in zip(tiled, whole, strict=True):
        torch.testing.assert_close(tuple(one[:4]), tuple(other[:4]), rtol=1e-10, atol=1e-12)
    leaves = [features.text, features.image, features.views, scale]
    generator = torch.Generator().manual_seed(1)
    totals = [0.0, 0.0]
    for one, other in zip(tiled, whole, strict=True):
        for values, expected in zip(one[:3], other[:3], strict=True):
            weights = torch.randn(len(values), generator=generator, dtype=torch.float64)
            totals = [totals[0] + values @ weights, totals[1] + expected @ weights]
    gradients, wanted = (torch.autograd.grad(total, leaves) for total in totals)
    torch.testing.assert_close(gradients, wanted, rtol=1e-9, atol=1e-10)
