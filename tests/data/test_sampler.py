"""The order of the pairs: every pair once an epoch, hard neighbours together, the same wherever a run is taken up."""

from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from spanbox.data.neighbours import Neighbours
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
        assert {len(batch) for batch in drawn} == {batch_size}


def test_what_is_left_of_an_epoch_is_left_out() -> None:
    drawn = batches(11, 4, 0, 6)
    for epoch in range(3):
        of_epoch = drawn[2 * epoch : 2 * epoch + 2]
        assert len(set(indices(of_epoch))) == 8
    assert len({frozenset(indices(drawn[2 * epoch : 2 * epoch + 2])) for epoch in range(3)}) > 1, "not always the same"
    assert StepSampler(11, 4, 0, 0, 6).steps_per_epoch == 2


def test_a_batch_of_everything_is_an_epoch() -> None:
    assert [sorted(batch) for batch in batches(5, 5, 0, 3)] == [[(step, i) for i in range(5)] for step in range(3)]


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
    keys = {(step, index): 100 * step + index for step in range(9) for index in range(11)}
    loader = DataLoader(keys, batch_sampler=StepSampler(11, 4, 0, 0, None), collate_fn=list)
    drawn = [[100 * step + index for step, index in batch] for batch in batches(11, 4, 0, 5)]
    assert list(islice(loader, 5)) == drawn


def test_keys_name_the_step_so_that_no_two_samples_of_a_run_share_their_random_draws() -> None:
    """Also where hard neighbours are mined on the way, and epochs become longer: 4 steps without, then 4 with them."""
    plain = StepSampler(12, 4, 0, 0, 4)
    mined = StepSampler(12, 4, 0, 4, 8, neighbours=ring(12, 3), hard_share=0.5)
    drawn = [*plain, *mined]
    assert [{step for step, _ in batch} for batch in drawn] == [{step} for step in range(8)]
    keys = [key for batch in drawn for key in batch]
    assert len(set(keys)) == len(keys) == 32


def test_copies_follow_each_other_and_ranks_share_the_pairs() -> None:
    one = list(StepSampler(12, 4, 0, 0, 6))
    copied = list(StepSampler(12, 4, 0, 0, 6, copies=3))
    assert copied == [[(*key, copy) for key in batch for copy in range(3)] for batch in one]
    shares = [list(StepSampler(12, 4, 0, 0, 6, copies=3, rank=rank, world_size=2)) for rank in range(2)]
    assert [first + second for first, second in zip(*shares, strict=True)] == copied


# ---------------------------------------------------------------- hard neighbours


def ring(size: int, k: int) -> Neighbours:
    """Each pair's neighbours are the ones that come after it."""
    return ((np.arange(size)[:, None] + np.arange(1, k + 1)) % size).astype(np.int32)


def hard_batches(
    neighbours: Neighbours, batch_size: int, start: int, stop: int, hard_share: float = 0.5, seed: int = 0
) -> list[list[Key]]:
    return list(
        StepSampler(len(neighbours), batch_size, seed, start, stop, neighbours=neighbours, hard_share=hard_share)
    )


@pytest.mark.parametrize(
    ("size", "batch_size", "k", "hard_share"), [(40, 8, 5, 0.5), (41, 10, 2, 0.8), (9, 9, 30, 0.9)]
)
def test_a_batch_is_full_and_no_pair_is_twice_in_it(size: int, batch_size: int, k: int, hard_share: float) -> None:
    for batch in hard_batches(ring(size, k), batch_size, 0, 30, hard_share):
        assert len(set(batch)) == batch_size
        assert {0 <= index < size for _, index in batch} == {True}


def test_every_pair_is_a_seed_once_an_epoch_and_its_neighbour_follows_it() -> None:
    """Each pair has one neighbour only, itself nobody else's in the batch: a batch is couples."""
    partner = (np.arange(40) ^ 1).astype(np.int32)[:, None]
    sampler = StepSampler(40, 8, 3, 0, 20, neighbours=partner)
    assert (sampler.seeds_per_batch, sampler.steps_per_epoch) == (4, 10)
    order = batches(40, 4, 0, 20, seed=3)
    for batch, seeds in zip(sampler, order, strict=True):
        assert set(seeds) <= set(batch)
        places = [batch.index(seed) for seed in seeds]
        assert places == sorted(places)
        for place, seed in zip(places, seeds, strict=True):
            couple = (seed[0], int(partner[seed[1], 0]))
            assert couple in batch
            assert couple in seeds or batch[place + 1] == couple
    assert sorted(indices(order[:10])) == list(range(40))


def test_neighbours_are_drawn_by_turns() -> None:
    """Far apart, so that nothing of one seed is another's: each of two seeds has three of its nine neighbours."""
    size = 1000
    neighbours = ((np.arange(size)[:, None] + 100 * np.arange(1, 10)) % size).astype(np.int32)
    for batch in hard_batches(neighbours, 8, 0, 50, hard_share=0.75):
        found = [index for _, index in batch]
        if found[0] % 100 != found[4] % 100:
            assert set(found[1:4]) <= set(neighbours[found[0]].tolist())
            assert set(found[5:]) <= set(neighbours[found[4]].tolist())


def test_over_the_epochs_all_of_a_list_is_drawn() -> None:
    neighbours = ring(30, 6)
    followers = {batch[1][1] - batch[0][1] for batch in hard_batches(neighbours, 2, 0, 30 * 20)}
    assert {step % 30 for step in followers} == {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize("hard_share", [0.3, 0.5, 0.9])
def test_with_neighbours_resumed_anywhere_it_is_the_tail_of_the_full_run(hard_share: float) -> None:
    neighbours = ring(17, 4)
    full = hard_batches(neighbours, 6, 0, 25, hard_share)
    for start in range(26):
        assert hard_batches(neighbours, 6, start, 25, hard_share) == full[start:]


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_with_neighbours_the_shares_joined_are_the_batch_of_one(world_size: int) -> None:
    neighbours = ring(14, 4)
    shares = [
        StepSampler(14, 6, 5, 2, 9, rank=rank, world_size=world_size, neighbours=neighbours)
        for rank in range(world_size)
    ]
    joined = [[key for part in parts for key in part] for parts in zip(*shares, strict=True)]
    assert joined == hard_batches(neighbours, 6, 2, 9, seed=5)


def test_batches_differ_between_seeds_and_draw_nothing_from_the_global_state() -> None:
    neighbours = ring(40, 5)
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    drawn = {str(hard_batches(neighbours, 8, 0, 9, seed=seed)) for seed in range(3)}
    assert len(drawn) == 3
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


@pytest.mark.parametrize("k", [0, 3])
def test_without_any_neighbour_the_epoch_fills_the_batch(k: int) -> None:
    nothing = np.full((11, k), -1, dtype=np.int32)
    order = indices(batches(11, 11, 0, 1))
    drawn = hard_batches(nothing, 4, 0, 5)
    for step, batch in enumerate(drawn):
        expected = (order * 2)[2 * step : 2 * step + 4]
        assert [index for _, index in batch] == expected


def test_some_pairs_without_neighbours() -> None:
    neighbours = ring(20, 3)
    neighbours[::2] = -1
    for batch in hard_batches(neighbours, 10, 0, 20, hard_share=0.8):
        assert len(set(batch)) == 10


def test_a_share_of_nothing_is_the_plain_order() -> None:
    assert hard_batches(ring(20, 3), 4, 0, 12, hard_share=0.0) == batches(20, 4, 0, 12)


@pytest.mark.parametrize(("size", "batch_size"), [(1, 1), (2, 2), (3, 1), (5, 5)])
def test_a_tiny_corpus_is_no_crash(size: int, batch_size: int) -> None:
    for batch in hard_batches(ring(size, 9), batch_size, 0, 12, hard_share=0.9):
        assert len(set(batch)) == batch_size


def test_neighbours_of_another_number_of_pairs_are_refused() -> None:
    with pytest.raises(AssertionError):
        StepSampler(10, 2, 0, 0, 5, neighbours=ring(9, 2))
