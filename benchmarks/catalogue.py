"""Real product photos, four on a page: does the fine level help when pixels are real?

    python benchmarks/catalogue.py PRODUCTS OUT --minutes 10

PRODUCTS is a folder with `products.jsonl` (`{"id", "image", "text"}` a line) and the images it names. Each page shows
four products in a 2 x 2 grid; its text is their titles, which are its spans, and their tiles are its boxes. Products
are split by title, never by id: no held-out title was seen in training. Both variants train at the same time, each on
its share of the cores and for the same minutes, and are evaluated on the same held-out pages.
"""

import argparse
import json
import os
import random
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from PIL import Image

from hardware import describe
from spanbox.config import load_config
from spanbox.data.manifest import Entity, Record, write_manifest
from spanbox.progress import track
from spanbox.structures import stable_id
from spanbox.wiring import evaluate_checkpoint, train

TILE = (60, 80)  # pixels, width and height of a photo
PAGES = {"train": 20_000, "test": 500}
METRICS = ("retrieval.i2t.r1", "retrieval.t2i.r1", "matching.within_image", "matching.across_set.r1")
VARIANTS: dict[str, list[str]] = {"coarse and fine": [], "coarse alone": ["loss.fine.weight=0"]}
TIMING_STEPS = 30


def split_products(source: Path) -> dict[str, list[dict[str, str]]]:
    """Products by split; one title belongs to one split."""
    products: dict[str, list[dict[str, str]]] = {split: [] for split in PAGES}
    for line in (source / "products.jsonl").read_text(encoding="utf-8").splitlines():
        product = json.loads(line)
        products["test" if stable_id(product["text"].casefold()) % 10 == 0 else "train"].append(product)
    return products


def draw_pages(source: Path, out: Path) -> None:
    """Write `train.jsonl` and `test.jsonl` with their images."""
    for split, products in split_products(source).items():
        (out / "images" / split).mkdir(parents=True, exist_ok=True)
        pages = track(range(PAGES[split]), f"{split} pages", PAGES[split])
        write_manifest(out / f"{split}.jsonl", (draw_page(source, out, split, page, products) for page in pages))


def draw_page(source: Path, out: Path, split: str, page: int, products: list[dict[str, str]]) -> Record:
    """One page of four different titles."""
    rng = random.Random(f"{split} {page}")
    chosen: dict[str, dict[str, str]] = {}
    while len(chosen) < 4:
        product = rng.choice(products)
        chosen.setdefault(product["text"].casefold(), product)
    sheet = Image.new("RGB", (2 * TILE[0], 2 * TILE[1]), "white")
    text, entities = "", []
    corners = [(x * TILE[0], y * TILE[1]) for y in (0, 1) for x in (0, 1)]
    rng.shuffle(corners)
    for (x, y), product in zip(corners, chosen.values(), strict=True):
        with Image.open(source / product["image"]) as photo:
            sheet.paste(photo.convert("RGB").resize(TILE), (x, y))
        text += " . " if text else ""
        box = (float(x), float(y), float(x + TILE[0]), float(y + TILE[1]))
        entities.append(Entity(start=len(text), end=len(text) + len(product["text"]), boxes=(box,)))
        text += product["text"]
    name = f"{split}-{page:06d}"
    sheet.save(out / "images" / split / f"{name}.jpg", quality=92)
    return Record(id=name, image=f"images/{split}/{name}.jpg", text=text, entities=tuple(entities))


def run(out: Path, name: str, minutes: float, seed: int, threads: int) -> dict[str, float]:
    """Train one variant for `minutes` and evaluate it. The number of steps follows from a few timed ones."""
    torch.set_num_threads(threads)
    run_dir = out / f"run-{name.replace(' ', '-')}-{seed}"
    settings = [
        f"data.train={out}/train.jsonl",
        "data.val=null",
        f"run.dir={run_dir}",
        f"seed={seed}",
        "run.overwrite=true",
        "data.max_tokens=96",
        "model.text.architecture.vocab_size=8192",
        "model.text.architecture.max_position_embeddings=96",
        "model.vision.architecture.image_size=112",
        *VARIANTS[name],
    ]
    seconds = {}
    for steps in (TIMING_STEPS, 2 * TIMING_STEPS):  # the difference leaves out what is done once
        start = time.perf_counter()
        train(load_config("demo", [*settings, f"train.steps={steps}"]))
        seconds[steps] = time.perf_counter() - start
    steps = round(minutes * 60 * TIMING_STEPS / (seconds[2 * TIMING_STEPS] - seconds[TIMING_STEPS]))
    start = time.perf_counter()
    train(load_config("demo", [*settings, f"train.steps={steps}", f"train.save_every={steps}"]))
    took = time.perf_counter() - start
    metrics = evaluate_checkpoint(run_dir, out / "test.jsonl").metrics
    return {**metrics, "steps": steps, "minutes": took / 60}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("products", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    if not (arguments.out / "test.jsonl").is_file():
        draw_pages(arguments.products, arguments.out)
    threads = max(1, (os.cpu_count() or 1) // len(VARIANTS))
    results = []
    with ProcessPoolExecutor(len(VARIANTS), mp_context=get_context("spawn")) as pool:
        for seed in range(arguments.seeds):
            both = {name: pool.submit(run, arguments.out, name, arguments.minutes, seed, threads) for name in VARIANTS}
            results += [(name, seed, future.result()) for name, future in both.items()]
    print(f"\n{describe()}; {arguments.minutes:g} minutes each, side by side on {threads} core(s) each")
    print(f"{PAGES['test']} held-out pages\n")
    print("| variant | seed | steps | minutes | " + " | ".join(METRICS) + " |")
    print("|---|---:|---:|---:|" + "---:|" * len(METRICS))
    for name, seed, metrics in results:
        figures = " | ".join(f"{metrics[metric]:.3f}" for metric in METRICS)
        print(f"| {name} | {seed} | {metrics['steps']} | {metrics['minutes']:.1f} | {figures} |")
    chance = results[0][2]
    print(f"\nchance: {chance['retrieval.i2t.chance_r1']:.3f} and {chance['matching.within_image.chance']:.3f}")


if __name__ == "__main__":
    main()
