"""Images that strain a decoder."""

import io
import struct
import zlib
from random import Random

from fuzz_mutate import LFS_POINTER, mutate_bytes
from PIL import Image

MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F", "YCbCr"]
FORMATS = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO"]


def damaged(rng: Random, content: bytes) -> bytes:
    choice = rng.randrange(8)
    if choice < 3:
        return mutate_bytes(rng, content)
    if choice == 3:
        return mutate_bytes(rng, _of_another_format(rng)) if rng.random() < 0.6 else _of_another_format(rng)
    if choice == 4:
        return _claiming_size(
            *rng.choice([(2**31 - 1, 2**31 - 1), (60_000, 60_000), (30_000, 3_000), (0, 5), (1, 65_000)])
        )
    if choice == 5:
        return _with_orientation(rng)
    if choice == 6:
        return _with_large_text(rng)
    return rng.choice(
        [b"", LFS_POINTER, b"GIF89a", b"\xff\xd8\xff", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS"]
    )


def _of_another_format(rng: Random) -> bytes:
    size = rng.choice([(1, 1), (1, 500), (3, 2), (40, 30)])
    for _ in range(20):
        file = io.BytesIO()
        try:
            Image.new(rng.choice(MODES), size).save(file, rng.choice(FORMATS))
        except (OSError, ValueError, KeyError):
            continue  # a mode that the format does not have
        return file.getvalue()
    return b""


def _claiming_size(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims any size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data))

    header = struct.pack(">LLBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(2**16))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _with_orientation(rng: Random) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = rng.choice([0, 1, 3, 6, 8, 9, 255, 65535])
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, rng.choice(["JPEG", "PNG", "WEBP", "TIFF"]), exif=exif)
    content = file.getvalue()
    return content if rng.random() < 0.5 else mutate_bytes(rng, content[:300]) + content[300:]


def _with_large_text(rng: Random) -> bytes:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Comment", "x" * rng.choice([10, 2**20, 3 * 2**26]), zip=True)
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, "PNG", pnginfo=info)
    return file.getvalue()
