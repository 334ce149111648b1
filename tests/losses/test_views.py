"""The ranking of masked views, against plain loops, and its gate."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

import loss_reference
import relation_reference
from batches import make_batch, random_batch
from spanbox.losses.objective import LossSettings, Objective
from spanbox.losses.views import Gate, ViewLossSettings, ranking_loss
from spanbox.structures import Features
from view_batches import DIM, features_of, objective_of, with_views

# The ranking


def by_hand(*, best: float, view: float, margin: float) -> float:
    query, key = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[view, 0.0]]])
    return ranking_loss(query, torch.tensor([[best]]), key, torch.tensor([[[True]]]), margin).item()


def test_a_ranking_by_hand() -> None:
    assert by_hand(best=0.5, view=0.4, margin=0.2) == pytest.approx(0.1)
    assert by_hand(best=0.5, view=0.7, margin=0.2) == pytest.approx(0.4)
    assert by_hand(best=0.5, view=0.2, margin=0.2) == 0


@pytest.mark.parametrize("gate", [False, True], ids=["plain", "gate"])
@pytest.mark.parametrize("seed", range(8))
def test_rankings_equal_the_plain_loops_with_their_gradients(seed: int, gate: bool) -> None:
    batch = random_batch(seed, views=2)
    features = features_of(batch, seed)
    objective = objective_of(form="margin", margin=0.7, gate=gate)
    term = objective(features, batch).terms["views"]

    def openness(view: Tensor, text: Tensor) -> Tensor:
        assert objective.gate
        weights = torch.cat([objective.gate.of_view, objective.gate.of_text])
        return torch.sigmoid(weights @ torch.cat([view, text]) + objective.gate.bias)

    expected = sum(
        loss_reference.ranking_loss(comparisons, 0.7, openness if gate else None)
        for comparisons in relation_reference.view_comparisons(features, batch)
    )
    torch.testing.assert_close(term, expected, rtol=1e-10, atol=1e-12)
    leaves = [*features.tensors(), *(objective.gate.parameters() if objective.gate else [])]
    gradients, wanted = (
        torch.autograd.grad(one + 0 * sum(leaf.sum() for leaf in leaves), leaves) for one in (term, expected)
    )
    torch.testing.assert_close(gradients, wanted, rtol=1e-8, atol=1e-10)


def test_the_best_region_of_a_span_is_compared() -> None:
    """Of its own two: neither a better one of another span, nor padding."""
    batch = with_views(make_batch([[1, 2]], [4], [(0, 0, 0), (0, 0, 1), (0, 1, 2), (0, 0, 3)]), [[0]], [[[-1, 0]]])
    batch = replace(batch, region_valid=torch.tensor([[True, True, True, False]]))
    cosines = torch.tensor([0.1, 0.3, 0.9, 0.8])
    regions = torch.stack([cosines, (1 - cosines**2).sqrt()], dim=1)[None]
    spans = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    features = Features(torch.zeros(1, 2), torch.zeros(1, 2), spans, regions, torch.tensor([[[0.5, 0.0]]]))
    assert objective_of(form="margin", margin=0.2)(features, batch).terms["views"].item() == pytest.approx(0.4)


def test_the_term_counts_with_its_weight() -> None:
    batch = random_batch(3, pairs=4, spans=2, regions=2, views=2)
    losses = objective_of(form="margin", weight=3.0)(features_of(batch), batch)
    terms = {name: term.item() for name, term in losses.terms.items()}
    assert losses.total.item() == pytest.approx(terms["coarse"] + terms["fine"] + 3 * terms["views"])
    assert terms["views"] > 0


def test_a_weight_of_zero_leaves_the_term_out() -> None:
    batch = random_batch(3, pairs=4, spans=2, regions=2, views=2)
    assert set(objective_of(form="margin", weight=0.0)(features_of(batch), batch).terms) == {"coarse", "fine"}


def test_a_level_that_is_left_out_is_not_ranked() -> None:
    batch = random_batch(3, pairs=4, spans=2, regions=2, views=2)
    features = features_of(batch)

    def ranking(**weights: float) -> float:
        levels = {name: {"weight": weight} for name, weight in weights.items()}
        settings = LossSettings.model_validate({"views": {"form": "margin"}, **levels})
        return Objective(settings)(features, batch).terms["views"].item()

    assert ranking(coarse=0.0) + ranking(fine=0.0) == pytest.approx(ranking())


# The gate


def test_the_gate_starts_without_a_preference() -> None:
    used = torch.rand(3, 2, 4) < 0.5
    weights = Gate(DIM)(torch.randn(3, 4, DIM), torch.randn(3, 2, DIM), used)
    torch.testing.assert_close(weights[used], torch.ones(int(used.sum())))


@pytest.mark.parametrize("bias", [-1e4, 0.0, 1e4])
def test_closing_all_gates_gains_nothing(bias: float) -> None:
    gate = Gate(DIM)
    torch.nn.init.constant_(gate.bias, bias)
    used = torch.rand(3, 2, 4) < 0.5
    weights = gate(torch.randn(3, 4, DIM), torch.randn(3, 2, DIM), used)
    assert weights[used].mean().item() == pytest.approx(1.0)
    assert not weights[~used].any()


def test_the_gate_does_not_move_the_towers() -> None:
    """The gradient at the features is that of the weights as constants."""
    batch = random_batch(3, pairs=4, spans=2, regions=2, views=2)
    views = features_of(batch).views
    text = features_of(batch, 1).text[:, None].detach().requires_grad_()
    hides = torch.ones(4, 1, 2, dtype=torch.bool)
    gate = Gate(DIM).double()
    torch.nn.init.normal_(gate.of_view)
    gate(views, text, hides).pow(2).sum().backward()
    assert views.grad is None
    assert text.grad is None
    assert gate.of_view.grad.abs().sum() > 0


def test_the_gate_learns_to_rely_on_one_view_more_than_on_another() -> None:
    batch = with_views(make_batch([[]], [0], []), [[-1, -1]])
    features, objective = features_of(batch), objective_of(form="margin", margin=2.0, gate=True)
    before = objective(features, batch)
    before.total.backward()
    with torch.no_grad():
        for parameter in objective.gate.parameters():
            parameter -= 0.1 * parameter.grad
    assert objective(features, batch).total < before.total


@pytest.mark.parametrize("views", [{"gate": True}, {"form": "none", "gate": True}])
def test_a_gate_without_a_ranking_is_refused(views: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="gate applies to form=margin only"):
        ViewLossSettings.model_validate(views)


def test_settings_survive_being_written_and_read() -> None:
    settings = LossSettings.model_validate({"views": {"form": "margin", "gate": True}})
    assert LossSettings.model_validate(settings.model_dump(mode="json")) == settings
