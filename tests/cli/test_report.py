from pathlib import Path

import run_folders
from command import Command


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
