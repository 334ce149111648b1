"""Several processes, one contrastive batch: `torchrun` starts them, each encodes its share of the pairs.

Every rank gathers the features of all, computes the same loss over all of them, and keeps the gradient of its own. So
negatives, means and counts are those of the whole batch by construction, whatever the loss, and the only thing ranks
share after that is the gradient of the towers, once a step. The price is a loss that is computed on every rank: small
beside the towers until N^2 is large.
"""

import gc
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from spanbox.engine.heartbeat import Heartbeat
from spanbox.errors import TrainingError
from spanbox.models.dual_encoder import DualEncoder
from spanbox.structures import PADDING_ID, Features, TensorBundle

Parallel = Literal["ddp", "fsdp"]
Bundle = TypeVar("Bundle", bound=TensorBundle)

LONGEST_WAIT = timedelta(days=7)  # for a rank that validates or mines; one that is silent is found by its heartbeat
LOST_PEER = re.compile(r"connection (was )?(closed|reset|refused)|timed out|timeout|broken pipe|peer", re.IGNORECASE)


class Ranks:
    """The ranks and their collectives; works with world size 1. Use as a context.

    Attributes:
        rank: of this process, from 0.
        world_size: how many there are.
        local_rank: of this process on its machine.
    """

    def __init__(self, timeout: float = 600.0) -> None:
        """Connect the ranks that `torchrun` describes in the environment; one rank where it describes none.

        Args:
            timeout: seconds after which a silent rank is named and the run ends.
        """
        self.rank = int(os.environ.get("RANK", "0"))
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self._copied: DistributedDataParallel | None = None
        self._sharded: FSDPModule | None = None
        self._heartbeat: Heartbeat | None = None
        if self.world_size > 1 and not dist.is_initialized():
            self._connect(timeout)

    def _connect(self, timeout: float) -> None:
        if torch.cuda.is_available():
            torch.cuda.set_device(self.local_rank)
        store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=timeout)))
        self._heartbeat = Heartbeat(store.clone(), self.rank, self.world_size, timeout)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend,
            store=PrefixStore("spanbox", store),
            rank=self.rank,
            world_size=self.world_size,
            timeout=LONGEST_WAIT,
        )
        self._heartbeat.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect. After an error the connections stay: the other ranks may not answer any more."""
        if error is None:
            self.close()
        elif isinstance(error, RuntimeError) and self.world_size > 1 and LOST_PEER.search(str(error)):
            raise TrainingError(
                f"rank {self.rank} lost the connection to another rank, whose message says why; fix it, then go on "
                "from the last checkpoint with --resume"
            ) from None

    @property
    def is_main(self) -> bool:
        """Whether this process writes logs, checkpoints and progress."""
        return self.rank == 0

    @property
    def is_sharded(self) -> bool:
        """Whether no rank can encode without the others."""
        return self._sharded is not None

    def close(self) -> None:
        """Disconnect, when all ranks are done with the towers."""
        self._copied = self._sharded = None
        if dist.is_initialized():
            # The reducer of DDP holds the group. Freed after it, it would join the group's threads while it holds
            # the interpreter's lock, which these threads may wait for.
            gc.collect()
            dist.barrier()
            dist.destroy_process_group()
        if self._heartbeat:
            self._heartbeat.stop()

    # The towers

    def parallelise(self, model: DualEncoder, parallel: Parallel) -> nn.Module:
        """The module to encode with; its gradients are averaged over ranks.

        `ddp` keeps a copy of the model on each rank, `fsdp` (FSDP2) a part of every parameter.
        """
        if self.world_size == 1:
            return model
        if parallel == "ddp":
            self._copied = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
            return self._copied
        self._sharded = _shard(model)
        return model

    @contextmanager
    def synchronising(self, synchronise: bool) -> Iterator[None]:
        """Context for a forward and a backward pass: whether gradients are shared at its end or only added up here."""
        if self._sharded:
            self._sharded.set_requires_gradient_sync(synchronise)
            self._sharded.set_is_last_backward(synchronise)
        with self._copied.no_sync() if self._copied and not synchronise else nullcontext():
            yield

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Of parameters that every rank has the whole gradient of: keeps rounding from driving the ranks apart."""
        if self.world_size == 1:
            return
        for parameter in parameters:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= self.world_size

    # What flows

    def gather_features(self, features: Features) -> Features:
        """The features of all ranks, in their order; differentiable.

        Every rank computes the whole loss, so the gradient of a rank's own features is complete on it, and nothing has
        to be summed on the way back. It is scaled by the number of ranks, since the towers' gradients are averaged.
        """
        if self.world_size == 1:
            return features
        names = [name for name, _ in features.named_tensors()]
        gathered = _GatherRows.apply(self, *features.tensors())  # type: ignore[no-untyped-call]
        return type(features)(**dict(zip(names, gathered, strict=True)))

    def gather(self, bundle: Bundle) -> Bundle:
        """The rows of all ranks, in their order. Ranks have equally many rows, but may differ in padding."""
        if self.world_size == 1:
            return bundle
        gathered = iter(self.gather_rows(bundle.tensors()))
        return bundle.map(lambda _: next(gathered))

    def gather_rows(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors of all ranks, joined along their first dimension, in one exchange whatever their types."""
        padded = self._padded_alike(tensors)
        rows = len(padded[0])
        as_bytes = [tensor.contiguous().reshape(rows, -1).view(torch.uint8) for tensor in padded if tensor.numel()]
        packed = torch.cat(as_bytes, dim=1) if as_bytes else padded[0].new_empty(rows, 0, dtype=torch.uint8)
        received = packed.new_empty(self.world_size * rows, packed.shape[1])
        dist.all_gather_into_tensor(received, packed)
        widths = [part.shape[1] for part in as_bytes]
        columns = iter(torch.split(received, widths, dim=1))
        return [_unpacked(next(columns) if tensor.numel() else None, tensor, self.world_size) for tensor in padded]

    def _padded_alike(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Every tensor padded to the largest shape that it has on any rank; ids with PADDING_ID, the rest with 0."""
        shapes = torch.tensor([size for tensor in tensors for size in tensor.shape], device=tensors[0].device)
        dist.all_reduce(shapes, op=dist.ReduceOp.MAX)
        largest = iter(shapes.tolist())
        return [_padded(tensor, [next(largest) for _ in tensor.shape]) for tensor in tensors]

    # Agreement

    def largest(self, *values: float) -> list[float]:
        """The largest of each value over all ranks."""
        if self.world_size == 1:
            return list(values)
        largest = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return largest.tolist()

    def everyones(self, items: list[Any]) -> list[Any]:
        """The items of all ranks, in their order."""
        if self.world_size == 1:
            return items
        lists: list[list[Any]] = [[] for _ in range(self.world_size)]
        dist.all_gather_object(lists, items)
        return [item for items in lists for item in items]

    def wait_for_all(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Context that the other ranks enter when the main one has left it: for files that it makes and they read."""
        if not self.is_main:
            self.wait_for_all()
        yield
        if self.is_main:
            self.wait_for_all()


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ranks: Ranks, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.ranks, ctx.shapes = ranks, [tensor.shape for tensor in tensors]
        return tuple(ranks.gather_rows(tensors))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        own = []
        for gradient, shape in zip(gradients, ctx.shapes, strict=True):
            first = ctx.ranks.rank * shape[0]
            rows = gradient[first : first + shape[0]]
            own.append(rows[tuple(slice(size) for size in shape)] * ctx.ranks.world_size)
        return None, *own


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be cut up among the ranks. Called on all of them."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shared_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor cut up among the ranks as `parameter` is."""
    if isinstance(parameter, DTensor) and tensor.shape == parameter.shape:
        return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)
    return tensor


def _shard(model: DualEncoder) -> FSDPModule:
    # FSDP2 finds the outputs whose gradients announce the backward pass by looking into containers that it knows.
    torch.export.register_dataclass(Features)
    for tower in (model.text, model.vision):
        for layer in tower.layers:
            fully_shard(layer)
    return fully_shard(model)


def _padded(tensor: Tensor, shape: list[int]) -> Tensor:
    if list(tensor.shape) == shape:
        return tensor
    padding = PADDING_ID if tensor.dtype == torch.int64 else 0
    out = tensor.new_full(shape, padding)
    out[tuple(slice(size) for size in tensor.shape)] = tensor
    return out


def _unpacked(columns: Tensor | None, like: Tensor, world_size: int) -> Tensor:
    shape = (world_size * len(like), *like.shape[1:])
    return like.new_empty(shape) if columns is None else columns.contiguous().view(like.dtype).reshape(shape)
