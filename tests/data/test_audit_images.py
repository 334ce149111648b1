"""The audit on files of images: missing, broken, in another spelling, and each decoded once."""

import json
import os
import shutil
from pathlib import Path

import pytest

from audited import found, image, manifest
from import_sources import write_tar
from spanbox.data.audit import audit
from spanbox.data.manifest import Record


def test_missing_and_broken_images(tmp_path: Path) -> None:
    name = image(tmp_path, "cut.png", size=(400, 300))
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-30])
    (tmp_path / "empty.png").write_bytes(b"")
    names = ["none.png", name, "empty.png", "", "x" * 300]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps({"id": str(i), "image": n, "text": "t"}) + "\n" for i, n in enumerate(names)))

    decoded = found(audit([path]))
    assert decoded["missing image"] == [(1, "none.png: no such file"), (5, f"{'x' * 300}: File name too long")]
    assert [line for line, _ in decoded["broken image"]] == [2, 3]
    assert decoded["broken image"][1] == (3, "empty.png: empty file")

    fast = found(audit([path], decode=False))
    assert fast["missing image"] == decoded["missing image"]
    assert [line for line, _ in fast["broken image"]] == [3]  # the header of the other one is whole


def test_an_image_is_decoded_once_for_all_its_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image(tmp_path, "a.png")
    read: list[Path] = []
    from spanbox.data import audit as module

    plain = module.decoded_facts
    monkeypatch.setattr(module, "decoded_facts", lambda path: (read.append(path), plain(path))[1])
    monkeypatch.setattr(module, "_LINES_AT_ONCE", 1)
    audit([manifest(tmp_path, *(Record(str(i), "a.png", "t") for i in range(20)))])
    assert len(read) == 1


def test_one_image_in_several_spellings_is_one_image_and_group(tmp_path: Path) -> None:
    image(tmp_path / "images", "a.png"), image(tmp_path / "images", "b.png", "blue")
    names = ("images/a.png", "./images/a.png", "images//a.png", "images/../images/a.png", "images/b.png")
    report = audit([manifest(tmp_path, *(Record(n, n, n) for n in names))])
    assert not report.findings
    assert report.total.images == report.total.groups == 2


@pytest.mark.parametrize(
    ("name", "actual", "difference"),
    [
        ("images/Cafe\u0301.png", "images/Caf\u00e9.png", "form of accents"),
        ("images/Caf\u00e9.png", "images/Cafe\u0301.png", "form of accents"),
        ("images\\c.png", "images/c.png", "slashes"),
        ("images/d.png", "Images/D.PNG", "case"),
        ("images/a%20b.png", "images/a b.png", "percent escapes"),
        ("images/a b.png", "images/a%20b.png", "percent escapes"),
        ("images/a b.png", "images/a\u00a0b.png", "spaces"),
        ("images/\uff21.png", "images/a.png", "case, width of letters"),
        ("images/\uff76\uff9e.png", "images/\u30ac.png", "width of letters"),
        ("images/x\u00b2.png", "images/x2.png", None),
        ("images/\u2460.png", "images/1.png", None),
        ("./images/x/../a.png ", "images/a.png", None),
        ("images/none.png", "images/a.png", None),
    ],
)
def test_a_name_in_another_spelling_is_named(tmp_path: Path, name: str, actual: str, difference: str | None) -> None:
    image((tmp_path / actual).parent, Path(actual).name)
    report = audit([manifest(tmp_path, Record("1", name, "t"))])
    ((_, detail),) = found(report)["missing image"]
    assert detail.startswith(f"{name}: no such file")
    if difference is None:
        assert detail == f"{name}: no such file"
    else:
        assert f"but the folder has {actual!r}, in another spelling (" in detail
        assert difference in detail


def test_a_name_in_another_spelling_is_found_in_a_tar(tmp_path: Path) -> None:
    image(tmp_path, "a.png")
    content = (tmp_path / "a.png").read_bytes()
    write_tar(tmp_path / "shards" / "0.tar", {"x/Cafe\u0301 1.PNG": content, "b.png": content, "B.png": content})
    names = ("Shards/0.tar/x\\Caf\u00e9%201.png", "shards/0.tar/B.PNG")
    report = audit([manifest(tmp_path, *(Record(name, name, name) for name in names))])
    (_, detail), (_, of_two) = found(report)["missing image"]
    assert "but the folder has 'shards/0.tar/x/Cafe\u0301 1.PNG', in another spelling (slashes, percent" in detail
    assert of_two == "shards/0.tar/B.PNG: no such file"


def test_a_git_lfs_pointer_and_a_pipe_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")
    os.mkfifo(tmp_path / "b.jpg")
    shutil.copy(tmp_path / "a.jpg", tmp_path / "0.tar")
    report = audit([manifest(tmp_path, *(Record(name, name, name) for name in ("a.jpg", "b.jpg", "0.tar/a.jpg")))])
    *images, (_, of_tar) = found(report)["broken image"]
    assert "is not a whole tar without compression (a Git LFS pointer, not the file itself; run git lfs" in of_tar
    assert images == [
        (1, "a.jpg: a Git LFS pointer, not the file itself; run git lfs pull"),
        (2, "b.jpg: is not a regular file"),
    ]
