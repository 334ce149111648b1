"""The frozen lower layers of a tower, computed once per step although chunks of the tower are encoded twice.

Their output is kept in the first pass of a chunk, which has no graph, and used in the second one. It takes the memory
of one state per token or patch; computing it again takes the share of the frozen layers in a forward pass.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from torch import nn

from spanbox.engine.random_state import RandomState


@dataclass(frozen=True)
class Kept:
    """The output of the frozen layers, which the layers above need.

    Attributes:
        output: of the highest frozen layer, as it returned it.
        random: state of the random generators after it, for equal dropout in the layers above.
    """

    output: Any
    random: RandomState


class FrozenLayers:
    """The lowest layers of a tower, when neither they nor anything before them learns; there may be none."""

    def __init__(self, layers: Sequence[nn.Module] = ()) -> None:
        self._layers = list(layers)

    @classmethod
    def of(cls, tower: Any) -> Self:
        return cls(tower.frozen_layers)

    @contextmanager
    def kept(self) -> Iterator[list[Kept]]:
        """Context that records the output of the frozen layers, once per pass through the tower."""
        passes: list[Kept] = []

        def keep(layer: nn.Module, inputs: Any, output: Any) -> None:
            passes.append(Kept(output, RandomState.capture()))

        if not self._layers:
            yield passes
            return
        handle = self._layers[-1].register_forward_hook(keep)
        try:
            yield passes
        finally:
            handle.remove()

    @contextmanager
    def skipped(self, kept: Sequence[Kept]) -> Iterator[None]:
        """Context in which the frozen layers compute nothing, and the highest one returns the recorded output."""
        if not kept:
            yield
            return
        (one,) = kept
        for layer in self._layers:
            layer.forward = _returning(one, restore=layer is self._layers[-1])
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.forward  # of the instance; the method of its class is there again


def _returning(kept: Kept, *, restore: bool) -> Callable[..., Any]:
    def forward(*arguments: Any, **named: Any) -> Any:
        if restore:
            kept.random.restore()
        return kept.output

    return forward
