"""Images and folders of Twitter-GMNER: found, missing, broken or copied, and what is written where."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from gmner_sets import TWEET, json_form, oddities, records, voc
from spanbox.data.importers.twitter_gmner import import_twitter_gmner
from spanbox.errors import DataError, OutputError


def test_missing_images_are_counted_and_their_pairs_kept(source: Path, tmp_path: Path) -> None:
    (source / "images" / "71044.jpg").unlink()
    import_twitter_gmner(source, tmp_path / "out")
    missing = oddities(tmp_path / "out")["missing image"]
    assert missing == [{"where": "71044", "detail": str(source / "images" / "71044.jpg")}]
    assert len(records(tmp_path / "out")) == 1


def test_a_broken_image_and_boxes_for_another_size_are_listed(source: Path, tmp_path: Path) -> None:
    Image.new("RGB", (80, 60)).save(source / "images" / "71044.jpg")
    import_twitter_gmner(source, tmp_path / "out")
    detail = "made for 40 x 30, the image is 80 x 60; used without changes"
    assert oddities(tmp_path / "out") == {
        f"{what} for another image size": [{"where": "71044", "detail": detail}] for what in ("boxes", "proposals")
    }
    (source / "images" / "71044.jpg").write_bytes(b"")
    import_twitter_gmner(source, tmp_path / "out")
    assert list(oddities(tmp_path / "out")) == ["broken image"]


def test_images_can_be_copied(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for _ in ("first", "again"):
        import_twitter_gmner(source, out, copy_images=True)
        (record,) = records(out)
        assert record.image == "images/71044.jpg"
        assert (out / record.image).read_bytes() == (source / "images" / "71044.jpg").read_bytes()
    assert [path.name for path in (out / "images").iterdir()] == ["71044.jpg"]


def test_copying_replaces_a_link_instead_of_writing_through_it(source: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "out" / "images").mkdir(parents=True)
    (tmp_path / "out" / "images" / "71044.jpg").symlink_to(tmp_path / "precious")
    import_twitter_gmner(source, tmp_path / "out", copy_images=True)
    assert (tmp_path / "precious").read_text() == "precious"


def test_importing_into_the_folder_of_the_set_keeps_its_images(source: Path) -> None:
    before = (source / "images" / "71044.jpg").read_bytes()
    import_twitter_gmner(source, source, copy_images=True)
    assert (source / "images" / "71044.jpg").read_bytes() == before
    assert records(source)[0].image == "images/71044.jpg"


def test_paths_to_images_hold_through_symbolic_links(source: Path, tmp_path: Path) -> None:
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "deep")
    import_twitter_gmner(source, tmp_path / "out")
    assert (tmp_path / "out" / records(tmp_path / "out")[0].image).is_file()


def test_fmnerg_takes_the_boxes_of_v2_beside_it(source: Path, tmp_path: Path) -> None:
    (tmp_path / "FMNERG_txt").mkdir()
    (tmp_path / "FMNERG_txt" / "train.txt").write_text(TWEET)
    for name in ("Twitter10000_v1", "Another"):
        (tmp_path / name / "xml").mkdir(parents=True)
        (tmp_path / name / "xml" / "71044.xml").write_text(voc())
    (tmp_path / "Empty_v3" / "xml").mkdir(parents=True)
    summary = import_twitter_gmner(tmp_path / "FMNERG_txt", tmp_path / "out")
    assert summary.folders["boxes"] == str(source / "xml")
    assert records(tmp_path / "out")[0].entities[0].boxes


def test_folders_beside_the_set_and_named_ones(source: Path, tmp_path: Path) -> None:
    for name, elsewhere in (("images", "twitter_images"), ("vinvl", "Twitter10000_VinVL")):
        (source / name).rename(tmp_path / elsewhere)
    (tmp_path / "coco_images").mkdir()
    found = import_twitter_gmner(source, tmp_path / "out").folders
    assert found["images"] == str(tmp_path / "twitter_images")
    assert found["proposals"] == str(tmp_path / "Twitter10000_VinVL")
    assert import_twitter_gmner(source / "txt", tmp_path / "out").folders == found

    named = import_twitter_gmner(source, tmp_path / "out", images=tmp_path / "coco_images").folders
    assert named["images"] == str(tmp_path / "coco_images")


def test_one_file_is_enough(source: Path, tmp_path: Path) -> None:
    import_twitter_gmner(source / "txt" / "train.txt", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["import.json", "train.jsonl"]
    assert records(tmp_path / "out")[0].entities[0].boxes


def test_what_is_not_there_is_named(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match="none: no such file or folder"):
        import_twitter_gmner(tmp_path / "none", out)
    with pytest.raises(DataError, match="images: no texts; expected"):
        import_twitter_gmner(source / "images", out)
    with pytest.raises(DataError, match=r"--images .*none: no such folder"):
        import_twitter_gmner(source, out, images=tmp_path / "none")
    (source / "xml").rename(tmp_path / "hidden")
    with pytest.raises(DataError, match="no folder 'xml' with its boxes in it or beside it; name it with --boxes DIR"):
        import_twitter_gmner(source, out)
    (source / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"notes\.txt: its split is not known"):
        import_twitter_gmner(source / "notes.txt", out)
    json_form(tmp_path / "two", ("Tom", []))
    json_form(tmp_path / "two", ("Tom", []), name="other_test.json")
    with pytest.raises(DataError, match="are both test; give the one to import"):
        import_twitter_gmner(tmp_path / "two", out)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot be written \(Not a directory\)"):
        import_twitter_gmner(source, tmp_path / "file" / "out", boxes=tmp_path / "hidden")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_a_folder_or_a_pipe_named_like_a_text_is_no_text(
    source: Path, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(source / "txt" / "dev.txt")
    import_twitter_gmner(source, tmp_path / "out")
    assert not (tmp_path / "out" / "val.jsonl").exists()
    (source / "txt" / "train.txt").unlink()
    make(source / "txt" / "train.txt")
    with pytest.raises(DataError, match="no texts"):
        import_twitter_gmner(source, tmp_path / "out")


def test_names_that_no_file_can_have(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        import_twitter_gmner(tmp_path / ("x" * 300), tmp_path / "out")
    with pytest.raises(OutputError, match="cannot be written"):
        import_twitter_gmner(source, tmp_path / ("x" * 300))


@pytest.mark.parametrize("name", ["train.jsonl", "import.json", "images"])
def test_outputs_are_checked_before_anything_is_written(source: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if name == "images":
        (out / name).write_text("a file")
    else:
        (out / name).mkdir()
    with pytest.raises(OutputError, match=rf"{name}: cannot be written"):
        import_twitter_gmner(source, out, copy_images=True)
    assert [path.name for path in out.iterdir()] == [name]


def test_folders_in_place_of_the_files_of_an_image(source: Path, tmp_path: Path) -> None:
    for path in (source / "xml" / "71044.xml", source / "vinvl" / "71044.jpg.npz", source / "images" / "71044.jpg"):
        path.unlink()
        path.mkdir()
    import_twitter_gmner(source, tmp_path / "out", copy_images=True)
    assert list(oddities(tmp_path / "out")) == ["missing image"]


def test_a_folder_whose_name_is_not_utf_8_is_named(source: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    (source / "images").rename(odd)
    with pytest.raises(DataError, match="the name of this folder is not UTF-8; rename it"):
        import_twitter_gmner(source, tmp_path / "out", images=odd)
