"""The gradient of a whole contrastive batch in the memory of one chunk.

A contrastive loss compares every pair of the batch with every other, so usual gradient accumulation, which contrasts
each chunk with itself only, minimises another loss. Here all chunks are first encoded without graphs; the loss and its
gradient are computed over the features of the whole batch; then each chunk is encoded again and receives its part of
that gradient. `Features` is the boundary: the gradient is exact for any loss of them.

Source: Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, 2021 (GradCache), here for
all features and losses together.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from spanbox.structures import Batch, Features, Losses, Targets

Encode = Callable[[Batch], Features]
Score = Callable[[Features, Targets], Losses]
Synchronising = Callable[[bool], AbstractContextManager[None]]


def _alone(synchronise: bool) -> AbstractContextManager[None]:
    """No synchronisation with one process."""
    return nullcontext()


def accumulate_gradients(
    encode: Encode, objective: Score, batch: Batch, *, chunk_size: int, synchronising: Synchronising = _alone
) -> Losses:
    """Add the exact gradient of `objective` on the whole batch to every `.grad`, with the activations of one chunk.

    The last chunk keeps its graph: of K chunks K - 1 are encoded twice, a single chunk once.

    Args:
        encode: features of a chunk by the towers; no pair may depend on another (so no BatchNorm).
        objective: losses of all features of the batch.
        batch: all pairs of this process.
        chunk_size: most pairs encoded at a time.
        synchronising: context of a forward and its backward pass; called with True for the last pass only, in which the
            processes average their gradients.
    """
    size = even_chunk(len(batch), chunk_size)
    *early, last = batch.split(size)
    states, parts = [], []
    with torch.no_grad():
        for chunk in early:
            states.append(RandomState.capture())
            parts.append(encode(chunk))
    with synchronising(not early):
        kept = encode(last)
        leaves = Features.cat([*parts, kept.detach()]).map(lambda feature: feature.detach().requires_grad_())
        losses = objective(leaves, batch.targets)
        losses.total.backward()  # type: ignore[no-untyped-call]
        *shares, share_of_kept = leaves.map(_gradient).split(size)
        _backward(kept, share_of_kept)
    for number, (chunk, state, share) in enumerate(zip(early, states, shares, strict=True), start=1):
        with synchronising(number == len(early)), state.replayed():
            _backward(encode(chunk), share)
    return losses.detach()


def accumulate_naively(
    encode: Encode, objective: Score, batch: Batch, *, chunk_size: int, synchronising: Synchronising = _alone
) -> Losses:
    """Usual gradient accumulation, for comparison: each chunk is contrasted with itself only.

    It adds no negatives: the result is the mean of the gradients of small batches, not the gradient of the batch.
    """
    chunks = list(batch.split(even_chunk(len(batch), chunk_size)))
    total, terms = torch.zeros(()), dict[str, Tensor]()
    for number, chunk in enumerate(chunks, start=1):
        with synchronising(number == len(chunks)):
            features = encode(chunk)
            # Through leaves, as above, so that unused features have a gradient here too.
            leaves = features.map(lambda feature: feature.detach().requires_grad_())
            losses = objective(leaves, chunk.targets)
            share = len(chunk) / len(batch)
            (share * losses.total).backward()  # type: ignore[no-untyped-call]
            _backward(features, leaves.map(_gradient))
        total = total.to(losses.total) + share * losses.total.detach()
        terms = {name: terms.get(name, 0) + share * value.detach() for name, value in losses.terms.items()}
    return Losses(total, terms)


ACCUMULATION = {"exact": accumulate_gradients, "naive": accumulate_naively}


def even_chunk(pairs: int, chunk_size: int) -> int:
    """Size of the chunks when `pairs` are split evenly into the fewest chunks of at most `chunk_size`."""
    return math.ceil(pairs / math.ceil(pairs / chunk_size))


@dataclass(frozen=True)
class RandomState:
    """State of the random generators of the CPU and of every GPU, of which the model may use any."""

    cpu: Tensor
    cuda: list[Tensor]

    @classmethod
    def capture(cls) -> Self:
        # A process that has not initialised CUDA has drawn nothing there, and shall not start to hold memory on it.
        uses_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state_all() if uses_cuda else [])

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Context that repeats the draws after `capture`, for equal dropout; then restores the present state."""
        now = RandomState.capture()
        self._restore()
        try:
            yield
        finally:
            now._restore()

    def _restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)


def _gradient(leaf: Tensor) -> Tensor:
    """Gradient of a leaf; zeros for an unused feature, so that every parameter gets a gradient on every rank."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _backward(features: Features, gradients: Features) -> None:
    pairs = zip(features.tensors(), gradients.tensors(), strict=True)
    trained = [(feature, gradient) for feature, gradient in pairs if feature.requires_grad]
    torch.autograd.backward([feature for feature, _ in trained], [gradient for _, gradient in trained])
