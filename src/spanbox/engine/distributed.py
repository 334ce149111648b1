"""Several processes, one contrastive batch: `torchrun` starts them, each encodes its share of the pairs.

Every rank gathers the features of all and computes the losses of the rows and columns of its own pairs against them:
its share of the work, and of the total loss. The gradient of the gathered features is summed over ranks on the way back
to the rank that encoded them. Negatives, means and counts are those of the whole batch by construction. After that,
ranks only add up the gradients of the weights, once a step.
"""

import gc
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from spanbox.engine.heartbeat import Heartbeat
from spanbox.errors import TrainingError
from spanbox.losses.kernel import WHOLE_SHARE, Share
from spanbox.structures import PADDING_ID, Losses, TensorBundle

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Parallel = Literal["ddp", "fsdp"]
Bundle = TypeVar("Bundle", bound=TensorBundle)

# Renamed in PyTorch 2.13
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
BUCKET = 2**23  # numbers that are added up in one exchange
LONGEST_WAIT = timedelta(days=7)  # for a rank that validates or mines; one that is silent is found by its heartbeat
LOST_PEER = re.compile(r"connection (was )?(closed|reset|refused)|timed out|timeout|broken pipe|peer", re.IGNORECASE)


class Ranks:
    """The ranks and their collectives; works with world size 1. Use as a context.

    Attributes:
        rank: of this process, from 0.
        world_size: how many there are.
        local_rank: of this process on its machine.
        is_sharded: whether no rank can encode without the others.
    """

    def __init__(self, timeout: float = 600.0) -> None:
        """Connect the ranks that `torchrun` describes in the environment; one rank where it describes none.

        Args:
            timeout: seconds after which a silent rank is named and the run ends.
        """
        self.rank = int(os.environ.get("RANK", "0"))
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.is_sharded = False
        self._heartbeat: Heartbeat | None = None
        if self.world_size > 1 and not dist.is_initialized():
            self._connect(timeout)

    def _connect(self, timeout: float) -> None:
        if self.local_rank < torch.cuda.device_count():
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

    def close(self) -> None:
        """Disconnect, when all ranks are done with the towers."""
        if dist.is_initialized():
            gc.collect()  # whatever holds the group is freed before it
            dist.barrier()
            dist.destroy_process_group()
        if self._heartbeat:
            self._heartbeat.stop()

    # The weights

    def share_weights(self, model: nn.Module, towers: Iterable[Any], parallel: Parallel) -> None:
        """Give all ranks the weights of the main one.

        Args:
            towers: the parts of the model to cut up with `fsdp` (FSDP2), each with its `layers`. With `ddp` every rank
                keeps a copy of all weights.
        """
        if self.world_size == 1:
            return
        for part in _buckets([tensor.detach() for tensor in (*model.parameters(), *model.buffers())]):
            flat = _flattened(part)
            dist.broadcast(flat, 0)
            _fill(part, flat)
        if parallel == "fsdp":
            self.is_sharded = True
            for tower in towers:
                _shard(tower)

    def before_backward(self, tower: Any, last: bool) -> None:
        """Let a sharded tower share its gradients in the last backward pass of a step only."""
        if self.is_sharded:
            tower.set_requires_gradient_sync(last)
            tower.set_is_last_backward(last)

    def add_up_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum over ranks of the gradients of parameters that every rank has a copy of, in place."""
        if self.world_size == 1:
            return
        copied = [parameter.grad for parameter in parameters if not is_sharded(parameter)]
        for part in _buckets([gradient for gradient in copied if gradient is not None]):
            flat = _flattened(part)
            dist.all_reduce(flat)
            _fill(part, flat)

    # What flows

    def gather_features(self, features: Bundle) -> Bundle:
        """The features of all ranks, in their order; differentiable."""
        if self.world_size == 1:
            return features
        names = [name for name, _ in features.named_tensors()]
        gathered = _GatherRows.apply(self, *features.tensors())  # type: ignore[no-untyped-call]
        return replace(features, **dict(zip(names, gathered, strict=True)))

    def gather(self, bundle: Bundle) -> Bundle:
        """The rows of all ranks, in their order. Ranks have equally many rows, but may differ in padding."""
        if self.world_size == 1:
            return bundle
        gathered = iter(self.gather_rows(bundle.tensors()))
        return bundle.map(lambda _: next(gathered))

    def gather_rows(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors of all ranks, joined along their first dimension, in one exchange for all types."""
        padded = self._padded_alike(tensors)
        rows = len(padded[0])
        as_bytes = [tensor.contiguous().reshape(rows, -1).view(torch.uint8) for tensor in padded if tensor.numel()]
        packed = torch.cat(as_bytes, dim=1) if as_bytes else padded[0].new_empty(rows, 0, dtype=torch.uint8)
        received = packed.new_empty(self.world_size * rows, packed.shape[1])
        _all_gather(received, packed)
        widths = [part.shape[1] for part in as_bytes]
        columns = iter(torch.split(received, widths, dim=1))
        return [_unpacked(next(columns) if tensor.numel() else None, tensor, self.world_size) for tensor in padded]

    def _padded_alike(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Every tensor padded to the largest shape that it has on any rank; ids with PADDING_ID, the rest with 0."""
        shapes = torch.tensor([size for tensor in tensors for size in tensor.shape], device=tensors[0].device)
        dist.all_reduce(shapes, op=dist.ReduceOp.MAX)
        largest = iter(shapes.tolist())
        return [_padded(tensor, [next(largest) for _ in tensor.shape]) for tensor in tensors]

    def add_up_rows(self, gathered: Sequence[Tensor]) -> list[Tensor]:
        """The sum over ranks of tensors of one type with the rows of all ranks, cut down to the rows of this rank."""
        rows = len(gathered[0]) // self.world_size
        packed = torch.cat([tensor.reshape(len(tensor), -1) for tensor in gathered], dim=1)
        own = packed.new_empty(rows, packed.shape[1])
        _reduce_scatter(own, packed)
        widths = [tensor[0].numel() for tensor in gathered]
        parts = zip(torch.split(own, widths, dim=1), gathered, strict=True)
        return [part.reshape(rows, *tensor.shape[1:]) for part, tensor in parts]

    def share(self, pairs: int) -> Share:
        """The pairs of this rank, one of `pairs` on each, whose losses it computes."""
        if self.world_size == 1:
            return WHOLE_SHARE
        return Share(slice(self.rank * pairs, (self.rank + 1) * pairs), self.world_size, self.total)

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, without a gradient."""
        summed = tensor.detach().clone()
        if self.world_size > 1:
            dist.all_reduce(summed)
        return summed

    def total_losses(self, losses: Losses) -> Losses:
        """The losses of the batch from each rank's share."""
        values = self.total(torch.stack([losses.total, *losses.terms.values()]))
        return Losses(values[0], dict(zip(losses.terms, values[1:], strict=True)))

    # Agreement

    def largest(self, *values: float) -> list[float]:
        """The largest of each value over all ranks."""
        if self.world_size == 1:
            return list(values)
        largest = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return largest.tolist()

    def everyones(self, items: list[Any]) -> list[Any]:
        """The items of all ranks, in the order of the ranks."""
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
        own = ctx.ranks.add_up_rows(gradients)
        return None, *(rows[tuple(map(slice, shape))] for rows, shape in zip(own, ctx.shapes, strict=True))


def is_sharded(tensor: Tensor) -> TypeGuard["DTensor"]:
    """Whether a tensor is sharded among the ranks."""
    from torch.distributed.tensor import DTensor  # here, since its import takes as long as that of PyTorch

    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of one that may be sharded among the ranks; collective: all ranks must call it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def shared_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A full tensor, sharded among the ranks as `parameter` is."""
    if is_sharded(parameter) and tensor.shape == parameter.shape:
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)
    return tensor


def _shard(tower: Any) -> None:
    from torch.distributed.fsdp import FSDPModule, fully_shard

    # States may be views of a layer's output; nothing changes them in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    for layer in tower.layers:
        fully_shard(layer)
    fully_shard(tower)
    for module in tower.modules():
        if isinstance(module, FSDPModule):
            # Added up, since each rank has its share of the loss; by a plain sum, which every backend has.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type, in parts of about BUCKET numbers."""
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        part = by_type.setdefault(tensor.dtype, [])
        part.append(tensor)
        if sum(one.numel() for one in part) >= BUCKET:
            yield by_type.pop(tensor.dtype)
    yield from by_type.values()


def _flattened(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _fill(tensors: Sequence[Tensor], flat: Tensor) -> None:
    """Copy the parts of a flat tensor back."""
    for tensor, values in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(values.view_as(tensor))


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
