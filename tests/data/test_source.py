"""Images in tars: found by name, read at random, refused where a tar is hostile or damaged."""

import io
import os
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spanbox.data import source, tar_index
from spanbox.data.audit import audit
from spanbox.data.images import image_size, load_image
from spanbox.data.manifest import Manifest, Record, relocated, write_manifest
from spanbox.data.source import container_of, exists, state_of, stored
from spanbox.data.tar_index import LINK, OUTSIDE, TWICE, TarIndex, index_path, members
from spanbox.errors import DataError

Entries = Sequence[tuple[str, bytes | tarfile.TarInfo]]


def write(path: Path, entries: Entries, **options: Any) -> Path:
    with tarfile.open(path, "w", **options) as archive:
        for name, content in entries:
            member = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                archive.addfile(member)
    return path


def special(name: str, kind: bytes, target: str = "") -> tuple[str, tarfile.TarInfo]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return name, member


def picture(number: int = 0, size: tuple[int, int] = (40, 30), suffix: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (number * 40 % 256, 10, 90)).save(file, suffix)
    return file.getvalue()


NAMES = ["a.png", "b/c.png", "./d.png", "深/猫 图.png", "b/" + "long" * 60 + ".png", "e//f.png"]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_found_by_name(tmp_path: Path, form: int) -> None:
    names = [name for name in NAMES if form != tarfile.USTAR_FORMAT or len(name) < 100]
    entries = [(name, f"content of {name}".encode()) for name in names]
    path = write(tmp_path / "x.tar", [special("b", tarfile.DIRTYPE), *entries], format=form)
    for _ in range(2):  # made, then loaded
        index = TarIndex(path)
        assert len(index) == len(names)
        for name, content in entries:
            found = index.find(name)
            assert found is not None
            assert path.read_bytes()[found[0] : sum(found)] == content
            assert stored(path / name).read() == content
        assert index.find("none.png") is None
        assert index_path(path).is_file()


def test_equals_a_folder(tmp_path: Path) -> None:
    """A path into a folder that is named like a tar is that of a file."""
    (tmp_path / "x.tar").mkdir()
    (tmp_path / "x.tar" / "a.png").write_bytes(picture())
    assert image_size(tmp_path / "x.tar" / "a.png") == (40, 30)
    assert container_of(tmp_path / "x.tar" / "a.png") == tmp_path / "x.tar"


def test_hostile_members_are_not_read_and_say_why(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.tar",
        [
            special("link.png", tarfile.SYMTYPE, "/etc/passwd"),
            special("hard.png", tarfile.LNKTYPE, "good.png"),
            special("fifo.png", tarfile.FIFOTYPE),
            special("device.png", tarfile.CHRTYPE),
            ("../up.png", picture()),
            ("/etc/abs.png", picture()),
            ("a/../../b.png", picture()),
            ("twice.png", picture(1)),
            ("good.png", picture(2)),
            ("./twice.png", picture(3)),
        ],
    )
    index = TarIndex(path)
    for name in ("link.png", "hard.png", "fifo.png", "device.png"):
        assert index.find(name) == (LINK, 0)
    for name in ("../up.png", "/etc/abs.png", "../b.png"):
        found = index.find(name)
        assert found is None or found[0] == OUTSIDE
    assert (
        index.find(
            "twice.png",
        )[0]
        == TWICE
    )  # type: ignore[index]
    assert load_image(path / "good.png").size == (40, 30)
    for name, reason in (
        ("link.png", "a link, a special or a sparse file in a tar"),
        ("twice.png", "a name that its tar has twice"),
        ("none.png", "no such file in its tar"),
    ):
        with pytest.raises(DataError, match=reason):
            load_image(path / name)


def test_the_audit_counts_members_that_cannot_be_used(tmp_path: Path) -> None:
    write(
        tmp_path / "x.tar",
        [special("link.png", tarfile.SYMTYPE, "a.png"), ("a.png", picture()), ("bad.png", b"\x89PNG cut")],
    )
    names = ["x.tar/a.png", "x.tar/link.png", "x.tar/bad.png", "x.tar/none.png", "gone.tar/a.png"]
    write_manifest(tmp_path / "m.jsonl", [Record(str(i), name, f"图 {i}") for i, name in enumerate(names)])
    report = audit([tmp_path / "m.jsonl"])
    counts = {finding.kind: finding.count for finding in report.problems}
    assert counts == {"missing image": 2, "broken image": 2}


@pytest.mark.parametrize("cut", [1, 511, 512, 1024, 1500, 5000])
def test_a_cut_off_tar_is_refused(tmp_path: Path, cut: int) -> None:
    path = write(tmp_path / "x.tar", [(f"{i}.bin", bytes([i + 1]) * 700) for i in range(10)])
    content = path.read_bytes()
    end = 10 * (512 + 1024)
    assert content[end:] == bytes(len(content) - end)
    path.write_bytes(content[: end - cut])
    with pytest.raises(DataError, match=r"x\.tar: is not a whole tar"):
        TarIndex(path)
    with pytest.raises(DataError, match="is not a whole tar"):
        load_image(path / "1.bin")
    assert not index_path(path).exists()


def test_a_tar_without_its_end_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", [("a.png", picture())])
    content = path.read_bytes()
    path.write_bytes(content[: 512 + -(-len(picture()) // 512) * 512])
    with pytest.raises(DataError, match="damaged or cut off after"):
        TarIndex(path)


@pytest.mark.parametrize("content", [b"", b"x" * 5000, pickle.dumps("x"), picture()])
def test_no_tar_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(DataError, match="is not a whole tar"):
        TarIndex(tmp_path / "x.tar")


def test_a_compressed_tar_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    with pytest.raises(DataError, match="without compression"):
        TarIndex(tmp_path / "x.tar")


def test_a_header_of_gigabytes_and_one_of_negative_size_are_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("a.png")
    member.pax_headers = {"comment": "x" * 2 * tar_index.MAX_HEADER_BYTES}
    path = write(tmp_path / "x.tar", [("a.png", member)], format=tarfile.PAX_FORMAT)
    with pytest.raises(DataError, match="a header of"):
        TarIndex(path)
    for size in (-512, -1024, -(2**40)):
        header = tarfile.TarInfo("a.png")
        header.size = 512
        block = bytearray(header.tobuf())
        block[124:136] = (256**12 + size).to_bytes(12, "big")
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        path.write_bytes(bytes(block) * 3 + bytes(10240))
        with pytest.raises(DataError, match="is not a whole tar"):
            TarIndex(path)


def test_the_index_is_made_again_when_it_or_the_tar_changed(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", [("a.png", picture(1))])
    before = TarIndex(path).find("a.png")
    good = index_path(path).read_bytes()
    rows = np.load(index_path(path))
    rows[-2] += 512  # an offset
    np.save(index_path(path), rows)
    assert TarIndex(path).find("a.png") == before
    assert index_path(path).read_bytes() == good
    for damage in (b"", good[:-8], good + b"12345678", pickle.dumps([1])):
        index_path(path).write_bytes(damage)
        assert TarIndex(path).find("a.png") == before
        assert index_path(path).read_bytes() == good
    write(path, [("b.png", picture(2)), ("a.png", picture(3))])
    os.utime(path, ns=(1, 1))
    assert stored(path / "a.png").read() == picture(3)
    assert load_image(path / "b.png").getpixel((0, 0)) == (80, 10, 90)


def test_where_no_index_can_be_written_it_is_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.tar", [("a.png", picture(1))])
    monkeypatch.setattr(tar_index.os, "access", lambda *_: False)
    assert stored(path / "a.png").read() == picture(1)
    assert not index_path(path).exists()


def test_a_damaged_tar_is_read_once_not_for_each_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.tar").write_bytes(b"x" * 5000)
    seen: list[Path] = []

    def counted(path: Path) -> TarIndex:
        seen.append(path)
        return TarIndex(path)

    monkeypatch.setattr(source, "TarIndex", counted)
    for name in ("a", "b", "c"):
        with pytest.raises(OSError, match="is not a whole tar"):
            stored(tmp_path / "x.tar" / name).read()
    assert len(seen) == 1


def test_more_tars_than_are_open_at_once(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.tar", [("a.bin", b"%d" % i)]) for i in range(source.OPEN_TARS + 5)]
    for _ in range(2):
        assert [stored(path / "a.bin").read() for path in paths] == [b"%d" % i for i in range(len(paths))]


def test_a_member_has_the_size_and_time_that_caches_compare(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", [("a.png", picture())])
    assert state_of(path / "a.png") == (len(picture()), path.stat().st_mtime_ns)
    assert state_of(path / "b.png") is None
    assert (exists(path / "a.png"), exists(path / "b.png")) == (True, False)


def test_a_manifest_that_moves_keeps_the_paths_into_tars(tmp_path: Path) -> None:
    write(tmp_path / "x.tar", [("b/a.jpg", picture(suffix="JPEG"))])
    record = Record("1", "./x.tar/b/a.jpg", "一")
    moved = relocated(record, tmp_path, tmp_path / "new")
    write_manifest(tmp_path / "new" / "m.jsonl", [moved])
    manifest = Manifest(tmp_path / "new" / "m.jsonl")
    assert (moved.image, moved.group) == ("../x.tar/b/a.jpg", "x.tar/b/a.jpg")
    assert image_size(manifest.image_path(manifest[0])) == (40, 30)
    assert load_image(manifest.image_path(manifest[0])).size == (40, 30)


def test_the_order_of_a_tar_and_its_places(tmp_path: Path) -> None:
    entries = [(f"{i}.bin", os.urandom(i * 300)) for i in range(5)]
    path = write(tmp_path / "x.tar", entries)
    content = path.read_bytes()
    assert [(m.name, content[m.offset : m.offset + m.size]) for m in members(path)] == entries
