"""Images that are decoded smaller look like the whole ones, and both decoders of JPEG read alike."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pictures import photo, saved
from spanbox.data.images import image_size, load_image, load_reduced, open_picture
from spanbox.errors import DataError


def test_a_reduced_image_tells_its_full_size_as_shown(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (640, 480), "red")
    path = saved(image, tmp_path / "a.jpg", exif=exif)
    reduced, full_size = load_reduced(path, at_least=100)
    assert full_size == image_size(path) == load_image(path).size == (480, 640)
    assert reduced.size == (120, 160)  # a quarter: an eighth would fall below
    assert load_reduced(saved(image, tmp_path / "a.png"), at_least=100)[0].size == (640, 480)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_what_looks_like_a_jpeg_is_read_by_its_content(tmp_path: Path, decoder: str) -> None:
    saved(photo(), tmp_path / "a.png").rename(tmp_path / "a.jpg")
    saved(photo(), tmp_path / "b.jpg", quality=90).rename(tmp_path / "b.png")
    assert load_image(tmp_path / "a.jpg").size == load_image(tmp_path / "b.png").size == (640, 480)


def read_by_both(path: Path) -> list[NDArray[Any]]:
    """The image with simplejpeg and without it; in place of one that is refused, the message."""
    results = []
    for missing in (False, True):
        with pytest.MonkeyPatch.context() as patched:
            if missing:
                patched.setattr("spanbox.data.images.simplejpeg", None)
            try:
                results.append(np.asarray(load_image(path)))
            except DataError as error:
                results.append(np.array(str(error)))
    return results


@pytest.mark.parametrize("where", [20, 200, 1000])
def test_a_damaged_jpeg_reads_alike_or_is_refused_by_both(tmp_path: Path, where: int) -> None:
    path = saved(photo(), tmp_path / "a.jpg", quality=90)
    content = bytearray(path.read_bytes())
    content[where : where + 8] = b"\xff" * 8
    path.write_bytes(content)
    assert np.array_equal(*read_by_both(path))


@pytest.mark.slow
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
        results = read_by_both(path)
        assert np.array_equal(*results)
        read += results[0].ndim > 0
    assert 20 < read < 140


def test_a_pipe_with_the_name_of_a_jpeg_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="is not a regular file"):
        load_image(tmp_path / "a.jpg")
