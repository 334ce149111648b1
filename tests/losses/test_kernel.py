"""The loss kernel against a plain loop, in value and gradient, and on degenerate input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import loss_reference
from spanbox.losses.formulas import info_nce
from spanbox.losses.kernel import mean_over_counted, row_statistics
from spanbox.losses.relations import Relation

Case = tuple[Tensor, Relation]


def random_case(seed: int, queries: int = 5, candidates: int = 7) -> Case:
    """Logits (float64) with positives that may or may not be candidates, some rows without either."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(queries, candidates, generator=generator, dtype=torch.float64)
    density = torch.rand(queries, 1, generator=generator)
    positives = torch.rand(queries, candidates, generator=generator) < density * 0.6
    return logits, Relation(positives, torch.rand(queries, candidates, generator=generator) < 0.6)


def table(*rows: str) -> Relation:
    """From letters: P positive, p positive that is not marked as a candidate, N negative, . neither."""
    return Relation(
        torch.tensor([[cell in "Pp" for cell in row] for row in rows]),
        torch.tensor([[cell in "PN" for cell in row] for row in rows]),
    )


def gradient_of(logits: Tensor, relation: Relation) -> Tensor:
    logits = logits.clone().requires_grad_()
    mean_over_counted(*info_nce(logits, relation)).backward()
    assert logits.grad is not None
    return logits.grad


@given(seed=st.integers(0, 10**6), queries=st.integers(1, 6), candidates=st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_equals_the_plain_loop(seed: int, queries: int, candidates: int) -> None:
    logits, relation = random_case(seed, queries, candidates)
    logits.requires_grad_()
    loss, counted = info_nce(logits, relation)
    expected, expected_counted = loss_reference.info_nce(logits, *relation[:2])
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=1e-11)
    assert torch.equal(counted, expected_counted)
    weights = torch.randn(queries, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(loss @ weights, logits)
    (expected_gradient,) = torch.autograd.grad(expected @ weights, logits)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-11)


@given(seed=st.integers(0, 10**6), queries=st.integers(1, 6), candidates=st.integers(0, 6))
@settings(max_examples=60, deadline=None)
def test_statistics_equal_the_plain_loop(seed: int, queries: int, candidates: int) -> None:
    logits, relation = random_case(seed, queries, candidates)
    logits.requires_grad_()
    statistics = row_statistics(logits, relation)
    expected = loss_reference.row_statistics(logits, *relation[:2])
    torch.testing.assert_close(tuple(statistics[:4]), expected, rtol=1e-11, atol=1e-11)
    weights = torch.randn(3, queries, dtype=torch.float64)

    def gradient(masses_and_sum: tuple[Tensor, ...]) -> Tensor:
        some = [(value, weight) for value, weight in zip(masses_and_sum, weights, strict=True) if value.requires_grad]
        outputs, of_outputs = zip(*some, (logits.sum(), torch.zeros((), dtype=torch.float64)), strict=True)
        return torch.autograd.grad(outputs, logits, of_outputs)[0]

    torch.testing.assert_close(gradient(statistics[:3]), gradient(expected[:3]), rtol=1e-10, atol=1e-11)


def test_statistics_of_nothing() -> None:
    statistics = row_statistics(torch.randn(2, 3), table("...", "PP."))
    lowest = torch.finfo(torch.float32).min
    assert [values[0].item() for values in statistics[:4]] == [lowest, lowest, 0, 0]
    assert statistics.negative_mass[1] == lowest


@pytest.mark.parametrize("seed", range(3))
def test_gradient_equals_finite_differences(seed: int) -> None:
    logits, relation = random_case(seed)
    assert torch.autograd.gradcheck(lambda x: info_nce(x, relation)[0], logits.requires_grad_())


def test_one_positive_is_the_cross_entropy() -> None:
    logits = torch.randn(4, 4, dtype=torch.float64)
    loss, counted = info_nce(logits, Relation(torch.eye(4, dtype=torch.bool), torch.ones(4, 4, dtype=torch.bool)))
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, torch.arange(4), reduction="none"))
    assert counted.all()


def test_several_positives_hold_the_mass_together() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).log()  # masses 1 to 4
    loss, _ = info_nce(logits, table("PPNN"))
    assert loss.item() == pytest.approx(math.log(10 / 3))


def test_positives_take_part_whether_candidates_or_not() -> None:
    logits = torch.randn(2, 4)
    assert torch.equal(info_nce(logits, table("PNN.", ".PPN"))[0], info_nce(logits, table("pNN.", ".ppN"))[0])


def test_what_is_neither_takes_no_part() -> None:
    logits = torch.tensor([[1.0, 2.0, 100.0]]).log()
    assert info_nce(logits, table("PN."))[0].item() == pytest.approx(math.log(3))
    assert gradient_of(logits, table("PN."))[0, 2] == 0


def test_rows_without_positives_give_zero_and_do_not_count() -> None:
    logits = torch.randn(3, 3)
    loss, counted = info_nce(logits, table("PNN", "NNN", "..."))
    assert counted.tolist() == [True, False, False]
    assert loss[0] > 0
    assert loss[1:].tolist() == [0, 0]
    assert torch.equal(gradient_of(logits, table("PNN", "NNN", "..."))[1:], torch.zeros(2, 3))


def test_no_positives_in_any_row() -> None:
    logits = torch.randn(2, 3)
    loss, counted = info_nce(logits, table("NNN", "..N"))
    assert loss.tolist() == [0, 0]
    assert not counted.any()
    assert mean_over_counted(loss, counted) == 0
    assert torch.equal(gradient_of(logits, table("NNN", "..N")), torch.zeros(2, 3))


def test_rows_that_do_not_count_have_no_nan_on_the_way_back() -> None:
    """Or a run under anomaly detection would stop at the first of them."""
    with torch.autograd.set_detect_anomaly(True):
        gradient_of(torch.randn(3, 3), table("PNN", "NNN", "..."))
        gradient_of(torch.zeros(2, 0), Relation(*(torch.zeros(2, 0, dtype=torch.bool),) * 2))


def test_all_positives() -> None:
    logits = torch.randn(2, 3)
    loss, counted = info_nce(logits, table("PPP", "ppp"))
    assert loss.tolist() == [0, 0]
    assert counted.all()
    assert gradient_of(logits, table("PPP", "ppp")).abs().max() < 1e-7


@pytest.mark.parametrize("row", ["P..", "p..", "PP."])
def test_nothing_left_after_exclusions(row: str) -> None:
    """The positives are their own only candidates."""
    logits = torch.randn(1, 3)
    assert info_nce(logits, table(row))[0].item() == 0
    assert gradient_of(logits, table(row)).abs().max() < 1e-7


def test_one_row() -> None:
    loss, counted = info_nce(torch.zeros(1, 4), table("NPNN"))
    assert loss.item() == pytest.approx(math.log(4))
    assert counted.tolist() == [True]


def test_one_column() -> None:
    loss, counted = info_nce(torch.randn(3, 1), table("P", "N", "."))
    assert loss.tolist() == [0, 0, 0]
    assert counted.tolist() == [True, False, False]


@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (0, 0)], ids=["no columns", "no rows", "neither"])
def test_without_columns_or_rows(shape: tuple[int, int]) -> None:
    logits, nothing = torch.zeros(shape), Relation(*(torch.zeros(shape, dtype=torch.bool),) * 2)
    loss, counted = info_nce(logits, nothing)
    assert loss.tolist() == [0] * shape[0]
    assert counted.tolist() == [False] * shape[0]
    assert gradient_of(logits, nothing).shape == shape


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_large_logits_stay_finite(dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [1e4, 1e4, -1e4]], dtype=dtype)
    loss, _ = info_nce(logits, table("PNN", "PNN", "NN."))
    assert loss[0] == 0
    assert loss[1].item() == pytest.approx(2 * logits[0, 0].item() + math.log(2))
    assert loss[2] == 0
    assert gradient_of(logits, table("PNN", "PNN", "NN.")).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised_to_float32(dtype: torch.dtype) -> None:
    logits, relation = random_case(0)
    logits = logits.to(dtype)
    loss, _ = info_nce(logits, relation)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, info_nce(logits.float(), relation)[0])
    assert gradient_of(logits, relation).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wider_precision_is_kept(dtype: torch.dtype) -> None:
    logits, relation = random_case(0)
    assert info_nce(logits.to(dtype), relation)[0].dtype == dtype


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("filler", [0.0, -1e4, 1e4])
def test_padding_changes_nothing(seed: int, filler: float) -> None:
    """Rows and columns that are neither positive nor candidate, whatever their logits."""
    logits, relation = random_case(seed)

    def pad(matrix: Tensor, value: float) -> Tensor:
        return torch.nn.functional.pad(matrix, (0, 3, 0, 2), value=value)

    case = pad(logits, filler), Relation(*(pad(mask, False) for mask in relation[:2]))
    loss, counted = info_nce(*case)
    expected, expected_counted = info_nce(logits, relation)
    torch.testing.assert_close(loss, torch.cat([expected, torch.zeros(2)]), rtol=1e-13, atol=1e-13)
    assert counted.tolist() == [*expected_counted.tolist(), False, False]
    gradient = pad(gradient_of(logits, relation), 0.0)
    torch.testing.assert_close(gradient_of(*case), gradient, rtol=1e-13, atol=1e-14)
    assert (gradient_of(*case)[5:] == 0).all()
    assert (gradient_of(*case)[:, 7:] == 0).all()


def test_order_of_rows_and_columns_does_not_matter() -> None:
    case = random_case(4)
    rows, columns = torch.randperm(5), torch.randperm(7)
    logits, *masks = (matrix[rows][:, columns] for matrix in (case[0], *case[1][:2]))
    loss, counted = info_nce(logits, Relation(*masks))
    torch.testing.assert_close(loss, info_nce(*case)[0][rows])
    assert torch.equal(counted, info_nce(*case)[1][rows])


def test_a_shift_of_all_logits_of_a_row_does_not_matter() -> None:
    logits, relation = random_case(5)
    torch.testing.assert_close(info_nce(logits + 50, relation), info_nce(logits, relation))


def test_mean_is_over_the_rows_that_count() -> None:
    assert mean_over_counted(torch.tensor([3.0, 0.0, 5.0]), torch.tensor([True, False, True])) == 4.0


def test_mean_over_no_rows_is_zero() -> None:
    assert mean_over_counted(torch.zeros(2), torch.tensor([False, False])) == 0
    assert mean_over_counted(torch.zeros(0), torch.zeros(0, dtype=torch.bool)) == 0
