"""Pooling of spans against a plain loop; both kinds of pooling on what is missing."""

import pytest
import torch

import tower_reference
from spanbox.models.pooling import PartPool, pool_regions, pool_spans, pooled_width

KINDS: list[PartPool] = ["mean", "max", "both"]


@pytest.mark.parametrize("kind", KINDS)
def test_spans_equal_the_loop_values_and_gradients(kind: PartPool) -> None:
    tokens = torch.randn(3, 6, 4, dtype=torch.float64, requires_grad=True)
    span_tokens = torch.rand(3, 5, 6) < 0.4
    span_tokens[0, 0] = False
    span_tokens[1, 1] = True
    fast, slow = pool_spans(tokens, span_tokens, kind), tower_reference.pool_spans(tokens, span_tokens, kind)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(slow)
    torch.testing.assert_close(
        torch.autograd.grad((fast * weights).sum(), tokens)[0],
        torch.autograd.grad((slow * weights).sum(), tokens)[0],
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_empty_span_gives_zeros_and_no_gradient(kind: PartPool) -> None:
    tokens = torch.randn(1, 3, 4, requires_grad=True)
    pooled = pool_spans(tokens, torch.zeros(1, 2, 3, dtype=torch.bool), kind)
    assert (pooled == 0).all()
    pooled.sum().backward()
    assert (tokens.grad == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_span_of_one_token_is_that_token(kind: PartPool) -> None:
    tokens = torch.randn(1, 3, 4)
    pooled = pool_spans(tokens, torch.tensor([[[False, True, False]]]), kind)
    torch.testing.assert_close(pooled[0, 0], tokens[0, 1].repeat(2 if kind == "both" else 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("pairs", "spans"), [(2, 0), (0, 3)])
def test_without_spans_or_pairs(kind: PartPool, pairs: int, spans: int) -> None:
    tokens = torch.randn(pairs, 5, 4, requires_grad=True)
    pooled = pool_spans(tokens, torch.zeros(pairs, spans, 5, dtype=torch.bool), kind)
    assert pooled.shape == (pairs, spans, pooled_width(4, kind))
    pooled.sum().backward()
    assert (tokens.grad == 0).all()


def test_regions_by_hand() -> None:
    bins = torch.tensor([[[[1.0, -1.0], [2.0, -2.0]], [[3.0, -3.0], [6.0, -6.0]]]])[None]  # (1, 1, 2, 2, 2)
    torch.testing.assert_close(pool_regions(bins, "mean"), torch.tensor([[[3.0, -3.0]]]))
    torch.testing.assert_close(pool_regions(bins, "max"), torch.tensor([[[6.0, -1.0]]]))
    torch.testing.assert_close(pool_regions(bins, "both"), torch.tensor([[[3.0, -3.0, 6.0, -1.0]]]))


@pytest.mark.parametrize("kind", KINDS)
def test_without_regions(kind: PartPool) -> None:
    assert pool_regions(torch.zeros(2, 0, 3, 3, 4), kind).shape == (2, 0, pooled_width(4, kind))


def test_pooled_width() -> None:
    assert [pooled_width(8, kind) for kind in KINDS] == [8, 8, 16]


def test_mean_of_a_span_is_not_rounded_under_autocast() -> None:
    tokens = torch.randn(1, 7, 4)
    span = torch.tensor([[[True, True, True, False, False, False, False]]])
    with torch.autocast("cpu", torch.bfloat16):
        found = pool_spans(tokens, span, "mean")
    torch.testing.assert_close(found[0, 0], tokens[0, :3].mean(dim=0))
