"""The state of the random generators, to repeat their draws."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """State of the random generators of the CPU and of every GPU, of which the model may use any."""

    cpu: Tensor
    cuda: list[Tensor]

    @classmethod
    def capture(cls) -> Self:
        # A process that has not initialised CUDA has drawn nothing there, and must not start to hold memory on it.
        uses_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state_all() if uses_cuda else [])

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Context that repeats the draws after `capture`, for equal dropout; then restores the present state."""
        now = RandomState.capture()
        self.restore()
        try:
            yield
        finally:
            now.restore()

    def restore(self) -> None:
        """Set the random generators to this state."""
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
