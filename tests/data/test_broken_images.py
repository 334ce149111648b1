"""What cannot be read as an image is an error that names the file and the reason."""

import os
import struct
import warnings
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pictures import saved
from spanbox.data.images import image_size, load_image, load_reduced
from spanbox.errors import DataError

READERS = [load_image, partial(load_reduced, at_least=16), image_size]


def png_header(width: int, height: int) -> bytes:
    """The start of a PNG that claims a size and holds no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + checksum + struct.pack(">I", 100) + b"IDAT"


def test_values_that_are_not_finite_are_broken(tmp_path: Path) -> None:
    path = saved(Image.fromarray(np.array([[0.0, np.nan]], dtype=np.float32)), tmp_path / "a.tiff")
    with pytest.raises(DataError, match=r"a\.tiff: broken image: some pixels are not finite numbers"):
        load_image(path)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"<html>404</html>", "no image that Pillow can read"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "a Git LFS pointer, not the file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "PostScript is not drawn"),
        (png_header(20_000, 20_000), "too large: "),  # beyond twice the limit of Pillow, an error there
        (png_header(10_000, 10_000), "too large: "),  # beyond the limit, only a warning there
    ],
)
def test_what_is_no_image_is_named(tmp_path: Path, read: Callable[[Path], object], content: bytes, reason: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.png: broken image: {reason}"):
        read(path)


@pytest.mark.parametrize("read", READERS)
def test_a_missing_file_and_a_folder_are_named(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(DataError, match=r"none\.png: broken image: no such file"):
        read(tmp_path / "none.png")
    with pytest.raises(DataError, match="broken image: Is a directory"):
        read(tmp_path)


@pytest.mark.parametrize("read", READERS)
def test_a_pipe_is_not_waited_for(tmp_path: Path, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: broken image: is not a regular file"):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tiff", "bmp"])
def test_a_file_that_is_cut_off_is_broken(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8)
    path = saved(Image.fromarray(noise), tmp_path / f"a.{suffix}")
    path.write_bytes(path.read_bytes()[:-400])
    for read in (load_image, partial(load_reduced, at_least=16)):
        with pytest.raises(DataError, match=rf"a\.{suffix}: broken image: "):
            read(path)


def test_the_size_is_read_from_the_header_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_header(640, 480))
    assert image_size(path) == (640, 480)
    with pytest.raises(DataError):
        load_image(path)


def test_a_bomb_is_refused_where_warnings_are_silenced(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_header(10_000, 10_000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError, match="too large: 10000 x 10000 pixels exceed the limit of 89478485"):
            image_size(path)
