"""The cost of fusion: parameters, time and memory of a training step, operations, latency of re-ranking.

    python benchmarks/fusion.py steps [--pairs 64 256]     small towers, one step each, counted in CPU time
    python benchmarks/fusion.py operations                 BERT-base and ViT-B/16, 64 tokens and 196 patches
    python benchmarks/fusion.py latency [--size base]      one query, 16, 64 and 256 candidates

One thread runs on a CPU, and its CPU time is counted, which other work on the machine changes little. Memory is that of
the tensors that a step creates, with chunks of 32. Operations are those of matrix products, two for each multiplication
with addition, forward and backward; fused scores are computed a third time, since their activations are not kept.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hardware import describe
from spanbox.engine.memory import PeakMemory
from spanbox.losses.fusion_settings import FusionLossSettings
from spanbox.models.fusion import ConditionedPooling, Fusion, PairFusion
from spanbox.structures import Features
from workload import SIZES, TOKENS, make_batch, make_model, make_trainer

KINDS = ("none", "gated", "cross_attention", "conditioned_pooling")
CANDIDATES = (16, 64, 256)
IN_BATCH = 256  # pairs
SHAPES = {"small": (TOKENS, 49), "base": (64, 196)}
"""Tokens and patches of a pair."""
MIB = 2**20


def parameters_of(size: str, kind: str) -> int:
    fusion = make_model(size, fusion=kind).fusion
    return sum(parameter.numel() for parameter in fusion.parameters()) if fusion is not None else 0


def measure_step(size: str, kind: str, pairs: int, folder: Path) -> tuple[float, int]:
    """Seconds and bytes of a step; the first step, of a few pairs, is a warm-up."""
    model = make_model(size, fusion=kind)
    trainer = make_trainer(model, folder, batch_size=pairs, chunk_size=32, device="cpu", precision="float32")
    side = model.vision.image_size
    trainer.train_step(make_batch(4, side), [])
    batch, start = make_batch(pairs, side), time.process_time()
    with PeakMemory() as memory:
        trainer.train_step(batch, [])
    return time.process_time() - start, memory.peak


def steps(size: str, all_pairs: list[int]) -> None:
    print("| form | parameters | " + " | ".join(f"step, N = {n} | memory, N = {n}" for n in all_pairs) + " |")
    print("|---|---:|" + "---:|---:|" * len(all_pairs))
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            cells = [measure_step(size, kind, pairs, Path(folder)) for pairs in all_pairs]
            shown = " | ".join(f"{seconds:.2f} s | {peak / MIB:,.0f} MiB" for seconds, peak in cells)
            print(f"| {kind} | {parameters_of(size, kind):,} | {shown} |", flush=True)


def counted(function: Callable[[], Any]) -> float:
    """Operations of a function, in units of 10^9. The fused attention of a CPU is not counted, its products are."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 1e9


def states_of(fusion: Fusion, pairs: int, shape: tuple[int, int], dim: int) -> tuple[Tensor, ...]:
    """Arguments of `Fusion.scores`."""
    generator = torch.Generator().manual_seed(0)
    tokens, patches = (torch.randn(pairs, count, fusion.settings.width, generator=generator) for count in shape)
    text, image = (torch.randn(pairs, dim, generator=generator) for _ in range(2))
    return text, tokens, torch.ones(pairs, shape[0], dtype=torch.bool), image, patches


def operations_of_score(fusion: Fusion, dim: int) -> float:
    """Of a pair among those of a batch; conditioned pooling shares keys and values among the pairs of an image."""
    several = 4 if isinstance(fusion, PairFusion) else 32
    states = states_of(fusion, several, SHAPES["base"], dim)
    if not isinstance(fusion, ConditionedPooling):
        with torch.no_grad():
            return counted(lambda: fusion.scores(*states)) / several
    text, tokens, mask, image, patches = states
    nothing = torch.zeros(several, 0, dim)
    features = Features(text, image, nothing, nothing, tokens=tokens, patches=patches)
    targets = replace(make_batch(several, 16, tokens=TOKENS).targets, token_mask=mask)

    def whole() -> None:
        fusion.matrices(features, targets)["sentence_image"](slice(None), slice(None))

    with torch.no_grad():
        shared = counted(lambda: fusion.matrices(features, targets))
        return (counted(whole) - shared) / several**2 + shared / several / IN_BATCH


def operations() -> None:
    """Of a pair of the batch, forward and backward: the towers, and the scores that are compared for it."""
    towers = make_model("base")
    batch = make_batch(1, towers.vision.image_size, tokens=SHAPES["base"][0])
    with torch.no_grad():
        of_towers = 3 * counted(lambda: towers(batch))
    scored = 2 * (1 + FusionLossSettings().candidates)
    print("| form | of a scored pair, forward | of a pair of the batch, N = 256 | against the towers |")
    print(f"|---|---:|---:|---:|\n| towers alone | | {of_towers:,.1f} | 1.00x |")
    for kind in KINDS[1:]:
        fusion = make_model("small", fusion=kind).fusion
        assert fusion is not None
        of_score, number = operations_of_score(fusion, towers.settings.dim), scored
        if kind == "conditioned_pooling":
            number = IN_BATCH
        of_pair = 4 * of_score * number
        print(f"| {kind}, {number} scores | {of_score:.4f} | {of_pair:,.1f} | {1 + of_pair / of_towers:.2f}x |")


def latency(size: str, rounds: int) -> None:
    print("| form | " + " | ".join(f"K = {count}" for count in CANDIDATES) + " |")
    print("|---|" + "---:|" * len(CANDIDATES))
    for kind in KINDS[1:]:
        model = make_model("small", fusion=kind)
        fusion = model.eval().fusion
        assert fusion is not None
        cells = []
        for count in CANDIDATES:
            states, seconds = states_of(fusion, count, SHAPES[size], model.settings.dim), []
            for _ in range(rounds):
                start = time.process_time()
                with torch.no_grad():
                    fusion.scores(*states)
                seconds.append(time.process_time() - start)
            cells.append(f"{1000 * statistics.median(seconds):,.0f} ms")
        print(f"| {kind} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["steps", "operations", "latency"])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--pairs", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{describe()}\n")
    if arguments.table == "steps":
        steps(arguments.size, arguments.pairs)
    elif arguments.table == "operations":
        operations()
    else:
        latency(arguments.size, arguments.rounds)


if __name__ == "__main__":
    main()
