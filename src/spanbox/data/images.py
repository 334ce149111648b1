"""Image files as the towers and the eye want them: RGB, upright, 8 bit.

Photographs come with an EXIF orientation, logos with an alpha channel, scans with 16 bits, and some files are broken.
This is the one place that knows. A file that cannot be shown whole raises `DataError`; whether that ends the run, is
counted and skipped, or becomes a line in the audit is decided by the caller.
"""

import struct
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from spanbox.errors import DataError

# What Pillow raises on a damaged file: most decoders an OSError (cut off, unknown format), the parsers of PNG and EXIF
# a SyntaxError or struct.error, those of GIF an EOFError, WebP and AVIF a RuntimeError.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error)
_TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = (5, 6, 7, 8)


def load_image(path: Path) -> Image.Image:
    """Decode the whole file as an RGB image, upright, transparent parts on white.

    16-bit values are divided by 257. Wider integers and floats have no fixed white: see `_to_8_bit`. Of an animation
    the first frame is taken.

    Raises:
        DataError: the file is missing, no image, damaged, cut off, or larger than Pillow's limit of pixels.
    """
    return _decode(path, at_least=None)[0]


def load_reduced(path: Path, at_least: int) -> tuple[Image.Image, tuple[int, int]]:
    """Like `load_image`, but the codec may leave out detail: a JPEG is decoded at a half, a quarter or an eighth of its
    size, which is several times faster, as long as both sides keep `at_least` pixels.

    Returns:
        The image, and the width and height that it has at full size, as shown.
    """
    return _decode(path, at_least)


def _decode(path: Path, at_least: int | None) -> tuple[Image.Image, tuple[int, int]]:
    try:
        with Image.open(path) as image:
            _refuse_bomb(image)
            full = _stored_size(image)
            if at_least is not None:
                image.draft(None, (at_least, at_least))
            image.load()
            orientation = _orientation(image)
            rgb = _to_rgb(image)
    except _TOO_LARGE as error:
        raise _broken(path, f"too large: {error}") from None
    except _DAMAGED as error:
        raise _broken(path, _reason(path, error)) from error
    if orientation in _SWAPS_SIDES:
        full = full[::-1]
    return (rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb), full


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of the image as shown, from the header of the file alone: the pixels may yet be damaged.

    Raises:
        DataError: the file is missing, no image, or larger than Pillow's limit of pixels.
    """
    try:
        with Image.open(path) as image:
            _refuse_bomb(image)
            width, height = _stored_size(image)
            swapped = _orientation(image) in _SWAPS_SIDES
    except _TOO_LARGE as error:
        raise _broken(path, f"too large: {error}") from None
    except _DAMAGED as error:
        raise _broken(path, _reason(path, error)) from error
    return (height, width) if swapped else (width, height)


def _refuse_bomb(image: Image.Image) -> None:
    # Pillow only warns between one and two times its limit. Turning the warning into an error around the call would
    # change the filters of every thread, so the size is compared here.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels exceed the limit of {limit}")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where the EXIF block is damaged or holds nonsense, which viewers ignore too."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except _DAMAGED:
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Width and height before the orientation is applied; some versions of Pillow's TIFF reader have swapped them."""
    tags = getattr(image, "tag_v2", None)
    if image.format == "TIFF" and tags is not None:
        return int(tags[ExifTags.Base.ImageWidth]), int(tags[ExifTags.Base.ImageLength])
    return image.size


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_to_8_bit(image)).convert("RGB")
    if image.has_transparency_data:
        # Premultiplied modes convert to RGBA only by way of their plain form.
        plain = {"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)
        layer = image.convert(plain).convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(image: Image.Image) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """Grey values (H, W) of a 16-bit, 32-bit or float image, 0 black and 255 white.

    Integers within 0..65535 are read as 16 bit, floats within 0..1 as fractions. Others have no fixed white, so their
    own smallest and largest values become black and white.
    """
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("some pixels are not finite numbers")
    low, high = values.min(), values.max()
    white = 1.0 if image.mode == "F" else 65535.0
    if low < 0 or high > white:
        values, white = values - low, high - low
    return np.rint(values * (255.0 / white)).astype(np.uint8)


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnidentifiedImageError):
        return "empty file" if path.stat().st_size == 0 else "no image that Pillow can read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _broken(path: Path, reason: str) -> DataError:
    return DataError(f"{path}: broken image: {reason}")
