"""Near-duplicate images: recall and precision on planted copies, and the time of the search, on a folder of images.

    python benchmarks/near_duplicates.py FOLDER --images 20000

Of the first images five copies each are planted: resized to half, enlarged, encoded at quality 40, cropped by 5 % at a
random place, mirrored. Pairs of other images that are reported are saved to a picture, to be judged by eye.
"""

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from spanbox.data.audit.near import Fingerprints, fingerprint
from spanbox.data.images import load_image
from spanbox.errors import DataError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--copies", type=int, default=200, help="of each kind")
    parser.add_argument("--picture", type=Path, default=Path("near-duplicates.png"))
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    paths = sorted(path for path in arguments.folder.rglob("*") if path.suffix.casefold() in (".jpg", ".jpeg", ".png"))
    generator.shuffle(paths)  # type: ignore[arg-type]
    fingerprints, owner, kept = Fingerprints(), dict[int, tuple[str, int]](), list[Path]()
    began = time.process_time()
    for path in paths[: arguments.images]:
        try:
            found = fingerprint(load_image(path))
        except DataError:
            continue
        if found is not None:
            kept.append(path)
            fingerprints.add(found)
    print(f"{len(kept):,} images, {len(kept) / (time.process_time() - began):.0f} per second and core with decoding")
    for place, path in enumerate(kept[: arguments.copies]):
        for kind, change in copies(generator).items():
            found = fingerprint(change(load_image(path)))
            if found is not None:
                owner[len(fingerprints)] = (kind, place)
                fingerprints.add(found)
    began = time.process_time()
    near = list(fingerprints.near_duplicates())
    print(f"search among {len(fingerprints):,}: {time.process_time() - began:.1f} s of CPU")
    of = {duplicate.later: duplicate for duplicate in near}
    print("| copy | found | of |\n|---|---:|---:|")
    for kind in copies(generator):
        own = [place for place, (name, _) in owner.items() if name == kind]
        right = sum(place in of and root(of[place].earlier, owner) == owner[place][1] for place in own)
        print(f"| {kind} | {right} | {len(own)} |")
    others = [duplicate for duplicate in near if duplicate.later not in owner]
    print(f"other pairs reported: {len(others)} of {len(kept):,} images; a part of them: {arguments.picture}")
    save_picture([(kept[d.later], kept[d.earlier]) for d in others[:: max(1, len(others) // 40)]], arguments.picture)


def root(place: int, owner: dict[int, tuple[str, int]]) -> int:
    """The original of an image that may be a copy itself."""
    return owner[place][1] if place in owner else place


def copies(generator: np.random.Generator) -> dict[str, Callable[[Image.Image], Image.Image]]:
    def cropped(image: Image.Image) -> Image.Image:
        width, height = image.size
        x, y = generator.uniform(0, 0.05, 2) * image.size
        return image.crop((round(x), round(y), round(x + 0.95 * width), round(y + 0.95 * height)))

    return {
        "resized to half": lambda image: image.resize((max(1, image.width // 2), max(1, image.height // 2))),
        "enlarged 1.7 times": lambda image: image.resize((int(1.7 * image.width), int(1.7 * image.height))),
        "encoded at quality 40": encoded,
        "cropped by 5 %": cropped,
        "mirrored": ImageOps.mirror,
    }


def encoded(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=40)
    return Image.open(file).convert("RGB")


def save_picture(pairs: list[tuple[Path, Path]], path: Path) -> None:
    sheet = Image.new("RGB", (100 * max(1, len(pairs)), 200), "white")
    for column, pair in enumerate(pairs):
        for row, source in enumerate(pair):
            image = load_image(source)
            image.thumbnail((96, 96))
            sheet.paste(image, (100 * column, 100 * row))
    sheet.save(path)


if __name__ == "__main__":
    main()
