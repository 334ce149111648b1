"""Pairs per second of the training step, against the same two towers in a bare loop, and the cost of regions.

    python benchmarks/throughput.py                  small towers, for a CPU (--size demo: those of the demo)
    python benchmarks/throughput.py --size base      BERT-base and ViT-B/16 at 224 px, for a GPU

All variants run in turn, round after round, in one process, on the same made-up batch; the median of each is taken, and
only ratios can be compared between machines.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from hardware import describe
from spanbox.engine.optimiser import make_optimiser
from spanbox.engine.settings import TrainSettings
from spanbox.structures import Batch
from workload import SIZES, make_batch, make_model, make_trainer


def without_spans(batch: Batch) -> Batch:
    """The batch without spans and regions."""
    return replace(
        batch,
        span_tokens=batch.span_tokens[:, :0],
        span_identity=batch.span_identity[:, :0],
        regions=batch.regions[:, :0],
        region_valid=batch.region_valid[:, :0],
        links=batch.links[:, :0, :0],
    )


def spanbox_step(size: str, source: str, fine: bool, batch: Batch, folder: Path, device: str) -> Callable[[], None]:
    """One training step of the package."""
    loss = {"fine": {"weight": 1.0 if fine else 0.0}}
    trainer = make_trainer(
        make_model(size, source), folder, loss, device=device, batch_size=len(batch), chunk_size=len(batch)
    )
    return lambda: trainer.train_step(batch, []) and None


def bare_step(size: str, batch: Batch, device: str) -> Callable[[], None]:
    """The same two towers by hand: forward, symmetric cross-entropy, backward, AdamW."""
    model = make_model(size, "roi_align").to(device)
    scale = torch.nn.Parameter(torch.tensor(2.66, device=device))
    modules = [model.text, model.vision, model.text_projection, model.image_projection]
    optimiser = make_optimiser(modules, [], torch.nn.Module(), TrainSettings().optimiser)
    batch = batch.to(device)
    targets = torch.arange(len(batch), device=device)
    bf16 = device != "cpu" and torch.cuda.is_bf16_supported()

    def step() -> None:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
            pixels = (batch.pixels.float() / 255.0 - 0.5) / 0.5
            text = model.text_projection(model.text(batch.token_ids, batch.token_mask).pooled)
            image = model.image_projection(model.vision(pixels).pooled)
        logits = scale.exp() * F.normalize(text.float(), dim=-1) @ F.normalize(image.float(), dim=-1).T
        loss = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def measure(steps: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of each step, in turn, after one warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if device != "cpu":
                torch.cuda.synchronize()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    size, device = arguments.size, arguments.device
    image_size = make_model(size, "roi_align").vision.image_size
    full = make_batch(arguments.pairs, image_size)
    cropped = make_batch(arguments.pairs, image_size, crops=True)
    with tempfile.TemporaryDirectory() as folder:
        steps = {
            "bare loop, coarse": bare_step(size, full, device),
            "spanbox, coarse only": spanbox_step(size, "roi_align", False, without_spans(full), Path(folder), device),
            "spanbox, 8 regions by roi_align": spanbox_step(size, "roi_align", True, full, Path(folder), device),
            "spanbox, 8 regions by crop": spanbox_step(size, "crop", True, cropped, Path(folder), device),
        }
        seconds = measure(steps, arguments.rounds, device)
    coarse = statistics.median(seconds["spanbox, coarse only"])
    print(f"{describe()}; {size} towers, {arguments.pairs} pairs, median of {arguments.rounds} rounds\n")
    print("| step | pairs/s | against coarse only |\n|---|---:|---:|")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"| {name} | {arguments.pairs / median:.1f} | {coarse / median:.2f}x |")


if __name__ == "__main__":
    main()
