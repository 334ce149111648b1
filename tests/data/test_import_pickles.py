"""Pickles are read without Python's unpickler: plain values of every protocol, and nothing that runs code."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from import_sources import refcoco, run
from spanbox.data.importers.pickles import read_plain_pickle
from spanbox.errors import DataError


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_plain_pickles_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    value = [{"a": [1, -300, 2**40, 1.5, None, True, "猫", ""], "b": {}}, [], "x" * 300, list(range(2000))]
    (tmp_path / "x.p").write_bytes(pickle.dumps(value, protocol))
    assert read_plain_pickle(tmp_path / "x.p") == value


def test_a_pickle_of_python_2(tmp_path: Path) -> None:
    (tmp_path / "x.p").write_bytes(b"(lp0\n(dp1\nS'raw'\np2\nS'caf\xe9'\np3\nsS'id'\np4\nI5\nsa.")
    assert read_plain_pickle(tmp_path / "x.p") == [{"raw": "café", "id": 5}]


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps((1, 2)),
        pickle.dumps({1}),
        pickle.dumps(frozenset({1})),
        pickle.dumps(bytearray(b"a")),
        pickle.dumps(Path("a")),
        b"\x80\x02]2.",  # an operation that copies a reference
        b"\x80\x02\x8a\xff.",
        b"cos\nsystem\n(S'touch executed'\ntR.",
        b"(ios\nsystem\n.",
        b"\x82\x01.",
        b"Pid\n.",
    ],
)
def test_pickles_of_anything_else_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.p").write_bytes(content)
    with pytest.raises(DataError, match="refused"):
        read_plain_pickle(tmp_path / "x.p")


def test_a_small_pickle_takes_little_memory(tmp_path: Path) -> None:
    """Python's own unpickler reserves 64 GB for these twelve bytes."""
    (tmp_path / "x.p").write_bytes(b"\x80\x02]r\xff\xff\xff\xff.")
    assert read_plain_pickle(tmp_path / "x.p") == []


class Executes:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize("content", [pickle.dumps(Executes()), pickle.dumps([Executes()], 2), b"\x80\x02c", b"", b"("])
def test_a_pickle_that_would_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    root = refcoco(tmp_path / "src", [])
    (root / "refs(unc).p").write_bytes(content)
    with pytest.raises(DataError, match="refused"):
        run("refcoco", root)
    assert not (tmp_path / "executed").exists()
