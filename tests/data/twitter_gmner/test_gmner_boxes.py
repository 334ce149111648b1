"""Files of boxes and of proposals of Twitter-GMNER: unusable, damaged, hostile and too large ones."""

import os
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gmner_sets import oddities, records, vinvl, voc
from spanbox.data.importers.twitter_gmner import import_twitter_gmner
from spanbox.data.importers.vinvl import read_vinvl
from spanbox.data.importers.voc import read_voc
from spanbox.errors import DataError


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


@pytest.mark.parametrize("content", [voc(("Tom", (5, 5, 5, 9))), "<annotation>"], ids=["unusable", "unreadable"])
def test_an_entity_that_lost_its_boxes_may_be_shown(source: Path, tmp_path: Path, content: str) -> None:
    (source / "xml" / "71044.xml").write_text(content)
    import_twitter_gmner(source, tmp_path / "out")
    tom, city = records(tmp_path / "out")[0].entities
    assert (tom.boxes, tom.ambiguous) == ((), True)
    assert city.ambiguous == (content == "<annotation>")


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


@pytest.mark.slow
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
