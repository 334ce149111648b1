"""The objective on features whose losses are known, what it learns, and what must not matter."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

import loss_reference
import relation_reference
from batches import batch_of, make_batch, random_batch, with_relevance
from spanbox.losses.blocks import tiled_statistics
from spanbox.losses.kernel import Statistics
from spanbox.losses.objective import LevelSettings, LossSettings, Objective
from spanbox.structures import PADDING_ID, Batch, Features

OFF = LevelSettings(weight=0)


def objective_of(coarse: LevelSettings | float = 1.0, fine: LevelSettings | float = 1.0) -> Objective:
    """An objective whose levels are given whole or by a fixed temperature."""
    levels = [
        level if isinstance(level, LevelSettings) else LevelSettings(temperature=level, temperature_schedule="fixed")
        for level in (coarse, fine)
    ]
    return Objective(LossSettings(coarse=levels[0], fine=levels[1]))


def features_of(batch: Batch, seed: int = 0, dtype: torch.dtype = torch.float64) -> Features:
    """Random unit features of a batch, as leaves."""
    generator = torch.Generator().manual_seed(seed)
    pairs, spans, regions = batch.links.shape

    def unit(*shape: int) -> Tensor:
        values = torch.randn(*shape, 4, generator=generator, dtype=torch.float64)
        return torch.nn.functional.normalize(values, dim=-1).to(dtype).requires_grad_()

    features = Features(unit(pairs), unit(pairs), unit(pairs, spans), unit(pairs, regions))
    return features if batch.view_sentence is None else replace(features, views=unit(*batch.view_sentence.shape))


def orthogonal(batch: Batch) -> Features:
    """All similarities are 0, so that a row's loss is log(positives and candidates / positives)."""
    features = features_of(batch)
    return Features(*(torch.zeros_like(tensor) for _, tensor in features.named_tensors()))


def term(objective: Objective, features: Features, batch: Batch, name: str) -> float:
    return objective(features, batch).terms[name].item()


def test_coarse_of_two_pairs_worked_out_by_hand() -> None:
    batch = make_batch([[], []], [0, 0], [])
    one_hot = torch.eye(2, dtype=torch.float64)
    features = replace(orthogonal(batch), text=one_hot, image=one_hot)
    assert term(objective_of(coarse=1.0), features, batch, "coarse") == pytest.approx(math.log(1 + math.exp(-1)))
    assert term(objective_of(coarse=0.1), features, batch, "coarse") == pytest.approx(math.log(1 + math.exp(-10)))


def test_coarse_directions_differ_and_are_averaged() -> None:
    batch = make_batch([[], []], [0, 0], [])
    text, image = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    features = replace(orthogonal(batch), text=text, image=image)
    # logits 1 1 / 0 0: each sentence finds both images alike; each image prefers the first sentence by 1.
    to_image = math.log(2)
    to_text = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(1))) / 2
    assert term(objective_of(), features, batch, "coarse") == pytest.approx((to_image + to_text) / 2)


def test_two_captions_of_one_image() -> None:
    batch = make_batch([[], [], []], [0, 0, 0], [], group=[5, 5, 6])
    expected = (2 * math.log(3 / 2) + math.log(3)) / 3
    assert term(objective_of(), orthogonal(batch), batch, "coarse") == pytest.approx(expected)


def test_fine_of_three_pairs_worked_out_by_hand() -> None:
    """The table of test_positives: PN .. P. / NN .. N. / .. NN .. / .. PP N. / PN NN P. / .. .. .."""
    batch = make_batch(
        [[1, 2], [1, 3], [1]], [2, 2, 1], [(0, 0, 0), (1, 1, 0), (1, 1, 1), (2, 0, 0)], group=[10, 10, 20]
    )
    spans = (math.log(3 / 2) + math.log(3 / 2) + math.log(5 / 2)) / 3
    regions = (math.log(3 / 2) + 2 * math.log(3 / 1) + math.log(4 / 2)) / 4
    assert term(objective_of(), orthogonal(batch), batch, "fine") == pytest.approx((spans + regions) / 2)


def test_mean_is_over_counted_rows_and_not_over_pairs() -> None:
    """Three spans with a box in the first pair, one in the second: four rows of equal weight."""
    batch = make_batch([[1, 2, 3], [4, 5]], [3, 1], [(0, 0, 0), (0, 1, 1), (0, 2, 2), (1, 0, 0)])
    features = features_of(batch)
    positives, candidates = (torch.tensor(mask) for mask in relation_reference.span_region_masks(batch))
    logits = features.spans.flatten(0, 1) @ features.regions.flatten(0, 1).T
    rows, _ = loss_reference.info_nce(logits, positives, candidates)
    columns, _ = loss_reference.info_nce(logits.T, positives.T, candidates.T)
    expected = (rows.sum() / 4 + columns.sum() / 4) / 2
    assert term(objective_of(), features, batch, "fine") == pytest.approx(expected.item())


@pytest.mark.slow
@pytest.mark.parametrize("tile_side", [None, 1, 4], ids=["whole", "tiles of one pair", "tiles of 4 logits"])
@pytest.mark.parametrize("seed", range(15))
def test_equals_the_plain_loops_with_their_gradients(
    seed: int, tile_side: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tile_side:
        monkeypatch.setattr("spanbox.losses.blocks.MOST_LOGITS", 0)
        monkeypatch.setattr("spanbox.losses.blocks.TILE_SIDE", tile_side)
    batch = random_batch(seed)
    features = features_of(batch, seed)
    objective = objective_of(LevelSettings(weight=0.7, temperature=0.5), LevelSettings(weight=1.3, temperature=0.2))
    total = objective(features, batch).total

    def both_directions(logits: Tensor, positives: Tensor, candidates: Tensor) -> Tensor:
        means = []
        for case in ((logits, positives, candidates), (logits.T, positives.T, candidates.T)):
            if 0 in case[0].shape:
                continue
            rows, counted = loss_reference.info_nce(*case)
            means.append(rows.sum() / max(int(counted.sum()), 1))
        return sum(means, start=logits.sum() * 0) / 2

    scales = objective.coarse_log_scale.exp(), objective.fine_log_scale.exp()
    masks = [torch.tensor(mask) for mask in relation_reference.sentence_image_masks(batch)]
    coarse = both_directions(scales[0] * (features.text @ features.image.T), *masks)
    spans, regions = features.spans.flatten(0, 1), features.regions.flatten(0, 1)
    masks = [torch.tensor(m).reshape(len(spans), len(regions)) for m in relation_reference.span_region_masks(batch)]
    fine = both_directions(scales[1] * (spans @ regions.T), *masks)
    expected = 0.7 * coarse + 1.3 * fine
    torch.testing.assert_close(total, expected, rtol=1e-9, atol=1e-12)
    leaves = [tensor for _, tensor in features.named_tensors()] + list(objective.parameters())
    for gradient, wanted in zip(torch.autograd.grad(total, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize(("most", "tiled"), [(6 * 8, False), (6 * 8 - 1, True)], ids=["held whole", "one too many"])
def test_a_matrix_above_the_limit_is_taken_tile_by_tile(
    most: int, tiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles: list[int] = []

    def watched(*arguments: Any, both: bool) -> list[Statistics]:
        tiles.append(arguments[2])
        return tiled_statistics(*arguments, both=both)

    monkeypatch.setattr("spanbox.losses.blocks.MOST_LOGITS", most)
    monkeypatch.setattr("spanbox.losses.blocks.TILE_SIDE", 9)
    monkeypatch.setattr("spanbox.losses.blocks.tiled_statistics", watched)
    batch = random_batch(3, pairs=2, spans=3, regions=4)
    features = features_of(batch)
    fine = objective_of(OFF)(features, batch).total
    assert tiles == ([2] if tiled else []), "tiles of 2 pairs are the largest with 9 regions at most"
    monkeypatch.undo()
    torch.testing.assert_close(fine, objective_of(OFF)(features, batch).total, rtol=1e-12, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("tile_side", [1, 5, 100])
@pytest.mark.parametrize("seed", range(5))
def test_tiles_change_neither_losses_nor_gradients(seed: int, tile_side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = random_batch(seed, pairs=7, spans=3, regions=2)
    features = features_of(batch, seed)
    objective = objective_of(LevelSettings(temperature=0.1), LevelSettings(temperature=0.05)).double()
    leaves = [tensor for _, tensor in features.named_tensors()] + list(objective.parameters())
    losses = objective(features, batch)
    monkeypatch.setattr("spanbox.losses.blocks.MOST_LOGITS", 0)
    monkeypatch.setattr("spanbox.losses.blocks.TILE_SIDE", tile_side)
    tiled = objective(features, batch)
    torch.testing.assert_close(tiled.terms, losses.terms, rtol=1e-10, atol=0)
    gradients = (torch.autograd.grad(one.total, leaves) for one in (tiled, losses))
    for gradient, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-13)


def test_total_is_the_weighted_sum_of_its_terms() -> None:
    batch = random_batch(3, pairs=4, spans=2, regions=2)
    objective = objective_of(LevelSettings(weight=0.5), LevelSettings(weight=2.0))
    losses = objective(features_of(batch), batch)
    assert set(losses.terms) == {"coarse", "fine"}
    assert losses.total.item() == pytest.approx(0.5 * losses.terms["coarse"].item() + 2.0 * losses.terms["fine"].item())


@pytest.mark.parametrize(("coarse", "fine", "name"), [(1.0, OFF, "coarse"), (OFF, 1.0, "fine")])
def test_one_level_alone(coarse: LevelSettings | float, fine: LevelSettings | float, name: str) -> None:
    batch = random_batch(3, pairs=4, spans=2, regions=2)
    losses = objective_of(coarse, fine)(features_of(batch), batch)
    assert set(losses.terms) == {name}
    assert losses.total == losses.terms[name] == objective_of()(features_of(batch), batch).terms[name]


def test_neither_level_leaves_nothing() -> None:
    batch = random_batch(3, pairs=4, spans=2, regions=2)
    losses = objective_of(OFF, OFF)(features_of(batch), batch)
    assert losses.total == 0
    assert losses.terms == {}


def test_learnable_temperatures_get_gradients_and_fixed_ones_do_not() -> None:
    batch = random_batch(3, pairs=4, spans=2, regions=2)
    objective = objective_of(LevelSettings(), LevelSettings(temperature_schedule="fixed"))
    objective(features_of(batch), batch).total.backward()
    assert objective.coarse_log_scale.grad is not None
    assert objective.coarse_log_scale.grad != 0
    assert objective.fine_log_scale.grad is None
    assert not objective.fine_log_scale.requires_grad


def test_temperature_of_a_level_that_is_left_out_is_not_learned() -> None:
    """Or a wrapper such as DDP would wait for its gradient."""
    assert not objective_of(OFF, OFF).coarse_log_scale.requires_grad


def test_temperatures_start_where_they_are_set() -> None:
    temperatures = objective_of(LevelSettings(temperature=0.2), LevelSettings(temperature=0.01)).temperatures()
    assert temperatures == pytest.approx({"coarse": 0.2, "fine": 0.01})


def test_clamp_keeps_temperatures_above_their_bound() -> None:
    objective = objective_of(LevelSettings(), LevelSettings(temperature=0.5))
    with torch.no_grad():
        objective.coarse_log_scale.fill_(9.0)
    objective.clamp_temperatures()
    assert objective.coarse_log_scale.item() == pytest.approx(math.log(100))
    assert objective.temperatures() == pytest.approx({"coarse": 0.01, "fine": 0.5})
    assert objective.coarse_log_scale.requires_grad


def test_a_temperature_below_its_bound_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"greater than or equal to 0\.01"):
        LevelSettings(temperature=0.001)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_of_the_features_is_kept(dtype: torch.dtype) -> None:
    batch = random_batch(3, pairs=4, spans=2, regions=2)
    losses = objective_of(LevelSettings(), LevelSettings())(features_of(batch, dtype=dtype), batch)
    assert {losses.total.dtype, losses.terms["coarse"].dtype, losses.terms["fine"].dtype} == {dtype}


def test_swapping_the_modalities_gives_the_same_coarse_loss() -> None:
    batch = random_batch(5, pairs=5)
    features = features_of(batch)
    swapped = replace(features, text=features.image, image=features.text)
    assert term(objective_of(), features, batch, "coarse") == pytest.approx(
        term(objective_of(), swapped, batch, "coarse"), abs=1e-14
    )


@pytest.mark.parametrize("seed", range(5))
def test_order_of_pairs_does_not_matter(seed: int) -> None:
    batch = random_batch(seed, pairs=5, spans=2, regions=3)
    features = features_of(batch)
    order = torch.randperm(5)
    shuffled_batch = replace(batch, **{name: tensor[order] for name, tensor in batch.named_tensors()})
    shuffled = replace(features, **{name: tensor[order] for name, tensor in features.named_tensors()})
    torch.testing.assert_close(objective_of()(shuffled, shuffled_batch).terms, objective_of()(features, batch).terms)


@pytest.mark.parametrize("seed", range(5))
def test_padding_changes_neither_losses_nor_gradients(seed: int) -> None:
    batch = random_batch(seed, pairs=4, spans=2, regions=3)
    features = features_of(batch)
    padded_batch = batch_of(
        span_identity=torch.nn.functional.pad(batch.span_identity, (0, 2), value=PADDING_ID),
        region_valid=torch.nn.functional.pad(batch.region_valid, (0, 1)),
        links=torch.nn.functional.pad(batch.links, (0, 1, 0, 2)),
        group=batch.group,
        wording=batch.wording,
        boxes=torch.nn.functional.pad(batch.regions, (0, 0, 0, 1)),
    )
    filler = 1e3 * features_of(padded_batch, seed + 1).spans.detach()
    padded = replace(
        features,
        spans=torch.cat([features.spans, filler[:, :2]], dim=1).detach().requires_grad_(),
        regions=torch.cat([features.regions, filler[:, :1]], dim=1).detach().requires_grad_(),
    )
    losses, padded_losses = objective_of()(features, batch), objective_of()(padded, padded_batch)
    torch.testing.assert_close(padded_losses.terms, losses.terms)
    spans, regions = torch.autograd.grad(losses.total, [features.spans, features.regions])
    padded_spans, padded_regions = torch.autograd.grad(padded_losses.total, [padded.spans, padded.regions])
    torch.testing.assert_close(padded_spans, torch.nn.functional.pad(spans, (0, 0, 0, 2)))
    torch.testing.assert_close(padded_regions, torch.nn.functional.pad(regions, (0, 0, 0, 1)))


@pytest.mark.parametrize(("spans", "regions"), [(0, 0), (0, 2), (2, 0)], ids=["neither", "no spans", "no regions"])
def test_without_spans_or_regions_the_fine_loss_is_zero(spans: int, regions: int) -> None:
    batch = random_batch(1, pairs=3, spans=spans, regions=regions)
    features = features_of(batch)
    losses = objective_of(LevelSettings(), LevelSettings())(features, batch)
    losses.total.backward()
    assert losses.terms["fine"] == 0
    assert losses.total == losses.terms["coarse"]
    for _, tensor in features.named_tensors():
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


def test_when_every_span_is_padding_the_fine_loss_is_zero() -> None:
    batch = make_batch([[PADDING_ID, PADDING_ID], [PADDING_ID]], [1, 2], [(0, 0, 0)])
    features = features_of(batch)
    objective = objective_of(OFF, LevelSettings())
    losses = objective(features, batch)
    losses.total.backward()
    assert losses.total == 0
    assert features.spans.grad is not None
    assert (features.spans.grad == 0).all()
    assert objective.fine_log_scale.grad == 0


def test_one_pair_without_a_negative_has_no_coarse_loss() -> None:
    batch = make_batch([[]], [0], [])
    assert term(objective_of(), features_of(batch), batch, "coarse") == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "limits", [{}, {"MOST_LOGITS": 0, "TILE_SIDE": 5, "STRIP_LOGITS": 100}], ids=["whole", "parts"]
)
@pytest.mark.parametrize("loss", ["info_nce", "sup_con", "decoupled", "sigmoid", "arc_face", "hardness_weighted"])
@pytest.mark.parametrize("seed", range(3))
def test_weights_of_positives_equal_the_plain_loops_with_their_gradients(
    seed: int, loss: str, limits: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, limit in limits.items():
        monkeypatch.setattr(f"spanbox.losses.blocks.{name}", limit)
    batch = with_relevance(random_batch(seed, pairs=5, spans=3, regions=2), seed)
    features = features_of(batch, seed)
    options = {"sigmoid": {"bias": -1.5}, "arc_face": {"margin": 0.5}, "hardness_weighted": {"beta": 0.7}}.get(loss, {})
    level = {"loss": loss, "temperature": 0.5, **options}
    objective = Objective(LossSettings.model_validate({"coarse": level, "fine": level})).double()
    row_loss = {**vars(loss_reference), "info_nce": loss_reference.plain_info_nce}[loss]
    learned = {"sigmoid": {"bias": objective.biases["fine"]}} if loss == "sigmoid" else {}
    given = {"scale": objective.fine_log_scale.exp(), **options, **learned.get(loss, {})}
    relation = [
        torch.tensor(one)
        for one in (*relation_reference.span_region_masks(batch), relation_reference.span_region_weights(batch))
    ]
    cosines = features.spans.flatten(0, 1) @ features.regions.flatten(0, 1).T
    expected = torch.zeros((), dtype=torch.float64)
    for side in ((cosines, *relation), (one.T for one in (cosines, *relation))):
        losses, weights = loss_reference.row_losses(lambda *lists: row_loss(*lists, **given), *side)
        expected = expected + (losses * weights).sum() / (weights.sum() if weights.any() else 1) / 2
    term = objective(features, batch).terms["fine"]
    torch.testing.assert_close(term, expected, rtol=1e-6, atol=1e-12)
    leaves = [features.spans, features.regions, objective.fine_log_scale, *objective.biases.values()]
    gradients, wanted = (torch.autograd.grad(one, leaves, materialize_grads=True) for one in (term, expected))
    torch.testing.assert_close(gradients, wanted, rtol=1e-6, atol=1e-9)
