"""Images per second and core on the way from a JPEG file to the tensor that a training sample holds.

    python benchmarks/input.py
    ATEN_CPU_CAPABILITY=default python benchmarks/input.py      as on a CPU without AVX2

Photographs are made up: 640x480, quality 90, detail of every size, about 70 kB a file. All variants run on one thread,
in turn, round after round; the median of each is taken, and only ratios can be compared between machines.

`plain loop` is the usual hand-written code. `PairDataset` is the whole cost of a sample, with record and annotation.
The steps below it show the possible gains: decoding is most of the time.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hardware import describe
from spanbox.data.dataset import PairDataset
from spanbox.data.images import load_image, load_reduced
from spanbox.data.limits import SampleLimits
from spanbox.data.manifest import Entity, Manifest, Record, write_manifest
from spanbox.data.render import to_pixels, to_square

WIDTH, HEIGHT = 640, 480
SIDE = 224
TEXT = "The geometry of plants . Garfield Park Conservatory"


def make_photo(seed: int) -> Image.Image:
    """Random detail in eight octaves, the finer the fainter as in nature, and the noise of a camera."""
    generator = np.random.default_rng(seed)
    total = np.zeros((HEIGHT, WIDTH, 3))
    for octave in range(1, 9):
        cells = 2**octave
        shape = (max(2, cells * HEIGHT // WIDTH), cells)
        brightness, colour = generator.normal(size=(*shape, 1)), generator.normal(size=(*shape, 3))
        for channel in range(3):
            detail = (brightness[..., 0] + 0.5 * colour[..., channel]).astype(np.float32)
            grown = Image.fromarray(detail).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
            total[..., channel] += np.asarray(grown) / cells**0.75
    total = 255 * (total - total.min()) / (total.max() - total.min()) + 6 * generator.normal(size=total.shape)
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def save_pairs(folder: Path, count: int) -> Manifest:
    """Photographs with a sentence, a span and a box each."""
    records = []
    for number in range(count):
        make_photo(number).save(folder / f"{number}.jpg", quality=90, subsampling="4:2:0")
        park = Entity(start=25, end=38, type="LOC", boxes=((12.0, 30.5, 200.0, 310.0),))
        records.append(Record(id=str(number), image=f"{number}.jpg", text=TEXT, entities=(park,)))
    write_manifest(folder / "pairs.jsonl", records)
    return Manifest(folder / "pairs.jsonl")


def plain(path: Path) -> Tensor:
    with Image.open(path) as image:
        return to_pixels(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def plain_with_draft(path: Path) -> Tensor:
    with Image.open(path) as image:
        image.draft("RGB", (SIDE, SIDE))
        return to_pixels(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def measure(variants: dict[str, Callable[[int], object]], images: int, rounds: int) -> dict[str, float]:
    """Median seconds an image of each variant, after one warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, variant in variants.items():
            start = time.perf_counter()
            for index in range(images):
                variant(index)
            if number:
                seconds[name].append((time.perf_counter() - start) / images)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        manifest = save_pairs(Path(folder), arguments.images)
        paths = [manifest.image_path(record) for record in manifest]
        dataset = PairDataset(manifest, SampleLimits(image_size=SIDE), seed=0, replace_broken=False)
        whole = [load_image(path) for path in paths]
        reduced = [load_reduced(path, SIDE)[0] for path in paths]
        variants: dict[str, Callable[[int], object]] = {
            "plain loop": lambda index: plain(paths[index]),
            "plain loop with Pillow's draft": lambda index: plain_with_draft(paths[index]),
            "`PairDataset`": lambda index: dataset[0, index],
            "step: `load_image`, all of the file": lambda index: load_image(paths[index]),
            "step: `load_reduced`": lambda index: load_reduced(paths[index], SIDE),
            "step: `to_square` of all of the image": lambda index: to_square(np.array(whole[index]), SIDE),
            "step: `to_square` of the reduced image": lambda index: to_square(np.array(reduced[index]), SIDE),
        }
        seconds = measure(variants, arguments.images, arguments.rounds)
        size = statistics.mean(path.stat().st_size for path in paths) / 1000
    capability = torch.backends.cpu.get_cpu_capability()
    print(
        f"{describe()}, {capability}; {arguments.images} files of {size:.0f} kB, median of {arguments.rounds} rounds\n"
    )
    print("| variant | images/s and core | ms | against the plain loop |\n|---|---:|---:|---:|")
    for name, value in seconds.items():
        print(f"| {name} | {1 / value:,.0f} | {1000 * value:.2f} | {seconds['plain loop'] / value:.2f}x |")


if __name__ == "__main__":
    main()
