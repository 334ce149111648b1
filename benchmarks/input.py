"""Images per second and core on the way from a JPEG file to the tensor that a training sample holds.

    python benchmarks/input.py
    ATEN_CPU_CAPABILITY=default python benchmarks/input.py      as on a CPU without AVX2

    pip install --no-deps albumentations==2.0.8 albucore==0.0.24 opencv-python-headless scipy simsimd stringzilla
    pip install --no-deps torchvision

Photographs are made up: 640x480, quality 90, detail of every size, about 70 kB a file. All variants run on one thread,
in turn for each image, in time of the process; medians are taken, and only ratios can be compared between machines.

`plain loop` is the usual hand-written code. `PairDataset` is the whole sample, with record and annotation; the path
before simplejpeg is kept as `earlier`. The standard chain is a random resized crop, a flip and a colour jitter: by
spanbox with boxes and spans, by plain Pillow without, by albumentations and torchvision with boxes where they are
installed.
"""

import argparse
import importlib
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from hardware import describe
from spanbox.data import images
from spanbox.data.augment import AugmentSettings
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


def plain_augmented(path: Path, generator: np.random.Generator) -> Tensor:
    """The standard chain by hand, without boxes."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    area, stretch = generator.uniform(0.4, 1.0), np.sqrt(np.exp(generator.uniform(np.log(0.75), np.log(4 / 3))))
    width = min(np.sqrt(area) * stretch, 1.0) * image.width
    height = min(np.sqrt(area) / stretch, 1.0) * image.height
    left, top = generator.uniform(0, image.width - width), generator.uniform(0, image.height - height)
    image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    if generator.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if generator.random() < 0.8:
        for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = change(image).enhance(generator.uniform(0.7, 1.3))
    return to_pixels(image)


def earlier(dataset: PairDataset, index: int) -> object:
    """The path before simplejpeg: Pillow decodes at reduced size; the rest is as today."""
    decoder, images.simplejpeg = images.simplejpeg, None
    try:
        return dataset[0, index]
    finally:
        images.simplejpeg = decoder


def albumentations_variants(paths: list[Path]) -> dict[str, Callable[[int], object]]:
    """Albumentations on OpenCV's decoder; nothing if it is not installed."""
    try:
        import albumentations as A
        import cv2
    except ImportError:
        return {}
    cv2.setNumThreads(1)
    boxes = A.BboxParams(format="pascal_voc", min_visibility=0.3, label_fields=["labels"])
    resized = A.Compose([A.Resize(SIDE, SIDE, interpolation=cv2.INTER_AREA)], bbox_params=boxes)
    chain = [
        A.RandomResizedCrop((SIDE, SIDE), scale=(0.4, 1.0), interpolation=cv2.INTER_AREA),
        A.HorizontalFlip(p=0.5),
        A.ColorJitter(0.3, 0.3, 0.3, 0.05, p=0.8),
    ]
    standard = A.Compose(chain, bbox_params=boxes)

    def run(transform: Any, index: int) -> Tensor:
        image = cv2.cvtColor(cv2.imread(str(paths[index])), cv2.COLOR_BGR2RGB)
        changed = transform(image=image, bboxes=[[12.0, 30.5, 200.0, 310.0]], labels=["park"])
        return torch.from_numpy(changed["image"]).permute(2, 0, 1).contiguous()

    return {
        "albumentations on OpenCV": lambda index: run(resized, index),
        "standard chain: albumentations on OpenCV": lambda index: run(standard, index),
    }


def torchvision_variants(paths: list[Path]) -> dict[str, Callable[[int], object]]:
    """torchvision's transforms on images decoded by Pillow; nothing if it is not installed."""
    try:
        import_torchvision()
        from torchvision import tv_tensors
        from torchvision.transforms import v2
    except ImportError:
        return {}
    resized = v2.Resize((SIDE, SIDE))
    standard = v2.Compose(
        [
            v2.RandomResizedCrop(SIDE, scale=(0.4, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.3, 0.3, 0.3, 0.05)], p=0.8),
            v2.ClampBoundingBoxes(),
            v2.SanitizeBoundingBoxes(),
        ]
    )

    def run(transform: Any, index: int, *, on_tensors: bool) -> Tensor:
        image: Any = Image.open(paths[index]).convert("RGB")
        boxes = [[12.0, 30.5, 200.0, 310.0]]
        sample = {
            "image": v2.functional.to_image(image) if on_tensors else image,
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(HEIGHT, WIDTH)),  # type: ignore[call-overload]
            "labels": torch.zeros(1),
        }
        changed = transform(sample)["image"]
        return torch.as_tensor(changed if on_tensors else v2.functional.pil_to_tensor(changed))

    return {
        f"{chain}torchvision on {kind}": partial(run, transform, on_tensors=on_tensors)
        for chain, transform in (("", resized), ("standard chain: ", standard))
        for kind, on_tensors in (("tensors", True), ("Pillow", False))
    }


def import_torchvision() -> None:
    """Import torchvision, also beside a build of PyTorch that its compiled operators do not fit.

    Its transforms are plain Python and use none of them, but it wants to find two by name.
    """
    sys.modules.pop("torchvision", None)  # None where spanbox has hidden a broken one
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")


def measure(variants: dict[str, Callable[[int], object]], images: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of the process for each image by each variant, one after another, in each round after one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for index in range(images):
            for name, variant in variants.items():
                start = time.process_time()
                variant(index)
                if number:
                    seconds[name].append(time.process_time() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        manifest = save_pairs(Path(folder), arguments.images)
        paths = [manifest.image_path(record) for record in manifest]
        limits = SampleLimits(image_size=SIDE)
        dataset = PairDataset(manifest, limits, seed=0, replace_broken=False)
        standard = AugmentSettings.model_validate({"image": {"preset": "standard"}})
        augmented = PairDataset(manifest, replace(limits, augment=standard), seed=0, replace_broken=False)
        whole = [load_image(path) for path in paths]
        reduced = [load_reduced(path, SIDE)[0] for path in paths]
        generator = np.random.default_rng(0)
        steps = itertools.count()
        variants: dict[str, Callable[[int], object]] = {
            "plain loop": lambda index: plain(paths[index]),
            "plain loop with Pillow's draft": lambda index: plain_with_draft(paths[index]),
            "earlier `PairDataset`: Pillow's draft": lambda index: earlier(dataset, index),
            "`PairDataset`": lambda index: dataset[0, index],
            "standard chain: plain loop with Pillow": lambda index: plain_augmented(paths[index], generator),
            "standard chain: `PairDataset`": lambda index: augmented[next(steps), index],
            **albumentations_variants(paths),
            **torchvision_variants(paths),
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
    print("| variant | images/s and core | ms | against the plain loop | against the earlier path |")
    print("|---|---:|---:|---:|---:|")
    for name, values in seconds.items():
        middle = statistics.median(values)
        ratios = [
            statistics.median(base / own for base, own in zip(seconds[other], values, strict=True))
            for other in ("plain loop", "earlier `PairDataset`: Pillow's draft")
        ]
        print(f"| {name} | {1 / middle:,.0f} | {1000 * middle:.2f} | {ratios[0]:.2f}x | {ratios[1]:.2f}x |")


if __name__ == "__main__":
    main()
