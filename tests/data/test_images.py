"""Every kind of file that a data set holds comes out as upright RGB, of the size that every reader tells."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pictures import saved
from spanbox.data.images import image_facts, image_size, load_image, load_reduced


def arrow() -> Image.Image:
    """4 x 2 pixels, all different, so that every turn and flip shows."""
    return Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10)


def pixel(path: Path) -> tuple[int, ...]:
    return load_image(path).getpixel((0, 0))


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


@pytest.mark.slow
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
