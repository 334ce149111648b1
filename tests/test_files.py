"""Output files: whole or not at all, and failures as one plain error."""

import os
import stat
from pathlib import Path

import pytest

from full_disk import full_disk
from spanbox.errors import OutputError
from spanbox.files import check_writable_file, check_writable_folder, replacing, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with replacing(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert names(path.parent) == ["a.txt"]


def test_a_failing_block_keeps_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail_midway() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise ValueError("reason")

    with pytest.raises(ValueError, match="reason"):
        fail_midway()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_full_disk_is_an_error_with_path_and_reason_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with full_disk(1000), pytest.raises(OutputError, match=r"a\.txt: cannot be written \(.+\); free space"):
        write_text(path, "x" * 5000)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_in_the_way_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        write_text(tmp_path, "text")
    with pytest.raises(OutputError, match="is a folder"):
        check_writable_file(tmp_path)
    assert names(tmp_path) == []


def test_a_parent_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for use in (lambda path: write_text(path, "text"), check_writable_file, check_writable_folder):
        with pytest.raises(OutputError, match="cannot be written"):
            use(tmp_path / "file" / "below")


def test_a_name_longer_than_the_system_allows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_text(tmp_path / ("x" * 300), "text")
    assert names(tmp_path) == []


def test_checking_makes_the_folder_and_leaves_files_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    check_writable_file(path)
    assert names(path.parent) == []
    path.write_text("old")
    check_writable_file(path)
    assert path.read_text() == "old"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot be written"):
        check_writable_file(tmp_path / "a.txt")


def test_lone_surrogates_become_question_marks(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "中文 \ud800")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "中文 ?"


def test_files_have_the_mode_of_a_new_file(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    write_text(tmp_path / "a.txt", "text")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual", "a.txt")}
    assert len(modes) == 1


def test_only_a_file_of_its_own_kind_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("data")
    with pytest.raises(OutputError, match=r"train\.jsonl: exists and is not a \.html file, so it is not replaced"):
        check_writable_file(tmp_path / "train.jsonl", ".html")
    assert (tmp_path / "train.jsonl").read_text() == "data"
    (tmp_path / "page.html").write_text("old")
    check_writable_file(tmp_path / "page.html", ".html")
    check_writable_file(tmp_path / "new", ".html")
