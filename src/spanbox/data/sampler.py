"""Order of the training pairs: a function of seed and step, so that a run resumes exactly within an epoch."""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from spanbox.data.neighbours import Neighbours

Key = tuple[int, ...]  # (step, index), and which copy: no two samples of a run share one, so their random draws differ


class StepSampler(Sampler[list[Key]]):
    """The batches of steps `start` to `stop`: shuffled epochs without incomplete batches.

    One stream over all epochs, so that workers persist. A step can be drawn without the steps before it.

    With `neighbours` a batch consists of seeds from the shuffled epoch, each followed by a random choice of its hard
    neighbours. In an epoch each pair is a seed once, as far as batches are complete, and may also occur as a neighbour,
    so epochs are longer. If the seeds have too few neighbours, the batch is filled with the next pairs of the epoch. A
    batch contains no pair twice.

    Args:
        size: pairs of the manifest.
        batch_size: distinct pairs that are contrasted with each other, over all ranks; a multiple of `world_size`.
        stop: first step after the last one; None: endless, without a length.
        rank: draw this one of the `world_size` equal shares of each batch. The shares in rank order are the batch of a
            single rank.
        neighbours: of each pair, from `spanbox data mine`. Other neighbours give other batches.
        hard_share: share of a batch, below 1, drawn from the neighbours of the seeds; at least one pair is a seed.
        copies: samples of each pair, side by side in the batch.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        start: int,
        stop: int | None,
        *,
        rank: int = 0,
        world_size: int = 1,
        neighbours: Neighbours | None = None,
        hard_share: float = 0.5,
        copies: int = 1,
    ) -> None:
        assert 0 < batch_size <= size
        assert 0 <= rank < world_size
        assert batch_size % world_size == 0
        assert neighbours is None or len(neighbours) == size
        assert 0 <= hard_share < 1
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.stop = stop
        self.rank = rank
        self.world_size = world_size
        self.neighbours = neighbours
        self.copies = copies
        hard = 0 if neighbours is None else round(batch_size * hard_share)
        self.seeds_per_batch = max(1, batch_size - hard)

    @property
    def steps_per_epoch(self) -> int:
        return self.size // self.seeds_per_batch

    def __len__(self) -> int:
        if self.stop is None:
            raise TypeError("a run without a last step has no length")
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        share = self.batch_size // self.world_size
        steps: Iterable[int] = itertools.count(self.start) if self.stop is None else range(self.start, self.stop)
        for epoch, steps_of_epoch in itertools.groupby(steps, key=lambda step: step // self.steps_per_epoch):
            order = self._order(epoch)
            for step in steps_of_epoch:
                batch = self._batch(order, step)[self.rank * share : (self.rank + 1) * share]
                yield [key for index in batch.tolist() for key in self._keys(step, index)]

    def _keys(self, step: int, index: int) -> list[Key]:
        return [(step, index)] if self.copies == 1 else [(step, index, copy) for copy in range(self.copies)]

    def _order(self, epoch: int) -> NDArray[np.int64]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order: NDArray[np.int64] = torch.randperm(self.size, generator=generator).numpy()
        return order

    def _batch(self, order: NDArray[np.int64], step: int) -> NDArray[np.int64]:
        """The pairs (batch_size,) of a step, given the order of its epoch."""
        first = step % self.steps_per_epoch * self.seeds_per_batch
        seeds = order[first : first + self.seeds_per_batch]
        if self.neighbours is None:
            return seeds
        drawn, seed_of_drawn = self._draw(self.neighbours[seeds], step)
        # Twice a batch is enough to fill a batch without repetitions.
        ahead = np.arange(min(self.size, 2 * self.batch_size))
        following = order[(first + self.seeds_per_batch + ahead) % self.size]
        candidates = np.concatenate([seeds, drawn, following])
        after = np.concatenate([np.arange(len(seeds)), seed_of_drawn, np.full(len(following), len(seeds))])
        chosen = np.sort(np.unique(candidates, return_index=True)[1])[: self.batch_size]
        # Each seed is followed by its neighbours, so that they share a chunk under naive accumulation.
        return candidates[chosen[np.argsort(after[chosen], kind="stable")]]

    def _draw(self, neighbours: Neighbours, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All neighbours of the seeds in random order, alternating between the seeds, and the seed index of each."""
        shuffled = np.random.default_rng((self.seed, step)).permuted(neighbours.astype(np.int64), axis=1)
        alternating = shuffled.T.flatten()
        seed_of = np.tile(np.arange(len(neighbours)), shuffled.shape[1])
        exists = alternating >= 0
        return alternating[exists], seed_of[exists]
