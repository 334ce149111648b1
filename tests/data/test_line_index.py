"""The index of a manifest: it is used, made again where it is damaged or old, and done without where it must be."""

import errno
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from manifest_files import LINE, written
from spanbox.data import manifest as manifest_module
from spanbox.data.line_index import HEADER
from spanbox.data.manifest import Manifest, manifest_lines
from spanbox.errors import DataError

LINES = [f'{{"id":"{i}","image":"a.jpg","text":"{"t" * i}"}}' for i in range(50)]


def index_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.index.npy")


def array_of(path: Path) -> np.ndarray:
    return np.load(index_of(path))


def test_the_second_opening_reads_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, LINE, LINE)
    Manifest(path)
    monkeypatch.setattr(manifest_module, "manifest_lines", lambda _: pytest.fail("the lines were read again"))
    assert len(Manifest(path)) == 2


def test_a_changed_manifest_is_read_again(tmp_path: Path) -> None:
    path = written(tmp_path, LINE)
    assert len(Manifest(path)) == 1
    written(tmp_path, LINE, LINE)
    assert len(Manifest(path)) == 2
    # The same size: only the time tells.
    path.write_text(f"{LINE}\n{LINE}\n".replace("cat", "dog"))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert Manifest(path)[1].text == "a red dog"


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"\x93NUMPY",
        lambda content: b"PK\x03\x04",
        lambda content: b"nonsense" * 100,
        lambda content: b"\x80\x04K\x01.",
        lambda content: content[:-80],
        lambda content: content[:-3],
        lambda content: content + bytes(8),
        lambda content: content.replace(b",", b"(", 1),  # the tokenizer of Python fails on it
        lambda content: content.replace(b"'shape': (", b"'shape': (9999999999999999999,", 1),
        lambda content: content.replace(b"<i8", b"|O ", 1),
        lambda content: content.replace(b"<i8", b"<f8", 1),
        lambda content: content.replace(b"False", b"True ", 1),
        *(lambda content, at=at: content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :] for at in range(130, 240)),
    ],
)
def test_a_damaged_index_is_made_again(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = written(tmp_path, *LINES)
    Manifest(path)
    whole = index_of(path).read_bytes()
    index_of(path).write_bytes(damage(whole))
    assert [record.id for record in Manifest(path)] == [str(i) for i in range(50)]
    assert index_of(path).read_bytes() == whole


@pytest.mark.parametrize(
    "change",
    [
        lambda offsets: offsets[::-1],
        lambda offsets: offsets + 1,  # not where lines begin
        lambda offsets: offsets * 1000,  # beyond the file
        lambda offsets: -offsets,
        lambda offsets: np.sort(np.append(offsets[:-1], offsets[1] + 2)),
        lambda offsets: offsets[[0, 1, 1, *range(3, len(offsets))]],
        lambda offsets: np.delete(offsets, 3),
        lambda offsets: offsets[:0],
    ],
)
def test_an_index_of_other_lines_is_made_again(tmp_path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    path = written(tmp_path, *LINES)
    Manifest(path)
    array = array_of(path)
    np.save(index_of(path), np.concatenate([array[:HEADER], change(array[HEADER:])]))
    assert [record.id for record in Manifest(path)] == [str(i) for i in range(50)]


@pytest.mark.parametrize("array", [np.zeros(0, dtype=np.int64), np.zeros((3, 3), dtype=np.int64), np.zeros(9)])
def test_an_index_of_another_kind_is_made_again(tmp_path: Path, array: np.ndarray) -> None:
    path = written(tmp_path, LINE)
    np.save(index_of(path), array)
    assert Manifest(path)[0].text == "a red cat"


def test_the_index_of_another_version_is_made_again(tmp_path: Path) -> None:
    path = written(tmp_path, LINE, LINE)
    stat = path.stat()
    np.save(index_of(path), np.array([1, stat.st_size, stat.st_mtime_ns, 0, 7, 9]))
    assert [record.text for record in Manifest(path)] == ["a red cat"] * 2
    assert array_of(path)[0] == 3


def test_a_folder_in_place_of_the_index(tmp_path: Path) -> None:
    path = written(tmp_path, LINE)
    index_of(path).mkdir()
    assert len(Manifest(path)) == 1


def test_an_index_that_cannot_be_written_is_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, *LINES)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    assert [record.id for record in Manifest(path)] == [str(i) for i in range(50)]
    assert [file.name for file in tmp_path.iterdir()] == ["m.jsonl"]


def test_a_manifest_that_shrinks_is_an_error_and_no_crash(tmp_path: Path) -> None:
    path = written(tmp_path, *[LINE] * 2000)
    manifest = Manifest(path)
    reopened = Manifest(path)  # its index is read from the file
    os.truncate(path, len(LINE) + 1)
    for each in (manifest, reopened):
        assert each[0].text == "a red cat"
        with pytest.raises(DataError, match=r"m\.jsonl: was cut off while it was in use; start again"):
            each[1999]
    os.truncate(index_of(path), 0)
    with pytest.raises(DataError, match=r"m\.jsonl: its index was changed while it was in use; start again"):
        reopened[0]


def test_a_manifest_that_vanishes_is_read_on(tmp_path: Path) -> None:
    path = written(tmp_path, *LINES)
    manifest = Manifest(path)
    path.unlink()
    index_of(path).unlink()
    assert manifest[49].id == "49"
    with pytest.raises(DataError, match="no such manifest"):
        pickle.loads(pickle.dumps(manifest))  # noqa: S301 - as a worker does


def test_a_manifest_that_grows_while_it_is_checked_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, *LINES)

    def appending(path: Path) -> Iterator[tuple[int, int, bytes]]:
        yield from manifest_lines(path)
        with path.open("a") as file:
            file.write(f"{LINE}\n")

    monkeypatch.setattr(manifest_module, "manifest_lines", appending)
    with pytest.raises(DataError, match="was changed while it was read; start again when it is complete"):
        Manifest(path)
    assert not index_of(path).exists()


def test_a_folder_that_cannot_be_written_needs_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, LINE)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert Manifest(path)[0].text == "a red cat"
    assert [file.name for file in tmp_path.iterdir()] == ["m.jsonl"]


def test_others_may_read_the_index(tmp_path: Path) -> None:
    path = written(tmp_path, LINE)
    Manifest(path)
    assert index_of(path).stat().st_mode & 0o777 == 0o644
