"""The gradient of a whole contrastive batch in the memory of one chunk of one tower.

A contrastive loss compares every pair of the batch with every other, so usual gradient accumulation, which contrasts
each chunk with itself only, minimises another loss. Here

1. each tower encodes all its rows in chunks, without a graph;
2. the losses are computed from the states of all rows, and their gradient with respect to the states;
3. each tower encodes its chunks again, with a graph, and receives its part of that gradient.

The states are the boundary: the gradient is exact for any loss of them, by the chain rule. The rows of a tower that fit
into one chunk, and the last chunk of the last tower, keep their graph from the first step and are not encoded again. A
tower with nothing to train is encoded once, its states being constants; frozen layers below trained ones are computed
once.

Source: Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, 2021 (GradCache), here for
several towers, features and losses together.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from spanbox.engine.frozen_layers import FrozenLayers, Kept
from spanbox.engine.random_state import RandomState
from spanbox.structures import Losses, TensorBundle

States = list[TensorBundle]
"""States of a tower's rows, one bundle per group."""
Score = Callable[..., Losses]
"""Maps the states of each tower to the losses of the batch."""


class Rows(Protocol):
    """Rows of one shape that a tower encodes, each by itself."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> Any: ...

    def split(self, size: int) -> Iterator[Any]:
        """Consecutive chunks of at most `size` rows."""


@dataclass(frozen=True)
class TowerStep:
    """A tower's part of a step.

    Attributes:
        encode: states of a chunk; no row may depend on another (no batch statistics).
        groups: all rows of this process; the rows of a group have one shape.
        chunk_size: most rows encoded at a time.
        trained: whether anything in the tower learns.
        frozen: its lowest layers, if they are to be computed once.
        before_backward: called before each backward pass, with True for the last one, in which processes that share the
            tower's weights add up its gradients.
        casting_once: context of a pass through all chunks, in which weights are cast to the precision of the run once.
        largest: maximum of each value over the processes that encode in step.
    """

    encode: Callable[[Any], TensorBundle]
    groups: Sequence[Rows]
    chunk_size: int
    trained: bool = True
    frozen: FrozenLayers = field(default_factory=FrozenLayers)
    before_backward: Callable[[bool], None] = lambda last: None
    casting_once: Callable[[], AbstractContextManager[None]] = nullcontext
    largest: Callable[..., list[float]] = lambda *values: list(values)


def accumulate_gradients(towers: Sequence[TowerStep], score: Score) -> Losses:
    """Add the exact gradient of the losses of the whole batch to every `.grad`.

    Args:
        towers: each with its rows.
        score: losses from the states of each tower.
    """
    order = sorted(range(len(towers)), key=lambda place: towers[place].trained)  # no graph is held while others encode
    passes = {place: _Passes(towers[place], keeps_last=place == order[-1]) for place in order}
    losses = score(*(passes[place].states for place in range(len(towers))))
    losses.total.backward()  # type: ignore[no-untyped-call]
    for place in reversed(order):  # the graph that is kept is freed before another chunk is encoded
        passes[place].backward()
    return losses.detach()


class _Passes:
    """The passes of a tower through the chunks of its rows.

    Attributes:
        states: of all rows; leaves, whose gradient `backward` passes on.
    """

    def __init__(self, tower: TowerStep, *, keeps_last: bool) -> None:
        self._tower = tower
        rows, size = sum(map(len, tower.groups)), tower.chunk_size
        groups = [list(group.split(even_chunk(len(group), size))) for group in tower.groups]
        chunks = [chunk for parts in groups for chunk in parts]
        most_rows, most_chunks = tower.largest(rows, len(chunks))
        missing = round(most_chunks) - len(chunks)
        self._chunks = [*chunks, *[chunks[-1][:1]] * missing]  # in step with the process that has most of them
        twice = 0 if most_rows <= size else len(self._chunks) - keeps_last
        self._twice = twice if tower.trained else len(self._chunks)  # number of chunks that are encoded again
        self._random: list[RandomState] = []
        self._frozen: list[list[Kept]] = []
        with tower.casting_once(), torch.no_grad():
            encoded = [self._first_pass(chunk) for chunk in self._chunks[: self._twice]]
        with tower.casting_once(), torch.enable_grad():
            self._with_graph = [tower.encode(chunk) for chunk in self._chunks[self._twice :]]
        encoded += self._with_graph
        self._unused = [states.map(torch.zeros_like) for states in encoded[len(chunks) :]]
        self._group_chunks = [len(parts[0]) for parts in groups]
        remaining = iter(encoded)
        self.states = [self._leaves([next(remaining) for _ in parts]) for parts in groups]

    def backward(self) -> None:
        """Pass the gradient of the states on to the tower's parameters."""
        if not self._tower.trained:
            return
        shares = (states.map(_gradient).split(n) for states, n in zip(self.states, self._group_chunks, strict=True))
        gradients = [*itertools.chain.from_iterable(shares), *self._unused]
        if self._with_graph:
            self._tower.before_backward(self._twice == 0)
            _backward(self._with_graph, gradients[self._twice :])
            self._with_graph = []
        with self._tower.casting_once():
            self._second_pass(gradients[: self._twice])

    def _second_pass(self, gradients: Sequence[TensorBundle]) -> None:
        for number, gradient in enumerate(gradients):
            frozen = self._frozen[number]
            self._frozen[number] = []  # freed with the graph of the chunk
            self._tower.before_backward(number == self._twice - 1)
            with self._random[number].replayed():
                with self._tower.frozen.skipped(frozen):
                    states = self._tower.encode(self._chunks[number])
                _backward([states], [gradient])

    def _first_pass(self, chunk: Any) -> TensorBundle:
        if not self._tower.trained:
            return self._tower.encode(chunk)
        self._random.append(RandomState.capture())
        with self._tower.frozen.kept() as frozen:
            states = self._tower.encode(chunk)
        self._frozen.append(frozen)
        return states

    def _leaves(self, parts: list[TensorBundle]) -> TensorBundle:
        whole = type(parts[0]).cat([part.detach() for part in parts])
        return whole.map(lambda state: state.requires_grad_(self._tower.trained))


def even_chunk(rows: int, chunk_size: int) -> int:
    """Size of the chunks when `rows` are split evenly into the fewest chunks of at most `chunk_size`."""
    return math.ceil(rows / math.ceil(rows / chunk_size))


def _gradient(leaf: Tensor) -> Tensor:
    """Gradient of a leaf; zeros for an unused state, so that every parameter gets a gradient on every rank."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _backward(states: Sequence[TensorBundle], gradients: Sequence[TensorBundle]) -> None:
    """Backward pass from several states at once, since the shared part of their graphs is freed after one pass."""
    pairs = [
        (state, gradient)
        for own, its in zip(states, gradients, strict=True)
        for state, gradient in zip(own.tensors(), its.tensors(), strict=True)
        if state.requires_grad
    ]
    torch.autograd.backward([state for state, _ in pairs], [gradient for _, gradient in pairs])
