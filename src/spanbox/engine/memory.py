"""Memory of a training step: measured on two small chunks of each tower, predicted for any batch.

At each moment of the forward and backward pass of a chunk, the bytes in use grow by a constant amount per row. Two
small chunks give this line for every moment; the peak of a chunk of any size is the highest of the lines. The peaks of
the two chunks are not enough: with a large vocabulary both lie where the dense gradient of the token table is held,
which does not grow with the rows, while the peak of a larger chunk lies where its activations are held.
"""

import math
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, combinations
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spanbox.engine.frozen_layers import FrozenLayers
from spanbox.engine.random_state import RandomState
from spanbox.engine.task import BlockedLoss, Forward, Task, clear_gradients, parameters, weights
from spanbox.errors import ConfigError
from spanbox.losses.blocks import MOST_LOGITS
from spanbox.losses.kernel import WHOLE_SHARE
from spanbox.structures import TensorBundle

GIB = 2**30
CPU_BUDGET = 8 * GIB
MARGIN = 1.1  # allocators round up, and kernels use work space
PROBES = (2, 4)  # rows of the two measured chunks
LARGER_PROBES = (8, 16)  # the same, if the two run different operations and only their peaks can be compared
PROBE_PAIRS = 16  # of the batch that is taken apart, and on which the losses are measured
ADVICE = (
    "Make the activations smaller (model.text.gradient_checkpointing=true and the same of model.vision, smaller "
    "images, fewer data.max_tokens or data.max_regions), or train less of the model (model.text.freeze, "
    "model.text.lora)."
)


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that are created in this context. Use as a context.

    Attributes:
        peak: most bytes alive at one time. Tensors from before do not count.
        moments: bytes alive after each operation.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self.moments = list[int]()
        self._alive = 0
        self._known = weakref.WeakSet[torch.UntypedStorage]()

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for storage in _storages((args, kwargs)):
            self._known.add(storage)  # first seen as an input, so allocated elsewhere
        result = function(*args, **kwargs)
        for storage in _storages(result):
            if storage not in self._known:
                self._count(storage)
        self.moments.append(self._alive)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self._known.add(storage)
        self._alive += size
        self.peak = max(self.peak, self._alive)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self._alive -= size


def _storages(tree: Any) -> Iterable[torch.UntypedStorage]:
    return (leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


@dataclass(frozen=True)
class ChunkMemory:
    """Bytes of a chunk of any size: the highest of several lines over its number of rows.

    Attributes:
        lines: (bytes without a row, bytes per row), one line per moment.
    """

    lines: frozenset[tuple[float, float]]

    @classmethod
    def fit(cls, probes: tuple[int, int], small: Sequence[int], large: Sequence[int]) -> Self:
        """From the bytes at each moment of two chunks with so many rows."""
        slopes = [max(0.0, (high - low) / (probes[1] - probes[0])) for low, high in zip(small, large, strict=True)]
        return cls(frozenset((low - probes[0] * slope, slope) for low, slope in zip(small, slopes, strict=True)))

    def peak(self, rows: float) -> int:
        return round(max(fixed + slope * rows for fixed, slope in self.lines))

    def most_rows(self, room: float) -> float:
        """The most rows, not rounded, that need at most `room` bytes; below 1 if not even one fits."""
        rising = [(room - fixed) / slope for fixed, slope in self.lines if slope > 0]
        if any(fixed > room for fixed, slope in self.lines if slope == 0):
            return 0.0
        return min(rising, default=math.inf)

    @cached_property
    def row(self) -> int:
        """Bytes per additional row of a large chunk."""
        return round(max(slope for _, slope in self.lines))


@dataclass(frozen=True)
class TowerMemory:
    """Bytes of a tower's chunks.

    Attributes:
        chunk: of the group of rows that needs most.
        rows: of each pair of the batch.
        trained: whether chunks are encoded with a graph.
        kept: of each pair, from frozen layers, when the tower is encoded in several chunks.
    """

    chunk: ChunkMemory
    rows: float
    trained: bool
    kept: int = 0

    @property
    def besides(self) -> int:
        """Bytes of a chunk that do not depend on its size; mostly the dense gradient of a large token table."""
        return max(0, self.chunk.peak(1) - self.chunk.row)


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step on its device.

    Attributes:
        weights: of all parameters and buffers.
        gradients: of the trained parameters.
        optimiser: two moments of each trained parameter.
        towers: by name.
        pair: of each pair of the batch: states, features, their gradients, targets, and copied rows.
        losses: peak of the losses over all features of a number of pairs.
    """

    weights: int
    gradients: int
    optimiser: int
    towers: dict[str, TowerMemory]
    pair: int
    losses: Callable[[int], int]

    @property
    def state(self) -> int:
        """Bytes that do not depend on the batch."""
        return self.weights + self.gradients + self.optimiser

    def peak(self, batch_size: int, chunk_sizes: Mapping[str, int]) -> int:
        """Predicted peak of an exact step.

        While the losses are computed and the other towers encode, the activations are held of a tower whose rows fit
        into one chunk; while the losses are computed, those of the last chunk of the last tower too.
        """
        held, largest, losses = 0, 0, self.losses(batch_size)
        for name, tower in self.towers.items():
            rows = tower.rows * batch_size
            activations = tower.chunk.peak(min(rows, chunk_sizes[name]))
            if tower.trained and rows <= chunk_sizes[name]:
                held += activations
            else:
                held += tower.kept * batch_size
                largest = max(largest, activations)
                losses += activations if name == self._last_trained else 0
        return round(MARGIN * (self.state + self.pair * batch_size + held + max(largest, losses)))

    @property
    def _last_trained(self) -> str | None:
        """The tower whose last chunk keeps its graph (`large_batch.py`)."""
        return next((name for name in reversed(self.towers) if self.towers[name].trained), None)

    def chunk_sizes(self, batch_size: int, budget: int) -> dict[str, int] | None:
        """The largest chunks, in rows, with which the step stays within `budget` bytes; None if nothing fits.

        As many trained towers as possible encode all their rows at once, first those with most activations, which saves
        their second pass.
        """
        whole = {name: math.ceil(tower.rows * batch_size) for name, tower in self.towers.items()}

        def saved(names: Sequence[str]) -> int:
            return sum(self.towers[name].chunk.peak(whole[name]) for name in names)

        trained = [name for name, tower in self.towers.items() if tower.trained]
        choices = [names for count in range(len(trained) + 1) for names in combinations(trained, count)]
        for at_once in sorted(choices, key=saved, reverse=True):
            kept = sum(tower.kept * batch_size for name, tower in self.towers.items() if name not in at_once)
            room = budget / MARGIN - self.state - self.pair * batch_size - saved(at_once) - kept
            losses = self.losses(batch_size)
            sizes = {
                name: rows
                if name in at_once
                else self._most_rows(name, rows, room - losses if name == self._last_trained else room)
                for name, rows in whole.items()
            }
            if losses <= room and all(size >= 1 for size in sizes.values()):
                return sizes
        return None

    def _most_rows(self, name: str, rows: int, room: float) -> int:
        return math.floor(min(float(rows), self.towers[name].chunk.most_rows(room)))


def measure_step(forward: Forward, example: Callable[[int], Any]) -> StepMemory:
    """Measure the memory of a training step. Leaves no gradient and restores the random state.

    Args:
        forward: of a task whose model is in training mode, without gradients.
        example: a batch of the given number of pairs of maximal size, on any device.
    """
    task = forward.task
    inputs = task.inputs(example(PROBE_PAIRS))
    towers = {}
    states = {}
    with RandomState.capture().replayed():
        for name, groups in inputs.rows.items():
            trained = task.trains(name)
            chunk = ChunkMemory(frozenset(chain.from_iterable(_lines(forward, name, rows) for rows in groups)))
            with torch.no_grad(), FrozenLayers.of(task.towers[name]).kept() as kept:
                states[name] = [forward.encode(name, rows[:]) for rows in groups]
            of_kept = _bytes(leaf for leaf in tree_leaves([one.output for one in kept]) if isinstance(leaf, Tensor))
            kept_of_pair = of_kept // PROBE_PAIRS if trained else 0
            towers[name] = TowerMemory(chunk, sum(map(len, groups)) / PROBE_PAIRS, trained, kept_of_pair)
        with torch.no_grad():
            features = forward.features(states, inputs.rest)
        losses = _losses_peak(task, features, inputs.targets.to(features.tensors()[0].device))
    of_states = sum(_bytes(one.tensors()) for groups in states.values() for one in groups)
    if features.tensors()[0].device.type == "cpu":  # where crops and views are copies of their own
        of_states += sum(_bytes(one[:].tensors()) for groups in inputs.rows.values() for one in groups[1:]) // 3
    gradients = _bytes(parameters(task))
    return StepMemory(
        weights=_bytes(weights(task)),
        gradients=gradients,
        optimiser=2 * gradients,
        towers=towers,
        pair=(3 * of_states + 3 * _bytes(features.tensors()) + _bytes(inputs.targets.tensors())) // PROBE_PAIRS,
        losses=losses,
    )


def _lines(forward: Forward, name: str, rows: Any) -> frozenset[tuple[float, float]]:
    """Lines of bytes over rows, from measured chunks of one group of rows; see `ChunkMemory`."""
    small, large = (_chunk_moments(forward, name, rows[:count]) for count in PROBES)
    if len(small) == len(large):
        return ChunkMemory.fit(PROBES, small, large).lines
    peaks = [[max(_chunk_moments(forward, name, rows[:count]))] for count in LARGER_PROBES]
    return ChunkMemory.fit(LARGER_PROBES, *peaks).lines


def _chunk_moments(forward: Forward, name: str, chunk: Any) -> list[int]:
    """Bytes at each moment of one forward and backward pass, with temporary gradients only."""
    task = forward.task
    for parameter in task.towers[name].parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    try:
        with PeakMemory() as memory:
            forward.measured_pass(name, chunk)
        return list(memory.moments)
    finally:
        clear_gradients(task)


def _losses_peak(task: Task, features: TensorBundle, targets: TensorBundle) -> Callable[[int], int]:
    """Peak of the losses as a function of the batch: linear, plus quadratic up to the size from which they are computed
    in tiles."""
    of_blocks = [_blocked_peak(task, blocked, features, targets) for blocked in task.blocked_losses(features)]
    features = task.unblocked(features)
    half, whole = (_losses_bytes(task, features, targets, pairs) for pairs in (PROBE_PAIRS // 2, PROBE_PAIRS))
    quadratic = max(0.0, (whole - 2 * half) / (PROBE_PAIRS**2 / 2))
    linear = max(0.0, whole / PROBE_PAIRS - quadratic * PROBE_PAIRS)
    places = [feature[0].numel() // feature.shape[-1] for feature in features.tensors()]  # of a pair
    most = math.sqrt(MOST_LOGITS) / max(1, *places)  # pairs at which the larger matrix of logits is tiled

    def peak(pairs: int) -> int:
        in_blocks = max((of_block(pairs) for of_block in of_blocks), default=0.0)
        return round(linear * pairs + quadratic * min(pairs, most) ** 2 + in_blocks)

    return peak


def _blocked_peak(
    task: Task, blocked: BlockedLoss, features: TensorBundle, targets: TensorBundle
) -> Callable[[int], float]:
    """Peak of a part of the losses as a function of the batch, from batches that fill a block."""

    def measured(pairs: int) -> int:
        rows = torch.arange(pairs, device=targets.tensors()[0].device) % len(targets)
        leaves = features.map(lambda feature: feature[rows].requires_grad_())
        with PeakMemory() as memory:
            blocked.loss(leaves, targets[rows]).backward()  # type: ignore[no-untyped-call]
        clear_gradients(task)
        return int(memory.peak)

    once = measured(blocked.pairs)
    slope = max(0, measured(2 * blocked.pairs) - once) / blocked.pairs if blocked.grows else 0.0
    return lambda pairs: max(once + slope * (pairs - blocked.pairs), 0.0)


def _losses_bytes(task: Task, features: TensorBundle, targets: TensorBundle, pairs: int) -> int:
    leaves = features[:pairs].map(lambda feature: torch.rand_like(feature).requires_grad_())
    with PeakMemory() as memory:
        task.losses(leaves, targets[:pairs], WHOLE_SHARE).total.backward()  # type: ignore[no-untyped-call]
    clear_gradients(task)
    return int(memory.peak)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def memory_budget(memory_gb: float | None, device: torch.device, weights: int) -> int:
    """Bytes that a training step may use, its weights included, which are on the device already."""
    if memory_gb is not None:
        return round(memory_gb * GIB)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + weights
    return CPU_BUDGET


def choose_chunk_sizes(memory: StepMemory, batch_size: int, budget: int) -> dict[str, int]:
    """The most rows of each tower to encode at a time within `budget` bytes.

    Raises:
        ConfigError: not even one row fits.
    """
    sizes = memory.chunk_sizes(batch_size, budget)
    if sizes is None:
        needed = memory.peak(batch_size, dict.fromkeys(memory.towers, 1))
        raise ConfigError(
            f"train.memory_gb: a step needs {needed / GIB:.2f} GB even with one row in a chunk, and "
            f"{budget / GIB:.2f} GB are there ({memory.state / GIB:.2f} GB of it for weights, gradients and "
            f"optimiser). {ADVICE}"
        )
    return sizes
