"""Bundles of tensors are cut, joined and moved; ids are the same in every process."""

import pytest
import torch

from spanbox.structures import PADDING_ID, Batch, Features, stable_id


def batch(pairs: int = 5, *, published_form: bool = False) -> Batch:
    """Random tensors of B pairs, 3 spans, 2 regions, 4 tokens, 6 tokens of a span's own."""
    own = {
        "own_token_ids": torch.randint(9, (pairs, 3, 6)),
        "own_token_mask": torch.rand(pairs, 3, 6) < 0.5,
        "crops": torch.rand(pairs, 2, 3, 8, 8),
    }
    return Batch(
        pixels=torch.rand(pairs, 3, 8, 8),
        token_ids=torch.randint(9, (pairs, 4)),
        token_mask=torch.rand(pairs, 4) < 0.5,
        span_tokens=torch.rand(pairs, 3, 4) < 0.5,
        span_entity=torch.tensor([0, PADDING_ID, 1]).repeat(pairs, 1),
        span_shown=torch.tensor([1, -1, 0], dtype=torch.int8).repeat(pairs, 1),
        place=torch.arange(pairs),
        span_identity=torch.tensor([7, PADDING_ID, 8]).repeat(pairs, 1),
        regions=torch.rand(pairs, 2, 4),
        region_valid=torch.rand(pairs, 2) < 0.5,
        links=torch.rand(pairs, 3, 2) < 0.5,
        group=torch.arange(pairs),
        sample=torch.arange(pairs),
        wording=torch.arange(pairs),
        **(own if published_form else {}),
    )


def assert_same(first: Batch | Features, second: Batch | Features) -> None:
    assert [name for name, _ in first.named_tensors()] == [name for name, _ in second.named_tensors()]
    for (_, one), (_, other) in zip(first.named_tensors(), second.named_tensors(), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_length_and_slice() -> None:
    whole = batch(5)
    part = whole[1:3]
    assert (len(whole), len(part)) == (5, 2)
    for name, tensor in whole.named_tensors():
        assert torch.equal(getattr(part, name), tensor[1:3])


@pytest.mark.parametrize(("size", "lengths"), [(1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (9, [5])])
@pytest.mark.parametrize("published_form", [False, True])
def test_split_then_cat_is_the_same(size: int, lengths: list[int], published_form: bool) -> None:
    whole = batch(5, published_form=published_form)
    parts = list(whole.split(size))
    assert [len(part) for part in parts] == lengths
    assert_same(Batch.cat(parts), whole)


def test_absent_tensors_stay_absent() -> None:
    whole = batch(2)
    assert whole[:1].crops is None
    assert Batch.cat([whole, whole]).own_token_ids is None
    assert whole.to("cpu").own_token_mask is None


def test_no_pairs() -> None:
    assert list(batch(0).split(4)) == []
    assert len(batch(3)[3:]) == 0


def test_to_moves_every_tensor() -> None:
    moved = batch(2, published_form=True).to("meta")
    assert {tensor.device.type for _, tensor in moved.named_tensors()} == {"meta"}
    assert moved.pixels.shape == (2, 3, 8, 8)


def test_features_keep_their_graph_through_split_and_cat() -> None:
    leaf = torch.randn(4, 3, requires_grad=True)
    features = Features(text=leaf, image=leaf * 2, spans=leaf[:, None], regions=leaf[:, None])
    Features.cat(list(features.split(3))).image.sum().backward()
    assert torch.equal(leaf.grad, torch.full((4, 3), 2.0))


def test_span_valid_is_where_there_is_an_identity() -> None:
    assert batch(2).span_valid.tolist() == [[True, False, True]] * 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 8238016292129134938),
        ("71044", 6311938726444850682),
        ("garfield park", 8635273051271026298),
        ("加菲猫", 2172671251664304809),
        ("caf\u00e9", 3151342568496262129),
        ("cafe\u0301", 8166454273385715244),
        ("🏳️‍🌈", 4774607061307186860),
    ],
)
def test_stable_id_never_changes(text: str, expected: int) -> None:
    """Pinned: shards, hard-negative lists and checkpoints of other machines carry these numbers."""
    assert stable_id(text) == expected


def test_stable_id_fits_in_int64_and_is_never_padding() -> None:
    ids = [stable_id(str(number)) for number in range(1000)]
    assert len(set(ids)) == 1000
    assert torch.tensor(ids, dtype=torch.int64).min() >= 0
