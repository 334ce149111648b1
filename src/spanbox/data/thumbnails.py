"""Small pictures for HTML pages."""

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

from spanbox.data.images import load_reduced


def load_thumbnail(path: Path, side: int) -> tuple[Image.Image, tuple[int, int]]:
    """An image of at most `side` pixels on a side, upright, and the width and height of the original as shown.

    Raises:
        DataError: it cannot be read.
    """
    image, full_size = load_reduced(path, side)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image, full_size


def data_uri(image: Image.Image, format: str = "JPEG", **options: Any) -> str:
    """An image as the source of an `<img>`. The options are those of Pillow's `save`."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return f"data:image/{format.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
