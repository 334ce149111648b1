"""The GMNER task: losses against plain loops; chunks, ranks and one piece give the same gradient."""

import math
from dataclasses import fields
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from encoders import collate, make_model, make_sample
from spanbox.data.tagged import TaggedBatch
from spanbox.engine.large_batch import States, TowerStep, accumulate_gradients
from spanbox.engine.task import heads, is_trained
from spanbox.losses.kernel import WHOLE_SHARE, Share
from spanbox.models.gmner import GmnerFeatures, GmnerModel, RegionChoice
from spanbox.structures import NAMED_ONLY, NOT_KNOWN, SHOWN, Batch, Losses
from spanbox.tags import tag_tokens
from spanbox.tasks.gmner import Gmner, GmnerSettings, GmnerTargets, gmner_losses, targets_of

PAIRS = 8
TYPES = ("animal", "地点")


def make_batch(pairs: int = PAIRS) -> TaggedBatch:
    """Pairs with 0 to 3 spans and 1 to 4 candidates. Some entities are not shown, and of some it is not known."""
    samples = [make_sample(number, spans=number % 4, regions=1 + number % 4) for number in range(pairs)]
    batch = collate(*samples)
    values = {entry.name: getattr(batch, entry.name) for entry in fields(Batch)}
    kind = (torch.arange(pairs)[:, None] + torch.arange(batch.span_identity.shape[1])) % 4
    values["links"] = batch.links & (kind > 1)[:, :, None]
    without = torch.where(kind == 0, NAMED_ONLY, NOT_KNOWN)
    shown = torch.where(values["links"].any(dim=2), SHOWN, without).to(torch.int8)
    values["span_shown"] = shown.masked_fill(~batch.span_valid, NOT_KNOWN)
    types = torch.where(batch.span_valid, batch.span_entity % len(TYPES), -1)
    tagged = batch.token_mask.clone()
    tagged[:, 0] = False  # as a class token
    return TaggedBatch(**values, tags=tag_tokens(batch.span_tokens, types, tagged)[0])


def make_task(*, grounds: bool = True, dropout: float = 0.0, **model: Any) -> Gmner:
    torch.manual_seed(0)
    gmner = GmnerModel(make_model(dropout=dropout, **model), TYPES, scale=5.0, grounds=grounds).double()
    for parameter in gmner.tagger.crf.parameters():
        torch.nn.init.normal_(parameter)
    if gmner.choice is not None:
        torch.nn.init.normal_(gmner.choice.none.weight)
    return Gmner(gmner, GmnerSettings(regions=grounds, region_weight=0.7))


def gradients(task: Gmner) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in task.model.named_parameters() if p.grad is not None}


def accumulate(task: Gmner, batch: TaggedBatch, chunk: int, share: Share = WHOLE_SHARE) -> Losses:
    inputs = task.inputs(batch)
    names = list(inputs.rows)

    def score(*states: States) -> Losses:
        return task.losses(task.features(dict(zip(names, states, strict=True)), inputs.rest), inputs.targets, share)

    steps = [
        TowerStep(partial(task.encode, name), inputs.rows[name], chunk, is_trained(task.towers[name])) for name in names
    ]
    return accumulate_gradients(steps, score)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=max(1e-10 * scale, 1e-15), msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("grounds", [True, False])
@pytest.mark.parametrize("chunk", [1, 3, 5])
def test_chunked_equals_whole(chunk: int, grounds: bool) -> None:
    batch = make_batch()
    whole, parts = make_task(grounds=grounds), make_task(grounds=grounds)
    expected = accumulate(whole, batch, 1000)
    found = accumulate(parts, batch, chunk)
    torch.testing.assert_close(found.total, expected.total, rtol=1e-12, atol=0)
    assert_same(gradients(parts), gradients(whole))


@pytest.mark.slow
def test_shares_of_two_ranks_add_up() -> None:
    """Each computes the losses of its own pairs, with means over the counts of both."""
    batch = make_batch()
    whole = make_task()
    expected = accumulate(whole, batch, 1000)
    counts: list[list[Tensor]] = []
    halves = [slice(0, PAIRS // 2), slice(PAIRS // 2, PAIRS)]
    for pairs in halves:  # what each gives to the sums
        counts.append([])
        accumulate(make_task(), batch, 1000, Share(pairs, 2, lambda own: counts[-1].append(own) or own))
    sums = [first + second for first, second in zip(*counts, strict=True)]
    totals, both = torch.zeros((), dtype=torch.float64), dict[str, Tensor]()
    for pairs in halves:
        task, remaining = make_task(), iter(sums)
        totals = totals + accumulate(task, batch, 1000, Share(pairs, 2, lambda own, it=remaining: next(it))).total
        both = {name: gradient + both.get(name, 0.0) for name, gradient in gradients(task).items()}
    torch.testing.assert_close(totals, expected.total)
    assert_same(both, gradients(whole))


def test_the_losses_equal_a_plain_loop() -> None:
    task, batch = make_task(), make_batch()
    inputs = task.inputs(batch)
    with torch.no_grad():
        states = {name: [task.encode(name, rows[:]) for rows in groups] for name, groups in inputs.rows.items()}
        features = task.features(states, inputs.rest)
        losses = task.losses(features, inputs.targets, WHOLE_SHARE)
    nll, tokens, of_regions = 0.0, 0, []
    for pair in range(PAIRS):
        row = batch.tags[pair] >= 0
        tokens += int(row.sum())
        crf = task.model.tagger.crf
        nll += crf.negative_log_likelihood(features.emissions[pair : pair + 1, row], batch.tags[None, pair, row]).item()
        for span in batch.span_valid[pair].nonzero()[:, 0].tolist():
            logits = {-1: float(features.none[pair, span])}
            for region in batch.region_valid[pair].nonzero()[:, 0].tolist():
                logits[region] = float(features.regions[pair, span, region])
            right = [column for column in logits if column >= 0 and batch.links[pair, span, column]]
            if batch.span_shown[pair, span] == NAMED_ONLY:
                right = [-1]
            if right:
                everything = sum(math.exp(value) for value in logits.values())
                of_regions.append(-math.log(sum(math.exp(logits[column]) for column in right) / everything))
    assert 0 < len(of_regions) < int(batch.span_valid.sum())  # some have no answer
    assert losses.terms["tags"].item() == pytest.approx(nll / tokens)
    assert losses.terms["regions"].item() == pytest.approx(sum(of_regions) / len(of_regions))
    assert losses.total.item() == pytest.approx(nll / tokens + 0.7 * sum(of_regions) / len(of_regions))


def test_without_any_answer_the_region_loss_is_zero() -> None:
    task = make_task()
    features = GmnerFeatures(torch.zeros(2, 3, 5), torch.zeros(2, 1, 0), torch.zeros(2, 1))
    nothing = torch.zeros(2, 1, 0, dtype=torch.bool)
    targets = GmnerTargets(torch.full((2, 3), -1), nothing, nothing[:, 0], torch.zeros(2, 1, dtype=torch.bool))
    losses = gmner_losses(task.model, features, targets, WHOLE_SHARE, 1.0)
    assert losses.total.item() == 0.0
    assert torch.isfinite(losses.total)


def test_an_entity_without_candidates_can_only_be_none() -> None:
    task = make_task()
    features = GmnerFeatures(torch.zeros(1, 1, 5), torch.zeros(1, 1, 0), torch.zeros(1, 1))
    nothing = torch.zeros(1, 1, 0, dtype=torch.bool)
    targets = GmnerTargets(torch.full((1, 1), -1), nothing, nothing[:, 0], torch.ones(1, 1, dtype=torch.bool))
    assert gmner_losses(task.model, features, targets, WHOLE_SHARE, 1.0).terms["regions"].item() == 0.0


def test_padding_of_other_ranks_counts_for_nothing() -> None:
    """Ranks pad ids with -1 and the rest with zeros."""
    task, batch = make_task(), make_batch()
    inputs = task.inputs(batch)
    with torch.no_grad():
        states = {name: [task.encode(name, rows[:]) for rows in groups] for name, groups in inputs.rows.items()}
        features = task.features(states, inputs.rest)
        pad = torch.nn.functional.pad
        wider = GmnerFeatures(
            pad(features.emissions, (0, 0, 0, 2)), pad(features.regions, (0, 3, 0, 1)), pad(features.none, (0, 1))
        )
        targets = targets_of(batch)
        more = GmnerTargets(
            pad(targets.tags, (0, 2), value=-1),
            pad(targets.links, (0, 3, 0, 1)),
            pad(targets.candidates, (0, 3)),
            pad(targets.none, (0, 1)),
        )
        expected = task.losses(features, targets, WHOLE_SHARE)
        torch.testing.assert_close(task.losses(wider, more, WHOLE_SHARE).total, expected.total)


def test_only_what_is_used_is_trained() -> None:
    """Weight decay would shrink what has no gradient."""
    for grounds in (True, False):
        task = make_task(grounds=grounds)
        accumulate(task, make_batch(), 1000)
        trained = {name for name, p in task.model.named_parameters() if p.requires_grad}
        assert trained == gradients(task).keys()
        assert ("encoder.vision.model" in " ".join(trained)) == grounds
        assert task.model.tagger in heads(task)
        assert not set(heads(task)) & set(task.towers.values())


def test_a_frozen_text_tower_still_trains_the_tagger() -> None:
    task = make_task()
    task.model.encoder.text.requires_grad_(False)
    accumulate(task, make_batch(), 3)
    assert task.model.tagger.emissions.weight.grad.abs().sum() > 0
    assert task.model.encoder.text_projection.weight.grad is None


def test_the_scale_is_bounded() -> None:
    task = make_task()
    with torch.no_grad():
        task.model.choice.log_scale.fill_(10.0)
    task.after_step()
    assert task.model.choice.scale.item() == pytest.approx(100.0)


def test_regions_are_compared_in_float32_when_the_towers_compute_in_bfloat16() -> None:
    """Else the logits of overlapping candidates would be equal."""
    choice = RegionChoice(64, scale=14.0)
    torch.nn.init.normal_(choice.none.weight)
    spans = torch.nn.functional.normalize(torch.randn(2, 3, 64), dim=-1)
    regions = torch.nn.functional.normalize(spans[:, :1] + 0.001 * torch.randn(2, 5, 64), dim=-1)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = choice(spans, regions)
    for logits, exact in zip(rounded, choice(spans, regions), strict=True):
        assert torch.equal(logits, exact)
