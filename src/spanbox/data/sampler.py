"""The order in which a run sees its pairs: a function of (seed, step) alone, so that it resumes mid-epoch exactly."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

Key = tuple[int, int]  # (epoch, index)


class StepSampler(Sampler[list[Key]]):
    """The batches of steps `start` to `stop`: shuffled epochs, one after another, incomplete batches left out.

    One stream over all epochs, so that workers persist; step `s` needs no step before it to be drawn.
    """

    def __init__(self, size: int, batch_size: int, seed: int, start: int, stop: int) -> None:
        assert 0 < batch_size <= size
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.stop = stop

    @property
    def steps_per_epoch(self) -> int:
        return self.size // self.batch_size

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        step = self.start
        while step < self.stop:
            epoch, first = divmod(step, self.steps_per_epoch)
            last = min(self.steps_per_epoch, first + self.stop - step)
            order = self._order(epoch)
            for batch in range(first, last):
                yield [
                    (epoch, index) for index in order[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()
                ]
            step += last - first

    def _order(self, epoch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.size, generator=generator)
