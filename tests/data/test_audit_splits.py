"""The audit on what is shared: images, groups and texts in two splits, and images in two groups."""

from pathlib import Path

import pytest
from PIL import Image

from audited import found, image, manifest
from spanbox.data.audit import AuditReport, audit
from spanbox.data.manifest import Record, relocated


def shared(tmp_path: Path, first: Record, second: Record, decode: bool = True) -> AuditReport:
    """The audit of two splits; the second one lies in a folder of its own."""
    (tmp_path / "test").mkdir(exist_ok=True)
    return audit(
        [manifest(tmp_path, first), manifest(tmp_path / "test", second, name="test.jsonl")],
        decode=decode,
    )


def test_one_file_in_two_splits_is_reported_once(tmp_path: Path) -> None:
    image(tmp_path, "a.png")
    report = shared(
        tmp_path,
        Record("1", "a.png", "t", group="g"),
        Record("2", "../test/../a.png", "u", group="g"),
    )
    assert list(report.findings) == ["image in two manifests"]
    assert report.problems[0].examples[0].detail == f"as in {tmp_path / 'train.jsonl'}:1"


def test_a_copied_image_in_two_splits_is_found_by_its_content(tmp_path: Path) -> None:
    image(tmp_path, "a.png"), image(tmp_path / "test", "b.png")
    first, second = Record("1", "a.png", "t"), Record("2", "b.png", "u")
    assert list(shared(tmp_path, first, second).findings) == ["same image content in two manifests"]
    assert shared(tmp_path, first, second, decode=False).ok


def test_a_group_in_two_splits(tmp_path: Path) -> None:
    image(tmp_path, "a.png"), image(tmp_path / "test", "b.png", "blue")
    report = shared(tmp_path, Record("1", "a.png", "t", group="g"), Record("2", "b.png", "u", group="g"))
    assert list(report.findings) == ["group in two manifests"]


def test_equal_relative_paths_in_two_folders_are_two_images(tmp_path: Path) -> None:
    image(tmp_path, "a.png"), image(tmp_path / "test", "a.png", "blue")
    assert shared(tmp_path, Record("1", "a.png", "t"), Record("2", "a.png", "u")).findings == {}


@pytest.mark.parametrize("folder", ["images", "../图片"])
def test_manifests_that_moved_to_one_folder_share_no_group_by_the_names_of_their_images(
    tmp_path: Path, folder: str
) -> None:
    """As `train/m.jsonl` and `test/m.jsonl`, each with its own `images/a.png`, that `data fix` writes to one folder."""
    moved = []
    for split, colour in (("train", "red"), ("test", "blue")):
        old = tmp_path / split / "sets"
        old.mkdir(parents=True)
        image(old / folder, "a.png", colour)
        record = relocated(Record(split, f"{folder}/a.png", split), old.resolve(), tmp_path.resolve())
        assert record.group == f"{folder}/a.png"
        moved.append(manifest(tmp_path, record, name=f"{split}.jsonl"))
    assert audit(moved).findings == {}


def test_the_same_text_in_two_splits_is_a_note(tmp_path: Path) -> None:
    image(tmp_path, "a.png"), image(tmp_path / "test", "b.png", "blue")
    report = shared(tmp_path, Record("1", "a.png", "t"), Record("2", "b.png", "t"))
    assert report.ok
    assert [finding.kind for finding in report.notes] == ["same text in two manifests"]


@pytest.mark.slow
def test_every_pair_of_a_later_split_is_counted(tmp_path: Path) -> None:
    image(tmp_path, "a.png"), image(tmp_path, "copy.jpg", "blue")
    train = manifest(tmp_path, Record("1", "a.png", "t"))
    many = (Record(str(i), "a.png", str(i)) for i in range(2000))
    report = audit([train, manifest(tmp_path, *many, name="test.jsonl")], decode=False)
    assert {finding.kind: finding.count for finding in report.problems} == {"image in two manifests": 2000}


def test_three_splits_are_compared_with_the_first(tmp_path: Path) -> None:
    image(tmp_path, "a.png")
    paths = [manifest(tmp_path, Record(n, "a.png", n), Record(n + "2", "a.png", n), name=f"{n}.jsonl") for n in "abc"]
    (finding,) = audit(paths).problems
    assert finding.kind == "image in two manifests"
    assert [(Path(e.manifest).name, e.line, e.detail) for e in finding.examples] == [
        (f"{name}.jsonl", line, f"as in {paths[0]}:1") for name in "bc" for line in (1, 2)
    ]


@pytest.mark.parametrize("decode", [True, False])
def test_an_image_in_two_groups_of_a_split_is_a_note(tmp_path: Path, decode: bool) -> None:
    image(tmp_path, "a.png"), image(tmp_path, "copy.png"), image(tmp_path, "b.png", "blue")
    groups = [("a.png", "g"), ("b.png", "g2"), ("a.png", "g"), ("copy.png", "g"), ("a.png", "h")]
    records = [Record(str(i), name, str(i), group=group) for i, (name, group) in enumerate(groups)]
    report = audit([manifest(tmp_path, *records)], decode=decode)
    assert report.ok
    assert found(report)["same image in different groups"] == [(5, "as in line 1")]
    assert ("different images in one group" in report.findings) != decode  # without decoding a copy is not known as one


def test_images_that_could_not_be_read_are_not_equal(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    report = shared(tmp_path, Record("1", "a.png", "t"), Record("2", "../b.png", "u"))
    assert list(report.findings) == ["broken image"]


def test_a_picture_that_was_encoded_again_is_found(tmp_path: Path) -> None:
    image(tmp_path, "a.png")
    Image.open(tmp_path / "a.png").save(tmp_path / "a.webp", lossless=True)
    Image.open(tmp_path / "a.png").save(tmp_path / "a.bmp")
    test = [Record("2", "a.webp", "u"), Record("3", "a.bmp", "v")]
    report = audit([manifest(tmp_path, Record("1", "a.png", "t")), manifest(tmp_path, *test, name="test.jsonl")])
    assert found(report)["same image content in two manifests"] == [
        (1, f"as in {tmp_path / 'train.jsonl'}:1"),
        (2, f"as in {tmp_path / 'train.jsonl'}:1"),
    ]
