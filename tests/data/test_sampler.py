"""The order of the pairs: every pair once an epoch, and the same wherever a run is taken up again."""

from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader

from spanbox.data.sampler import Key, StepSampler


def batches(size: int, batch_size: int, start: int, stop: int, seed: int = 0) -> list[list[Key]]:
    sampler = StepSampler(size, batch_size, seed, start, stop)
    drawn = list(sampler)
    assert len(drawn) == len(sampler)
    return drawn


def indices(drawn: list[list[Key]]) -> list[int]:
    return [index for batch in drawn for _, index in batch]


@pytest.mark.parametrize(("size", "batch_size"), [(12, 3), (12, 12), (12, 1), (1, 1)])
def test_every_index_once_an_epoch(size: int, batch_size: int) -> None:
    steps = size // batch_size
    for epoch in range(3):
        drawn = batches(size, batch_size, epoch * steps, (epoch + 1) * steps)
        assert sorted(indices(drawn)) == list(range(size))
        assert {key[0] for batch in drawn for key in batch} == {epoch}
        assert {len(batch) for batch in drawn} == {batch_size}


def test_what_is_left_of_an_epoch_is_left_out() -> None:
    drawn = batches(11, 4, 0, 6)
    for epoch in range(3):
        of_epoch = drawn[2 * epoch : 2 * epoch + 2]
        assert {key[0] for batch in of_epoch for key in batch} == {epoch}
        assert len(set(indices(of_epoch))) == 8
    assert len({frozenset(indices(drawn[2 * epoch : 2 * epoch + 2])) for epoch in range(3)}) > 1, "not always the same"
    assert StepSampler(11, 4, 0, 0, 6).steps_per_epoch == 2


def test_a_batch_of_everything_is_an_epoch() -> None:
    assert [sorted(batch) for batch in batches(5, 5, 0, 3)] == [[(epoch, i) for i in range(5)] for epoch in range(3)]


@pytest.mark.parametrize(("size", "batch_size", "stop"), [(12, 3, 11), (11, 4, 9), (5, 5, 4), (4, 1, 10)])
def test_resumed_anywhere_it_is_the_tail_of_the_full_run(size: int, batch_size: int, stop: int) -> None:
    full = batches(size, batch_size, 0, stop)
    for start in range(stop + 1):
        assert batches(size, batch_size, start, stop) == full[start:]


def test_a_longer_run_begins_as_a_shorter_one() -> None:
    assert batches(11, 4, 0, 9)[:5] == batches(11, 4, 0, 5)


def test_equal_seeds_give_equal_orders_whatever_the_global_random_state() -> None:
    first = batches(40, 4, 0, 25)
    torch.rand(3)
    state = torch.random.get_rng_state()
    assert batches(40, 4, 0, 25) == first
    assert torch.equal(torch.random.get_rng_state(), state), "nothing is drawn from it either"


def test_orders_differ_between_seeds_and_epochs() -> None:
    orders = [tuple(indices(batches(40, 4, 10 * e, 10 * e + 10, seed=s))) for s in range(4) for e in range(4)]
    assert len(set(orders)) == 16


def test_iterating_again_starts_anew() -> None:
    sampler = StepSampler(11, 4, 0, 1, 5)
    assert list(sampler) == list(sampler)


def test_a_finished_run_has_no_steps_left() -> None:
    assert batches(12, 3, 7, 7) == []


# ---------------------------------------------------------------- several ranks


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
@pytest.mark.parametrize("start", [0, 4])
def test_the_shares_of_the_ranks_joined_are_the_batch_of_one(world_size: int, start: int) -> None:
    """Over three epochs of 14 pairs, two of which are left out of each."""
    shares = [StepSampler(14, 6, 5, start, 7, rank=rank, world_size=world_size) for rank in range(world_size)]
    joined = [[key for part in parts for key in part] for parts in zip(*shares, strict=True)]
    assert joined == batches(14, 6, start, 7, seed=5)
    assert all(len(part) == 6 // world_size for share in shares for part in share)
    assert {len(share) for share in shares} == {7 - start}


@pytest.mark.parametrize(
    ("batch_size", "rank", "world_size"), [(4, 0, 3), (4, 2, 2), (4, -1, 2), (0, 0, 1), (11, 0, 1)]
)
def test_impossible_shares_are_refused(batch_size: int, rank: int, world_size: int) -> None:
    with pytest.raises(AssertionError):
        StepSampler(10, batch_size, 0, 0, 5, rank=rank, world_size=world_size)


# ---------------------------------------------------------------- runs without a last step


@pytest.mark.parametrize("start", [0, 3])
def test_an_endless_run_begins_as_one_that_ends(start: int) -> None:
    endless = StepSampler(11, 4, 0, start, None)
    assert list(islice(endless, 9)) == batches(11, 4, start, start + 9)


def test_an_endless_run_has_no_length() -> None:
    with pytest.raises(TypeError, match="no length"):
        len(StepSampler(11, 4, 0, 0, None))


def test_a_loader_takes_an_endless_run() -> None:
    keys = {(epoch, index): 100 * epoch + index for epoch in range(3) for index in range(11)}
    loader = DataLoader(keys, batch_sampler=StepSampler(11, 4, 0, 0, None), collate_fn=list)
    drawn = [[100 * epoch + index for epoch, index in batch] for batch in batches(11, 4, 0, 5)]
    assert list(islice(loader, 5)) == drawn
