"""Time and memory of an evaluation from a bank on disk, and the time of a heatmap.

    python benchmarks/evaluation.py [--images 5000] [--captions 5] [--threads 1] [--rounds 5]

The bank has random unit features of 256 numbers: five texts an image, two spans and three regions a text, each span
linked to one region. It is written part by part and evaluated, intervals included, in separate processes. Memory is the
peak of the process less its memory before, so that PyTorch itself is not counted; pages of the bank that were read are
counted, though the system may free them. Heatmaps are of one span over one image, both kinds in one call, by a ViT-B/16
with random weights. Wall time and CPU time are given; on a shared machine compare the CPU time.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hardware import describe
from spanbox.evaluation.bank_files import open_bank, write_bank
from spanbox.evaluation.evaluate import evaluate
from spanbox.evaluation.extract import FeatureBank
from spanbox.models.heatmaps import span_heatmaps
from spanbox.structures import SHOWN
from workload import make_model

WIDTH = 256
SPANS, REGIONS = 2, 3  # of a text
PART = 128  # texts of a part
FINGERPRINT = {"benchmark": "evaluation"}
MIB = 2**20


def random_parts(images: int, captions: int) -> Iterator[FeatureBank]:
    """Texts in the order of their images, some at a time."""
    generator = torch.Generator().manual_seed(0)

    def unit(rows: int) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(rows, WIDTH, generator=generator), dim=1)

    for start in range(0, images * captions, PART):
        texts = torch.arange(start, min(start + PART, images * captions))
        pair = torch.arange(len(texts))
        span, low = torch.arange(SPANS * len(texts)), torch.rand(REGIONS * len(texts), 2, generator=generator) / 2
        yield FeatureBank(
            text=unit(len(texts)),
            image=unit(len(texts)),
            group=texts // captions,
            sample=texts,
            place=texts,
            wording=texts,
            spans=unit(len(span)),
            span_pair=pair.repeat_interleave(SPANS),
            span_identity=torch.randint(20_000, (len(span),), generator=generator),
            span_entity=torch.arange(SPANS).repeat(len(texts)),
            span_shown=torch.full((len(span),), SHOWN, dtype=torch.int8),
            regions=unit(REGIONS * len(texts)),
            region_pair=pair.repeat_interleave(REGIONS),
            region_box=torch.cat([low, low + 0.5], dim=1),
            links=torch.stack([span, span // SPANS * REGIONS + span % SPANS], dim=1),
        )


def write(folder: Path, images: int, captions: int) -> None:
    write_bank(folder, FINGERPRINT, random_parts(images, captions), [])


def measure(folder: Path) -> None:
    stored = open_bank(folder, FINGERPRINT)
    assert stored is not None
    evaluate(stored.bank, intervals=True)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Cost(NamedTuple):
    """Time and memory of a task."""

    seconds: float  # by the clock
    cpu_seconds: float  # of all threads
    mib: float  # peak memory, less what was held before


@contextmanager
def measured(costs: list[Cost]) -> Iterator[None]:
    """Context whose cost is added to `costs`."""
    mib, seconds, cpu_seconds = peak_mib(), time.perf_counter(), time.process_time()
    yield
    costs.append(Cost(time.perf_counter() - seconds, time.process_time() - cpu_seconds, peak_mib() - mib))


def measured_apart(task: str, folder: Path, arguments: argparse.Namespace) -> Cost:
    """The cost of a task, measured in a separate process."""
    counts = ["--images", str(arguments.images), "--captions", str(arguments.captions)]
    command = [sys.executable, __file__, "--task", task, "--folder", str(folder), *counts]
    environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
    answer = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return Cost(*json.loads(answer.stdout))


def heatmap_cost(rounds: int, threads: int) -> Cost:
    """The median of several calls, by each measure."""
    torch.set_num_threads(threads)
    model = make_model("base").eval()
    side = model.vision.image_size
    pixels = torch.randint(256, (3, side, side), dtype=torch.uint8)
    span = torch.nn.functional.normalize(torch.randn(1, model.settings.dim), dim=1)
    costs: list[Cost] = []
    for _ in range(rounds):
        with measured(costs):
            span_heatmaps(model, pixels, span)
    return Cost(*(statistics.median(measure) for measure in zip(*costs, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--captions", type=int, default=5, help="texts an image")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="of heatmaps; the median is shown")
    parser.add_argument("--task", choices=["write", "evaluate"], help="do this one here, with --folder")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.task:
        costs: list[Cost] = []
        with measured(costs):
            if arguments.task == "write":
                write(arguments.folder, arguments.images, arguments.captions)
            else:
                measure(arguments.folder)
        print(json.dumps(costs[0]))
        return
    texts = arguments.images * arguments.captions
    print(f"{describe()}; threads: {arguments.threads}\n")
    print(f"{arguments.images:,} images, {texts:,} texts, {SPANS * texts:,} spans, {REGIONS * texts:,} regions\n")
    print("| | time, s | CPU time, s | peak memory, MiB |\n|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "bank"
        for task in ("write", "evaluate"):
            cost = measured_apart(task, folder, arguments)
            print(f"| {task} | {cost.seconds:.1f} | {cost.cpu_seconds:.1f} | {cost.mib:,.0f} |", flush=True)
        size = sum(path.stat().st_size for path in folder.iterdir()) / MIB
    held = {"texts and images": texts * arguments.images, "spans and regions": SPANS * REGIONS * texts**2}
    print(f"| the bank on disk | | | {size:,.0f} |")
    for what, entries in held.items():
        print(f"| similarities of all {what}, were they held (float32) | | | {4 * entries / MIB:,.0f} |")
    cost = heatmap_cost(arguments.rounds, arguments.threads)
    print(f"| heatmaps of one image, ViT-B/16 | {cost.seconds:.2f} | {cost.cpu_seconds:.2f} | |")


if __name__ == "__main__":
    main()
