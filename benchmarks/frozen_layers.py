"""Time and memory of a step whose towers have frozen lower layers: computed once, or with every pass.

    python benchmarks/frozen_layers.py                  small towers, for a CPU
    python benchmarks/frozen_layers.py --size base      BERT-base and ViT-B/16 at 224 px, for a GPU

Both ways run in turn in one process. Times are of the CPU there, and of the clock on a GPU.
"""

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from hardware import describe
from spanbox.engine.memory import measure_step
from spanbox.engine.task import Forward
from spanbox.engine.trainer import Trainer
from spanbox.models.trainable import freeze_layers
from workload import SIZES, make_batch, make_model, make_trainer


def trainer_with(frozen: int, arguments: argparse.Namespace, folder: Path) -> Trainer:
    model = make_model(arguments.size)
    for tower, part in ((model.text, "text"), (model.vision, "vision")):
        freeze_layers(tower.model, tower.layers, frozen, part)  # type: ignore[arg-type]
    return make_trainer(model, folder, device=arguments.device, batch_size=arguments.pairs, chunk_size=arguments.chunk)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--chunk", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--frozen", type=int, nargs="+", help="numbers of frozen layers; default: half and all but one")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    clock = time.process_time if arguments.device == "cpu" else time.perf_counter
    model = make_model(arguments.size)
    layers = len(model.text.layers)
    image_size = model.vision.image_size
    batch = make_batch(arguments.pairs, image_size)
    print(f"{describe()}; {arguments.size} towers of {layers} layers, {arguments.pairs} pairs in chunks of")
    print(f"{arguments.chunk}, median of {arguments.rounds} rounds in turn\n")
    print("| frozen layers | computed once, s | in both passes, s | ratio | kept |\n|---:|---:|---:|---:|---:|")
    for frozen in arguments.frozen or [layers // 2, layers - 1]:
        with tempfile.TemporaryDirectory() as folder:
            trainer = trainer_with(frozen, arguments, Path(folder))
            seconds: dict[bool, list[float]] = {True: [], False: []}
            for number in range(arguments.rounds + 1):
                for skip in seconds:
                    trainer.skips_frozen_layers = skip
                    start = clock()
                    trainer.train_step(batch, [])
                    if arguments.device == "cuda":
                        torch.cuda.synchronize()
                    if number:
                        seconds[skip].append(clock() - start)
            towers = measure_step(
                Forward(trainer.task, trainer.device), partial(make_batch, image_size=image_size)
            ).towers
        kept = sum(tower.kept for tower in towers.values()) * arguments.pairs / 2**20
        once, again = (statistics.median(seconds[skip]) for skip in (True, False))
        ratio = statistics.median(one / other for one, other in zip(seconds[True], seconds[False], strict=True))
        print(f"| {frozen} | {once:.3f} | {again:.3f} | {ratio:.2f}x | {kept:,.0f} MiB |", flush=True)


if __name__ == "__main__":
    main()
