"""What each process of the tests of several ranks does: gradients of its share of a batch, saved by the main one."""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import set_forkserver_preload
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor

from encoders import collate, make_model, make_sample
from spanbox.engine.distributed import Parallel, Ranks, whole
from spanbox.engine.large_batch import accumulate_gradients
from spanbox.losses.objective import LossSettings, Objective
from spanbox.structures import Batch, Features, Losses, Sample, Targets

PAIRS = 12  # shared evenly by two and by three ranks


@dataclass(frozen=True)
class Scenario:
    """One way to take the gradient of the same batch."""

    parallel: Parallel
    chunk_size: int
    dropout: float = 0.0


SCENARIOS = {
    "ddp whole": Scenario("ddp", PAIRS),
    "ddp in chunks": Scenario("ddp", 2),
    "ddp one by one": Scenario("ddp", 1),
    "fsdp whole": Scenario("fsdp", PAIRS),
    "fsdp in chunks": Scenario("fsdp", 2),
}


def samples() -> list[Sample]:
    """The later the pair, the more spans and regions: ranks differ in their number and in their padding."""
    return [make_sample(number, spans=number // 3, regions=number // 2) for number in range(PAIRS)]


def own_batch(ranks: Ranks) -> Batch:
    """The pairs of this rank."""
    share = PAIRS // ranks.world_size
    return collate(*samples()[ranks.rank * share : (ranks.rank + 1) * share])


def gradients(scenario: Scenario, ranks: Ranks) -> dict[str, Tensor]:
    """Gradient of every parameter, and the loss, of the whole batch."""
    torch.manual_seed(0)
    model, objective = make_model(dropout=scenario.dropout).double(), Objective(LossSettings()).double()
    encode = ranks.parallelise(model, scenario.parallel)
    batch = own_batch(ranks)

    def score(features: Features, targets: Targets) -> Losses:
        losses: Losses = objective(ranks.gather_features(features), ranks.gather(targets))
        return losses

    losses = accumulate_gradients(
        encode, score, batch, chunk_size=scenario.chunk_size, synchronising=ranks.synchronising
    )
    ranks.average_gradients(list(objective.parameters()))
    named = [*model.named_parameters(), *objective.named_parameters(prefix="objective")]
    found = {name: whole(parameter.grad) for name, parameter in named if parameter.grad is not None}
    return {**found, "loss": losses.total}


def run_scenarios(ranks: Ranks, out: Path) -> None:
    for name, scenario in SCENARIOS.items():
        torch.save(gradients(scenario, ranks), out / f"{name} {ranks.rank}.pt")
    exchanged = {
        "targets": dict(ranks.gather(own_batch(ranks).targets).named_tensors()),
        "largest": ranks.largest(float(ranks.rank), -1.0),
        "everyones": ranks.everyones(["rank", ranks.rank] if ranks.rank else []),
    }
    torch.save(exchanged, out / f"exchanged {ranks.rank}.pt")


def start(world_size: int, work: Callable[..., None], *arguments: Any) -> None:
    """Run `work(ranks, *arguments)` in so many processes, and wait for them.

    They are forks of a server that imports the libraries once.
    """
    set_forkserver_preload(["spanbox.losses.objective", "spanbox.engine.large_batch", "spanbox.engine.distributed"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(_process, (world_size, port, work, arguments), nprocs=world_size, start_method="forkserver")


def _process(rank: int, world_size: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    variables = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world_size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ |= {name: str(value) for name, value in variables.items()}
    ranks = Ranks()
    work(ranks, *arguments)
    ranks.close()
    os._exit(0)  # all is saved; PyTorch's own threads, torn down with the interpreter, abort now and then
