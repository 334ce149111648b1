"""Copies: images against images and texts against texts, with what is of one group as positives."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from batches import make_batch, random_batch, with_relevance
from spanbox.losses.objective import LossSettings, Objective
from spanbox.losses.relations import copies_relation
from spanbox.structures import Batch, Features

ALONE = {"coarse": {"weight": 0}, "fine": {"weight": 0}}
FIXED = {"weight": 1.0, "temperature": 0.5, "temperature_schedule": "fixed"}


def features_of(batch: Batch, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)

    def unit(*shape: int) -> Tensor:
        return F.normalize(torch.randn(*shape, 4, generator=generator, dtype=torch.float64), dim=-1).requires_grad_()

    pairs, spans, regions = batch.links.shape
    return Features(unit(pairs), unit(pairs), unit(pairs, spans), unit(pairs, regions))


def slow_loss(features: Tensor, batch: Batch, temperature: float) -> Tensor:
    """InfoNCE of rows against all other rows: the mean over the rows with a positive, of the log of their share."""
    group, wording = batch.group.tolist(), batch.wording.tolist()
    rows = []
    for one in range(len(group)):
        positives, candidates = [], []
        for other in range(len(group)):
            if other == one:
                continue
            logit = features[one] @ features[other] / temperature
            if group[other] == group[one]:
                positives.append(logit)
            if group[other] == group[one] or wording[other] != wording[one]:
                candidates.append(logit)
        if positives:
            rows.append(torch.stack(candidates).logsumexp(0) - torch.stack(positives).logsumexp(0))
    return torch.stack(rows).mean() if rows else features.new_zeros(())


@pytest.mark.parametrize("seed", range(6))
def test_the_term_is_the_mean_of_both_kinds_by_a_slow_loop(seed: int) -> None:
    batch = random_batch(seed)
    features = features_of(batch, seed)
    objective = Objective(LossSettings.model_validate(ALONE | {"copies": FIXED}))
    losses = objective(features, batch)
    expected = (slow_loss(features.text, batch, 0.5) + slow_loss(features.image, batch, 0.5)) / 2
    torch.testing.assert_close(losses.terms["copies"], expected)
    if not expected.requires_grad:
        return
    found = torch.autograd.grad(losses.total, [features.text, features.image])
    for one, other in zip(found, torch.autograd.grad(expected, [features.text, features.image]), strict=True):
        torch.testing.assert_close(one, other)


def test_of_two_copies_worked_out_by_hand() -> None:
    """Pairs 0 and 1 are copies; everything is orthogonal. Each finds its copy among two others."""
    batch = make_batch([[], [], []], [0, 0, 0], [], group=[7, 7, 9])
    features = features_of(batch)
    zeros = Features(*(torch.zeros_like(tensor) for _, tensor in features.named_tensors()))
    objective = Objective(LossSettings.model_validate(ALONE | {"copies": FIXED}))
    assert objective(zeros, batch).terms["copies"].item() == pytest.approx(torch.tensor(2.0).log().item())


def test_blocks_are_parts_of_the_whole() -> None:
    batch = with_relevance(random_batch(3))
    whole = copies_relation(batch)
    rows, columns = slice(1, 4), slice(2, len(batch))
    part = copies_relation(batch, rows, columns)
    for name in ("positives", "candidates", "weight"):
        expected = getattr(whole, name)[2 * 1 : 2 * 4, 2 * 2 :]
        assert torch.equal(getattr(part, name), expected), name
    assert torch.equal(whole.positives, whole.positives.T)
    assert not whole.candidates.diagonal().any()


def test_texts_and_images_are_not_contrasted_with_each_other() -> None:
    relation = copies_relation(random_batch(0))
    assert not relation.candidates[0::2, 1::2].any()
    assert not relation.candidates[1::2, 0::2].any()


def test_without_copies_nothing_is_learned_and_the_term_is_zero() -> None:
    batch = make_batch([[], []], [0, 0], [], group=[1, 2])
    features = features_of(batch)
    objective = Objective(LossSettings.model_validate(ALONE | {"copies": FIXED}))
    assert objective(features, batch).terms["copies"].item() == 0
    assert not objective.contrasts_something("copies", features, batch)


@pytest.mark.parametrize("options", [{"loss": "sup_con"}, {"loss": "sigmoid"}, {"negatives": {"per_anchor": 2}}])
def test_the_term_takes_every_loss_and_selection(options: dict[str, Any]) -> None:
    batch = make_batch([[]] * 6, [0] * 6, [], group=[1, 1, 2, 2, 3, 3])
    objective = Objective(LossSettings.model_validate({"copies": {"weight": 0.3, **options}}))
    losses = objective(features_of(batch), batch)
    assert torch.isfinite(losses.total)
    assert losses.terms["copies"] > 0


def test_off_by_default_and_without_weights_of_its_own() -> None:
    objective = Objective(LossSettings())
    assert "copies" not in objective.temperatures()
    assert not [name for name, _ in objective.named_parameters() if "copies" in name]
