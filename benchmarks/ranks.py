"""What each rank computes and exchanges for the losses of both levels, counted on 1, 2 and 4 gloo ranks.

    python benchmarks/ranks.py [--pairs 256 1024] [--ranks 1 2 4]

Every rank has the features of all pairs, so what it receives does not fall with the number of ranks; its logits do.
"""

import argparse
import json
import multiprocessing
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from hardware import describe
from spanbox.engine import distributed
from spanbox.engine.distributed import Ranks
from spanbox.losses.blocks import MOST_LOGITS
from spanbox.losses.objective import LossSettings, Objective
from spanbox.structures import Features, Targets

WIDTH = 256
PARTS = 8  # spans and regions of a pair
MIB = 2**20


def own_inputs(ranks: Ranks, pairs: int) -> tuple[Features, Targets]:
    """Unit features of this rank's pairs, each span linked to one region."""
    torch.manual_seed(ranks.rank)

    def unit(*shape: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(*shape, WIDTH), dim=-1).requires_grad_()

    ids = torch.arange(ranks.rank * pairs, (ranks.rank + 1) * pairs)
    low = torch.rand(pairs, PARTS, 2) * 0.6
    features = Features(unit(pairs), unit(pairs), unit(pairs, PARTS), unit(pairs, PARTS))
    return features, Targets(
        group=ids,
        sample=ids,
        wording=ids,
        span_identity=(ids[:, None] * PARTS + torch.arange(PARTS)),
        regions=torch.cat([low, low + 0.3], dim=-1),
        region_valid=torch.ones(pairs, PARTS, dtype=torch.bool),
        links=torch.eye(PARTS, dtype=torch.bool).repeat(pairs, 1, 1),
    )


class Received:
    """Bytes that this rank receives from others in gathers and sums of rows."""

    def __init__(self, world_size: int) -> None:
        self.bytes = 0.0
        others = (world_size - 1) / world_size
        gather, scatter = distributed._all_gather, distributed._reduce_scatter

        def counted_gather(out: torch.Tensor, own: torch.Tensor) -> Any:
            self.bytes += out.nbytes * others
            return gather(out, own)

        def counted_scatter(own: torch.Tensor, whole: torch.Tensor) -> Any:
            self.bytes += whole.nbytes * others
            return scatter(own, whole)

        distributed._all_gather, distributed._reduce_scatter = counted_gather, counted_scatter


def measure(rank: int, world_size: int, port: int, pairs: int, out: Path) -> None:
    """A rank's part of the losses of `pairs` pairs and their gradient."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with Ranks() as ranks:
        received = Received(world_size)
        own, own_targets = own_inputs(ranks, pairs // world_size)
        objective = Objective(LossSettings())

        def losses_and_gradient() -> None:
            features, targets = ranks.gather_features(own), ranks.gather(own_targets)
            objective(features, targets, ranks.share(len(own_targets))).total.backward()

        with FlopCounterMode(display=False) as counter:
            losses_and_gradient()
        received_bytes, start = received.bytes, time.thread_time()
        losses_and_gradient()
        seconds = time.thread_time() - start
        found = {"operations": counter.get_total_flops(), "received": received_bytes, "seconds": seconds}
        (out / f"{rank}.json").write_text(json.dumps(found))


def on_ranks(world_size: int, pairs: int) -> dict[str, float]:
    """The largest of each value over the ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        started = [
            context.Process(target=measure, args=(rank, world_size, port, pairs, Path(folder)))
            for rank in range(world_size)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join()
        found = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(world_size)]
    return {name: max(one[name] for one in found) for name in found[0]}


def expected_operations(world_size: int, pairs: int) -> float:
    """By formula: a logit costs 2 WIDTH operations forwards, 4 backwards, and 2 more if it is computed again there."""
    directions = 1 if world_size == 1 else 2  # one matrix serves both, or own rows and own columns
    operations = 0.0
    for per_pair in (1, PARTS):
        logits = (pairs * per_pair) ** 2 / world_size
        operations += directions * logits * WIDTH * (8 if logits > MOST_LOGITS else 6)
    return operations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    arguments = parser.parse_args()
    print(f"{describe()}; {WIDTH} features, {PARTS} spans and regions a pair, gloo, one thread a rank\n")
    print("| pairs | ranks | G operations, formula | counted | CPU seconds | MiB received |\n|" + "---:|" * 6)
    for pairs in arguments.pairs:
        for world_size in arguments.ranks:
            found = on_ranks(world_size, pairs)
            print(
                f"| {pairs:,} | {world_size} | {expected_operations(world_size, pairs) / 1e9:.2f} "
                f"| {found['operations'] / 1e9:.2f} | {found['seconds']:.2f} | {found['received'] / MIB:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
