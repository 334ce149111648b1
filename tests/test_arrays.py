"""Array files that may be damaged or hostile: read as written, or refused before anything is allocated."""

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.lib import format as npy

from spanbox.arrays import DamagedArrayError, open_array

ROWS = np.arange(6, dtype=np.int64).reshape(3, 2)


def with_header(path: Path, header: str, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> Path:
    """A file with a header of this text."""
    length = len(header).to_bytes(2 if version == (1, 0) else 4, "little")
    path.write_bytes(npy.magic(*version) + length + header.encode("latin-1") + data)
    return path


@pytest.mark.parametrize("array", [ROWS, ROWS[:0], ROWS[:, :0], np.zeros((3, 10**6), np.int64)])
def test_read_as_written(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    opened = open_array(tmp_path / "a.npy", [np.int64], 2)
    assert opened.dtype == np.int64
    assert np.array_equal(opened, array)


def test_changes_stay_in_memory(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS)
    open_array(tmp_path / "a.npy", [np.int64], 2)[:] = 7
    assert np.array_equal(np.load(tmp_path / "a.npy"), ROWS)


@pytest.mark.parametrize(
    "array",
    [
        ROWS.astype(">i8"),
        ROWS.astype(np.float64),
        ROWS.astype(object),
        ROWS.astype([("a", "i8")]),
        ROWS.astype("S3"),
        ROWS[0],
        ROWS[None],
        np.asfortranarray(ROWS),
        np.int64(3),
    ],
)
def test_another_array(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(DamagedArrayError):
        open_array(tmp_path / "a.npy", [np.int64], 2)


@pytest.mark.slow
def test_every_cut_and_every_changed_byte_of_the_header(tmp_path: Path) -> None:
    """The same array, or refused: no other error, whatever the byte becomes."""
    path = tmp_path / "a.npy"
    np.save(path, ROWS)
    content = path.read_bytes()
    for place in range(len(content) - ROWS.nbytes):
        path.write_bytes(content[:place])
        with pytest.raises(DamagedArrayError):
            open_array(path, [np.int64], 2)
        for byte in b"(,'9 \x00\xff":
            path.write_bytes(content[:place] + bytes([byte]) + content[place + 1 :])
            with contextlib.suppress(DamagedArrayError):
                assert np.array_equal(open_array(path, [np.int64], 2), ROWS)


@pytest.mark.parametrize("shape", ["(999999999999999999, 2)", f"({'9' * 5000}, 2)", "(-3, 2)"])
def test_shapes_that_no_file_has(shape: str, tmp_path: Path) -> None:
    path = with_header(tmp_path / "a.npy", f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}\n")
    with pytest.raises(DamagedArrayError):
        open_array(path, [np.int64], 2)


@pytest.mark.parametrize("header", ["(" * 9000, "-" * 9000 + "1", "'\\d'", "{'descr': ", "x" * 20_000])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (9, 0)])
def test_headers_that_no_array_has(header: str, version: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(DamagedArrayError):
        open_array(with_header(tmp_path / "a.npy", header, version=version), [np.int64], 2)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npy")
    for path in (tmp_path, tmp_path / "none.npy", tmp_path / "pipe.npy"):
        with pytest.raises(OSError, match="no such file"):
            open_array(path, [np.int64], 2)
