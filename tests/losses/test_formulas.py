"""Every loss against its plain loop, in value and gradient, whole and in parts, and what relates them to each other."""

import math
from collections.abc import Callable
from functools import partial
from typing import get_args

import pytest
import torch
from torch import Tensor

import loss_reference
from batches import assert_all_gradients_are_finite, make_batch, random_batch
from spanbox.losses.blocks import row_losses, whole_rows
from spanbox.losses.formulas import LOSSES, LossName, arc_face, hardness_weighted, info_nce, with_margin
from spanbox.losses.kernel import RowLosses, mean_over_counted
from spanbox.losses.objective import LevelSettings, LossSettings, Objective
from spanbox.losses.relations import WHOLE, Relation, span_region_relation, transposed
from spanbox.structures import PADDING_ID, Batch, Features

SCALE = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
BIAS = torch.tensor(-1.5, dtype=torch.float64, requires_grad=True)
OPTIONS: dict[str, dict[str, float | Tensor]] = {
    "info_nce": {},
    "sup_con": {},
    "decoupled": {},
    "sigmoid": {"bias": BIAS},
    "arc_face": {"margin": 0.5},
    "hardness_weighted": {"beta": 0.7},
}
LOOPS: dict[str, Callable[..., Tensor | None]] = {
    "info_nce": loss_reference.plain_info_nce,
    "sup_con": loss_reference.sup_con,
    "decoupled": loss_reference.decoupled,
    "sigmoid": loss_reference.sigmoid,
    "arc_face": loss_reference.arc_face,
    "hardness_weighted": loss_reference.hardness_weighted,
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def apply(name: str, cosines: Tensor, relation: Relation, scale: Tensor = SCALE) -> RowLosses:
    """The loss of the table, on a whole matrix."""
    return LOSSES[name].rows(cosines, scale, relation, **OPTIONS[name])


def by_loops(name: str, cosines: Tensor, relation: Relation, scale: Tensor = SCALE) -> RowLosses:
    return loss_reference.row_losses(partial(LOOPS[name], scale=scale, **OPTIONS[name]), cosines, *relation)


def letters(*rows: str) -> Relation:
    """From a table: P positive, p positive that is not marked as a candidate, N negative, . neither."""
    return Relation(
        torch.tensor([[cell in "Pp" for cell in row] for row in rows]),
        torch.tensor([[cell in "PN" for cell in row] for row in rows]),
    )


def random_cosines(*shape: int, seed: int = 0) -> Tensor:
    """Over the whole range, so that angles pass 180 degrees with the margin, too."""
    return 1.98 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.99


def random_relation(*shape: int, seed: int = 0) -> Relation:
    generator = torch.Generator().manual_seed(seed)
    density = torch.rand(shape[0], 1, generator=generator)
    positives = torch.rand(*shape, generator=generator) < density * 0.6
    return Relation(positives, torch.rand(*shape, generator=generator) < 0.6)


def assert_equal_to_loops(name: str, cosines: Tensor, relation: Relation) -> None:
    """Values, rows that count, and gradients at the similarities, the scale and the bias."""
    leaves = [cosines.requires_grad_(), SCALE, BIAS]
    loss, counted = apply(name, cosines, relation)
    expected, expected_counted = by_loops(name, cosines, relation)
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=1e-11)
    assert torch.equal(counted, expected_counted)
    weights = torch.randn(len(loss), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients, expected_gradients = (
        torch.autograd.grad(one @ weights, leaves, materialize_grads=True) for one in (loss, expected)
    )
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-9, atol=1e-10)


def test_the_table_is_complete() -> None:
    assert tuple(LOSSES) == get_args(LossName)
    assert {name: set(loss.options) for name, loss in LOSSES.items()} == {
        name: set(options) for name, options in OPTIONS.items()
    }


@pytest.mark.parametrize("seed", range(12))
@every_loss
def test_equals_the_plain_loop(name: str, seed: int) -> None:
    assert_equal_to_loops(name, random_cosines(6, 8, seed=seed), random_relation(6, 8, seed=seed))


def weighted_relation(*shape: int, seed: int = 0) -> Relation:
    weight = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.01
    return random_relation(*shape, seed=seed)._replace(weight=weight)


@pytest.mark.parametrize("seed", range(8))
@every_loss
def test_weights_of_positives_equal_the_plain_loop(name: str, seed: int) -> None:
    assert_equal_to_loops(name, random_cosines(6, 8, seed=seed), weighted_relation(6, 8, seed=seed))


@every_loss
def test_weights_of_one_change_nothing(name: str) -> None:
    cosines, relation = random_cosines(6, 8), random_relation(6, 8)
    loss, weight = apply(name, cosines, relation._replace(weight=torch.ones(6, 8, dtype=torch.float64)))
    expected, counted = apply(name, cosines, relation)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    assert torch.equal(weight, counted.double())


@every_loss
def test_a_row_counts_as_its_strongest_positive(name: str) -> None:
    """Half as strong positives everywhere give the same losses of rows, with half the weight."""
    cosines, relation = random_cosines(6, 8), weighted_relation(6, 8)
    loss, weight = apply(name, cosines, relation)
    halved, half = apply(name, cosines, relation._replace(weight=relation.weight / 2))
    torch.testing.assert_close(halved, loss)
    torch.testing.assert_close(2 * half, weight)
    assert mean_over_counted(loss, weight).item() == pytest.approx(((loss * weight).sum() / weight.sum()).item())


@every_loss
def test_weights_without_columns_or_positives(name: str) -> None:
    nothing = Relation(*(torch.zeros(3, 0, dtype=torch.bool),) * 2)
    for cosines, relation in ((torch.zeros(3, 0), nothing), (torch.zeros(2, 3), letters("NNN", "..."))):
        leaf = cosines.requires_grad_()
        loss, weight = apply(name, leaf, relation._replace(weight=torch.ones(cosines.shape)))
        assert mean_over_counted(loss, weight) == 0
        assert not weight.any()
        assert torch.autograd.grad(loss.sum(), leaf)[0].isfinite().all()


@pytest.mark.parametrize(
    "table",
    [
        ["NNN", "..N", "..."],
        ["PPP", "ppp"],
        ["NPNN"],
        ["P", "N", "."],
        ["P..", "p..", "PP."],
        ["PNN", "NNN", "P.."],
    ],
    ids=[
        "no positives",
        "all positives",
        "one row",
        "one column",
        "nothing left after exclusions",
        "one row that counts, one without positives, one without negatives",
    ],
)
@every_loss
def test_degenerate_input_equals_the_plain_loop(name: str, table: list[str]) -> None:
    assert_equal_to_loops(name, random_cosines(len(table), len(table[0])), letters(*table))


@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (0, 0)], ids=["no columns", "no rows", "neither"])
@every_loss
def test_without_columns_or_rows(name: str, shape: tuple[int, int]) -> None:
    cosines, nothing = torch.zeros(shape).requires_grad_(), torch.zeros(shape, dtype=torch.bool)
    loss, counted = apply(name, cosines, Relation(nothing, nothing))
    assert loss.tolist() == [0] * shape[0]
    assert counted.tolist() == [False] * shape[0]
    assert torch.autograd.grad(loss.sum(), cosines)[0].shape == shape


@every_loss
def test_what_is_neither_takes_no_part(name: str) -> None:
    cosines = random_cosines(1, 3).requires_grad_()
    loss, _ = apply(name, cosines, letters("PN."))
    torch.testing.assert_close(loss, apply(name, cosines[:, :2], letters("PN"))[0])
    assert torch.autograd.grad(loss.sum(), cosines)[0][0, 2] == 0


@every_loss
def test_sharp_temperatures_stay_finite(name: str) -> None:
    """In gradients, too, at similarities of 1 and -1, and without nan on the way."""
    cosines = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 1.0], [1.0, 1.0, -1.0]]).requires_grad_()
    with torch.autograd.set_detect_anomaly(True):
        loss, _ = apply(name, cosines, letters("PNN", "PNN", "NN."), torch.tensor(1e4))
        (gradient,) = torch.autograd.grad(loss.sum(), cosines)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


def test_sup_con_with_single_positives_is_info_nce() -> None:
    case = random_cosines(5, 5), Relation(torch.eye(5, dtype=torch.bool), torch.ones(5, 5, dtype=torch.bool))
    torch.testing.assert_close(apply("sup_con", *case), apply("info_nce", *case))


def test_sup_con_asks_for_every_positive_where_info_nce_is_content_with_one() -> None:
    cosines = torch.tensor([[5.0, -5.0, 0.0]], dtype=torch.float64)
    assert apply("info_nce", cosines, letters("PPN"))[0] < 1e-5
    assert apply("sup_con", cosines, letters("PPN"))[0] > 10


def test_arc_face_without_a_margin_is_info_nce() -> None:
    cosines, relation = random_cosines(6, 8), random_relation(6, 8)
    loss = arc_face(cosines, SCALE, relation, margin=0.0)
    torch.testing.assert_close(loss, info_nce(SCALE * cosines, relation))


def test_hardness_of_zero_is_info_nce() -> None:
    cosines, relation = random_cosines(6, 8), random_relation(6, 8)
    loss = hardness_weighted(cosines, SCALE, relation, beta=0.0)
    torch.testing.assert_close(loss, info_nce(SCALE * cosines, relation))


def test_hardness_weights_are_one_on_average() -> None:
    """Negatives that are alike weigh 1 each, whatever beta."""
    cosines = torch.tensor([[0.9, 0.3, 0.3]], dtype=torch.float64)
    loss = hardness_weighted(cosines, SCALE, letters("PNN"), beta=5.0)
    torch.testing.assert_close(loss, info_nce(SCALE * cosines, letters("PNN")))


def test_decoupled_is_the_masses_of_the_negatives_over_the_positive() -> None:
    cosines = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64).log() / SCALE
    assert apply("decoupled", cosines, letters("PNN"))[0].item() == pytest.approx(math.log(5 / 1))
    assert apply("decoupled", cosines, letters("NNP"))[0].item() == pytest.approx(math.log(3 / 3))
    assert apply("decoupled", cosines, letters("P.."))[1].tolist() == [False]


def test_sigmoid_of_one_to_one_pairs_as_published() -> None:
    """The double sum over the batch, divided by the number of pairs, from either side."""
    cosines = random_cosines(4, 4)
    signs = 2 * torch.eye(4, dtype=torch.float64) - 1
    published = -torch.nn.functional.logsigmoid(signs * (SCALE * cosines + BIAS)).sum() / 4
    own, everything = torch.eye(4, dtype=torch.bool), torch.ones(4, 4, dtype=torch.bool)
    for side in (cosines, cosines.T):
        assert mean_over_counted(*apply("sigmoid", side, Relation(own, everything))).item() == pytest.approx(
            published.item()
        )


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.5, 1.5])
def test_a_margin_never_raises_a_similarity_nor_its_order(margin: float) -> None:
    cosines = torch.linspace(-1, 1, 201, dtype=torch.float64)
    moved = with_margin(cosines, margin)
    assert (moved <= cosines + 1e-7).all()
    assert (moved.diff() > 0).all()


# Strips: a part of the rows at a time


def case(batch: Batch, seed: int = 0) -> list[Tensor]:
    """Random similarities of spans and regions, as features: queries and keys, leaves."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.nn.functional.normalize(torch.randn(*shape, 5, generator=generator, dtype=torch.float64), dim=-1)
        .detach()
        .requires_grad_()
        for shape in ((len(batch), batch.links.shape[1]), (len(batch), batch.links.shape[2]))
    ]


@pytest.mark.parametrize("strip_pairs", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("direction", ["spans", "regions"])
@pytest.mark.parametrize("name", ["sigmoid", "arc_face", "hardness_weighted"])
def test_strips_equal_the_whole_matrix(name: str, direction: str, strip_pairs: int) -> None:
    batch = random_batch(4, pairs=7, spans=3, regions=2)
    queries, keys = case(batch)
    block_relation = partial(span_region_relation, batch)
    if direction == "regions":
        queries, keys, block_relation = keys, queries, transposed(block_relation)
    learned = [SCALE, *([BIAS] if name == "sigmoid" else [])]
    strips = row_losses(queries, keys, whole_rows(block_relation), partial(apply, name), strip_pairs)
    expected = apply(name, queries.flatten(0, 1) @ keys.flatten(0, 1).T, block_relation(WHOLE, WHOLE))
    torch.testing.assert_close(strips, expected, rtol=1e-12, atol=1e-12)
    gradients, wanted = (
        torch.autograd.grad(mean_over_counted(*rows), [queries, keys, *learned]) for rows in (strips, expected)
    )
    torch.testing.assert_close(gradients, wanted, rtol=1e-10, atol=1e-12)


def test_a_strip_never_holds_more_rows_than_asked() -> None:
    batch = random_batch(4, pairs=7, spans=3, regions=2)
    queries, keys = case(batch)
    seen: list[tuple[int, ...]] = []

    def watched(cosines: Tensor, relation: Relation) -> RowLosses:
        seen.append(tuple(cosines.shape))
        return info_nce(cosines, relation)

    loss, counted = row_losses(queries, keys, whole_rows(partial(span_region_relation, batch)), watched, 3)
    strips = [(9, 14), (9, 14), (3, 14)]
    assert seen == strips
    mean_over_counted(loss, counted).backward()
    assert seen == strips + strips[::-1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_strips_raise_half_precision_to_float32(dtype: torch.dtype) -> None:
    batch = random_batch(4, pairs=3, spans=2, regions=2)
    queries, keys = (feature.detach().to(dtype) for feature in case(batch))
    loss, _ = row_losses(queries, keys, whole_rows(partial(span_region_relation, batch)), info_nce, 2)
    assert loss.dtype == torch.float32


# In the objective


def objective_of(name: str, **level: object) -> Objective:
    """Both levels with one loss."""
    return Objective(LossSettings.model_validate({key: {"loss": name, **level} for key in ("coarse", "fine")}))


def features_of(batch: Batch, seed: int = 0) -> Features:
    one_of_each = random_batch(0, pairs=len(batch), spans=1, regions=1)
    text, image = case(one_of_each, seed)
    return Features(text[:, 0].detach().requires_grad_(), image[:, 0].detach().requires_grad_(), *case(batch, seed + 1))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@every_loss
def test_parts_change_neither_losses_nor_gradients(name: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = random_batch(seed, pairs=7, spans=3, regions=2)
    features, objective = features_of(batch, seed), objective_of(name).double()
    leaves = [*features.tensors(), *objective.parameters()]
    losses = objective(features, batch)
    monkeypatch.setattr("spanbox.losses.blocks.MOST_LOGITS", 90)
    monkeypatch.setattr("spanbox.losses.blocks.TILE_SIDE", 5)
    parts = objective(features, batch)
    torch.testing.assert_close(parts.terms, losses.terms, rtol=1e-10, atol=0)
    gradients = (torch.autograd.grad(one.total, leaves) for one in (parts, losses))
    for gradient, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


@every_loss
def test_equals_the_plain_loops_in_both_directions(name: str) -> None:
    batch = random_batch(2, pairs=5, spans=3, regions=2)
    features = features_of(batch)
    options = {key: value for key, value in OPTIONS[name].items() if key != "bias"} | (
        {"bias": BIAS.item()} if name == "sigmoid" else {}
    )
    objective = objective_of(name, temperature=1 / 3, **options).double()
    cosines = features.spans.flatten(0, 1) @ features.regions.flatten(0, 1).T
    relation = span_region_relation(batch)
    sides = ((cosines, relation), (cosines.T, relation.transposed()))
    expected = sum(mean_over_counted(*by_loops(name, *side)) for side in sides) / 2
    torch.testing.assert_close(objective(features, batch).terms["fine"], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "batch",
    [
        make_batch([[PADDING_ID, PADDING_ID], [PADDING_ID]], [1, 2], []),
        make_batch([[1], [2]], [1, 1], []),
        random_batch(0, pairs=2, spans=0, regions=0),
        make_batch([[1]], [1], [(0, 0, 0)]),
    ],
    ids=["all padding", "nothing linked", "no spans and no regions", "one pair"],
)
@every_loss
def test_all_that_is_learned_gets_a_gradient_in_every_batch(name: str, batch: Batch) -> None:
    objective = objective_of(name)
    features = features_of(batch)
    assert_all_gradients_are_finite(objective, features, batch)


def test_the_bias_of_the_sigmoid_loss_is_learned_for_each_level_that_has_it() -> None:
    settings = LossSettings(coarse=LevelSettings(loss="sigmoid"), fine=LevelSettings(loss="sigmoid", weight=0))
    objective = Objective(settings)
    assert {name: bias.item() for name, bias in objective.biases.items()} == {"coarse": -10.0}
    assert objective_of("sigmoid", bias=0.0).biases["fine"].item() == 0
