"""The gradient of a whole contrastive batch in the memory of one chunk.

A contrastive loss ties every pair of the batch to every other, so the usual accumulation, which contrasts each chunk
with itself alone, minimises something else. Here the features of all chunks are computed first, without their graphs;
the loss is taken over all of them at once; then each chunk is encoded again and handed its share of the gradient.
`Features` is the boundary: whatever the losses make of it comes out exact.

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
    """One process has nobody to share gradients with."""
    return nullcontext()


def accumulate_gradients(
    encode: Encode, objective: Score, batch: Batch, *, chunk_size: int, synchronising: Synchronising = _alone
) -> Losses:
    """Add the exact gradient of `objective` on the whole batch to every `.grad`, with the activations of one chunk.

    The last chunk keeps its graph, so of K chunks K - 1 are encoded twice; one chunk is encoded once.

    Args:
        encode: features of a chunk, by the towers alone: no pair may look at another (so no BatchNorm).
        objective: losses of all features of the batch.
        batch: all pairs of this process.
        chunk_size: most pairs encoded at a time.
        synchronising: context for a forward and its backward pass; True for the one pass, the last, in which processes
            share their gradients.
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
    """Gradient accumulation as it is usually done, to compare with: every chunk is contrasted with itself alone.

    It adds no negatives: not the gradient of the batch, but the mean of the gradients of small batches.
    """
    chunks = list(batch.split(even_chunk(len(batch), chunk_size)))
    total, terms = torch.zeros(()), dict[str, Tensor]()
    for number, chunk in enumerate(chunks, start=1):
        with synchronising(number == len(chunks)):
            features = encode(chunk)
            # By way of leaves, as above: so that features that no loss uses have a gradient here too.
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
    """The size that shares `pairs` most evenly among as few chunks of at most `chunk_size` as there can be."""
    return math.ceil(pairs / math.ceil(pairs / chunk_size))


@dataclass(frozen=True)
class RandomState:
    """Where the random generators of the processor and of the current card stand."""

    cpu: Tensor
    cuda: Tensor | None

    @classmethod
    def capture(cls) -> Self:
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Draw the same numbers again (dropout must hide what it hid before), then go on from where we are now."""
        now = RandomState.capture()
        self._restore()
        try:
            yield
        finally:
            now._restore()

    def _restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)


def _gradient(leaf: Tensor) -> Tensor:
    """Its gradient; zeros for a feature that no loss used, so that every parameter gets a gradient on every rank."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _backward(features: Features, gradients: Features) -> None:
    pairs = zip(features.tensors(), gradients.tensors(), strict=True)
    trained = [(feature, gradient) for feature, gradient in pairs if feature.requires_grad]
    torch.autograd.backward([feature for feature, _ in trained], [gradient for _, gradient in trained])
