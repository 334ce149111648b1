"""Ranks and average precisions against tables worked out by hand, plain loops and torchmetrics."""

import itertools
import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import metric_reference
from spanbox.evaluation.ranking import (
    Index,
    Places,
    Ranking,
    chance_average_precision,
    chance_rank,
    chance_within,
    no_places,
    rank_in_blocks,
    rank_right,
    ranks,
    same_id,
    similarity,
)


def places(mask: torch.Tensor) -> Places:
    return Places(*mask.nonzero(as_tuple=True))


def ranking(scores: torch.Tensor, right: torch.Tensor) -> Ranking:
    return rank_right(scores.float().clone(), places(right), no_places())


# Four queries, eight candidates; what is right for each, and the rank of the best of it.
SCORES = torch.tensor(
    [
        [0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7],
        [0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7],
        [0.5, 0.5, 0.5, 0.1, 0.1, 0.1, 0.1, 0.1],
        [0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1],
    ]
)
RIGHT = [{0}, {1, 2}, {1, 3}, {7}]
POSITIVES = torch.tensor([[candidate in right for candidate in range(8)] for right in RIGHT])
RANKS = torch.tensor([1, 7, 3, 8])


def test_ranks_of_a_table_worked_out_by_hand() -> None:
    assert torch.equal(ranks(SCORES, POSITIVES), RANKS)


def test_a_tie_counts_against_the_positive() -> None:
    positives = torch.tensor([[False, True, False]])
    assert ranks(torch.tensor([[1.0, 1.0, 0.0]]), positives).tolist() == [2]
    assert ranks(torch.zeros(1, 3), positives).tolist() == [3]


def test_ties_between_positives_cost_nothing() -> None:
    assert ranks(torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool)).tolist() == [1]


def test_nan_ranks_last() -> None:
    positives = torch.tensor([[True, False, False, False]])
    nan = math.nan
    assert ranks(torch.tensor([[nan, 0.0, -1.0, 2.0]]), positives).tolist() == [4]
    assert ranks(torch.tensor([[0.0, nan, nan, 2.0]]), positives).tolist() == [2]
    assert ranks(torch.full((1, 4), nan), positives).tolist() == [4]
    assert ranks(torch.tensor([[-math.inf, nan, -1.0, math.inf]]), positives).tolist() == [4]


def test_a_row_without_a_positive_has_no_rank() -> None:
    positives = torch.tensor([[True, False], [False, False]])
    found = ranks(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), positives)
    assert found.tolist() == [1, 0]


def test_no_candidates_and_no_queries() -> None:
    assert ranks(torch.zeros(3, 0), torch.zeros(3, 0, dtype=torch.bool)).tolist() == [0, 0, 0]
    assert ranks(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool)).tolist() == []


def test_what_is_no_candidate_neither_helps_nor_harms() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    positives = torch.tensor([[True, False, True, False]])
    candidates = torch.tensor([[False, True, True, True]])
    assert ranks(scores, positives, candidates).tolist() == [2]
    assert ranks(scores, positives, torch.tensor([[False, True, False, True]])).tolist() == [0]


@pytest.mark.slow
@given(st.data())
@settings(max_examples=100, deadline=None)
def test_ranks_equal_the_plain_loop(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 8))
    values = st.sampled_from([-1.0, 0.0, 0.5, 1.0, math.inf, -math.inf, math.nan])
    scores = data.draw(st.lists(values, min_size=count, max_size=count))
    positives = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    expected = metric_reference.rank_of_best_positive(scores, positives)
    assert ranks(torch.tensor([scores]), torch.tensor([positives])).tolist() == [expected]


@pytest.mark.parametrize("queries", [1, 2, 7, 50])
def test_equal_candidates_get_equal_scores_wherever_they_stand(queries: int) -> None:
    generator = torch.Generator().manual_seed(0)
    queries_QD = torch.nn.functional.normalize(torch.randn(queries, 512, generator=generator), dim=1)
    candidate = torch.nn.functional.normalize(torch.randn(1, 512, generator=generator), dim=1)
    scores = similarity(queries_QD, candidate.repeat(37, 1))
    assert torch.equal(scores, scores[:, :1].expand(-1, 37))
    assert torch.equal(scores[:1], similarity(queries_QD[:1], candidate.repeat(37, 1)))


@pytest.mark.slow
@given(st.data())
@settings(max_examples=100, deadline=None)
def test_average_precision_equals_the_plain_loop(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    values = st.sampled_from([-1.0, 0.0, 0.5, 1.0, math.inf, -math.inf, math.nan])
    scores = data.draw(st.lists(values, min_size=count, max_size=count))
    positives = data.draw(st.lists(st.booleans(), min_size=count, max_size=count).filter(any))
    found = ranking(torch.tensor([scores]), torch.tensor([positives]))
    assert found.average_precision.item() == pytest.approx(metric_reference.average_precision(scores, positives))
    assert found.best.tolist() == [metric_reference.rank_of_best_positive(scores, positives)]
    assert (found.right.tolist(), found.candidates.tolist()) == ([sum(positives)], [count])


def test_average_precision_of_a_table_worked_out_by_hand() -> None:
    # Right ones at 1; at 7 and 3 of 8; at 3 (two wrong ones tie with it) and 6 to 8; at 8.
    expected = [1.0, (1 / 7 + 2 / 8) / 2, (1 / 3 + 2 / 8) / 2, 1 / 8]
    torch.testing.assert_close(ranking(SCORES, POSITIVES).average_precision, torch.tensor(expected).double())


def test_ties_lower_average_precision_between_right_and_wrong_only() -> None:
    right = torch.tensor([[True, True, False, False]])
    assert ranking(torch.tensor([[1.0, 1.0, 0.0, 0.0]]), right).average_precision.tolist() == [1.0]
    assert ranking(torch.zeros(1, 4), right).average_precision.tolist() == [pytest.approx((1 / 3 + 2 / 4) / 2)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("most", [1, 3, 40])
def test_ranking_equals_torchmetrics_on_random_matrices(seed: int, most: int) -> None:
    """Without ties, of which it makes something else, and above 0, where it drops what is right.

    One, some and many right ones: both ways to count.
    """
    retrieval = pytest.importorskip("torchmetrics.functional.retrieval")
    generator = torch.Generator().manual_seed(seed)
    scores = 1 + torch.randperm(8 * 60, generator=generator).reshape(8, 60).float()
    right = torch.zeros(8, 60, dtype=torch.bool)
    for row in right:
        row[torch.randperm(60, generator=generator)[: int(torch.randint(1, most + 1, (), generator=generator))]] = True
    found = ranking(scores, right)
    for row, (row_scores, row_right) in enumerate(zip(scores, right, strict=True)):
        precision = retrieval.retrieval_average_precision(row_scores, row_right)
        assert found.average_precision[row] == pytest.approx(float(precision))
        assert 1 / found.best[row] == pytest.approx(float(retrieval.retrieval_reciprocal_rank(row_scores, row_right)))
        for depth in (1, 5, 10):
            hit = retrieval.retrieval_hit_rate(row_scores, row_right, top_k=depth)
            assert float(found.best[row] <= depth) == float(hit)


def test_what_takes_no_part_is_not_counted() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    right = Places(torch.tensor([0, 1]), torch.tensor([2, 3]))
    excluded = Places(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]))
    found = rank_right(scores, right, excluded)
    assert found.best.tolist() == [2, 2]
    assert found.average_precision.tolist() == [0.5, 0.5]
    assert found.candidates.tolist() == [3, 2]


@pytest.mark.parametrize("candidates", range(1, 6))
def test_chance_is_the_mean_over_all_orders(candidates: int) -> None:
    for right in range(1, candidates + 1):
        positives = torch.tensor([[place < right for place in range(candidates)]])
        orders = [torch.tensor([order]).float() for order in itertools.permutations(range(candidates))]
        found = [ranking(order, positives) for order in orders]
        m, n = torch.tensor([right]), torch.tensor([candidates])
        assert chance_rank(m, n).item() == pytest.approx(statistics.fmean(one.best.item() for one in found))
        for depth in (1, 2, 10):
            share = statistics.fmean(one.best.item() <= depth for one in found)
            assert chance_within(depth, m, n).item() == pytest.approx(share)
        precision = statistics.fmean(one.average_precision.item() for one in found)
        assert chance_average_precision(m, n).item() == pytest.approx(precision)


def test_chance_without_a_right_candidate() -> None:
    assert chance_within(1, torch.tensor([0, 0]), torch.tensor([3, 0])).tolist() == [0.0, 0.0]


def test_places_of_ids() -> None:
    index = Index(torch.tensor([7, 3, 7, 5]))
    row, column = index.places(torch.tensor([7, 4, 5, 7]))
    assert list(zip(row.tolist(), column.tolist(), strict=True)) == [(0, 0), (0, 2), (2, 3), (3, 0), (3, 2)]


def test_places_of_ids_that_stand_for_others() -> None:
    index = Index(torch.tensor([7, 3, 7]), torch.tensor([10, 11, 12]))
    assert index.places(torch.tensor([3, 7])).column.tolist() == [11, 10, 12]


def test_places_of_nothing() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    assert Index(nothing).places(torch.tensor([1])).row.tolist() == []
    assert Index(torch.tensor([1])).places(nothing).row.tolist() == []


def test_never_more_scores_than_a_block_holds() -> None:
    sizes = []
    relevance = same_id(torch.arange(10), torch.arange(10))

    def noted(rows: slice) -> tuple[Places, Places]:
        sizes.append(10 * len(range(10)[rows]))
        return relevance(rows)

    assert rank_in_blocks(torch.eye(10), torch.eye(10), noted, block_elements=30).best.tolist() == [1] * 10
    assert sizes == [30, 30, 30, 10]


def test_no_query_at_all() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    found = rank_in_blocks(torch.zeros(0, 2), torch.eye(2), same_id(nothing, torch.arange(2)))
    assert all(len(column) == 0 for column in found)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device and `-m cuda`")
def test_a_gpu_ranks_as_the_cpu_does() -> None:
    """Ranks and counts are equal; average precision is a sum, whose order of additions differs."""
    features = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)).round()
    group = torch.arange(50) // 7
    found = rank_in_blocks(features, features, same_id(group.cuda(), group.cuda()), device="cuda")
    expected = rank_in_blocks(features, features, same_id(group, group))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6 if one.is_floating_point() else 0, atol=0)
