"""The importer of Twitter-GMNER on small files of its two forms, whole and damaged."""

import json
import os
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spanbox.data.importers import UniqueIds
from spanbox.data.importers.twitter_gmner import import_twitter_gmner
from spanbox.data.importers.vinvl import read_vinvl
from spanbox.data.importers.voc import read_voc
from spanbox.data.manifest import Manifest, Record
from spanbox.errors import DataError, OutputError

TWEET = "IMGID:71044\nTom\tB-PER\n&amp\tO\n;\tO\nNew\tB-LOC\nYork\tI-LOC\nCity\tI-LOC\n\n"


def voc(*objects: tuple[str, tuple[object, object, object, object]], size: tuple[int, int] = (40, 30)) -> str:
    corners = ("xmin", "ymin", "xmax", "ymax")
    boxes = "".join(
        f"<object><name>{name}</name><bndbox>{''.join(f'<{c}>{v}</{c}>' for c, v in zip(corners, box, strict=True))}"
        "</bndbox></object>"
        for name, box in objects
    )
    width, height = size
    return (
        f"<annotation><filename>another.jpg</filename><size><width>{width}</width><height>{height}</height></size>"
        f"{boxes}</annotation>"
    )


def vinvl(path: Path, boxes: list[list[float]], **changes: object) -> None:
    arrays = {
        "num_boxes": len(boxes),
        "image_w": 40,
        "image_h": 30,
        "bounding_boxes": np.array(boxes, dtype=np.float32),
        "scores": np.linspace(0.9, 0.1, len(boxes), dtype=np.float32),
        "objects": np.array(["cat"] * len(boxes)),
        "box_features": np.zeros((len(boxes), 8), dtype=np.float32),
    }
    np.savez(path, **(arrays | changes))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The folder of a set that has everything once."""
    folder = tmp_path / "Twitter10000_v2.0"
    for name in ("txt", "xml", "images", "vinvl"):
        (folder / name).mkdir(parents=True)
    (folder / "txt" / "train.txt").write_text(TWEET)
    (folder / "xml" / "71044.xml").write_text(voc(("Tom", (1, 2, 30, 28)), ("New York City", (0, 0, 40, 30))))
    vinvl(folder / "vinvl" / "71044.jpg.npz", [[1.5, 2.25, 10.1, 20.2], [0, 0, 5, 5]])
    Image.new("RGB", (40, 30)).save(folder / "images" / "71044.jpg")
    return folder


def records(out: Path, split: str = "train") -> list[Record]:
    return list(Manifest(out / f"{split}.jsonl"))


def oddities(out: Path, split: str = "train") -> dict[str, list[dict[str, str]]]:
    return json.loads((out / "import.json").read_text())["splits"][split]["oddities"]


def test_a_tweet_becomes_a_record(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "gmner"
    summary = import_twitter_gmner(source, out)

    (record,) = records(out)
    assert record.text == "Tom &amp ; New York City"
    assert (record.id, record.group, record.lang) == ("71044", "71044", "en")
    assert record.image == "../../Twitter10000_v2.0/images/71044.jpg"
    assert (out / record.image).is_file()
    assert [(record.span_text(e), e.type, e.boxes, e.identity) for e in record.entities] == [
        ("Tom", "PER", ((1.0, 2.0, 30.0, 28.0),), ""),
        ("New York City", "LOC", ((0.0, 0.0, 40.0, 30.0),), ""),
    ]
    assert [(p.box, p.score, p.label) for p in record.objects] == [
        ((1.5, 2.25, 10.1, 20.2), 0.9, "cat"),
        ((0.0, 0.0, 5.0, 5.0), 0.1, "cat"),
    ]
    assert oddities(out) == {}
    assert summary.splits["train"].counts == {
        "pairs": 1,
        "entities": 2,
        "entities with a box": 2,
        "boxes": 2,
        "proposals": 2,
    }


def test_dev_becomes_val_and_progress_counts_all_splits(source: Path, tmp_path: Path) -> None:
    for name in ("dev", "test"):
        (source / "txt" / f"{name}.txt").write_text(TWEET.replace("71044", name) * 2)
    seen: list[tuple[int, int]] = []
    import_twitter_gmner(source, tmp_path / "out", on_progress=lambda *counts: seen.append(counts))
    assert seen == [(i, 5) for i in range(1, 6)]
    assert [record.id for record in records(tmp_path / "out", "val")] == ["dev", "dev-2"]
    assert len(records(tmp_path / "out", "test")) == 2


def test_several_boxes_of_one_name_and_several_entities_of_one_name(source: Path, tmp_path: Path) -> None:
    (source / "txt" / "train.txt").write_text("IMGID:1\nTom\tB-PER\nand\tO\nTom\tB-PER\nJerry\tB-PER\n")
    (source / "xml" / "1.xml").write_text(voc(("Tom", (1, 1, 5, 5)), ("Tom", (9, 9, 20, 20))))
    import_twitter_gmner(source, tmp_path / "out")
    both = ((1.0, 1.0, 5.0, 5.0), (9.0, 9.0, 20.0, 20.0))
    assert [entity.boxes for entity in records(tmp_path / "out")[0].entities] == [both, both, ()]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["B-PER", "I-PER", "O"], [("a b", "PER")]),
        (["B-PER", "B-PER", "I-PER"], [("a", "PER"), ("b c", "PER")]),
        (["B-PER", "I-LOC", "I-LOC"], [("a", "PER"), ("b c", "LOC")]),
        (["I-PER", "I-PER", "O"], [("a b", "PER")]),
        (["B-PER", "O", "I-PER"], [("a", "PER"), ("c", "PER")]),
    ],
)
def test_tags(source: Path, tmp_path: Path, tags: list[str], expected: list[tuple[str, str]]) -> None:
    lines = "".join(f"{token}\t{tag}\n" for token, tag in zip("abc", tags, strict=True))
    (source / "txt" / "train.txt").write_text(f"IMGID:1\n{lines}")
    import_twitter_gmner(source, tmp_path / "out")
    (record,) = records(tmp_path / "out")
    assert [(record.span_text(entity), entity.type) for entity in record.entities] == expected
    orphan = any(tag[0] == "I" and before[1:] != tag[1:] for before, tag in zip(["O", *tags], tags, strict=False))
    assert ("I- tag without a B- tag" in oddities(tmp_path / "out")) == orphan


def test_windows_line_ends_a_byte_order_mark_and_odd_characters(source: Path, tmp_path: Path) -> None:
    # U+0085 and U+2028 end a line for str.splitlines, not for the file.
    content = "\ufeffIMGID:1\r\n🐈\tO\r\nTom\x85\u2028x\tB-PER\r\n\r\n\r\nIMGID:2\r\nb\tO"
    (source / "txt" / "train.txt").write_bytes(content.encode())
    import_twitter_gmner(source, tmp_path / "out")
    first, second = records(tmp_path / "out")
    assert first.span_text(first.entities[0]) == "Tom\x85\u2028x"
    assert second.text == "b"


@pytest.mark.parametrize(("types", "expected"), [("coarse", "person"), ("fine", "politician")])
def test_fmnerg_has_two_columns_of_types(source: Path, tmp_path: Path, types: str, expected: str) -> None:
    (source / "txt" / "train.txt").write_text("IMGID:71044\nTom\tB-person\tB-politician\nran\tO\tO\n")
    import_twitter_gmner(source, tmp_path / "out", entity_types=types)
    (record,) = records(tmp_path / "out")
    assert record.entities[0].type == expected
    assert record.entities[0].boxes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Tom\tO\n", "line 1: 'Tom\\tO' is no line of a tweet; expected IMGID:<id> first"),
        ("IMGID:1\nTom\n", "line 2: 'Tom' is no line of a tweet"),
        ("IMGID:1\nTom\tPER\n", "line 2: 'Tom\\tPER' is no line"),
        ("IMGID:1\nTom\tB-\n", "line 2: 'Tom\\tB-' is no line"),
        ("IMGID:1\na\tO\tO\tO\n", "line 2: 'a\\tO\\tO\\tO' is no line"),
        ("IMGID:1\n \tO\n", "line 2: ' \\tO' is no line"),
        ("\n\n", "holds no tweets"),
    ],
)
def test_a_wrong_line_of_text_is_named(source: Path, tmp_path: Path, content: str, message: str) -> None:
    path = source / "txt" / "train.txt"
    path.write_text(content)
    with pytest.raises(DataError) as raised:
        import_twitter_gmner(source, tmp_path / "out")
    assert str(raised.value).startswith(str(path))
    assert message in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "image_id",
    [
        "x" * 300,
        "图" * 100,
        "../71044",
        "a/b",
        "a\\b",
        "..",
        "a..b",
        "",
        ".hidden",
        "/etc/passwd",
        "C:71044",
        "a\0b",
        "a b",
    ],
)
def test_an_id_that_leaves_the_folder_is_refused(source: Path, tmp_path: Path, image_id: str) -> None:
    (source / "txt" / "train.txt").write_text(f"IMGID:{image_id}\nTom\tO\n")
    with pytest.raises(DataError, match=r"train\.txt, line 1: image id .* cannot be the name of a file"):
        import_twitter_gmner(source, tmp_path / "out")
    path = tmp_path / "train.json"
    path.write_text(json.dumps([{"content": "Tom", "img_id": f"IMGID:{image_id}", "ans": []}]))
    with pytest.raises(DataError, match=r"train\.json, tweet 1: image id"):
        import_twitter_gmner(path, tmp_path / "out", boxes=source / "xml")


@pytest.mark.parametrize("image_id", ["71044", "O_2371", "16_05_01_6", "17-x.y"])
def test_ids_of_the_set_are_accepted(source: Path, tmp_path: Path, image_id: str) -> None:
    (source / "txt" / "train.txt").write_text(f"IMGID:{image_id}\nTom\tO\n{TWEET}")
    import_twitter_gmner(source, tmp_path / "out")
    assert records(tmp_path / "out")[0].id == image_id


def test_an_image_that_comes_twice_gets_two_ids_and_one_group(source: Path, tmp_path: Path) -> None:
    (source / "txt" / "train.txt").write_text(TWEET + TWEET.replace("71044", "71044-2") + TWEET + TWEET)
    import_twitter_gmner(source, tmp_path / "out")
    found = records(tmp_path / "out")
    assert [record.id for record in found] == ["71044", "71044-2", "71044-3", "71044-4"]
    assert [record.group for record in found] == ["71044", "71044-2", "71044", "71044"]
    assert len(oddities(tmp_path / "out")["image used again"]) == 2


def test_an_image_in_two_splits_is_listed(source: Path, tmp_path: Path) -> None:
    (source / "txt" / "test.txt").write_text(TWEET)
    import_twitter_gmner(source, tmp_path / "out")
    assert oddities(tmp_path / "out", "test") == {
        "image in two splits": [{"where": "71044", "detail": "also in train"}]
    }


def test_names_that_match_no_entity_are_listed(source: Path, tmp_path: Path) -> None:
    objects = [("Tim", (1, 2, 3, 4)), ("Tim", (2, 2, 3, 4)), ("New York  City\n", (5, 6, 7, 8)), ("", (1, 1, 2, 2))]
    (source / "xml" / "71044.xml").write_text(voc(*objects))
    import_twitter_gmner(source, tmp_path / "out")
    assert oddities(tmp_path / "out") == {
        "name that matches no entity": [
            {"where": "71044", "detail": "'', 1 box left out"},
            {"where": "71044", "detail": "'Tim', 2 boxes left out"},
        ]
    }
    (record,) = records(tmp_path / "out")
    assert [len(entity.boxes) for entity in record.entities] == [0, 1]


def test_unusable_boxes_and_proposals_are_left_out_and_listed(source: Path, tmp_path: Path) -> None:
    objects = [("Tom", (5, 5, 5, 9)), ("Tom", (9, 9, 1, 1)), ("Tom", ("nan", 0, 3, 3)), ("Tom", ("x", 0, 3, 3))]
    (source / "xml" / "71044.xml").write_text(voc(*objects, ("Tom", (0, 0, "inf", 3)), ("Tom", (1, 1, 2, 2))))
    vinvl(source / "vinvl" / "71044.jpg.npz", [[5, 5, 1, 1], [0, 0, float("nan"), 4], [0, 0, 4, 4]])
    import_twitter_gmner(source, tmp_path / "out")
    listed = oddities(tmp_path / "out")
    assert len(listed["unusable box"]) == 5
    assert listed["unusable box"][0]["detail"] == "'Tom': ['5', '5', '5', '9'] has no area or is not a box"
    assert len(listed["unusable proposal"]) == 2
    (record,) = records(tmp_path / "out")
    assert record.entities[0].boxes == ((1.0, 1.0, 2.0, 2.0),)
    assert [proposal.box for proposal in record.objects] == [(0.0, 0.0, 4.0, 4.0)]


BOMB = '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><annotation><object><name>&c;</name></object></annotation>'
FETCH = (
    '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation><object><name>&b;</name></object></annotation>'
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not XML that can be read"),
        ("<annotation>", "is not XML that can be read"),
        ('<?xml version="1.0" encoding="klingon"?><a/>', "is not XML that can be read"),
        (BOMB, "refused, it defines or fetches entities"),
        (FETCH, "refused, it defines or fetches entities"),
    ],
)
def test_a_damaged_or_hostile_xml_file_is_listed(source: Path, tmp_path: Path, content: str, message: str) -> None:
    path = source / "xml" / "71044.xml"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_voc(path)
    import_twitter_gmner(source, tmp_path / "out")
    assert message in oddities(tmp_path / "out")["unreadable file of boxes"][0]["detail"]
    assert not any(entity.boxes for entity in records(tmp_path / "out")[0].entities)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"<a>{'<object>' * 40}{'</object>' * 40}</a>", "nested more than 32 deep"),
        ("<object>" * 100_000, "nested more than 32 deep"),
        (f"<a>{'<b/>' * 300_000}</a>", "is larger than 1 MiB"),
        (voc(*[("Tom", (0, 0, 1, 1))] * 1001), "has 1001 boxes; at most 1000 are read of an image"),
    ],
)
def test_xml_is_read_up_to_a_limit(source: Path, tmp_path: Path, content: str, message: str) -> None:
    (source / "xml" / "71044.xml").write_text(content)
    import_twitter_gmner(source, tmp_path / "out")
    assert message in oddities(tmp_path / "out")["unreadable file of boxes"][0]["detail"]


def test_boxes_inside_of_another_object_are_not_read_twice(tmp_path: Path) -> None:
    inner = (
        "<object><name>Jerry</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></object>"
    )
    path = tmp_path / "a.xml"
    path.write_text(f"<a><object><name>Tom</name>{inner}</object></a>")
    assert read_voc(path).boxes == {}


def test_voc_without_size_or_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    for size in ("", "<size><width>0</width><height>0</height></size>", "<size><width>x</width></size>"):
        path.write_text(f"<annotation>{size}<object><name>Tom</name></object></annotation>")
        assert read_voc(path).size is None
        assert read_voc(path).boxes == {}


class Pickled:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objects": np.array([Pickled(), Pickled()])}, "cannot be read (objects would have to be unpickled"),
        ({"scores": np.array(["high", "low"])}, "scores is <U4 of shape (2,); expected (2,) of floats"),
        ({"scores": np.zeros(3, dtype=np.float32)}, "scores is float32 of shape (3,); expected (2,) of floats"),
        ({"bounding_boxes": np.zeros((2, 5), dtype=np.float32)}, "bounding_boxes is float32 of shape (2, 5)"),
        ({"bounding_boxes": np.float32(3)}, "bounding_boxes is float32 of shape ()"),
        ({"objects": np.zeros(2)}, "objects is float64 of shape (2,); expected (2,) of text"),
        ({"image_w": np.array([1, 2])}, "cannot be read"),
        ({"image_w": np.float32("inf")}, "cannot be read (cannot convert float infinity to integer)"),
        ({"image_h": np.float32("nan")}, "cannot be read"),
        ({"scores": np.zeros(2_000_000, dtype=np.float32)}, "scores has 8000128 bytes; at most 4 MiB are read"),
        ({"bounding_boxes": np.zeros((10_001, 4), dtype=np.float32)}, "has 10001 proposals; at most 10000 are read"),
    ],
)
def test_wrong_proposals_are_listed(
    source: Path, tmp_path: Path, changes: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = source / "vinvl" / "71044.jpg.npz"
    vinvl(path, [[0, 0, 1, 1], [0, 0, 2, 2]], **changes)
    import_twitter_gmner(source, tmp_path / "out")
    assert message in oddities(tmp_path / "out")["unreadable file of proposals"][0]["detail"]
    assert records(tmp_path / "out")[0].objects == ()
    assert not (tmp_path / "pwned").exists()


def members(path: Path, changes: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> None:
    """A proposal file with some of its arrays replaced by other bytes."""
    vinvl(path, [[0, 0, 1, 1]])
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, member in (content | changes).items():
            archive.writestr(name, member)


def npy(header: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode("latin-1") + data


@pytest.mark.parametrize(
    "scores",
    [
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (100000000000,), }\n"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }\n", bytes(4)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1(), }\n", bytes(4)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }\n", bytes(8)),
        npy("{'descr': '<U999999999', 'fortran_order': False, 'shape': (1,), }\n", bytes(4)),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n", bytes(8)),
        npy("(" * 5000 + "\n"),
        npy("{'descr': ['" + "'," * 1000 + "\n"),
        b"\x93NUMPY\x02\x00",
        b"",
    ],
)
def test_a_damaged_array_is_named(tmp_path: Path, scores: bytes) -> None:
    path = tmp_path / "a.npz"
    members(path, {"scores.npy": scores})
    with pytest.raises(DataError, match=r"a\.npz: cannot be read"):
        read_vinvl(path)


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    members(path, {"scores.npy": bytes(32 * 1024 * 1024)})
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match=r"scores has 33554432 bytes; at most 4 MiB are read"):
        read_vinvl(path)
    # The same with a directory that claims a small array.
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", 32 * 1024 * 1024), struct.pack("<I", 100)))
    tracemalloc.start()
    with pytest.raises(DataError, match="cannot be read"):
        read_vinvl(path)
    assert tracemalloc.get_traced_memory()[1] < 16 * 1024 * 1024
    tracemalloc.stop()


@pytest.mark.parametrize("compression", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_other_compression_is_refused(tmp_path: Path, compression: int) -> None:
    members(tmp_path / "a.npz", {}, compression)
    with pytest.raises(DataError, match="compressed in an unusual way"):
        read_vinvl(tmp_path / "a.npz")


@pytest.mark.parametrize("label", ["\ud800", "a\udfffb"])
def test_a_label_with_half_a_surrogate_pair_can_be_written(source: Path, tmp_path: Path, label: str) -> None:
    vinvl(source / "vinvl" / "71044.jpg.npz", [[0, 0, 1, 1]], objects=np.array([label]))
    import_twitter_gmner(source, tmp_path / "out")
    assert records(tmp_path / "out")[0].objects[0].label == label.encode(errors="replace").decode()


def test_a_label_that_is_no_text_is_named(tmp_path: Path) -> None:
    label = npy("{'descr': '<U1', 'fortran_order': False, 'shape': (1,), }\n", struct.pack("<I", 0x110000))
    members(tmp_path / "a.npz", {"objects.npy": label})
    with pytest.raises(DataError, match="cannot be read"):
        read_vinvl(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"\x93NUMPY", b"\x80\x04K\x01."])
def test_a_damaged_npz_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jpg.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.jpg\.npz: cannot be read"):
        read_vinvl(path)


def test_a_lacking_array_and_a_file_of_one_array_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, image_w=4, image_h=3)
    with pytest.raises(DataError, match=r"lacks an array .*bounding_boxes"):
        read_vinvl(path)
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(DataError, match="cannot be read"):
        read_vinvl(tmp_path / "b.npy")


def test_no_proposals_in_an_image(tmp_path: Path) -> None:
    vinvl(tmp_path / "a.npz", [], bounding_boxes=np.zeros((0, 4), dtype=np.float32), objects=np.zeros(0, dtype="<U1"))
    assert read_vinvl(tmp_path / "a.npz").proposals == ()


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


def json_form(folder: Path, *tweets: tuple[str, list[str]], name: str = "entity_text_test.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = [
        {"content": text, "img_id": "IMGID:71044", "ans": [{"ent": e} for e in entities], "pred": [{"ent": "ignored"}]}
        for text, entities in tweets
    ]
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_the_json_form_finds_entities_by_their_text(source: Path, tmp_path: Path) -> None:
    folder = json_form(tmp_path / "json_form", ("Tom in  New York City ", ["New  York City", "Tom"]))
    import_twitter_gmner(folder, tmp_path / "out")
    (record,) = records(tmp_path / "out", "test")
    assert record.text == "Tom in New York City"
    assert [record.span_text(entity) for entity in record.entities] == ["Tom", "New York City"]
    assert [len(entity.boxes) for entity in record.entities] == [1, 1]
    assert len(record.objects) == 2


@pytest.mark.parametrize(
    ("text", "entities", "starts"),
    [
        ("Tom and Tom", ["Tom", "Tom"], [0, 8]),  # the second entity is the second place
        ("@ NBA : Ann plays in the NBA", ["Ann", "NBA"], [8, 25]),  # in the order of the text
        ("NBA and Ann", ["Ann", "NBA"], [0, 8]),  # or before
        ("USA or US", ["US"], [7]),  # whole tokens first
        ("in #USA", ["USA"], [4]),  # parts of tokens if need be
        ("New York , York", ["New York", "York"], [0, 11]),  # never inside of another entity
        ("a.b", ["a.b"], [0]),
        ("aXb", ["a.b"], []),
        ("one Tom", ["Tom", "Tom"], [4]),
        ("Tom", [""], []),
    ],
)
def test_which_place_of_a_name_is_taken(
    source: Path, tmp_path: Path, text: str, entities: list[str], starts: list[int]
) -> None:
    folder = json_form(tmp_path / "json_form", (text, entities))
    import_twitter_gmner(folder, tmp_path / "out")
    (record,) = records(tmp_path / "out", "test")
    assert [entity.start for entity in record.entities] == starts
    not_found = oddities(tmp_path / "out", "test").get("entity not found in its text", [])
    assert len(starts) + len(not_found) == len(entities)


def test_json_of_another_shape_is_named(source: Path, tmp_path: Path) -> None:
    for content in ("[", "{}", '[{"content": "x"}]'):
        (tmp_path / "train.json").write_text(content)
        with pytest.raises(DataError, match=r"train\.json: .*; expected a list of"):
            import_twitter_gmner(tmp_path / "train.json", tmp_path / "out", boxes=source / "xml")


def test_tweets_without_text_are_left_out_and_listed(source: Path, tmp_path: Path) -> None:
    (source / "txt" / "train.txt").write_text(f"IMGID:5\n\n{TWEET}")
    import_twitter_gmner(source, tmp_path / "out")
    assert [record.id for record in records(tmp_path / "out")] == ["71044"]
    assert oddities(tmp_path / "out") == {"tweet without text": [{"where": "5", "detail": "left out"}]}


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


def test_a_text_that_is_not_utf_8_is_named(source: Path, tmp_path: Path) -> None:
    (source / "txt" / "train.txt").write_bytes(b"IMGID:1\nTom\xff\tO\n")
    with pytest.raises(DataError, match=r"train\.txt: is not UTF-8"):
        import_twitter_gmner(source, tmp_path / "out")


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("IMGID:1\n" + "a\tO\n" * 4_001, "line 1: this tweet has 4001 characters or more"),
        ("IMGID:1\n" + "aaaaaaaaa\tO\n" * 401, "line 1: this tweet has 4009 characters or more"),
        ("IMGID:1\n" + "a\tB-X\n" * 201, "line 1: this tweet has 401 characters or more and 201 entities"),
        ("\n" * (8 * 1024 * 1024 + 1), "is larger than 8 MiB"),
    ],
)
def test_texts_are_read_up_to_a_limit(source: Path, tmp_path: Path, content: str, message: str) -> None:
    (source / "txt" / "train.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        import_twitter_gmner(source, tmp_path / "out")


def test_json_is_read_up_to_a_limit(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    for content, message in (
        ('[{"x":' + "[" * 500_000, "recursion depth"),
        (json.dumps([{"content": "a " * 3000, "img_id": "1", "ans": []}]), "tweet 1: this tweet has 5999 characters"),
        (json.dumps([{"content": "a", "img_id": "1", "ans": [{"ent": "a"}] * 201}]), "and 201 entities"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=message):
            import_twitter_gmner(path, tmp_path / "out", boxes=source / "xml")


def test_an_image_that_comes_very_often_gets_unique_ids() -> None:
    """Each id is found at once: looking through all earlier ones would take quadratic time."""
    ids = UniqueIds()
    given = [ids.add(wanted) for wanted in ("a", "a-2", "a", "a", "a-2", "b")]
    assert given == [
        "a",
        "a-2",
        "a-3",
        "a-4",
        "a-2-2",
        "b",
    ]
    assert [ids.add("c") for _ in range(100_000)][-1] == "c-100000"


def test_a_folder_whose_name_is_not_utf_8_is_named(source: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    (source / "images").rename(odd)
    with pytest.raises(DataError, match="the name of this folder is not UTF-8; rename it"):
        import_twitter_gmner(source, tmp_path / "out", images=odd)
