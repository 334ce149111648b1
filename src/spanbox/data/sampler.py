"""The order in which a run sees its pairs: a function of (seed, step) alone, so that it resumes mid-epoch exactly."""

import itertools
from collections.abc import Iterable, Iterator

import torch
from torch.utils.data import Sampler

Key = tuple[int, int]  # (epoch, index)


class StepSampler(Sampler[list[Key]]):
    """The batches of steps `start` to `stop`: shuffled epochs, one after another, incomplete batches left out.

    One stream over all epochs, so that workers persist; step `s` needs no step before it to be drawn.

    Args:
        size: pairs of the manifest.
        batch_size: pairs that are contrasted with each other, over all ranks; a multiple of `world_size`.
        stop: the step to end before; None: there is no end, and no length either.
        rank: which of the `world_size` equal shares of every batch is drawn. The shares, joined in the order of the
            ranks, are the batch that a single rank would draw.
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
    ) -> None:
        assert 0 < batch_size <= size
        assert 0 <= rank < world_size
        assert batch_size % world_size == 0
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.stop = stop
        self.rank = rank
        self.world_size = world_size

    @property
    def steps_per_epoch(self) -> int:
        return self.size // self.batch_size

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
                first = step % self.steps_per_epoch * self.batch_size + self.rank * share
                yield [(epoch, index) for index in order[first : first + share].tolist()]

    def _order(self, epoch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.size, generator=generator)
