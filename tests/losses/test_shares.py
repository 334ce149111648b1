"""Ranks that share the rows: their losses and gradients add up to those of the whole. Without processes."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from batches import random_batch, with_relevance
from spanbox.losses import blocks
from spanbox.losses.blocks import both_directions
from spanbox.losses.formulas import LOSSES
from spanbox.losses.kernel import Share
from spanbox.losses.levels import Contrast, fine_contrast
from spanbox.losses.objective import LossSettings, Objective
from spanbox.losses.relations import Relation
from spanbox.losses.views import ViewLossSettings
from spanbox.structures import Batch, Features

PAIRS, SPANS, REGIONS, VIEWS, DIM = 6, 3, 2, 2, 4
LIMITS = {
    "whole": {},
    "parts": {"MOST_LOGITS": 0, "TILE_SIDE": 12, "STRIP_LOGITS": 150},
}


def features_of(batch: Batch) -> Features:
    generator = torch.Generator().manual_seed(0)
    shapes = [(PAIRS,), (PAIRS,), (PAIRS, SPANS), (PAIRS, REGIONS), (PAIRS, VIEWS)]
    values = [torch.randn(*shape, DIM, generator=generator, dtype=torch.float64) for shape in shapes]
    features = Features(*(normalize(value, dim=-1).requires_grad_() for value in values))
    return features if batch.view_sentence is not None else replace(features, views=None)


def run_shares(ranks: int, run: Callable[[Share], Any]) -> list[Any]:
    """The result of every rank. Twice: first for what each gives to the sums, then with the sums."""
    size = PAIRS // ranks
    slices = [slice(rank * size, (rank + 1) * size) for rank in range(ranks)]
    given: list[list[Tensor]] = []
    for pairs in slices:
        given.append([])
        run(Share(pairs, ranks, lambda own: given[-1].append(own) or own))
    sums = [sum(own[1:], start=own[0]) for own in zip(*given, strict=True)]

    def totals() -> Callable[[Tensor], Tensor]:
        answers: Iterator[Tensor] = iter(sums)
        return lambda own: next(answers)

    return [run(Share(pairs, ranks, totals())) for pairs in slices]


def assert_shares_add_up(objective: Objective, features: Features, batch: Batch, ranks: int) -> None:
    leaves = [*features.tensors(), *(one for one in objective.parameters() if one.requires_grad)]

    def results(share: Share | None) -> tuple[dict[str, Tensor], list[Tensor]]:
        losses = objective(features, batch) if share is None else objective(features, batch, share)
        gradients = torch.autograd.grad(losses.total, leaves, materialize_grads=True)
        return {"total": losses.total, **losses.terms}, list(gradients)

    expected, expected_gradients = results(None)
    shares = run_shares(ranks, results)
    for name, value in expected.items():
        of_all = sum(losses[name] for losses, _ in shares)
        torch.testing.assert_close(of_all, value, rtol=1e-10, atol=1e-12, msg=name)
    for number, gradient in enumerate(expected_gradients):
        of_all = sum(gradients[number] for _, gradients in shares)
        torch.testing.assert_close(of_all, gradient, rtol=1e-9, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("views", [{}, {"form": "margin", "gate": True}, None], ids=["candidates", "margin", "none"])
@pytest.mark.parametrize(
    "negatives",
    [
        {},
        {"per_anchor": 2},
        {"per_anchor": 3, "choice": "hardest"},
        {"false_negative_margin": 0.8},
    ],
    ids=["all", "random", "hardest", "margin"],
)
@pytest.mark.parametrize("loss", LOSSES)
def test_shares_add_up(
    loss: str, negatives: dict[str, Any], views: dict[str, Any] | None, limits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, limit in LIMITS[limits].items():
        monkeypatch.setattr(blocks, name, limit)
    level = {"loss": loss, "negatives": negatives}
    if loss != "decoupled":
        level["weight_schedule"] = "uncertainty"
    settings = LossSettings.model_validate({"coarse": level, "fine": level, "views": views or {}})
    objective = Objective(settings, dim=DIM).double()
    if objective.gate:
        for number, parameter in enumerate(objective.gate.parameters()):
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(number))
    batch = random_batch(5, pairs=PAIRS, spans=SPANS, regions=REGIONS, views=None if views is None else VIEWS)
    for ranks, case in ((1, batch), (2, batch), (3, with_relevance(batch))):
        assert_shares_add_up(objective, features_of(case), case, ranks)


def test_ranks_whose_pairs_have_nothing_to_compare() -> None:
    """The first has no usable spans; its pairs are still keys of the others."""
    batch = random_batch(5, pairs=PAIRS, spans=SPANS, regions=REGIONS, views=VIEWS)
    batch.span_identity[: PAIRS // 2] = -1
    batch.view_sentence[: PAIRS // 2] = 0
    settings = LossSettings.model_validate({"views": {"form": "margin"}})
    assert_shares_add_up(Objective(settings).double(), features_of(batch), batch, 2)


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_logits_of_a_rank(ranks: int, limits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, limit in LIMITS[limits].items():
        monkeypatch.setattr(blocks, name, limit)
    batch = random_batch(5, pairs=PAIRS, spans=SPANS, regions=REGIONS)
    contrast = fine_contrast(features_of(batch), batch, ViewLossSettings())
    computed = 0

    def watched(rows: slice, columns: slice) -> Relation:
        nonlocal computed
        relation = contrast.relation(rows, columns)
        computed += relation.positives.numel()
        return relation

    both_directions(
        Contrast(contrast.queries, contrast.keys, watched),
        LOSSES["info_nce"],
        torch.tensor(1.0),
        {},
        share=Share(slice(0, PAIRS // ranks), ranks),
    )
    matrix = PAIRS * SPANS * PAIRS * REGIONS
    of_its_rows_and_columns = 2 * matrix // ranks  # both are shared, so each of two owners computes an entry
    assert computed == (matrix if ranks == 1 else of_its_rows_and_columns)
