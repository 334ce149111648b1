"""Every kind of file that a data set holds comes out as upright RGB, or as an error that names it."""

import os
import struct
import warnings
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spanbox.data.images import image_facts, image_size, load_image, load_reduced, open_picture
from spanbox.errors import DataError

READERS = [load_image, partial(load_reduced, at_least=16), image_size]


def arrow() -> Image.Image:
    """4 x 2 pixels, all different, so that every turn and flip shows."""
    return Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def pixel(path: Path) -> tuple[int, ...]:
    return load_image(path).getpixel((0, 0))


def png_header(width: int, height: int) -> bytes:
    """The start of a PNG that claims a size and holds no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + checksum + struct.pack(">I", 100) + b"IDAT"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = np.asarray(arrow())
    # What a camera stores so that the orientation brings back `upright`: EXIF 2.3, section 4.6.4.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(Image.fromarray(np.ascontiguousarray(stored)), tmp_path / f"a.{suffix}", exif=exif)

    assert np.array_equal(np.asarray(load_image(path)), upright)
    assert image_size(path) == (4, 2)


FORMATS = {
    "png": {},
    "jpg": {"quality": 95},
    "mpo": {"quality": 95},
    "webp": {},
    "avif": {},
    "tiff": {},
    "tiff-lzw": {"compression": "tiff_lzw"},
    "tiff-jpeg": {"compression": "jpeg"},
    "gif": None,  # these hold no orientation
    "bmp": None,
    "jp2": None,
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", FORMATS)
def test_every_reader_agrees_on_the_size_as_shown(tmp_path: Path, name: str, orientation: int) -> None:
    options = FORMATS[name]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.new("RGB", (640, 320), "black")
    image.paste("white", (0, 0, 160, 320))  # a white bar at the left as stored
    path = saved(
        image, tmp_path / f"a.{name.partition('-')[0]}", **({} if options is None else {"exif": exif, **options})
    )

    turned = options is not None and orientation >= 5
    shown = (320, 640) if turned else (640, 320)
    reduced, full_size = load_reduced(path, at_least=80)
    facts = image_facts(path, decode=True)
    assert image_size(path) == load_image(path).size == full_size == facts.size == shown
    assert facts.stored == (640, 320)
    assert (reduced.width > reduced.height) == (shown[0] > shown[1])

    # The bar is where the orientation puts it, in both images, so that fractions of the full size find it.
    applied = orientation if options is not None else 1
    side = {1: "left", 2: "right", 3: "right", 4: "left", 5: "top", 6: "top", 7: "bottom", 8: "bottom"}[applied]
    place = {"left": (0.1, 0.5), "right": (0.9, 0.5), "top": (0.5, 0.1), "bottom": (0.5, 0.9)}
    for decoded in (reduced, load_image(path)):
        bright = {
            side: decoded.getpixel((int(x * decoded.width), int(y * decoded.height)))[0] > 128
            for side, (x, y) in place.items()
        }
        assert bright == {name: name == side for name in place}


def test_the_hash_of_an_image_is_that_of_its_pixels(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8))
    jpeg = saved(noise, tmp_path / "a.jpg", quality=80)
    pixels = load_image(jpeg)
    same = [
        jpeg,
        saved(noise, tmp_path / "comment.jpg", quality=80, comment=b"edited"),
        saved(pixels, tmp_path / "a.png"),
        saved(pixels, tmp_path / "a.webp", lossless=True),
        saved(pixels, tmp_path / "a.tiff", compression="tiff_lzw"),
    ]
    exif = Image.Exif()
    exif[0x0112] = 6
    same.append(saved(pixels.transpose(Image.Transpose.ROTATE_90), tmp_path / "turned.png", exif=exif))
    assert len({image_facts(path, decode=True).content for path in same}) == 1
    other = [
        saved(noise, tmp_path / "b.jpg", quality=70),
        saved(pixels.transpose(Image.Transpose.ROTATE_180), tmp_path / "b.png"),
        saved(Image.frombytes("RGB", (32, 48), pixels.tobytes()), tmp_path / "c.png"),  # the same bytes, other sides
        jpeg,
    ]
    assert len({image_facts(path, decode=True).content for path in other}) == 4
    assert image_facts(jpeg, decode=False).content is None


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_does_not_exist_is_ignored(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(arrow(), tmp_path / "a.png", exif=exif)
    assert load_image(path).size == image_size(path) == (4, 2)


def test_a_damaged_exif_block_does_not_break_the_image(tmp_path: Path) -> None:
    path = saved(arrow(), tmp_path / "a.png", exif=b"Exif\x00\x00not a TIFF header")
    assert load_image(path).size == image_size(path) == (4, 2)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_become_white(tmp_path: Path, mode: str) -> None:
    path = saved(Image.new(mode, (3, 2), 0), tmp_path / "a.png")
    assert pixel(path) == (255, 255, 255)


def test_half_transparent_pixels_are_mixed_with_white(tmp_path: Path) -> None:
    path = saved(Image.new("RGBA", (3, 2), (255, 0, 0, 128)), tmp_path / "a.png")
    assert pixel(path) == (255, 127, 127)


def test_a_transparent_palette_entry_becomes_white(tmp_path: Path) -> None:
    image = Image.new("P", (3, 2), 0)
    image.putpalette([200, 0, 0, 0, 200, 0])
    assert pixel(saved(image, tmp_path / "opaque.png")) == (200, 0, 0)
    assert pixel(saved(image, tmp_path / "one.png", transparency=0)) == (255, 255, 255)
    assert pixel(saved(image, tmp_path / "many.png", transparency=b"\x00\xff")) == (255, 255, 255)


def test_a_transparent_colour_without_an_alpha_channel_becomes_white(tmp_path: Path) -> None:
    grey = saved(Image.new("L", (3, 2), 7), tmp_path / "grey.png", transparency=7)
    colour = saved(Image.new("RGB", (3, 2), (1, 2, 3)), tmp_path / "colour.png", transparency=(1, 2, 3))
    assert pixel(grey) == pixel(colour) == (255, 255, 255)


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
@pytest.mark.parametrize(("value", "expected"), [(0, 0), (257 * 100, 100), (65535, 255)])
def test_16_bit_grey_is_divided_by_257(tmp_path: Path, suffix: str, value: int, expected: int) -> None:
    # A white corner: the values are read as 16 bit, not stretched to the largest one.
    values = np.full((2, 3), value, dtype=np.uint16)
    path = saved(Image.fromarray(values), tmp_path / f"a.{suffix}")
    assert pixel(path) == (expected,) * 3


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0.0, 0.5, 1.0]], [0, 128, 255]),  # fractions
        ([[-100.0, -60.0, 100.0]], [0, 51, 255]),  # no fixed white: stretched
        ([[0.25, 0.25, 0.25]], [64, 64, 64]),  # one value only
    ],
)
def test_floats(tmp_path: Path, values: list[list[float]], expected: list[int]) -> None:
    path = saved(Image.fromarray(np.array(values, dtype=np.float32)), tmp_path / "a.tiff")
    assert np.asarray(load_image(path))[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [([[0, 25700, 65535]], [0, 100, 255]), ([[-10, -6, 10]], [0, 51, 255]), ([[0, 200_000, 1_000_000]], [0, 51, 255])],
)
def test_32_bit_integers(tmp_path: Path, values: list[list[int]], expected: list[int]) -> None:
    path = saved(Image.fromarray(np.array(values, dtype=np.int32)), tmp_path / "a.tiff")
    assert np.asarray(load_image(path))[0, :, 0].tolist() == expected


def test_values_that_are_not_finite_are_broken(tmp_path: Path) -> None:
    path = saved(Image.fromarray(np.array([[0.0, np.nan]], dtype=np.float32)), tmp_path / "a.tiff")
    with pytest.raises(DataError, match=r"a\.tiff: broken image: some pixels are not finite numbers"):
        load_image(path)


def test_cmyk_and_one_bit(tmp_path: Path) -> None:
    assert pixel(saved(Image.new("CMYK", (3, 2), (0, 0, 0, 0)), tmp_path / "a.jpg")) == (255, 255, 255)
    assert pixel(saved(Image.new("1", (3, 2), 1), tmp_path / "a.png")) == (255, 255, 255)


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (3, 2), colour) for colour in ("red", "blue")]
    path = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixel(path) == (255, 0, 0)


def test_the_suffix_does_not_matter(tmp_path: Path) -> None:
    path = saved(Image.new("RGBA", (3, 2), (0, 0, 0, 0)), tmp_path / "a.jpg", format="PNG")
    assert pixel(path) == (255, 255, 255)


def test_the_image_does_not_hold_its_file_open(tmp_path: Path) -> None:
    path = saved(arrow(), tmp_path / "a.png")
    image = load_image(path)
    path.unlink()
    assert image.mode == "RGB"
    assert image.getpixel((3, 1)) == (210, 220, 230)


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


def test_a_reduced_image_tells_its_full_size_as_shown(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (640, 480), "red")
    path = saved(image, tmp_path / "a.jpg", exif=exif)
    reduced, full_size = load_reduced(path, at_least=100)
    assert full_size == image_size(path) == load_image(path).size == (480, 640)
    assert reduced.size == (120, 160)  # a quarter: an eighth would fall below
    assert load_reduced(saved(image, tmp_path / "a.png"), at_least=100)[0].size == (640, 480)


def photo(mode: str = "RGB") -> Image.Image:
    """640 x 480 pixels with detail of every size, the finer the fainter, and the noise of a camera."""
    random = np.random.default_rng(0)
    total = random.normal(size=(480, 640, 3)) * 4 + 128
    for cells in (2, 5, 10, 40, 160):
        detail = Image.fromarray(random.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += (np.asarray(detail.resize((640, 480), Image.Resampling.BICUBIC), dtype=float) - 128) / cells**0.5
    return Image.fromarray(total.clip(0, 255).astype(np.uint8)).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_reduced_photo_looks_like_the_whole_one(tmp_path: Path, mode: str, progressive: bool) -> None:
    path = saved(photo(mode), tmp_path / "a.jpg", quality=90, progressive=progressive)
    (reduced, full_size), whole = load_reduced(path, at_least=224), load_image(path)
    assert reduced.mode == whole.mode == "RGB"
    assert reduced.size == (320, 240)
    assert full_size == whole.size == (640, 480)
    seen, expected = (
        np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC), dtype=float) for image in (reduced, whole)
    )
    assert np.abs(seen - expected).mean() < 1


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_an_image_smaller_than_asked_for_is_not_reduced(tmp_path: Path, suffix: str) -> None:
    path = saved(Image.new("RGB", (300, 90), "red"), tmp_path / f"a.{suffix}")
    reduced, full_size = load_reduced(path, at_least=100)
    assert reduced.size == full_size == (300, 90)


def test_a_half_transparent_image_is_on_white_when_reduced_too(tmp_path: Path) -> None:
    path = saved(Image.new("RGBA", (300, 200), (255, 0, 0, 128)), tmp_path / "a.png")
    assert load_reduced(path, at_least=16)[0].getpixel((0, 0)) == (255, 127, 127)


# ---------------------------------------------------------------- two decoders of JPEG


@pytest.fixture(params=["simplejpeg", "Pillow"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "Pillow":
        monkeypatch.setattr("spanbox.data.images.simplejpeg", None)
    return str(request.param)


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "progressive": {"progressive": True},
    "4:4:4": {"subsampling": 0},
    "turned": {"orientation": 6},
    "comment": {"comment": b"a word"},
    "ICC": {"icc_profile": b"x" * 40},
}


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(640, 480), (333, 517), (17, 9), (1, 1)])
def test_both_decoders_give_the_same_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, kind: str, size: tuple[int, int]
) -> None:
    options = dict(KINDS[kind])
    exif = Image.Exif()
    if "orientation" in options:
        exif[0x0112] = options.pop("orientation")
    path = saved(photo(mode).resize(size), tmp_path / "a.jpg", quality=90, exif=exif, **options)
    for reduction in (n for n in (1, 2, 4, 8) if n <= min(size)):
        with open_picture(path) as picture:
            fast = picture.decode(reduction)
        with monkeypatch.context() as patched:
            patched.setattr("spanbox.data.images.simplejpeg", None)
            with open_picture(path) as picture:
                slow = picture.decode(reduction)
        assert (fast.size, fast.reduction) == (slow.size, slow.reduction)
        assert np.array_equal(fast.values, slow.values)
        assert fast.values.flags.writeable


@pytest.mark.parametrize("reduction", [1, 4])
def test_a_jpeg_that_is_cut_off_is_broken_for_both(tmp_path: Path, decoder: str, reduction: int) -> None:
    path = saved(photo(), tmp_path / "a.jpg", quality=90)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(DataError, match="truncated"), open_picture(path) as picture:
        picture.decode(reduction)


def test_what_looks_like_a_jpeg_is_read_by_its_content(tmp_path: Path, decoder: str) -> None:
    saved(photo(), tmp_path / "a.png").rename(tmp_path / "a.jpg")
    saved(photo(), tmp_path / "b.jpg", quality=90).rename(tmp_path / "b.png")
    assert load_image(tmp_path / "a.jpg").size == load_image(tmp_path / "b.png").size == (640, 480)


@pytest.mark.parametrize("where", [20, 200, 1000])
def test_a_damaged_jpeg_reads_alike_or_is_refused_by_both(tmp_path: Path, where: int) -> None:
    path = saved(photo(), tmp_path / "a.jpg", quality=90)
    content = bytearray(path.read_bytes())
    content[where : where + 8] = b"\xff" * 8
    path.write_bytes(content)
    results = []
    for missing in (False, True):
        with pytest.MonkeyPatch.context() as patched:
            if missing:
                patched.setattr("spanbox.data.images.simplejpeg", None)
            try:
                results.append(np.asarray(load_image(path)))
            except DataError as error:
                results.append(np.array(str(error)))
    assert np.array_equal(*results)


def test_damaged_jpegs_of_many_kinds_are_read_alike_or_refused_alike(tmp_path: Path) -> None:
    """Bytes changed, cut off, or replaced by others of another number."""
    generator = np.random.default_rng(1)
    small = photo().resize((61, 83))
    modes: list[tuple[str, dict[str, Any]]] = [("RGB", {}), ("L", {}), ("RGB", {"progressive": True}), ("CMYK", {})]
    whole = [
        saved(small.convert(mode), tmp_path / f"{number}.jpg", quality=80, **options).read_bytes()
        for number, (mode, options) in enumerate(modes)
    ]
    path, read = tmp_path / "damaged.jpg", 0
    for number in range(160):
        content = bytearray(whole[number % 4])
        place = int(generator.integers(len(content)))
        match number % 3:
            case 0:
                content[place] = int(generator.integers(256))
            case 1:
                content = content[:place]
            case _:
                content[place : place + 20] = generator.integers(256, size=place % 40, dtype=np.uint8).tobytes()
        path.write_bytes(content)
        results = []
        for missing in (False, True):
            with pytest.MonkeyPatch.context() as patched:
                if missing:
                    patched.setattr("spanbox.data.images.simplejpeg", None)
                try:
                    results.append(np.asarray(load_image(path)))
                except DataError:
                    results.append(np.zeros(0))
        assert np.array_equal(*results)
        read += results[0].size > 0
    assert 20 < read < 140


def test_a_pipe_with_the_name_of_a_jpeg_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="is not a regular file"):
        load_image(tmp_path / "a.jpg")
