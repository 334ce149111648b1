"""Changes of the colours of an image, composed before they are applied to the pixels."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EYE = np.eye(3)
GREY = np.tile((0.299, 0.587, 0.114), (3, 1))  # brightness by ITU-R BT.601, in every channel
CROSS = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)  # product with the grey axis


@dataclass
class Look:
    """Changes of colours, composed: linear ones to one matrix of red, green, blue and a constant, others to a table."""

    linear: NDArray[np.float64] | None = None  # (4, 4)
    values: NDArray[np.uint8] | None = None  # (256,)

    def matrix(self) -> NDArray[np.float32] | None:
        return None if self.linear is None else self.linear[:3].astype(np.float32)

    def table(self) -> bytes | None:
        return None if self.values is None else self.values.tobytes()

    def brighten(self, factor: float) -> None:
        self._then(factor * EYE)

    def contrast(self, factor: float) -> None:
        self._then(factor * EYE, (1 - factor) / 2)

    def saturate(self, factor: float) -> None:
        """Blend with the grey image: 0 removes the colours."""
        self._then(factor * EYE + (1 - factor) * GREY)

    def turn_hue(self, circle: float) -> None:
        """Rotate colours about the grey axis, by a fraction of the circle: brightness is kept."""
        turn = 2 * math.pi * circle
        self._then(math.cos(turn) * EYE + math.sin(turn) * CROSS + (1 - math.cos(turn)) / 3)

    def jitter(
        self, brightness: float, contrast: float, saturation: float, hue: float, generator: np.random.Generator
    ) -> None:
        """Brightness, contrast, saturation and hue in random order, each at most so far from no change."""
        changes: list[tuple[float, float, Callable[[float], None]]] = [
            (1.0, brightness, self.brighten),
            (1.0, contrast, self.contrast),
            (1.0, saturation, self.saturate),
            (0.0, hue, self.turn_hue),
        ]
        for index in generator.permutation(len(changes)):
            middle, reach, change = changes[index]
            if reach:
                change(middle + generator.uniform(-reach, reach))

    def posterize(self, bits: int) -> None:
        self._look_up(np.arange(256) >> (8 - bits) << (8 - bits))

    def solarize(self, threshold: int) -> None:
        values = np.arange(256)
        self._look_up(np.where(values < threshold, values, 255 - values))

    def _then(self, matrix: NDArray[np.float64], constant: float = 0.0) -> None:
        step = np.eye(4)
        step[:3, :3], step[:3, 3] = matrix, constant
        self.linear = step if self.linear is None else step @ self.linear

    def _look_up(self, table: NDArray[np.int64]) -> None:
        values = table.astype(np.uint8)
        self.values = values if self.values is None else values[self.values]
