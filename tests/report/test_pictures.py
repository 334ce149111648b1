import base64
import io
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

import run_folders
from spanbox.report.examples import Examples
from spanbox.report.pictures import Album, dimmed, heat_inside, heat_source


@pytest.fixture
def album(tmp_path: Path) -> Album:
    manifest = run_folders.write_data(tmp_path)
    return Album(msgspec.convert(run_folders.examples(manifest, boxes=True), Examples), tmp_path)


def decoded(source: str, kind: str) -> Image.Image:
    head, _, content = source.partition(",")
    assert head == f"data:image/{kind};base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_a_picture_has_its_pair_and_boxes_as_fractions(album: Album) -> None:
    picture = album["pair-1"]
    assert picture.text == "加菲猫在公园里"
    assert picture.words_of(0) == "加菲猫"
    assert picture.boxes_of(0) == [(0.5, 0.0, 1.0, 1.0)]
    assert decoded(picture.source, "jpeg").size == (40, 20)
    assert album["pair-1"] is picture


def test_a_broken_image_says_why(album: Album) -> None:
    picture = album["pair-3"]
    assert picture.image is None
    assert picture.fault == "no image that Pillow can read"
    assert picture.text == run_folders.TEXTS[3]
    assert picture.boxes_of(0) == []


def test_a_pair_that_is_not_in_the_manifest(album: Album) -> None:
    picture = album["another"]
    assert (picture.image, picture.text, picture.words_of(0), picture.boxes_of(0)) == (None, "another", "another", [])
    assert picture.fault


def test_of_several_pairs_with_one_id_none_is_shown(tmp_path: Path) -> None:
    """The picture and the words of the first of them would stand below the scores of another."""
    manifest = run_folders.write_data(tmp_path)
    lines = manifest.read_text(encoding="utf-8").splitlines(keepends=True)
    manifest.write_text("".join([*lines, lines[0].replace('"pair-0"', '"pair-1"')]), encoding="utf-8")
    album = Album(msgspec.convert(run_folders.examples(manifest, boxes=True), Examples), tmp_path)
    picture = album["pair-1"]
    assert (picture.image, picture.text, picture.fault) == (None, "pair-1", "several pairs have this id")
    assert album["pair-0"].image is not None


def test_an_entity_that_is_not_in_the_record(album: Album) -> None:
    assert album["pair-0"].words_of(7) == "pair-0"
    assert album["pair-0"].boxes_of(-1) == []


def test_a_manifest_that_is_gone_leaves_pairs_without_pictures(tmp_path: Path) -> None:
    album = Album(Examples(str(tmp_path / "gone.jsonl")), tmp_path)
    assert album["pair-0"].image is None
    assert "no such manifest" in album.missing[2]


def test_the_manifest_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = run_folders.write_data(tmp_path / "data")
    content = run_folders.examples(manifest, boxes=True)
    monkeypatch.chdir(tmp_path / "data")
    assert Album(msgspec.convert(content, Examples), tmp_path / "run")["pair-1"].image


def test_run_and_data_that_moved_together_are_found(tmp_path: Path) -> None:
    run_folders.write_data(tmp_path / "here" / "data")
    gone = tmp_path / "there" / "data" / "pairs.jsonl"
    content = run_folders.examples(gone, boxes=True) | {"manifest_from_here": "../../data/pairs.jsonl"}
    folder = tmp_path / "here" / "run" / "evaluation"
    folder.mkdir(parents=True)
    album = Album(msgspec.convert(content, Examples), folder)
    assert album["pair-1"].image
    assert album.missing == (0, 4, "")


def test_a_manifest_that_moved_can_be_named(tmp_path: Path) -> None:
    content = run_folders.examples(tmp_path / "gone.jsonl", boxes=True)
    album = Album(msgspec.convert(content, Examples), tmp_path, run_folders.write_data(tmp_path / "new"))
    assert album["pair-1"].image


def test_images_that_are_missing_are_counted_once(tmp_path: Path, album: Album) -> None:
    (tmp_path / "0.png").unlink()
    (tmp_path / "2.png").unlink()
    assert album.missing == (2, 4, str(tmp_path / "0.png"))


@pytest.mark.parametrize("place", ["\0", "x" * 5000, "/proc/self/mem", "", "."])
def test_a_place_that_the_system_refuses(tmp_path: Path, place: str) -> None:
    content = run_folders.examples(Path("x"), boxes=True) | {"manifest": place, "manifest_from_here": place}
    album = Album(msgspec.convert(content, Examples), tmp_path)
    assert album["pair-1"].image is None
    assert album.missing[:2] == (4, 4)


def test_a_large_picture_becomes_a_thumbnail(tmp_path: Path) -> None:
    Image.new("RGB", (900, 600)).save(tmp_path / "0.png")
    album = Album(
        msgspec.convert(run_folders.examples(run_folders.write_data(tmp_path), boxes=False), Examples), tmp_path
    )
    assert album["pair-0"].image is not None
    assert album["pair-0"].image.size == (224, 149)
    assert album["pair-0"].full_size == (900, 600)


def test_heat_is_brighter_and_less_transparent_where_there_is_more() -> None:
    image = decoded(heat_source(np.array([[0.0, 0.5, 1.0], [np.nan, 0.0, 0.0]], dtype=np.float32)), "png")
    assert image.size == (3, 2)
    cold, warm, hot = (image.getpixel((x, 0)) for x in range(3))
    assert isinstance(cold, tuple)
    assert isinstance(warm, tuple)
    assert isinstance(hot, tuple)
    assert cold[3] == 0 < warm[3] < hot[3] < 255
    assert sum(warm[:3]) < sum(hot[:3])
    assert image.getpixel((0, 1)) == cold


def test_a_dimmed_image_has_less_colour_and_light() -> None:
    red, green, blue = (int(value) for value in np.asarray(dimmed(Image.new("RGB", (1, 1), (255, 0, 0))))[0, 0])
    assert 255 > red > green == blue > 0


def test_how_much_heat_lies_in_the_boxes() -> None:
    heat = np.array([[4.0, 1.0], [2.0, 1.0]], dtype=np.float32)
    assert heat_inside(heat, [(0.0, 0.0, 0.5, 0.5)]) == (0.5, True)
    assert heat_inside(heat, [(0.5, 0.0, 1.0, 0.5), (0.0, 0.5, 0.5, 1.0)]) == (0.375, False)


def test_without_a_box_or_without_heat_there_is_no_share() -> None:
    assert heat_inside(np.ones((2, 2), dtype=np.float32), []) is None
    assert heat_inside(np.zeros((2, 2), dtype=np.float32), [(0.0, 0.0, 1.0, 1.0)]) is None
