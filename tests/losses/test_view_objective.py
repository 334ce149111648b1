"""The objective with masked views: against plain loops, in parts, and on degenerate batches."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import loss_reference
import relation_reference
from batches import make_batch, random_batch
from spanbox.losses.objective import LossSettings, Objective
from spanbox.structures import PADDING_ID, Batch, Features
from view_batches import DIM, features_of, objective_of, with_views


def by_loops(loss: str, objective: Objective, features: Features, batch: Batch) -> dict[str, Tensor]:
    """Both levels in the candidate form, both directions."""
    text, spans = features.text, features.spans.flatten(0, 1)
    images = torch.cat([features.image[:, None], features.views], dim=1).flatten(0, 1)
    objects = torch.cat([features.regions, features.views], dim=1).flatten(0, 1)
    positives, of_rows, of_columns = relation_reference.sentence_view_masks(batch, keeping=True, hiding=True)
    span_positives, span_candidates = relation_reference.span_view_masks(batch)
    row_loss = {"info_nce": loss_reference.plain_info_nce, "sigmoid": loss_reference.sigmoid}[loss]

    def direction(cosines: Tensor, positives: Tensor, candidates: Tensor, learned: list[Tensor]) -> Tensor:
        losses, counted = loss_reference.row_losses(
            lambda right, wrong, relative: row_loss(right, wrong, relative, *learned), cosines, positives, candidates
        )
        return losses.sum() / max(int(counted.sum()), 1)

    levels = {
        "coarse": (text @ images.T, positives, of_rows, of_columns, objective.coarse_log_scale.exp()),
        "fine": (spans @ objects.T, span_positives, span_candidates, span_candidates, objective.fine_log_scale.exp()),
    }
    terms = {}
    for name, (cosines, *masks, scale) in levels.items():
        positive, rows, columns = (torch.tensor(mask).reshape(cosines.shape) for mask in masks)
        learned = [scale, objective.biases[name]] if loss == "sigmoid" else [scale]
        forward = direction(cosines, positive, rows, learned)
        terms[name] = (forward + direction(cosines.T, positive.T, columns.T, learned)) / 2
    return terms


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["info_nce", "sigmoid"])
@pytest.mark.parametrize("parts", [False, True], ids=["whole", "parts"])
@pytest.mark.parametrize("seed", range(5))
def test_objective_equals_the_plain_loops_with_its_gradients(
    seed: int, parts: bool, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if parts:
        for name, limit in {"MOST_LOGITS": 0, "TILE_SIDE": 8, "STRIP_LOGITS": 60}.items():
            monkeypatch.setattr(f"spanbox.losses.blocks.{name}", limit)
    batch = random_batch(seed, pairs=5, spans=2, regions=2, views=3)
    features, objective = features_of(batch, seed), objective_of(loss)
    losses, expected = objective(features, batch), by_loops(loss, objective, features, batch)
    torch.testing.assert_close(losses.terms, expected, rtol=1e-9, atol=1e-12)
    leaves = [*features.tensors(), *objective.parameters()]
    gradients, wanted = (
        torch.autograd.grad(sum(terms.values()), leaves, materialize_grads=True) for terms in (losses.terms, expected)
    )
    torch.testing.assert_close(gradients, wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("views", [{}, {"positives": False}, {"form": "margin"}, {"form": "margin", "gate": True}])
@pytest.mark.parametrize("negatives", [{}, {"per_anchor": 2}, {"per_anchor": 3, "choice": "hardest"}])
@pytest.mark.parametrize("loss", ["info_nce", "sup_con", "decoupled", "sigmoid", "arc_face", "hardness_weighted"])
def test_parts_change_neither_losses_nor_gradients(
    loss: str, negatives: dict[str, Any], views: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    level = {"loss": loss, "negatives": negatives}
    settings = LossSettings.model_validate({"coarse": level, "fine": level, "views": views})
    objective = Objective(settings, dim=DIM).double()
    batch = random_batch(5, pairs=7, spans=3, regions=2, views=2)
    features = features_of(batch)
    leaves = [*features.tensors(), *objective.parameters()]
    whole = objective(features, batch)
    for name, limit in {"MOST_LOGITS": 0, "TILE_SIDE": 10, "STRIP_LOGITS": 200}.items():
        monkeypatch.setattr(f"spanbox.losses.blocks.{name}", limit)
    parts = objective(features, batch)
    torch.testing.assert_close(parts.terms, whole.terms, rtol=1e-10, atol=1e-12)
    gradients, wanted = (torch.autograd.grad(one.total, leaves) for one in (parts, whole))
    torch.testing.assert_close(gradients, wanted, rtol=1e-8, atol=1e-10)


def test_a_view_that_hides_what_is_named_is_pushed_away_and_one_that_keeps_it_is_pulled() -> None:
    batch = with_views(make_batch([[], []], [0, 0], []), [[1, -1, 0]] * 2)
    features = features_of(batch)
    objective_of()(features, batch).total.backward()
    along_text = (features.views.grad * features.text[:, None]).sum(dim=2)  # of the loss, so downhill is up
    assert (along_text[:, 0] < 0).all()
    assert (along_text[:, 1] > 0).all()
    assert not features.views.grad[:, 2].any()


@pytest.mark.parametrize("seed", range(4))
def test_order_of_views_does_not_matter(seed: int) -> None:
    batch = random_batch(seed, pairs=4, spans=2, regions=2, views=3)
    features, order = features_of(batch), [2, 0, 1]
    shuffled = replace(features, views=features.views[:, order])
    same = replace(batch, view_sentence=batch.view_sentence[:, order], view_spans=batch.view_spans[:, order])
    for form in ("candidate", "margin"):
        terms = objective_of(form=form)(features, batch).terms
        torch.testing.assert_close(objective_of(form=form)(shuffled, same).terms, terms)


DEGENERATE = {
    "all hidden": with_views(
        make_batch([[1], [2]], [1, 1], [(0, 0, 0), (1, 0, 0)]), [[-1, -1]] * 2, [[[-1], [-1]], [[-1], [-1]]]
    ),
    "all kept": with_views(make_batch([[1], [2]], [1, 1], [(0, 0, 0), (1, 0, 0)]), [[1, 1]] * 2),
    "one pair": with_views(make_batch([[1]], [1], [(0, 0, 0)]), [[1, -1]], [[[1], [-1]]]),
    "no spans and no regions": with_views(make_batch([[], []], [0, 0], []), [[1, -1]] * 2),
    "spans without regions": with_views(make_batch([[1], [2]], [0, 0], []), [[0]] * 2, [[[-1]], [[-1]]]),
    "all padding": with_views(make_batch([[PADDING_ID]] * 2, [1, 1], [(0, 0, 0)]), [[0]] * 2, [[[-1]], [[-1]]]),
}


@pytest.mark.slow
@pytest.mark.parametrize("views", [{}, {"form": "margin"}, {"form": "margin", "gate": True}, {"form": "none"}])
@pytest.mark.parametrize("loss", ["info_nce", "decoupled", "sigmoid"])
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_batches_have_losses_and_gradients(name: str, loss: str, views: dict[str, Any]) -> None:
    batch, objective = DEGENERATE[name], objective_of(loss, **views)
    features = features_of(batch)
    losses = objective(features, batch)
    with torch.autograd.set_detect_anomaly(True):
        losses.total.backward()
    assert losses.total.isfinite()
    for parameter in objective.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    for tensor in features.tensors():
        assert tensor.grad is None or tensor.grad.isfinite().all()


def test_the_hidden_view_is_the_only_negative_of_one_pair() -> None:
    """With the same feature as the image it takes half of the mass."""
    batch = with_views(make_batch([[]], [0], []), [[-1]])
    features = features_of(batch)
    same = replace(features, views=features.image[:, None])
    # The image finds its sentence without a rival, so that direction adds nothing.
    assert objective_of()(same, batch).terms["coarse"].item() == pytest.approx(torch.tensor(2.0).log().item() / 2)
