"""Memory of a training step: measured on two small chunks, predicted for any batch.

At each moment of the forward and backward pass of a chunk, the bytes in use grow by a constant amount per pair. Two
small chunks give this line for every moment; the peak of a chunk of any size is the highest of the lines. The peaks of
the two chunks are not enough: with a large vocabulary both lie where the dense gradient of the token table is held,
which does not grow with the pairs, while the peak of a larger chunk lies where its activations are held.
"""

import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spanbox.engine.large_batch import RandomState
from spanbox.errors import ConfigError
from spanbox.losses.blocks import MOST_LOGITS
from spanbox.structures import Batch, Features, Targets

GIB = 2**30
CPU_BUDGET = 8 * GIB
MARGIN = 1.1  # allocators round up, and kernels use work space
PROBES = (2, 4)  # pairs of the two measured chunks
LARGER_PROBES = (8, 16)  # the same, if the two run different operations and only their peaks can be compared
LOSS_PROBE = 16  # pairs of the batch on which the losses are measured
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
    """Bytes of a chunk of any size: the highest of several lines over its number of pairs.

    Attributes:
        lines: (bytes without a pair, bytes per pair), one line per moment.
    """

    lines: frozenset[tuple[float, float]]

    @classmethod
    def fit(cls, probes: tuple[int, int], small: Sequence[int], large: Sequence[int]) -> Self:
        """From the bytes at each moment of two chunks with so many pairs."""
        slopes = [max(0.0, (high - low) / (probes[1] - probes[0])) for low, high in zip(small, large, strict=True)]
        return cls(frozenset((low - probes[0] * slope, slope) for low, slope in zip(small, slopes, strict=True)))

    def peak(self, pairs: int) -> int:
        return round(max(fixed + slope * pairs for fixed, slope in self.lines))

    def most_pairs(self, room: float) -> float:
        """The most pairs, not rounded, that need at most `room` bytes; below 1 if not even one fits."""
        rising = [(room - fixed) / slope for fixed, slope in self.lines if slope > 0]
        if any(fixed > room for fixed, slope in self.lines if slope == 0):
            return 0.0
        return min(rising, default=math.inf)

    @cached_property
    def pair(self) -> int:
        """Bytes per additional pair of a large chunk."""
        return round(max(slope for _, slope in self.lines))


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step on its device.

    Attributes:
        weights: of all parameters and buffers.
        gradients: of the trained parameters.
        optimiser: two moments of each trained parameter.
        activations: of a chunk, and its temporary gradients.
        features: of each pair of the batch: features, their gradients and targets.
        losses: peak of the losses over all features of `pairs` pairs.
    """

    weights: int
    gradients: int
    optimiser: int
    activations: ChunkMemory
    features: int
    losses: Callable[[int], int]

    @property
    def state(self) -> int:
        """Bytes that do not depend on the batch."""
        return self.weights + self.gradients + self.optimiser

    @property
    def pair(self) -> int:
        """Activations of each additional pair of a large chunk."""
        return self.activations.pair

    @property
    def chunk(self) -> int:
        """Bytes of a chunk besides: the peak of a single pair is at least this plus `pair`. With a large vocabulary
        most of it is the dense gradient of the token table."""
        return max(0, self.activations.peak(1) - self.pair)

    def peak(self, batch_size: int, chunk_size: int) -> int:
        """Predicted peak of an exact step. The losses are computed while the activations of the last chunk are held."""
        chunk = self.activations.peak(min(chunk_size, batch_size))
        return round(MARGIN * (self.state + self.features * batch_size + chunk + self.losses(batch_size)))

    def largest_chunk(self, batch_size: int, budget: int) -> int:
        """The most pairs per chunk with which the step stays within `budget` bytes; 0 if not even one pair fits."""
        room = budget / MARGIN - self.state - self.features * batch_size - self.losses(batch_size)
        return math.floor(max(0.0, min(float(batch_size), self.activations.most_pairs(room))))


def measure_step(
    model: nn.Module,
    objective: nn.Module,
    encode: Callable[[Batch], Features],
    example: Callable[[int], Batch],
) -> StepMemory:
    """Measure the memory of a training step. Leaves no gradient and restores the random state.

    Args:
        model: on its device, in training mode, without gradients.
        encode: encodes a chunk as in training.
        example: a batch of the given number of pairs of maximal size, on any device.
    """
    with RandomState.capture().replayed():
        activations = _measure_chunks(model, encode, example)
        features = encode(example(1)).detach()
        losses = _losses_peak(objective, features, example(1).targets.to(features.text.device))
    trained = [parameter for parameter in (*model.parameters(), *objective.parameters()) if parameter.requires_grad]
    gradients = _bytes(trained)
    return StepMemory(
        weights=_bytes([*model.state_dict().values(), *objective.state_dict().values()]),
        gradients=gradients,
        optimiser=2 * gradients,
        activations=activations,
        features=3 * _bytes(features.tensors()) + _bytes(example(1).targets.tensors()),
        losses=losses,
    )


def _measure_chunks(
    model: nn.Module, encode: Callable[[Batch], Features], example: Callable[[int], Batch]
) -> ChunkMemory:
    small, large = (_chunk_moments(model, encode, example(pairs)) for pairs in PROBES)
    if len(small) == len(large):
        return ChunkMemory.fit(PROBES, small, large)
    peaks = [[_chunk_peak(model, encode, example(pairs))] for pairs in LARGER_PROBES]
    return ChunkMemory.fit(LARGER_PROBES, *peaks)


def _chunk_peak(model: nn.Module, encode: Callable[[Batch], Features], batch: Batch) -> int:
    return max(_chunk_moments(model, encode, batch))


def _chunk_moments(model: nn.Module, encode: Callable[[Batch], Features], batch: Batch) -> list[int]:
    """Bytes at each moment of one forward and backward pass, with temporary gradients only."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    try:
        with PeakMemory() as memory:
            features = [feature for feature in encode(batch).tensors() if feature.requires_grad]
            torch.autograd.backward(features, [torch.zeros_like(feature) for feature in features])
        return list(memory.moments)
    finally:
        for parameter in trained:
            parameter.grad = None


def _losses_peak(objective: nn.Module, features: Features, targets: Targets) -> Callable[[int], int]:
    """Peak of the losses as a function of the batch: quadratic up to the size from which they are computed in tiles."""
    probe = LOSS_PROBE
    many = features.map(lambda feature: torch.rand_like(feature.expand(probe, *feature.shape[1:])).requires_grad_())
    targets = targets.map(lambda tensor: tensor.expand(probe, *tensor.shape[1:]))
    with PeakMemory() as memory:
        objective(many, targets).total.backward()
    for parameter in objective.parameters():
        parameter.grad = None
    spans, regions = targets.links.shape[1:]
    most = math.sqrt(MOST_LOGITS / max(1, spans * regions))  # pairs at which the larger matrix of logits is tiled
    return lambda pairs: round(memory.peak * (min(pairs, most) / probe) ** 2)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def memory_budget(memory_gb: float | None, device: torch.device, weights: int) -> int:
    """Bytes that a training step may use, its weights included, which are on the device already."""
    if memory_gb is not None:
        return round(memory_gb * GIB)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + weights
    return CPU_BUDGET


def choose_chunk(memory: StepMemory, batch_size: int, budget: int) -> int:
    """The most pairs to encode at a time within `budget` bytes.

    Raises:
        ConfigError: not even one pair fits.
    """
    chunk = memory.largest_chunk(batch_size, budget)
    if chunk == 0:
        needed = memory.peak(batch_size, 1)
        raise ConfigError(
            f"train.memory_gb: a step needs {needed / GIB:.2f} GB even with one pair in a chunk, and "
            f"{budget / GIB:.2f} GB are there ({memory.state / GIB:.2f} GB of it for weights, gradients and "
            f"optimiser). {ADVICE}"
        )
    return chunk
