"""Ranks against tables worked out by hand, retrieval against plain loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from banks import make_bank, random_bank
from spanbox.evaluation.retrieval import median_rank, rank_in_blocks, ranks, recall_at, retrieval_metrics, similarity

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


def test_recall_and_median_of_a_table_worked_out_by_hand() -> None:
    assert [recall_at(RANKS, k) for k in (1, 3, 7, 8)] == [0.25, 0.5, 0.75, 1.0]
    assert median_rank(RANKS) == 5.0
    assert median_rank(RANKS[:3]) == 3.0


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


def test_a_row_without_a_positive_is_left_out() -> None:
    positives = torch.tensor([[True, False], [False, False]])
    found = ranks(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), positives)
    assert found.tolist() == [1, 0]
    assert recall_at(found, 1) == 1.0
    assert median_rank(found) == 1.0


def test_no_candidates_and_no_queries() -> None:
    assert ranks(torch.zeros(3, 0), torch.zeros(3, 0, dtype=torch.bool)).tolist() == [0, 0, 0]
    assert ranks(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool)).tolist() == []
    nothing = torch.zeros(0, dtype=torch.int64)
    assert math.isnan(recall_at(nothing, 1))
    assert math.isnan(median_rank(nothing))


def test_what_is_no_candidate_neither_helps_nor_harms() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    positives = torch.tensor([[True, False, True, False]])
    candidates = torch.tensor([[False, True, True, True]])
    assert ranks(scores, positives, candidates).tolist() == [2]
    assert ranks(scores, positives, torch.tensor([[False, True, False, True]])).tolist() == [0]


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_ranks_equal_the_plain_loop(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 8))
    values = st.sampled_from([-1.0, 0.0, 0.5, 1.0, math.inf, -math.inf, math.nan])
    scores = data.draw(st.lists(values, min_size=count, max_size=count))
    positives = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    expected = reference.rank_of_best_positive(scores, positives)
    assert ranks(torch.tensor([scores]), torch.tensor([positives])).tolist() == [expected]


@pytest.mark.parametrize("queries", [1, 2, 7, 50])
def test_equal_candidates_get_equal_scores_wherever_they_stand(queries: int) -> None:
    generator = torch.Generator().manual_seed(0)
    queries_QD = torch.nn.functional.normalize(torch.randn(queries, 512, generator=generator), dim=1)
    candidate = torch.nn.functional.normalize(torch.randn(1, 512, generator=generator), dim=1)
    scores = similarity(queries_QD, candidate.repeat(37, 1))
    assert torch.equal(scores, scores[:, :1].expand(-1, 37))
    assert torch.equal(scores[:1], similarity(queries_QD[:1], candidate.repeat(37, 1)))


@pytest.mark.parametrize("seed", range(10))
def test_retrieval_equals_the_plain_loop(seed: int) -> None:
    bank = random_bank(seed)
    assert retrieval_metrics(bank) == pytest.approx(reference.retrieval_metrics(bank))


@pytest.mark.parametrize("block_elements", [1, 13, 100])
def test_blocked_equals_unblocked(block_elements: int) -> None:
    bank = random_bank(3, pairs=23)
    assert retrieval_metrics(bank, block_elements=block_elements) == retrieval_metrics(bank)


def test_never_more_scores_than_a_block_holds() -> None:
    sizes = []

    def relevance(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        mask = torch.eye(10, dtype=torch.bool)[rows]
        sizes.append(mask.numel())
        return mask, torch.ones_like(mask)

    assert rank_in_blocks(torch.eye(10), torch.eye(10), relevance, 30).ranks.tolist() == [1] * 10
    assert sizes == [30, 30, 30, 10]


def test_retrieval_worked_out_by_hand_with_several_captions_of_an_image() -> None:
    # Pairs 0 and 2 show the image of group 5; the feature that stands at pair 2 must not be used.
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    image = torch.tensor([[1.0, 0.5], [0.0, 1.0], [-9.0, -9.0]])
    metrics = retrieval_metrics(make_bank(text=text, image=image, group=[5, 7, 5]))
    # Image 0 scores its texts 1, 1 and the other 0.5: first. Image 1 scores its text 1, the others 0 and 2: second.
    assert metrics["retrieval.i2t.r1"] == 0.5
    assert metrics["retrieval.i2t.median_rank"] == 1.5
    assert metrics["retrieval.i2t.count"] == 2
    assert metrics["retrieval.i2t.chance_r1"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    # Text 0: images 1, 0, right. Text 1: 0.5, 1, right. Text 2: 1, 2, wrong.
    assert metrics["retrieval.t2i.r1"] == pytest.approx(2 / 3)
    assert metrics["retrieval.t2i.r5"] == 1.0
    assert metrics["retrieval.t2i.count"] == 3
    assert metrics["retrieval.t2i.chance_r1"] == pytest.approx(1 / 2)


def test_collapsed_features_rank_last() -> None:
    point = torch.nn.functional.normalize(torch.rand(1, 65, generator=torch.Generator().manual_seed(1)), dim=1)
    metrics = retrieval_metrics(make_bank(text=point.repeat(20, 1)))
    for direction in ("i2t", "t2i"):
        assert metrics[f"retrieval.{direction}.r10"] == 0.0
        assert metrics[f"retrieval.{direction}.median_rank"] == 20.0
        assert metrics[f"retrieval.{direction}.chance_r1"] == 0.05


def test_features_that_are_nan_rank_last() -> None:
    metrics = retrieval_metrics(make_bank(text=torch.full((4, 2), math.nan)))
    assert metrics["retrieval.i2t.median_rank"] == 4.0


def test_one_sample() -> None:
    metrics = retrieval_metrics(make_bank(pairs=1))
    assert metrics["retrieval.i2t.r1"] == metrics["retrieval.i2t.chance_r1"] == 1.0
