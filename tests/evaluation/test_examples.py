"""Which retrievals and matches are shown, against what plain loops would choose."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from banks import make_bank, random_bank
from metric_reference import dot
from spanbox.evaluation.examples import (
    BATCH_PAIRS,
    BATCH_SPANS,
    FOUND,
    MATCH_REGIONS,
    SPAN_REGIONS,
    Direction,
    matching_examples,
    pick_by_rank,
    retrieval_examples,
    similarity_example,
)
from spanbox.evaluation.extract import FeatureBank


class TestPicking:
    def test_best_median_worst(self) -> None:
        ranks_Q = torch.tensor([9, 1, 5, 2, 8, 4, 6, 3, 7])
        picked = pick_by_rank(ranks_Q, torch.arange(len(ranks_Q)), 2)
        assert {kind: ranks_Q[chosen].tolist() for kind, chosen in picked.items()} == {
            "best": [1, 2],
            "median": [4, 5],
            "worst": [9, 8],
        }

    def test_queries_without_a_right_answer_are_none(self) -> None:
        picked = pick_by_rank(torch.tensor([0, 3, 0, 1, 0, 2]), torch.arange(6), 5)
        assert picked == {"best": [3], "median": [5], "worst": [1]}

    @pytest.mark.parametrize(("queries", "kinds"), [(0, [0, 0, 0]), (1, [1, 0, 0]), (2, [1, 0, 1]), (4, [1, 1, 1])])
    def test_few_queries(self, queries: int, kinds: list[int]) -> None:
        picked = pick_by_rank(torch.arange(1, queries + 1), torch.arange(queries), 3)
        assert [len(chosen) for chosen in picked.values()] == kinds

    @pytest.mark.parametrize("queries", range(30))
    def test_no_query_twice_and_in_order(self, queries: int) -> None:
        ranks_Q = torch.randint(1, 5, (queries,))
        picked = pick_by_rank(ranks_Q, torch.arange(len(ranks_Q)), 4)
        chosen = [query for kind in picked.values() for query in kind]
        assert len(set(chosen)) == len(chosen)
        best, median, worst = (ranks_Q[picked[kind]].tolist() for kind in ("best", "median", "worst"))
        assert best == sorted(best)
        assert worst == sorted(worst, reverse=True)
        if median:
            assert max(best) <= min(median)
            assert max(median) <= min(worst)
            assert min(median) <= float(ranks_Q.double().quantile(0.5)) <= max(median) or len(median) == 1

    def test_each_image_comes_once_before_any_comes_twice(self) -> None:
        """Five captions of each of 8 images; all of the worst are of two images."""
        ranks_Q, image_Q = torch.arange(1, 41), torch.arange(40) // 5
        picked = pick_by_rank(ranks_Q, image_Q, 4)
        for kind in ("best", "median", "worst"):
            assert len(set(image_Q[picked[kind]].tolist())) == 4, kind
        assert ranks_Q[picked["best"]].tolist() == [1, 6, 11, 16]
        assert ranks_Q[picked["worst"]].tolist() == [40, 35, 30, 25]

    def test_few_images_come_again(self) -> None:
        picked = pick_by_rank(torch.arange(1, 31), torch.arange(30) // 15, 4)
        assert {kind: len(set(chosen)) for kind, chosen in picked.items()} == {"best": 4, "median": 4, "worst": 4}

    def test_a_seed_decides_among_equals(self) -> None:
        ranks_Q = torch.ones(50, dtype=torch.int64)
        assert pick_by_rank(ranks_Q, torch.arange(len(ranks_Q)), 3, seed=1) == pick_by_rank(
            ranks_Q, torch.arange(len(ranks_Q)), 3, seed=1
        )
        assert pick_by_rank(ranks_Q, torch.arange(len(ranks_Q)), 3, seed=1) != pick_by_rank(
            ranks_Q, torch.arange(len(ranks_Q)), 3, seed=2
        )


class TestRetrieval:
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("direction", ["i2t", "t2i"])
    def test_against_a_plain_loop(self, direction: Direction, seed: int) -> None:
        bank = random_bank(seed, pairs=12)
        groups = bank.group.tolist()
        images = [pair for pair, group in enumerate(groups) if groups.index(group) == pair]
        sides = [(list(range(len(bank))), bank.text), (images, bank.image)]
        (queries, asked), (candidates, given) = sides if direction == "t2i" else sides[::-1]
        ranked: dict[int, list[tuple[float, bool, int]]] = {}
        rank: dict[int, int] = {}
        for query in queries:
            ranked[query] = [
                (dot(asked[query], given[pair]), groups[pair] == groups[query], pair) for pair in candidates
            ]
            ranked[query].sort(key=lambda one: (-one[0], one[1]))
            best = max(score for score, right, _ in ranked[query] if right)
            rank[query] = 1 + sum(score >= best and not right for score, right, _ in ranked[query])
        examples = retrieval_examples(bank, direction, torch.tensor(list(rank.values())), 2)
        assert {example.kind for example in examples} == {"best", "median", "worst"}
        for example in examples:
            assert example.rank == rank[example.query]
            first = ranked[example.query][:FOUND]
            assert [found.score for found in example.found] == [pytest.approx(score) for score, _, _ in first]
            assert [found.right for found in example.found] == [right for _, right, _ in first]
            for found in (*example.found, example.right):
                pair = next(one for one in ranked[example.query] if one[2] == found.candidate)
                assert (found.score, found.right) == (pytest.approx(pair[0]), pair[1])
            for place, found in enumerate(example.found, start=1):  # what is shown agrees with the rank
                assert not found.right or place >= example.rank
            assert example.right.score == pytest.approx(
                max(score for score, right, _ in ranked[example.query] if right)
            )

    def test_an_image_stands_for_its_group_by_its_first_pair(self) -> None:
        bank = make_bank(text=torch.eye(3), group=[4, 4, 5])
        examples = retrieval_examples(bank, "t2i", torch.tensor([1, 2, 1]), 1)
        by_query = {example.query: example for example in examples}
        assert by_query[1].right.candidate == 0
        assert {found.candidate for found in by_query[1].found} == {0, 2}

    def test_a_single_pair(self) -> None:
        (example,) = retrieval_examples(make_bank(pairs=1), "i2t", torch.tensor([1]), 3)
        assert (example.kind, example.query, example.right.right) == ("best", 0, True)
        assert example.found == [example.right]


def matching_bank(scores: list[list[float]], linked: list[int | None]) -> FeatureBank:
    """A pair for each row: one span, its regions with these scores, and which of them shows it."""
    regions = [score for row in scores for score in row]
    region_pair = [pair for pair, row in enumerate(scores) for _ in row]
    start = [region_pair.index(pair) if pair in region_pair else 0 for pair in range(len(scores))]
    return make_bank(
        pairs=len(scores),
        spans=torch.eye(len(scores))[:, :1] * 0 + torch.eye(1, len(scores)),
        span_pair=tuple(range(len(scores))),
        span_identity=tuple(range(len(scores))),
        regions=torch.tensor(regions)[:, None] * torch.eye(1, len(scores)),
        region_pair=tuple(region_pair),
        links=tuple((span, start[span] + place) for span, place in enumerate(linked) if place is not None),
    )


SCORES = [
    [0.9, 0.1],  # right
    [0.2, 0.3, 0.1],  # wrong
    [0.1, 0.8],  # wrong, and sure of it
    [0.7],  # cannot go wrong
    [0.4, 0.6],  # shown by neither
    [0.5, 0.5],  # a tie is wrong
]
LINKED = [0, 0, 0, 0, None, 0]


class TestMatching:
    def test_the_most_confident_wrong_ones_first(self) -> None:
        examples = matching_examples(matching_bank(SCORES, LINKED), 2)
        assert [(example.span, example.right) for example in examples] == [(2, False), (5, False), (0, True)]

    def test_wrong_matches_are_of_different_images(self) -> None:
        """Two images with the most confident mistakes, ten each, do not keep the others from the report."""
        scores = [[0.1, 0.99 - 0.01 * row] for row in range(20)] + [[0.1, 0.5 - 0.01 * row] for row in range(6)]
        bank = replace(
            matching_bank(scores, [0] * 26), group=torch.tensor([row % 2 for row in range(20)] + [*range(2, 8)])
        )
        examples = matching_examples(bank, 8)
        assert [example.span for example in examples] == [0, 1, *range(20, 26)]

    def test_candidates_best_first(self) -> None:
        wrong = matching_examples(matching_bank(SCORES, LINKED), 3)[2]
        assert wrong.span == 1
        assert [region for region, _, _ in wrong.candidates] == [3, 2, 4]
        assert [score for _, score, _ in wrong.candidates] == [pytest.approx(score) for score in (0.3, 0.2, 0.1)]
        assert [linked for _, _, linked in wrong.candidates] == [False, True, False]

    def test_in_a_tie_the_wrong_one_comes_first(self) -> None:
        tie = matching_examples(matching_bank(SCORES, LINKED), 2)[1]
        assert [linked for _, _, linked in tie.candidates] == [False, True]

    def test_a_region_without_a_score_stands_last(self) -> None:
        nan = float("nan")
        found, missed = matching_examples(matching_bank([[0.3, nan], [nan, 0.3]], [0, 0]), 1)[::-1]
        assert [score for _, score, _ in found.candidates] == [pytest.approx(0.3), pytest.approx(nan, nan_ok=True)]
        assert (found.span, found.right, missed.span, missed.right) == (0, True, 1, False)

    def test_of_many_regions_the_best_and_one_that_shows_the_span(self) -> None:
        scores = [0.001 * place for place in range(MATCH_REGIONS + 100)]
        (wrong,) = matching_examples(matching_bank([scores], [3]), 1)
        best = [*range(len(scores) - 1, 99, -1), 3]
        assert [region for region, _, _ in wrong.candidates] == best
        assert [linked for _, _, linked in wrong.candidates] == [False] * MATCH_REGIONS + [True]

    def test_nothing_linked(self) -> None:
        assert matching_examples(make_bank(pairs=2), 3) == []

    def test_nothing_that_could_go_wrong(self) -> None:
        assert matching_examples(matching_bank([[0.7], [0.1]], [0, 0]), 3) == []

    def test_none_asked_for(self) -> None:
        assert matching_examples(matching_bank(SCORES, LINKED), 0) == []


class TestSimilarity:
    def scores(self, rows: Tensor, columns: Tensor) -> list[list[float]]:
        return [[pytest.approx(dot(row, column)) for column in columns] for row in rows]

    def test_of_a_large_set(self) -> None:
        bank = random_bank(0, pairs=60)
        example = similarity_example(bank)
        assert len(example.pairs) == BATCH_PAIRS
        assert len(set(bank.group[example.pairs].tolist())) == BATCH_PAIRS
        assert 0 < len(example.spans) <= BATCH_SPANS
        assert example.coarse.tolist() == self.scores(bank.text[example.pairs], bank.image[example.pairs])
        assert example.fine.tolist() == self.scores(bank.spans[example.spans], bank.regions[example.regions])
        assert set(bank.span_pair[example.spans].tolist()) <= set(example.pairs.tolist())
        links = {(span, region) for span, region in bank.links.tolist()}
        for row, span in enumerate(example.spans.tolist()):
            for column, region in enumerate(example.regions.tolist()):
                assert bool(example.linked[row, column]) == ((span, region) in links)
        assert not (example.linked & example.same_identity).any()
        assert example.linked.any(dim=0).all()
        assert example.linked.any(dim=1).all()

    def test_regions_of_the_same_identity_are_right_as_the_loss_counts_them(self) -> None:
        """Spans 0 and 1 are of one identity, in two images; span 2 of another."""
        bank = replace(matching_bank([[0.5], [0.5], [0.5]], [0, 0, 0]), span_identity=torch.tensor([7, 7, 8]))
        example = similarity_example(bank)
        assert example.linked.tolist() == torch.eye(3, dtype=torch.bool).tolist()
        assert example.same_identity.tolist() == [[False, True, False], [True, False, False], [False] * 3]

    @pytest.mark.parametrize("seed", range(5))
    def test_right_are_the_positives_of_a_plain_loop(self, seed: int) -> None:
        bank = random_bank(seed, pairs=30)
        example = similarity_example(bank)
        links = bank.links.tolist()
        for row, span in enumerate(example.spans.tolist()):
            for column, region in enumerate(example.regions.tolist()):
                shown = {int(bank.span_identity[other]) for other, one in links if one == region}
                right = bool(example.linked[row, column] | example.same_identity[row, column])
                assert right == (int(bank.span_identity[span]) in shown)

    def test_spans_with_many_regions_are_left_out(self) -> None:
        """Of a crowd, and of a person."""
        bank = matching_bank([[0.1] * (SPAN_REGIONS + 1), [0.2] * SPAN_REGIONS], [0, 0])
        links = [(int(pair), region) for region, pair in enumerate(bank.region_pair)]
        example = similarity_example(replace(bank, links=torch.tensor(links)))
        assert example.spans.tolist() == [1]
        assert example.fine.shape == (1, SPAN_REGIONS)

    def test_pairs_with_links_come_first(self) -> None:
        bank = matching_bank([[0.5]] * 40, [0 if pair >= 30 else None for pair in range(40)])
        pairs = similarity_example(bank).pairs.tolist()
        assert len(pairs) == BATCH_PAIRS
        assert set(range(30, 40)) < set(pairs)

    def test_a_single_pair_without_spans(self) -> None:
        example = similarity_example(make_bank(pairs=1))
        assert example.coarse.tolist() == [[1.0]]
        assert example.fine.shape == (0, 0)
        assert example.linked.shape == (0, 0)

    def test_a_seed_draws_the_pairs(self) -> None:
        bank = random_bank(0, pairs=60)
        assert torch.equal(similarity_example(bank, 1).pairs, similarity_example(bank, 1).pairs)
        assert not torch.equal(similarity_example(bank, 1).pairs, similarity_example(bank, 2).pairs)
