"""Peak memory and time of a training step by batch size: in one piece, and in chunks.

    python benchmarks/large_batch.py                  small towers, for a CPU
    python benchmarks/large_batch.py --size base      BERT-base and ViT-B/16 at 224 px, for a GPU
    python benchmarks/large_batch.py --size base --batches 256 --modes direct "direct, compiled" exact "exact, compiled"
    python benchmarks/large_batch.py --freeze image --chunk 16 --timed 64

Each peak is measured in a separate process: on a GPU the memory that PyTorch allocated, on a CPU the bytes of all live
tensors, weights and batch included (resident memory is larger, since the allocator keeps freed memory). Times are taken
in one process, in turn; on a CPU they are processor time.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from hardware import describe
from spanbox.engine.memory import PeakMemory
from spanbox.engine.trainer import Trainer
from spanbox.structures import Batch
from workload import SIZES, frozen, make_batch, make_model, make_trainer

MIB = 2**20
MODES: dict[str, dict[str, Any]] = {
    "naive accumulation": {"accumulation": "naive", "chunked": True, "checkpointing": False},
    "direct": {"accumulation": "exact", "chunked": False, "checkpointing": False},
    "exact": {"accumulation": "exact", "chunked": True, "checkpointing": False},
    "exact, checkpointing": {"accumulation": "exact", "chunked": True, "checkpointing": True},
    "direct, compiled": {"accumulation": "exact", "chunked": False, "checkpointing": False, "compile": True},
    "exact, compiled": {"accumulation": "exact", "chunked": True, "checkpointing": False, "compile": True},
}
DEFAULT_MODES = [mode for mode, options in MODES.items() if "compile" not in options]


def trainer_for(
    mode: str, size: str, pairs: int, chunk: int, device: str, folder: Path, freeze: str | None = None
) -> Trainer:
    options = MODES[mode]
    return make_trainer(
        frozen(make_model(size, checkpointing=options["checkpointing"]), freeze),
        folder,
        device=device,
        batch_size=pairs,
        chunk_size=min(chunk, pairs) if options["chunked"] else pairs,
        accumulation=options["accumulation"],
        compile=options.get("compile", False),
    )


def batch_for(trainer: Trainer, pairs: int) -> Batch:
    batch = make_batch(pairs, trainer.model.vision.image_size)
    return batch.pin_memory() if trainer.device.type == "cuda" else batch  # as from the loader


def measure_peak(mode: str, size: str, pairs: int, chunk: int, device: str) -> float:
    """MiB at the peak of two steps, weights and optimiser included."""
    with tempfile.TemporaryDirectory() as folder, PeakMemory() if device == "cpu" else nullcontext() as counted:
        trainer = trainer_for(mode, size, pairs, chunk, device, Path(folder))
        batch = batch_for(trainer, pairs)
        for _ in range(2):
            trainer.train_step(batch, [])
    return (counted.peak if counted else torch.cuda.max_memory_allocated()) / MIB


def measure_seconds(
    modes: list[str], size: str, pairs: int, chunk: int, device: str, rounds: int, freeze: str | None
) -> dict[str, list[float]]:
    """Seconds of a step in each mode, the modes in turn, after one round to warm up."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {mode: [] for mode in modes}
    with tempfile.TemporaryDirectory() as folder:
        trainers = {mode: trainer_for(mode, size, pairs, chunk, device, Path(folder), freeze) for mode in modes}
        batch = batch_for(trainers[modes[0]], pairs)
        for number in range(rounds + 1):
            for mode, trainer in trainers.items():
                start = clock()
                trainer.train_step(batch, [])
                if trainer.device.type == "cuda":
                    torch.cuda.synchronize()
                if number:
                    seconds[mode].append(clock() - start)
    return seconds


def in_own_process(*arguments: str) -> float | None:
    """The peak as another process measures it; None when it ran out of memory."""
    done = subprocess.run([sys.executable, __file__, "--peak", *arguments], capture_output=True, text=True)
    if done.returncode:
        print(done.stderr.splitlines()[-1] if done.stderr else "killed", file=sys.stderr)
        return None
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="*", default=[16, 64, 256, 512])
    parser.add_argument("--timed", type=int, nargs="*", default=[256])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--modes", nargs="*", choices=MODES, default=DEFAULT_MODES)
    parser.add_argument("--freeze", choices=["text", "image"], help="a tower that is frozen in the timed steps")
    parser.add_argument("--peak", nargs=2, metavar=("MODE", "PAIRS"), help="measure one peak and print it")
    arguments = parser.parse_args()
    size, chunk, device = arguments.size, arguments.chunk, arguments.device
    if arguments.peak:
        mode, pairs = arguments.peak
        print(json.dumps(measure_peak(mode, size, int(pairs), chunk, device)))
        return
    print(f"{describe()}; {size} towers, chunks of {chunk} pairs\n")
    if arguments.batches:
        print(
            f"Peak memory in MiB\n\n| pairs | {' | '.join(arguments.modes)} |\n|---:|" + "---:|" * len(arguments.modes)
        )
    for pairs in arguments.batches:
        options = ["--size", size, "--chunk", str(chunk), "--device", device]
        peaks = [in_own_process(mode, str(pairs), *options) for mode in arguments.modes]
        shown = ["out of memory" if peak is None else f"{peak:,.0f}" for peak in peaks]
        print(f"| {pairs} | " + " | ".join(shown) + " |", flush=True)
    if arguments.timed:
        print(f"\nSeconds a step, median of {arguments.rounds}\n")
        print(f"| pairs | mode | seconds | against {arguments.modes[0]} |\n|---:|---|---:|---:|")
    for pairs in arguments.timed:
        seconds = measure_seconds(arguments.modes, size, pairs, chunk, device, arguments.rounds, arguments.freeze)
        for mode, values in seconds.items():
            ratio = statistics.median(a / b for a, b in zip(values, seconds[arguments.modes[0]], strict=True))
            print(f"| {pairs} | {mode} | {statistics.median(values):.2f} | {ratio:.2f}x |", flush=True)


if __name__ == "__main__":
    main()
