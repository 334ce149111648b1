"""Neighbours on disk: read as they were written, and refused when they belong to something else."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pairs import save_manifest
from spanbox.data.manifest import Manifest, Record, write_manifest
from spanbox.data.neighbours import Neighbours, check_writable, load_neighbours, manifest_digest, save_neighbours
from spanbox.errors import DataError, OutputError

NEIGHBOURS = np.array([[1, 2], [0, -1], [-1, -1]], dtype=np.int32)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    texts = ["a red umbrella", "雨中的红伞", "加菲猫 and Odie"]
    records = [Record(id=str(i), image=f"{i}.png", text=text) for i, text in enumerate(texts)]
    return save_manifest(tmp_path, records, images=False)


@pytest.fixture
def saved(manifest: Manifest, tmp_path: Path) -> Path:
    path = tmp_path / "邻居" / "neighbours.npy"
    save_neighbours(path, NEIGHBOURS, manifest.path, {"checkpoint": "runs/first/checkpoints/best", "by": "both"})
    return path


def load(path: Path, manifest: Manifest) -> Neighbours:
    return load_neighbours(path, manifest.path, len(manifest))


def test_read_as_written(saved: Path, manifest: Manifest) -> None:
    loaded = load(saved, manifest)
    assert loaded.dtype == np.int32
    assert np.array_equal(loaded, NEIGHBOURS)
    described = json.loads(saved.with_name("neighbours.npy.json").read_text(encoding="utf-8"))
    assert described == {
        "manifest": str(manifest.path),
        "manifest_digest": manifest_digest(manifest.path),
        "pairs": 3,
        "k": 2,
        "checkpoint": "runs/first/checkpoints/best",
        "by": "both",
    }


def test_a_copy_of_the_manifest_is_the_manifest(saved: Path, manifest: Manifest, tmp_path: Path) -> None:
    copied = Manifest(shutil.copyfile(manifest.path, tmp_path / "copy.jsonl"))
    assert np.array_equal(load(saved, copied), NEIGHBOURS)


def test_lists_of_no_length(manifest: Manifest, tmp_path: Path) -> None:
    save_neighbours(tmp_path / "none.npy", NEIGHBOURS[:, :0], manifest.path, {})
    assert load(tmp_path / "none.npy", manifest).shape == (3, 0)


def test_a_missing_file(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file of neighbours; make it: spanbox data mine .* --out .*none\.npy"):
        load(tmp_path / "none.npy", manifest)


def test_a_part_of_the_manifest(saved: Path, manifest: Manifest) -> None:
    """To mine the same manifest again would not help."""
    with pytest.raises(DataError, match=r"of 3 pairs, and the run trains on 2 of .*Set data\.subset as it was"):
        load_neighbours(saved, manifest.path, 2)


def test_a_manifest_that_has_changed(saved: Path, manifest: Manifest) -> None:
    with manifest.path.open("ab") as file:
        file.write(b"\n")
    with pytest.raises(DataError, match=r"was mined for .*pairs\.jsonl, and .* has other lines.*mine again"):
        load(saved, manifest)


def test_a_manifest_in_another_order(saved: Path, manifest: Manifest, tmp_path: Path) -> None:
    """Of the same size, with the same pairs: every neighbour would be another pair."""
    write_manifest(manifest.path, list(manifest)[::-1])
    reordered = Manifest(manifest.path)
    assert [record.id for record in reordered] == ["2", "1", "0"]
    with pytest.raises(DataError, match=r"has other lines or another order; mine again: spanbox data mine CHECKPOINT"):
        load(saved, reordered)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY damaged", b"not an array"])
def test_a_damaged_file(saved: Path, manifest: Manifest, content: bytes) -> None:
    saved.write_bytes(content)
    with pytest.raises(DataError, match=r"neighbours\.npy: expected the int32 neighbours of 3 pairs .*mine again"):
        load(saved, manifest)


def test_a_pickle_is_not_opened(saved: Path, manifest: Manifest) -> None:
    np.save(saved, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"expected the int32 neighbours"):
        load(saved, manifest)


def test_a_huge_shape(saved: Path, manifest: Manifest) -> None:
    """Nothing is allocated for it."""
    content = saved.read_bytes()
    saved.write_bytes(content.replace(b"(3, 2), }" + b" " * 12, b"(3000000000000, 2), }"))
    assert saved.stat().st_size == len(content)
    with pytest.raises(DataError, match=r"shape \(3000000000000, 2\) of int32 takes \d+ bytes, the file has 152"):
        load(saved, manifest)


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "[]",
        "{}",
        '{"manifest": "a.jsonl"}',
        "[" * 10**5,
        '{"manifest": 3, "manifest_digest": 4}',
        " " * 2**21,
    ],
)
def test_a_description_that_is_missing_or_damaged(saved: Path, manifest: Manifest, content: str | None) -> None:
    description = saved.with_name("neighbours.npy.json")
    if content is None:
        description.unlink()
    else:
        description.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"neighbours\.npy\.json: is missing or damaged .*mine again"):
        load(saved, manifest)


@pytest.mark.parametrize(
    ("array", "fault"),
    [
        (NEIGHBOURS[:2], r"neighbours of 2 pairs, and the run trains on 3"),
        (NEIGHBOURS[0], r"expected 2 dimensions, found shape \(2,\)"),
        (NEIGHBOURS.astype(np.float32), "expected int32, found float32"),
        (NEIGHBOURS + 1, "places from -1 to 3, expected -1 to 2"),
        (NEIGHBOURS - 1, "places from -2 to 1, expected -1 to 2"),
    ],
)
def test_an_array_of_something_else(saved: Path, manifest: Manifest, array: np.ndarray, fault: str) -> None:
    np.save(saved, array)
    with pytest.raises(DataError, match=fault):
        load(saved, manifest)


def test_a_place_that_cannot_be_written(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "neighbours.npy"):
        with pytest.raises(OutputError, match="cannot be written"):
            check_writable(path)
        with pytest.raises(OutputError, match="cannot be written"):
            save_neighbours(path, NEIGHBOURS, manifest.path, {})
