"""Two stages of retrieval against a loop over queries, and the paired difference."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import metric_reference
from banks import make_bank
from spanbox.evaluation.evaluate import evaluate
from spanbox.evaluation.extract import FeatureBank
from spanbox.evaluation.reranking import IN_CONTEXT, gains, reranked_outcomes
from spanbox.evaluation.retrieval import retrieval_outcomes
from spanbox.intervals import paired_difference


def random_bank(seed: int, pairs: int = 14) -> FeatureBank:
    generator = torch.Generator().manual_seed(seed)
    text, image = (normalize(torch.randn(pairs, 4, generator=generator), dim=1) for _ in range(2))
    group = torch.randint(0, 9, (pairs,), generator=generator).tolist()
    first = {number: group.index(number) for number in group}
    return make_bank(text=text, image=image[[first[number] for number in group]], group=group)


def table(seed: int, pairs: int = 14) -> Tensor:
    """Fused scores (N, N) of sentences and images, with ties."""
    generator = torch.Generator().manual_seed(100 + seed)
    return torch.randint(-4, 5, (pairs, pairs), generator=generator) / 4


def expected_ranks(bank: FeatureBank, fused: Tensor, most: int, *, to_text: bool) -> list[int]:
    """One query after the other: the first K by the towers in fused order, then the others in theirs."""
    group = bank.group.tolist()
    images = [pair for pair in range(len(group)) if group[pair] not in group[:pair]]
    ranks = []
    for query in images if to_text else range(len(group)):
        candidates = list(range(len(group))) if to_text else images
        own, others = (bank.image, bank.text) if to_text else (bank.text, bank.image)
        towers = [metric_reference.dot(own[query], others[candidate]) for candidate in candidates]
        proposed = sorted(range(len(candidates)), key=lambda i: -towers[i])[:most]
        scores = [
            10 + float(fused[candidates[i], query] if to_text else fused[query, candidates[i]])
            if i in proposed
            else towers[i]
            for i in range(len(candidates))
        ]
        right = [group[c] == group[query] for c in candidates]
        ranks.append(metric_reference.rank_of_best_positive(scores, right))
    return ranks


@pytest.mark.parametrize("most", [1, 3, 100])
@pytest.mark.parametrize("seed", range(4))
def test_ranks_are_those_of_a_loop(seed: int, most: int) -> None:
    """Also with K above the size of the set."""
    bank, fused = random_bank(seed), table(seed)
    outcomes = reranked_outcomes(bank, lambda sentences, images: fused[sentences, images], most)
    for way, to_text in (("i2t", True), ("t2i", False)):
        found = outcomes[f"retrieval.{way}.reranked.mean_rank"].values.tolist()
        assert found == expected_ranks(bank, fused, most, to_text=to_text)


def test_scores_that_agree_with_the_towers_change_nothing() -> None:
    bank = random_bank(0)
    similarity = bank.text @ bank.image.T
    outcomes = reranked_outcomes(bank, lambda sentences, images: similarity[sentences, images], 5)
    for name, outcome in retrieval_outcomes(bank).items():
        way, metric = name.split(".")[1:]
        assert np.allclose(outcomes[f"retrieval.{way}.reranked.{metric}"].values, outcome.values)


def test_equal_scores_rank_last() -> None:
    bank = make_bank(text=torch.eye(6))
    outcomes = reranked_outcomes(bank, lambda sentences, images: torch.zeros(len(sentences)), 4)
    assert outcomes["retrieval.t2i.reranked.mean_rank"].values.tolist() == [4] * 6


def test_towers_that_give_equal_scores_propose_nothing_by_luck() -> None:
    bank = make_bank(text=torch.ones(6, 3) / 3**0.5, image=torch.ones(6, 3) / 3**0.5)
    for most, rank in ((1, 6), (5, 6), (6, 1)):
        outcomes = reranked_outcomes(bank, lambda sentences, images: (sentences == images).float(), most)
        for way in ("i2t", "t2i"):
            assert outcomes[f"retrieval.{way}.reranked.mean_rank"].values.tolist() == [rank] * 6


def test_a_tie_at_the_last_proposed_place_counts_against_the_model() -> None:
    """The first image is proposed, the others share the second place of two."""
    image = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8], [0.6, 0.8]])
    bank = make_bank(text=torch.tensor([[1.0, 0.0]] * 4), image=image)
    outcomes = reranked_outcomes(bank, lambda sentences, images: (sentences == images).float(), 2)
    assert outcomes["retrieval.t2i.reranked.mean_rank"].values.tolist() == [1, 4, 4, 4]


def test_scores_that_are_not_numbers_rank_last() -> None:
    bank = make_bank(text=torch.eye(6))
    outcomes = reranked_outcomes(bank, lambda sentences, images: torch.full((len(sentences),), torch.nan), 2)
    assert outcomes["retrieval.t2i.reranked.mean_rank"].values.tolist() == [2] * 6


def test_only_proposed_pairs_are_scored() -> None:
    bank, scored = random_bank(1), list[int]()

    def scores(sentences: Tensor, images: Tensor) -> Tensor:
        scored.append(len(sentences))
        return torch.zeros(len(sentences))

    reranked_outcomes(bank, scores, 3)
    images = len(set(bank.group.tolist()))
    assert sum(scored) == 3 * (len(bank) + images)


def test_the_gain_is_the_paired_difference_with_its_interval() -> None:
    bank, fused = random_bank(2), table(2)
    outcomes = retrieval_outcomes(bank) | reranked_outcomes(bank, lambda s, i: fused[s, i], 5)
    figure = gains(outcomes)["retrieval.t2i.reranked.r1.gain"]
    pair = outcomes["retrieval.t2i.reranked.r1"], outcomes["retrieval.t2i.r1"]
    value, interval = paired_difference(pair[0].values, pair[1].values, pair[0].image, rates=True)
    assert (figure.value, figure.interval) == (value, interval)
    assert interval is not None


class TestEvaluate:
    def test_both_stages_stand_side_by_side(self) -> None:
        bank, fused = random_bank(3), table(3)
        metrics = evaluate(bank, fused_scores=lambda s, i: fused[s, i], reranked=4).metrics
        for name in ("retrieval.i2t.r1", "retrieval.i2t.reranked.r1", "retrieval.i2t.reranked.r1.gain"):
            assert {name, f"{name}.low", f"{name}.high", f"{name}.count"} <= metrics.keys()

    @pytest.mark.parametrize("options", [{}, {"fused_scores": lambda s, i: torch.zeros(len(s)), "reranked": 0}])
    def test_without_fusion_there_is_one_stage(self, options: dict[str, object]) -> None:
        assert not [name for name in evaluate(random_bank(0), **options).metrics if "reranked" in name]  # type: ignore[arg-type]

    def test_parts_in_context_are_matched_within_their_image(self) -> None:
        """The towers confuse both regions, the parts in context do not."""
        bank = make_bank(
            pairs=2,
            spans=torch.tensor([[1.0, 0.0], [1.0, 0.0]]),
            span_pair=(0, 1),
            span_identity=(1, 2),
            regions=torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]),
            region_pair=(0, 0, 1, 1),
            links=((0, 0), (1, 2)),
        )

        seen = replace(
            bank,
            spans_in_context=torch.tensor([[0.0, 1.0], [0.0, 1.0]]),
            regions_in_context=bank.regions,
        )
        metrics = evaluate(seen).metrics
        assert metrics["matching.within_image"] == 0.0
        assert metrics[IN_CONTEXT] == 1.0
        assert metrics[f"{IN_CONTEXT}.gain"] == 1.0
        assert IN_CONTEXT not in evaluate(bank).metrics
