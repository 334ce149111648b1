import errno
import os
from pathlib import Path

import pytest

import run_folders
from command import Command
from spanbox.report import page


def test_the_page_lies_in_the_run_folder(spanbox: Command, tmp_path: Path) -> None:
    folder = run_folders.write_run(tmp_path / "run", manifest=run_folders.write_data(tmp_path / "data"))
    result = spanbox("report", str(folder), "--figures", str(tmp_path / "figures"))
    assert result.code == 0, result.err
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert str(folder / "report.html") in result.out.replace("\n", "")
    assert {path.suffix for path in (tmp_path / "figures").iterdir()} == {".png", ".svg"}


def test_several_runs_in_chinese(spanbox: Command, tmp_path: Path) -> None:
    folders = [str(run_folders.write_run(tmp_path / name)) for name in ("a", "b")]
    result = spanbox("report", *folders, "--lang", "zh", "--out", str(tmp_path / "new" / "page.html"))
    assert result.code == 0, result.err
    assert "报告：a、b" in (tmp_path / "new" / "page.html").read_text(encoding="utf-8")


def test_what_is_no_run_is_refused(spanbox: Command, tmp_path: Path) -> None:
    result = spanbox("report", str(tmp_path))
    assert result.code == 2
    assert "spanbox train" in result.err


@pytest.mark.parametrize("place", ["file/r.html", "folder", "file/new/r.html"])
@pytest.mark.parametrize("option", ["--out", "--figures"])
def test_what_cannot_be_written_is_refused_before_the_work(
    spanbox: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, option: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    if (option, place) == ("--figures", "folder"):
        place = "file"
    monkeypatch.setattr(page, "make_report", lambda *arguments: pytest.fail("it was made"))
    result = spanbox("report", str(run_folders.write_run(tmp_path / "run")), option, str(tmp_path / place))
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert "cannot be written" in result.err


def test_a_full_disk_leaves_the_page_of_before(
    spanbox: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_folders.write_run(tmp_path / "run")
    (folder / "report.html").write_text("before")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = spanbox("report", str(folder))
    assert result.code == 2
    assert "No space left on device" in result.err
    assert (folder / "report.html").read_text() == "before"
    assert not list(folder.glob(".*"))


def test_damaged_files_are_named_in_the_terminal(spanbox: Command, tmp_path: Path) -> None:
    folder = run_folders.write_run(tmp_path / "run")
    (folder / "metrics.json").write_text("{")
    result = spanbox("report", str(folder))
    assert result.code == 0
    assert "metrics.json" in result.out


def test_a_manifest_that_is_not_there(spanbox: Command, tmp_path: Path) -> None:
    result = spanbox("report", str(run_folders.write_run(tmp_path / "run")), "--data", str(tmp_path / "no.jsonl"))
    assert result.code == 2
    assert "no such manifest" in result.err
