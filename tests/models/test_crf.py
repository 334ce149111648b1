"""The CRF against sums and maxima over all sequences of tags, one by one."""

import itertools

import pytest
import torch
from torch import Tensor

from spanbox.models.crf import LinearChainCrf
from spanbox.tags import may_follow, may_start

TYPES = 1
TAGS = 3


def make_crf(*, rules: bool = True) -> LinearChainCrf:
    torch.manual_seed(0)
    start = may_start(TYPES) if rules else torch.ones(TAGS, dtype=torch.bool)
    follow = may_follow(TYPES) if rules else torch.ones(TAGS, TAGS, dtype=torch.bool)
    crf = LinearChainCrf(start, follow).double()
    for parameter in crf.parameters():
        torch.nn.init.normal_(parameter)
    return crf


def score(crf: LinearChainCrf, emissions: Tensor, path: tuple[int, ...]) -> Tensor:
    """Score of one sequence for the emissions (T, L) of its tokens."""
    total = crf.start[path[0]] + crf.start_penalty[path[0]]
    for place, tag in enumerate(path):
        total = total + emissions[place, tag]
    for before, after in itertools.pairwise(path):
        total = total + crf.steps[before, after] + crf.step_penalty[before, after]
    return total


def all_scores(crf: LinearChainCrf, emissions: Tensor) -> dict[tuple[int, ...], Tensor]:
    return {path: score(crf, emissions, path) for path in itertools.product(range(TAGS), repeat=len(emissions))}


def example(scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Emissions and tags of sentences with a special token in their middle, of one token, and of none."""
    torch.manual_seed(1)
    emissions = (scale * torch.randn(4, 5, TAGS, dtype=torch.float64)).requires_grad_()
    tags = torch.tensor([[0, 1, 2, 0, 1], [-1, 1, -1, 2, -1], [-1, -1, 0, -1, -1], [-1] * 5])
    return emissions, tags


@pytest.mark.slow
@pytest.mark.parametrize("rules", [True, False])
@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_the_likelihood_and_its_gradient_equal_the_sum_over_all_sequences(rules: bool, scale: float) -> None:
    crf = make_crf(rules=rules)
    emissions, tags = example(scale)
    loss = crf.negative_log_likelihood(emissions, tags)
    inputs = [emissions, *crf.parameters()]
    gradients = torch.autograd.grad(loss.sum(), inputs)
    expected = []
    for row, own in zip(emissions, tags, strict=True):
        tagged = own >= 0
        if not tagged.any():
            expected.append(torch.zeros((), dtype=torch.float64))
            continue
        scores = all_scores(crf, row[tagged])
        expected.append(torch.stack(list(scores.values())).logsumexp(0) - scores[tuple(own[tagged].tolist())])
    torch.testing.assert_close(loss, torch.stack(expected))
    for found, wanted in zip(gradients, torch.autograd.grad(torch.stack(expected).sum(), inputs), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("rules", [True, False])
def test_the_best_tags_are_the_best_of_all_sequences(rules: bool) -> None:
    crf = make_crf(rules=rules)
    emissions, tags = example()
    found = crf.best_tags(emissions, tags >= 0)
    for row, own, best in zip(emissions, tags, found, strict=True):
        tagged = own >= 0
        scores = all_scores(crf, row[tagged]) if tagged.any() else {(): torch.zeros(())}
        assert tuple(best) == max(scores, key=lambda path: scores[path].item())


def test_the_rules_are_kept_against_the_emissions() -> None:
    crf = make_crf()
    emissions = torch.zeros(1, 3, TAGS, dtype=torch.float64)
    emissions[:, :, 2] = 100.0  # inside, everywhere
    assert crf.best_tags(emissions, torch.ones(1, 3, dtype=torch.bool)) == [[1, 2, 2]]


def test_probabilities_sum_to_one() -> None:
    crf = make_crf()
    torch.manual_seed(2)
    emissions = torch.randn(1, 3, TAGS, dtype=torch.float64)
    paths = torch.tensor(list(itertools.product(range(TAGS), repeat=3)))
    losses = crf.negative_log_likelihood(emissions.expand(len(paths), -1, -1), paths)
    torch.testing.assert_close((-losses).exp().sum(), torch.tensor(1.0, dtype=torch.float64))


def test_padding_changes_nothing() -> None:
    crf = make_crf()
    emissions, tags = example()
    wider = torch.cat([emissions, torch.full((4, 3, TAGS), 7.0, dtype=torch.float64)], dim=1)
    more = torch.cat([tags, torch.full((4, 3), -1)], dim=1)
    torch.testing.assert_close(
        crf.negative_log_likelihood(wider, more), crf.negative_log_likelihood(emissions, tags), rtol=0, atol=0
    )
    assert crf.best_tags(wider, more >= 0) == crf.best_tags(emissions, tags >= 0)


def test_no_sentences_and_no_tokens() -> None:
    crf = make_crf()
    none = torch.zeros(0, 4, TAGS, dtype=torch.float64)
    assert crf.negative_log_likelihood(none, torch.zeros(0, 4).long()).shape == (0,)
    assert crf.best_tags(none, torch.zeros(0, 4).bool()) == []
    empty = torch.zeros(2, 0, TAGS, dtype=torch.float64)
    assert crf.negative_log_likelihood(empty, torch.zeros(2, 0).long()).tolist() == [0.0, 0.0]
    assert crf.best_tags(empty, torch.zeros(2, 0).bool()) == [[], []]


def test_half_precision_becomes_float32() -> None:
    crf = make_crf().float()
    loss = crf.negative_log_likelihood(torch.randn(1, 4, TAGS).bfloat16(), torch.tensor([[0, 1, 2, 0]]))
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss).all()
