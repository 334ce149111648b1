"""Which negatives are chosen: against plain loops, in whole rows and strips, and when nothing is left."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import normalize

import loss_reference
from batches import assert_all_gradients_are_finite, make_batch, random_batch
from spanbox.losses.negatives import NegativeSettings, highest, likely_positives, selected
from spanbox.losses.objective import LossSettings, Objective
from spanbox.losses.relations import WHOLE, Relation, sentence_image_relation, span_region_relation
from spanbox.structures import Batch, Features

HARDEST = {"per_anchor": 2, "choice": "hardest"}
RANDOM = {"per_anchor": 2, "choice": "random"}
MARGIN = {"false_negative_margin": 0.8}


def table(mask: Tensor) -> list[str]:
    return ["".join("x" if cell else "." for cell in row) for row in mask.tolist()]


def bools(*rows: str) -> Tensor:
    return torch.tensor([[cell == "x" for cell in row] for row in rows])


def features_of(batch: Batch, seed: int = 0) -> Features:
    """Random unit features, as leaves."""
    generator = torch.Generator().manual_seed(seed)
    pairs, spans, regions = batch.links.shape
    shapes = [(pairs,), (pairs,), (pairs, spans), (pairs, regions)]
    values = [torch.randn(*shape, 4, generator=generator, dtype=torch.float64) for shape in shapes]
    return Features(*(normalize(value, dim=-1).requires_grad_() for value in values))


def objective_of(loss: str = "info_nce", seed: int = 0, **negatives: Any) -> Objective:
    level = {"loss": loss, "negatives": negatives, "temperature": 0.5}
    return Objective(LossSettings.model_validate({"coarse": level, "fine": level}), seed=seed).double()


def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips of a few rows instead of whole matrices."""
    monkeypatch.setattr("spanbox.losses.blocks.STRIP_LOGITS", 90)


# The pieces


def test_highest_of_what_is_allowed() -> None:
    order = torch.tensor([[0.1, 0.9, 0.5, 0.7], [0.4, 0.3, 0.2, 0.1]])
    allowed = bools("x.xx", "xxxx")
    assert table(highest(order, allowed, 1)) == ["...x", "x..."]
    assert table(highest(order, allowed, 2)) == ["..xx", "xx.."]


def test_highest_takes_all_where_there_are_fewer() -> None:
    order, allowed = torch.tensor([[0.1, 0.9, 0.5], [3.0, 2.0, 1.0]]), bools("x.x", "...")
    for most in (2, 3, 100):
        assert table(highest(order, allowed, most)) == ["x.x", "..."]


@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (0, 0)])
def test_highest_of_no_columns_or_rows(shape: tuple[int, int]) -> None:
    assert highest(torch.zeros(shape), torch.zeros(shape, dtype=torch.bool), 2).shape == shape


def test_highest_of_equals_takes_as_many() -> None:
    assert highest(torch.ones(3, 5), bools("xxxxx", "xx.xx", "x...."), 3).sum(dim=1).tolist() == [3, 3, 1]


def test_likely_positives_by_hand() -> None:
    """Measured by the best positive, 0.8 and then 0.6, times 0.75; exactly as similar is not more similar."""
    cosines = torch.tensor([[0.8, 0.61, 0.59, 0.4], [0.2, 0.6, 0.46, 0.44]], dtype=torch.float64)
    likely = likely_positives(cosines, bools("x..x", "xx.."), 0.75)
    assert table(likely & ~bools("x..x", "xx..")) == [".x..", "..x."]
    exactly = torch.tensor([[0.5, 0.25]])
    assert table(likely_positives(exactly, bools("x."), 0.5)) == ["x."]


@pytest.mark.parametrize("best", [0.0, -0.5])
def test_a_positive_that_is_not_recognised_yet_is_no_measure(best: float) -> None:
    assert not likely_positives(torch.tensor([[best, 0.9, -0.9]]), bools("x.."), 0.95).any()


def test_without_a_positive_nothing_is_left_out() -> None:
    assert not likely_positives(torch.tensor([[0.9, 0.8]]), bools(".."), 0.95).any()
    assert likely_positives(torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool), 0.95).shape == (2, 0)


# The choice


def choose(batch: Batch, features: Features, seed: int = 0, **settings: Any) -> tuple[Tensor, Tensor]:
    """Positives and chosen candidates of spans among regions."""
    relation = partial(span_region_relation, batch)
    generator = torch.Generator().manual_seed(seed)
    cosines = features.spans.flatten(0, 1) @ features.regions.flatten(0, 1).T
    shapes = features.spans.shape[:2], features.regions.shape[:2]
    choice = selected(NegativeSettings(**settings), generator, relation, *shapes, cosines.device)
    positives, candidates, _ = choice(WHOLE, cosines.detach())
    return positives, candidates


@pytest.mark.parametrize("settings", [HARDEST, MARGIN, HARDEST | MARGIN, HARDEST | {"per_anchor": 1}])
@pytest.mark.parametrize("seed", range(8))
def test_chosen_as_by_the_plain_loop(seed: int, settings: dict[str, Any]) -> None:
    batch = random_batch(seed, pairs=4, spans=2, regions=3)
    features = features_of(batch, seed)
    cosines = (features.spans.flatten(0, 1) @ features.regions.flatten(0, 1).T).tolist()
    positives, chosen = choose(batch, features, **settings)
    allowed = span_region_relation(batch)
    assert torch.equal(positives, allowed[0])
    limits = settings.get("per_anchor"), settings.get("false_negative_margin")
    rows = zip(cosines, allowed[0].tolist(), allowed[1].tolist(), strict=True)
    expected = [loss_reference.selected_negatives(row, row, *masks, *limits) for row, *masks in rows]
    assert (chosen & ~positives).tolist() == expected


@pytest.mark.parametrize("most", [1, 3, 1000])
def test_a_random_choice_has_the_right_number_of_what_is_allowed(most: int) -> None:
    batch = random_batch(3, pairs=5, spans=3, regions=3)
    positives, candidates, _ = span_region_relation(batch)
    _, chosen = choose(batch, features_of(batch), per_anchor=most)
    negatives = candidates & ~positives
    assert not (chosen & ~candidates).any()
    assert torch.equal(chosen & positives, positives)
    assert torch.equal((chosen & ~positives).sum(dim=1), negatives.sum(dim=1).clamp(max=most))


def test_a_random_choice_is_made_among_what_is_no_likely_positive() -> None:
    batch = random_batch(3, pairs=5, spans=3, regions=3)
    features = features_of(batch)
    positives, left = choose(batch, features, **MARGIN)
    _, chosen = choose(batch, features, **RANDOM, **MARGIN)
    assert not (chosen & ~left).any()
    assert torch.equal((chosen & ~positives).sum(dim=1), (left & ~positives).sum(dim=1).clamp(max=2))


@pytest.mark.slow
def test_every_negative_has_its_turn() -> None:
    """2 of 7 negatives in each of 2,000 draws: each about 571 times, with a deviation of 20; rows choose apart."""
    batch = make_batch([[1], [2]], [8, 0], [(0, 0, 0)])
    features = features_of(batch)
    draws = torch.stack([choose(batch, features, seed, **RANDOM)[1] for seed in range(2000)])
    times = draws.sum(dim=0)
    assert times[0, 0] == 2000, "the positive"
    assert ((times[0, 1:8] - 2000 * 2 / 7).abs() < 100).all()
    assert ((times[1, :8] - 2000 * 2 / 8).abs() < 100).all()
    same = (draws[:, 0, 1:8] & draws[:, 1, 1:8]).sum(dim=0)
    assert ((same - 2000 * 2 / 7 * 2 / 8).abs() < 60).all()


# In the objective


def by_loops(objective: Objective, features: Features, batch: Batch, settings: dict[str, Any]) -> dict[str, Tensor]:
    """InfoNCE of both levels among the hardest negatives that are left."""
    limits = settings.get("per_anchor"), settings.get("false_negative_margin")

    def direction(cosines: Tensor, relation: Relation, scale: Tensor) -> Tensor:
        positives = relation.positives
        rows = zip(cosines.tolist(), positives.tolist(), relation.candidates.tolist(), strict=True)
        chosen = torch.tensor([loss_reference.selected_negatives(row, row, *masks, *limits) for row, *masks in rows])
        losses, counted = loss_reference.info_nce(scale * cosines, positives, chosen)
        return losses.sum() / max(int(counted.sum()), 1)

    coarse = features.text @ features.image.T, sentence_image_relation(batch)
    fine = features.spans.flatten(0, 1) @ features.regions.flatten(0, 1).T, span_region_relation(batch)
    scales = objective.coarse_log_scale.exp(), objective.fine_log_scale.exp()
    return {
        name: (direction(cosines, relation, scale) + direction(cosines.T, relation.transposed(), scale)) / 2
        for name, (cosines, relation), scale in zip(("coarse", "fine"), (coarse, fine), scales, strict=True)
    }


@pytest.mark.slow
@pytest.mark.parametrize("settings", [HARDEST, MARGIN, HARDEST | MARGIN], ids=["hardest", "margin", "both"])
@pytest.mark.parametrize("parts", [False, True], ids=["whole", "strips"])
@pytest.mark.parametrize("seed", range(4))
def test_objective_equals_the_plain_loops_with_its_gradients(
    seed: int, parts: bool, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if parts:
        in_parts(monkeypatch)
    batch = random_batch(seed, pairs=6, spans=2, regions=3)
    features, objective = features_of(batch, seed), objective_of(**settings)
    losses, expected = objective(features, batch), by_loops(objective, features, batch, settings)
    torch.testing.assert_close(losses.terms, expected, rtol=1e-9, atol=1e-12)
    leaves = [*features.tensors(), *objective.parameters()]
    gradients, wanted = (
        torch.autograd.grad(sum(terms.values()), leaves, materialize_grads=True) for terms in (losses.terms, expected)
    )
    torch.testing.assert_close(gradients, wanted, rtol=1e-8, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [HARDEST, RANDOM, RANDOM | MARGIN], ids=["hardest", "random", "random and margin"])
@pytest.mark.parametrize("loss", ["info_nce", "sup_con", "decoupled", "sigmoid", "arc_face", "hardness_weighted"])
def test_strips_choose_what_whole_rows_choose(
    loss: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = random_batch(4, pairs=7, spans=3, regions=2)
    features, objective = features_of(batch), objective_of(loss, **settings)
    leaves = [*features.tensors(), *objective.parameters()]
    whole = objective(features, batch)
    in_parts(monkeypatch)
    strips = objective(features, batch)
    torch.testing.assert_close(strips.terms, whole.terms, rtol=1e-10, atol=0)
    gradients, wanted = (torch.autograd.grad(one.total, leaves) for one in (strips, whole))
    torch.testing.assert_close(gradients, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("settings", [{"per_anchor": 10**6, **choice} for choice in ({}, {"choice": "hardest"})])
def test_more_than_there_are_is_all_of_them(settings: dict[str, Any]) -> None:
    batch = random_batch(4, pairs=5, spans=3, regions=2)
    features = features_of(batch)
    expected = objective_of()(features, batch).terms
    torch.testing.assert_close(objective_of(**settings)(features, batch).terms, expected)


def test_a_random_choice_is_a_function_of_seed_and_step_alone() -> None:
    batch = random_batch(4, pairs=7, spans=3, regions=3)
    features = features_of(batch)

    def total(seed: int, step: int) -> float:
        objective = objective_of(seed=seed, **RANDOM)
        objective.set_progress(0.5, step)
        torch.rand(1)
        return objective(features, batch).total.item()

    assert total(1, 1) == total(1, 1)
    assert len({total(seed, step) for seed in range(3) for step in range(5)}) == 15


def test_a_choice_leaves_the_random_numbers_of_everything_else_alone() -> None:
    batch = random_batch(4, pairs=3, spans=2, regions=2)
    before = torch.get_rng_state()
    objective_of(**RANDOM)(features_of(batch), batch)
    assert torch.equal(torch.get_rng_state(), before)


def test_levels_choose_apart() -> None:
    settings = {"coarse": {"negatives": {"per_anchor": 1}}}
    batch = random_batch(4, pairs=6, spans=2, regions=3)
    features = features_of(batch)
    chosen, everything = (Objective(LossSettings.model_validate(given))(features, batch) for given in (settings, {}))
    assert chosen.terms["fine"] == everything.terms["fine"]
    assert chosen.terms["coarse"] < everything.terms["coarse"]


def test_before_the_start_all_negatives_are_used() -> None:
    batch = random_batch(4, pairs=6, spans=2, regions=3)
    features = features_of(batch)
    objective = objective_of(**HARDEST, **MARGIN, start=0.3)
    everything, chosen = (objective_of(**given)(features, batch).terms for given in ({}, HARDEST | MARGIN))
    for done, expected in ((0.0, everything), (0.29, everything), (0.3, chosen), (1.0, chosen)):
        objective.set_progress(done)
        torch.testing.assert_close(objective(features, batch).terms, expected)


def one_group() -> Batch:
    return make_batch([[1], [1]], [1, 1], [(0, 0, 0), (1, 0, 0)], group=[3, 3])


DEGENERATE: dict[str, Callable[[], Batch]] = {
    "no negatives": one_group,
    "one pair": lambda: make_batch([[1]], [1], [(0, 0, 0)]),
    "nothing linked": lambda: make_batch([[1], [2]], [1, 1], []),
    "no spans and no regions": lambda: random_batch(0, pairs=2, spans=0, regions=0),
}


@pytest.mark.parametrize("settings", [HARDEST, RANDOM, MARGIN, HARDEST | MARGIN])
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_batches_have_losses_and_gradients(name: str, settings: dict[str, Any]) -> None:
    batch = DEGENERATE[name]()
    features, objective = features_of(batch), objective_of(**settings)
    assert_all_gradients_are_finite(objective, features, batch)


def test_a_row_all_of_whose_negatives_may_be_positives_has_nothing_to_learn() -> None:
    """All features are the same, so every negative is as similar as the positive."""
    batch = make_batch([[1], [2], [3]], [1, 1, 1], [(0, 0, 0), (1, 0, 0), (2, 0, 0)])
    features = features_of(batch).map(lambda tensor: torch.ones_like(tensor) / 2)
    losses = objective_of(**MARGIN)(features, batch)
    assert losses.terms["coarse"] == losses.terms["fine"] == 0


@pytest.mark.parametrize("choice", ["hardest", "random"])
def test_rows_that_are_all_the_same_still_have_as_many_negatives(choice: str) -> None:
    batch = make_batch([[1], [2], [3], [4]], [1] * 4, [(pair, 0, 0) for pair in range(4)])
    features = features_of(batch).map(lambda tensor: torch.ones_like(tensor) / 2)
    losses = objective_of(per_anchor=2, choice=choice)(features, batch)
    for term in losses.terms.values():
        assert term.item() == pytest.approx(torch.tensor(3.0).log().item())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"per_anchor": 0}, "greater than or equal to 1"),
        ({"choice": "hardest"}, "needs per_anchor"),
        ({"start": 0.5}, "has no effect without"),
        ({"false_negative_margin": 0.0}, "greater than 0"),
        ({"false_negative_margin": 1.5}, "less than or equal to 1"),
        ({"per_anchor": 3, "choice": "softest"}, "'random' or 'hardest'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        NegativeSettings.model_validate(settings)
