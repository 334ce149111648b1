"""Pages of real product photos, four on each, for the plans on real pixels.

    python benchmarks/catalogue.py PRODUCTS runs/catalogue
    spanbox ablate benchmarks/plans/levels-catalogue.yaml

PRODUCTS is a folder with `products.jsonl` (`{"id", "image", "text"}` a line) and the images it names. Each page shows
four products in a 2 x 2 grid; its text is their titles, which are its spans, and their tiles are its boxes. Products
are split by title, never by id: no held-out title was seen in training. `val.jsonl` shows the products of `test.jsonl`
on other pages, to choose learning rates on.
"""

import argparse
import json
import random
from pathlib import Path

from PIL import Image

from spanbox.data.manifest import Entity, Record, write_manifest
from spanbox.progress import track
from spanbox.structures import stable_id

TILE = (60, 80)  # pixels, width and height of a photo
PAGES = {"train": 20_000, "test": 500, "val": 250}
PRODUCTS = {"train": "train", "test": "test", "val": "test"}  # val: other pages of the held-out products, for choices


def split_products(source: Path) -> dict[str, list[dict[str, str]]]:
    """Products by split, train or test; one title belongs to one split."""
    products: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    for line in (source / "products.jsonl").read_text(encoding="utf-8").splitlines():
        product = json.loads(line)
        products["test" if stable_id(product["text"].casefold()) % 10 == 0 else "train"].append(product)
    return products


def draw_pages(source: Path, out: Path) -> None:
    """Write `train.jsonl`, `test.jsonl` and `val.jsonl` with their images."""
    products_of = split_products(source)
    for split, held in PRODUCTS.items():
        products = products_of[held]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("products", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    draw_pages(arguments.products, arguments.out)


if __name__ == "__main__":
    main()
