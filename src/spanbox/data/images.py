"""Image files as RGB images: upright, 8 bit per channel.

Handles the EXIF orientation of photographs, transparency, 16-bit and float scans, palettes and damaged files. A file
that cannot be decoded whole raises `DataError`; the caller decides whether to stop, to skip and count, or to report it.
"""

import io
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from spanbox.data.source import stored
from spanbox.documents import IS_LFS_POINTER, LFS_POINTER
from spanbox.errors import DataError

try:
    import simplejpeg
except ImportError:  # no wheel for this platform
    simplejpeg = None

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
_TURNED_POINTS: dict[int, Callable[[float, float, float, float], tuple[float, float]]] = {
    2: lambda x, y, width, height: (width - x, y),
    3: lambda x, y, width, height: (width - x, height - y),
    4: lambda x, y, width, height: (x, height - y),
    5: lambda x, y, width, height: (y, x),
    6: lambda x, y, width, height: (height - y, x),
    7: lambda x, y, width, height: (height - y, width - x),
    8: lambda x, y, width, height: (y, width - x),
}
"""Where a point of the stored image lies in the image as shown, by EXIF orientation."""
Corners = tuple[float, float, float, float]
_ROWS_AT_ONCE = 256
_LARGEST_JPEG = 2**26  # bytes that are read at once
_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
_APP1, _START_OF_SCAN = 0xE1, 0xDA  # markers of segments
_FURTHER_IMAGES = b"MPF\0"


class ImageFacts(NamedTuple):
    """Properties of an image file."""

    size: tuple[int, int]  # width and height as shown
    stored: tuple[int, int]  # width and height before the orientation is applied
    content: int | None  # 64-bit hash of the decoded pixels as shown; None: not decoded


class Pixels(NamedTuple):
    """The decoded pixels of an image, upright."""

    values: NDArray[np.uint8]  # (H, W, 3), perhaps fewer than the image has
    size: tuple[int, int]  # width and height of the image, as shown
    reduction: int = 1  # 1, 2, 4 or 8: so many pixels of the image across and down are one of these

    def decode(self, reduction: int) -> "Pixels":
        """Itself: decoded pixels can stand in for a `Picture`."""
        return self


class Picture:
    """An image whose header was read; the pixels are decoded when they are needed.

    Attributes:
        size: width and height as shown.
    """

    def __init__(self, image: Image.Image, path: Path | None) -> None:
        if path is None:
            image.load()
        self.size = _header(image).size if path is not None else _turned(image.size, _orientation(image))
        self._image = image
        self._path = path

    def decode(self, reduction: int) -> Pixels:
        """All pixels; of a JPEG at a half, a quarter or an eighth of its size, which is several times faster.

        Args:
            reduction: 1, 2, 4 or 8; see `reduction_for`. Other formats and images in memory are not reduced.
        """
        image, path = self._image, self._path
        if path is not None and image.format == "JPEG" and image.mode in ("RGB", "L"):
            values = _decode_jpeg(stored(path).read(), image.size, reduction)
            if values is not None:
                return Pixels(_upright(values, _orientation(image)), self.size, reduction)
        asked = (image.width // reduction, image.height // reduction)
        reduced = path is not None and reduction > 1 and image.draft(None, asked) is not None
        image.load()
        # Only now: Pillow's TIFF reader turns the image while loading and removes the tag.
        orientation = _orientation(image)
        return Pixels(_upright(np.array(_to_rgb(image)), orientation), self.size, reduction if reduced else 1)


class PlainJpeg:
    """Like `Picture`, of a JPEG that needs no Pillow: in YCbCr or grey, without orientation.

    Attributes:
        size: width and height.
    """

    def __init__(self, path: Path, content: bytes, size: tuple[int, int]) -> None:
        self.size = size
        self._path = path
        self._content = content

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """None for any other file."""
        if simplejpeg is None or path.suffix.lower() not in _JPEG_SUFFIXES:
            return None
        try:
            source = stored(path)
            if source.state()[0] > _LARGEST_JPEG:
                return None
            content = source.read()
            height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        except (OSError, ValueError):
            return None
        limit = Image.MAX_IMAGE_PIXELS
        fits = limit is None or width * height <= limit
        is_plain = fits and colours in ("YCbCr", "Gray") and not _has_metadata(content)
        return cls(path, content, (width, height)) if is_plain else None

    def decode(self, reduction: int) -> Pixels:
        values = _decode_jpeg(self._content, self.size, reduction)
        if values is not None:
            return Pixels(values, self.size, reduction)
        with _opened(self._path) as image:
            return Picture(image, self._path).decode(reduction)


@contextmanager
def open_picture(source: Path | Image.Image) -> Iterator[Picture | PlainJpeg]:
    """Read the header of a file, or take an image in memory.

    The pixels become RGB, upright, 8 bit; transparent parts are on white. 16-bit values are divided by 257. Wider
    integers and floats have no fixed white: see `_to_8_bit`. Of an animation the first frame is used.

    Raises:
        DataError: here or when decoding; the file is missing, not an image, damaged, cut off, or larger than Pillow's
            limit of pixels.
    """
    plain = PlainJpeg.read(source) if isinstance(source, Path) else None
    if plain is not None:
        yield plain
        return
    with _opened(source) as image:
        yield Picture(image, source if isinstance(source, Path) else None)


def reduction_for(shorter: float, at_least: int) -> int:
    """The largest reduction (1, 2, 4 or 8) at which a side of `shorter` pixels still has `at_least` pixels."""
    return next((times for times in (8, 4, 2) if shorter >= times * at_least), 1)


def load_image(source: Path | Image.Image) -> Image.Image:
    """Decode a whole file, or an image in memory. Raises DataError; see `open_picture`."""
    with open_picture(source) as picture:
        return Image.fromarray(picture.decode(1).values)


def load_bytes(content: bytes, most_pixels: int) -> Image.Image:
    """Decode a file in memory of at most so many pixels, which are counted before any is decoded. Raises DataError."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > most_pixels:
                size = f"{image.width} x {image.height} pixels"
                raise DataError(f"the picture has {size}, more than {most_pixels:,}")
            return load_image(image)
    except (*_TOO_LARGE, *_DAMAGED) as error:
        raise DataError(f"no picture that can be read ({type(error).__name__})") from None


def load_reduced(source: Path | Image.Image, at_least: int) -> tuple[Image.Image, tuple[int, int]]:
    """Like `load_image`, but a JPEG may be decoded at a half, a quarter or an eighth of its size.

    Both sides keep at least `at_least` pixels.

    Returns:
        The image, and its width and height at full size, as shown.
    """
    with open_picture(source) as picture:
        pixels = picture.decode(reduction_for(min(picture.size), at_least))
        return Image.fromarray(pixels.values), pixels.size


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of the image as shown, from the header of the file alone: the pixels may be damaged.

    Raises:
        DataError: the file is missing, not an image, or larger than Pillow's limit of pixels.
    """
    with _opened(path) as image:
        return _header(image).size


def image_facts(path: Path, *, decode: bool) -> ImageFacts:
    """The sizes of an image and, if `decode`, a hash of its pixels. Raises DataError like `load_image`.

    Equal hashes mean equal pixels as shown, whatever the format, the compression or the comments of the files.
    """
    return decoded_facts(path)[0] if decode else _facts(path)


def decoded_facts(path: Path) -> tuple[ImageFacts, Image.Image]:
    """The facts of an image, with the hash of its pixels, and the image. Raises DataError like `load_image`."""
    facts = _facts(path)
    image = load_image(path)
    digest = blake2b(repr(image.size).encode(), digest_size=8)
    digest.update(image.tobytes())
    return facts._replace(content=int.from_bytes(digest.digest(), "big")), image


def _facts(path: Path) -> ImageFacts:
    with _opened(path) as image:
        return _header(image)


def _header(image: Image.Image) -> ImageFacts:
    """The sizes of an image file that was opened and not loaded."""
    # Pillow's TIFF reader swaps the sides itself; its tags hold the stored ones.
    tags = getattr(image, "tag_v2", None)
    if image.format == "TIFF" and tags is not None:
        stored = int(tags[ExifTags.Base.ImageWidth]), int(tags[ExifTags.Base.ImageLength])
    else:
        stored = image.size
    return ImageFacts(_turned(stored, _orientation(image)), stored, None)


def _upright(values: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    if orientation not in _UPRIGHT:
        return values
    return np.array(Image.fromarray(values).transpose(_UPRIGHT[orientation]))


def _turned(stored: tuple[int, int], orientation: int) -> tuple[int, int]:
    return stored[::-1] if orientation in _SWAPS_SIDES else stored


def _has_metadata(jpeg: bytes) -> bool:
    """Whether a JPEG has EXIF or XMP, which may turn it, or further images; True if its segments are unclear."""
    position = 2
    while position + 4 <= len(jpeg) and jpeg[position] == 0xFF:
        marker = jpeg[position + 1]
        if marker == _APP1 or jpeg[position + 4 : position + 8] == _FURTHER_IMAGES:
            return True
        if marker == _START_OF_SCAN:
            return False
        position += 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")
    return True


def _decode_jpeg(content: bytes, stored: tuple[int, int], reduction: int) -> NDArray[np.uint8] | None:
    """The pixels (H, W, 3) as stored, the same as Pillow's; None if Pillow has to decode them or name the fault."""
    if simplejpeg is None:
        return None
    width, height = (math.ceil(side / reduction) for side in stored)
    try:
        values: NDArray[np.uint8] = simplejpeg.decode_jpeg(content, "RGB", min_width=width, min_height=height)
    except ValueError:
        return None
    return values if values.shape[:2] == (height, width) else None


@contextmanager
def _opened(source: Path | Image.Image) -> Iterator[Image.Image]:
    """An image whose header was read. Errors in the block that come from the image are raised as DataError."""
    try:
        if isinstance(source, Image.Image):
            _check_format(source)
            yield source
        else:
            with stored(source).open() as file, Image.open(file) as image:
                _check_format(image)
                yield image
    except _TOO_LARGE as error:
        raise _broken(source, f"too large: {error}") from None
    except _DAMAGED as error:
        raise _broken(source, _reason(source, error)) from error


def _check_format(image: Image.Image) -> None:
    # Pillow only warns between one and two times its limit. Turning the warning into an error around the call would
    # change the filters of every thread, so the size is compared here.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels exceed the limit of {limit}")
    if image.format == "EPS":
        raise ValueError("PostScript is not drawn, since that runs another program; convert it to PNG")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where the EXIF block is damaged or invalid, which viewers ignore too."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except _DAMAGED:
        return 1
    return orientation if orientation in _UPRIGHT else 1


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


def _to_8_bit(image: Image.Image) -> NDArray[np.uint8]:
    """Grey values (H, W) of a 16-bit, 32-bit or float image, 0 black and 255 white.

    Integers within 0..65535 are read as 16 bit, floats within 0..1 as fractions. Others have no fixed white, so their
    own smallest and largest values become black and white.
    """
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):  # a NaN is the smallest and the largest value
        raise ValueError("some pixels are not finite numbers")
    white = 1.0 if image.mode == "F" else 65535.0
    if low < 0 or high > white:
        white = high - low
    else:
        low = 0.0
    grey = np.empty(values.shape, dtype=np.uint8)
    for start in range(0, len(values), _ROWS_AT_ONCE):  # 8 bytes per pixel of the whole image could be too much
        rows = slice(start, start + _ROWS_AT_ONCE)
        grey[rows] = np.rint((values[rows].astype(np.float64) - low) * (255.0 / white))
    return grey


def _reason(source: Path | Image.Image, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return error.strerror if error.filename is None and error.strerror else "no such file"
    if isinstance(error, UnidentifiedImageError) and isinstance(source, Path):
        with stored(source).open() as file:
            start = file.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            return IS_LFS_POINTER
        return "no image that Pillow can read" if start else "empty file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _broken(source: Path | Image.Image, reason: str) -> DataError:
    name = source if isinstance(source, Path) else "an image in memory"
    return DataError(f"{name}: broken image: {reason}")


def turn_boxes(boxes: Sequence[Corners], path: Path) -> tuple[Corners, ...]:
    """Boxes (x0 y0 x1 y1) in pixels of an image as stored, in pixels of the image as shown. Raises DataError."""
    with _opened(path) as image:
        orientation = _orientation(image)
    width, height = _facts(path).stored
    turn = _TURNED_POINTS.get(orientation)
    if turn is None:
        return tuple(boxes)
    corners = [(turn(x0, y0, width, height), turn(x1, y1, width, height)) for x0, y0, x1, y1 in boxes]
    return tuple((min(a, c), min(b, d), max(a, c), max(b, d)) for (a, b), (c, d) in corners)
