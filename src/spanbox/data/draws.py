"""The random numbers of a sample."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What the numbers are for; the streams of a sample are independent of each other."""

    VIEWS = 1
    IMAGE = 2
    TEXT = 3


@dataclass(frozen=True)
class Draws:
    """The place of a sample in a run. Everything random in it depends on this alone, not on workers or order."""

    seed: int
    step: int
    index: int
    copy: int = 0  # of several samples of one pair in a step

    def replacements(self) -> np.random.Generator:
        """Random numbers for the pairs that replace one with a broken image, the same for all copies."""
        return np.random.default_rng((self.seed, self.step, self.index))

    def stream(self, stream: Stream) -> np.random.Generator:
        """The random numbers of one stream, from its start."""
        further = (self.copy,) if self.copy else ()
        return np.random.default_rng((self.seed, self.step, self.index, stream, *further))
