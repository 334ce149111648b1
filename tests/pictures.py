"""A photo, and files of pictures, for the tests of how images are read."""

from pathlib import Path

import numpy as np
from PIL import Image


def photo(mode: str = "RGB") -> Image.Image:
    """640 x 480 pixels with detail of every size, the finer the fainter, and the noise of a camera."""
    random = np.random.default_rng(0)
    total = random.normal(size=(480, 640, 3)) * 4 + 128
    for cells in (2, 5, 10, 40, 160):
        detail = Image.fromarray(random.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += (np.asarray(detail.resize((640, 480), Image.Resampling.BICUBIC), dtype=float) - 128) / cells**0.5
    return Image.fromarray(total.clip(0, 255).astype(np.uint8)).convert(mode)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path
