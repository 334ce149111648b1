"""What a training step holds in memory: measured on two small chunks, predicted for any batch.

The activations of a chunk grow by the same amount with every pair. So the peak of two small chunks, each encoded and
differentiated once, gives the cost of a pair in exactly this configuration, on any device, before anything is trained.
"""

import math
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spanbox.engine.large_batch import RandomState
from spanbox.errors import ConfigError
from spanbox.losses.directions import MOST_LOGITS
from spanbox.structures import Batch, Features, Targets

GIB = 2**30
PROCESSOR_BUDGET = 8 * GIB
MARGIN = 1.1  # allocators round up, and kernels have work space of their own
PROBES = (2, 4)  # pairs of the two chunks that are measured
LOSS_PROBE = 16  # pairs of the batch that the losses are measured on
ADVICE = (
    "Make the activations smaller (model.text.gradient_checkpointing=true and the same of model.vision, smaller "
    "images, fewer data.max_tokens or data.max_regions), or train less of the model (model.text.freeze, "
    "model.text.lora)."
)


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the tensors that come into being in this context, as they come and go. Use as a context.

    Attributes:
        peak: most bytes alive at one time. What existed before does not count.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._alive = 0
        self._known = weakref.WeakSet[torch.UntypedStorage]()

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for storage in _storages((args, kwargs)):
            self._known.add(storage)  # met as an input before it was met as an output: it existed before
        result = function(*args, **kwargs)
        for storage in _storages(result):
            if storage not in self._known:
                self._count(storage)
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
class StepMemory:
    """Bytes that a training step needs on its device.

    Attributes:
        weights: of all parameters and buffers.
        gradients: of the trained parameters.
        optimiser: two moments of each trained parameter.
        chunk: what a chunk costs however small it is.
        pair: what each pair of it costs besides.
        features: of each pair of the batch: features, their gradients and targets.
        losses: peak of the losses over all features of `pairs` pairs.
    """

    weights: int
    gradients: int
    optimiser: int
    chunk: int
    pair: int
    features: int
    losses: Callable[[int], int]

    @property
    def state(self) -> int:
        """What is there whatever the batch."""
        return self.weights + self.gradients + self.optimiser

    def peak(self, batch_size: int, chunk_size: int) -> int:
        """Predicted peak of an exact step. The losses are taken while the activations of the last chunk are kept."""
        chunk = self.chunk + self.pair * min(chunk_size, batch_size)
        return round(MARGIN * (self.state + self.features * batch_size + chunk + self.losses(batch_size)))

    def largest_chunk(self, batch_size: int, budget: int) -> int:
        """The most pairs a chunk may have for the step to stay within `budget` bytes; 0 when not even one fits."""
        room = budget / MARGIN - self.state - self.features * batch_size - self.losses(batch_size) - self.chunk
        return max(0, min(batch_size, int(room // max(1, self.pair))))


def measure_step(
    model: nn.Module,
    objective: nn.Module,
    encode: Callable[[Batch], Features],
    example: Callable[[int], Batch],
) -> StepMemory:
    """Measure what a training step needs. Leaves no gradient and no trace in the random state.

    Args:
        model: on its device, in training mode, without gradients.
        encode: how the trainer encodes a chunk.
        example: a batch of that many pairs, as large as pairs get, on any device.
    """
    with RandomState.capture().replayed():
        small, large = (_chunk_peak(model, encode, example(pairs)) for pairs in PROBES)
        features = encode(example(1)).detach()
        losses = _losses_peak(objective, features, example(1).targets.to(features.text.device))
    pair = (large - small) // (PROBES[1] - PROBES[0])
    trained = [parameter for parameter in (*model.parameters(), *objective.parameters()) if parameter.requires_grad]
    gradients = _bytes(trained)
    return StepMemory(
        weights=_bytes([*model.state_dict().values(), *objective.state_dict().values()]),
        gradients=gradients,
        optimiser=2 * gradients,
        chunk=max(0, small - PROBES[0] * pair),
        pair=pair,
        features=3 * _bytes(features.tensors()) + _bytes(example(1).targets.tensors()),
        losses=losses,
    )


def _chunk_peak(model: nn.Module, encode: Callable[[Batch], Features], batch: Batch) -> int:
    """Peak of one forward and backward pass, its gradients included only as far as they are temporary."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    try:
        with PeakMemory() as memory:
            features = [feature for feature in encode(batch).tensors() if feature.requires_grad]
            torch.autograd.backward(features, [torch.zeros_like(feature) for feature in features])
        return int(memory.peak)
    finally:
        for parameter in trained:
            parameter.grad = None


def _losses_peak(objective: nn.Module, features: Features, targets: Targets) -> Callable[[int], int]:
    """Peak of the losses as a function of the batch: it grows with the square, until they are computed in tiles."""
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
    return PROCESSOR_BUDGET


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
