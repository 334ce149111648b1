"""Links with large losses are left out: against plain loops, in chunks, and not before the warm-up."""

import math
from dataclasses import replace

import pytest
import torch

from batches import random_batch, with_relevance
from encoders import accumulate, in_one_graph, make_model, make_sample
from encoders import collate as batch_of
from spanbox.losses.noise import NoiseSettings, link_losses, pair_losses, with_agreed_links
from spanbox.losses.objective import LossSettings, Objective
from spanbox.losses.relations import linked_regions, sentence_image_relation, span_region_relation
from spanbox.structures import Features, Targets

SCALES = {"coarse": torch.tensor(5.0, dtype=torch.float64), "fine": torch.tensor(7.0, dtype=torch.float64)}
SMALL = NoiseSettings(kind="small_loss", share=0.3, warm_up=0.5)


def case(seed: int, pairs: int = 9) -> tuple[Features, Targets]:
    batch = random_batch(seed, pairs=pairs, spans=3, regions=2)
    generator = torch.Generator().manual_seed(seed)

    def unit(*shape: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(*shape, 6, generator=generator, dtype=torch.float64), dim=-1)

    return Features(unit(pairs), unit(pairs), unit(pairs, 3), unit(pairs, 2)), batch.targets


@pytest.mark.parametrize("seed", range(4))
def test_losses_by_a_loop(seed: int) -> None:
    features, targets = case(seed, pairs=70)  # more than one block
    links, pairs = (
        loss(features, targets, SCALES[name]) for name, loss in (("fine", link_losses), ("coarse", pair_losses))
    )
    fine, coarse = span_region_relation(targets), sentence_image_relation(targets)
    for p in range(0, 70, 7):
        own = 5 * float(features.text[p] @ features.image[p])
        others = [5 * float(features.text[p] @ features.image[q]) for q in range(70) if coarse.negatives[p, q]]
        assert float(pairs[p]) == pytest.approx(math.log(math.exp(own) + sum(map(math.exp, others))) - own)
        for k in range(3):
            row = fine.negatives[3 * p + k]
            others = [7 * float(features.spans[p, k] @ features.regions[q // 2, q % 2]) for q in range(140) if row[q]]
            for r in range(2):
                if linked_regions(targets)[p, k, r]:
                    own = 7 * float(features.spans[p, k] @ features.regions[p, r])
                    expected = math.log(math.exp(own) + sum(map(math.exp, others))) - own
                    assert float(links[p, k, r]) == pytest.approx(expected)
                else:
                    assert links[p, k, r] == 0


@pytest.mark.parametrize("weighted", [False, True])
def test_the_links_with_the_largest_losses_on_either_level_are_left_out(weighted: bool) -> None:
    features, targets = case(1, pairs=40)
    linked = linked_regions(targets)
    if weighted:
        targets = with_relevance(random_batch(1, pairs=40, spans=3, regions=2)).targets
        assert targets.link_relevance is not None
        assert (targets.link_relevance[linked] == 0).any()
        linked &= targets.link_relevance > 0  # those of 0 are out already, and no part of the share
    cleaned = with_agreed_links(features, targets, SMALL, SCALES, done=1.0)
    assert cleaned.link_relevance is not None
    losses = link_losses(features, targets, SCALES["fine"])
    pairs = pair_losses(features, targets, SCALES["coarse"])[:, None, None].expand_as(losses)
    limit, pair_limit = (torch.quantile(values[linked], 0.7) for values in (losses, pairs))
    before = linked.double() if targets.link_relevance is None else targets.link_relevance
    for place in linked.nonzero().tolist():
        p, k, r = place
        kept = losses[p, k, r] <= limit and pairs[p, k, r] <= pair_limit
        assert float(cleaned.link_relevance[p, k, r]) == (float(before[p, k, r]) if kept else 0.0)
    share = float((cleaned.link_relevance[linked] > 0).double().mean())
    assert 0.3 < share < 0.75


@pytest.mark.parametrize(
    ("settings", "done"),
    [(NoiseSettings(), 1.0), (SMALL, 0.0)],
    ids=["off", "at the start"],
)
def test_else_the_targets_are_the_same(settings: NoiseSettings, done: float) -> None:
    features, targets = case(0)
    assert with_agreed_links(features, targets, settings, SCALES, done) is targets


def test_without_links_there_is_nothing_to_leave_out() -> None:
    features, targets = case(0)
    targets = replace(targets, links=torch.zeros_like(targets.links))
    assert with_agreed_links(features, targets, SMALL, SCALES, 1.0) is targets


def test_more_and_more_are_left_out_during_the_warm_up() -> None:
    features, targets = case(2, pairs=60)
    kept = []
    for done in (0.0, 0.2, 0.4, 0.5, 0.9):
        relevance = with_agreed_links(features, targets, SMALL, SCALES, done).link_relevance
        kept.append(int((relevance > 0).sum()) if relevance is not None else int(linked_regions(targets).sum()))
    assert kept[0] > kept[1] > kept[2] > kept[3] == kept[4]


def test_in_chunks_it_is_exact() -> None:
    batch = batch_of(*(make_sample(number, spans=number % 4, regions=(number + 1) % 4) for number in range(13)))
    results = []
    for step, size in ((in_one_graph, 13), (accumulate, 4)):
        torch.manual_seed(0)
        settings = LossSettings.model_validate({"noise": {"kind": "small_loss", "warm_up": 0.0}})
        model, objective = make_model().double(), Objective(settings).double()
        objective.set_progress(1.0)
        step(model, objective, batch, text=size, image=size)
        results.append([p.grad for p in (*model.parameters(), *objective.parameters()) if p.requires_grad])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
