"""Run folders: an earlier run is recognised by any of its files, and never lost before the new one has a checkpoint."""

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from spanbox.engine import run_folder
from spanbox.engine.checkpoint import RESUME_FILES
from spanbox.engine.run_folder import (
    REPLACED,
    RUN_FILES,
    only_training,
    prepare_run_folder,
    refuse_earlier_run,
    refuse_running,
    settle_replaced,
)
from spanbox.errors import ConfigError, OutputError

FOLDERS = ("checkpoints", "neighbours", "evaluation", "tensorboard", "wandb")


def write_run(folder: Path, content: str) -> None:
    """A run with every file and one checkpoint, all of this content."""
    for name in RUN_FILES:
        if name in FOLDERS:
            (folder / name).mkdir(parents=True)
            (folder / name / "file").write_text(content)
        else:
            (folder / name).write_text(content)
    write_checkpoint(folder, content)


def write_checkpoint(folder: Path, content: str) -> None:
    step = folder / "checkpoints" / "step-000001"
    step.mkdir(parents=True)
    for name in RESUME_FILES:
        (step / name).write_text(content)


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", RUN_FILES)
def test_any_file_of_a_run_marks_its_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir() if name in FOLDERS else (tmp_path / name).touch()
    for refuse in (refuse_earlier_run, prepare_run_folder):
        with pytest.raises(ConfigError, match=rf"holds a run already \({name}\); replace it \(run\."):
            refuse(tmp_path, overwrite=False)
    assert (tmp_path / name).exists()


def test_other_files_are_no_run(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    prepare_run_folder(tmp_path, overwrite=False)
    assert content(tmp_path) == {"notes.txt": "mine"}


def test_the_earlier_run_goes_when_the_new_one_has_a_checkpoint(tmp_path: Path) -> None:
    write_run(tmp_path, "old")
    (tmp_path / "notes.txt").write_text("mine")
    prepare_run_folder(tmp_path, overwrite=True)
    assert content(tmp_path / REPLACED)["log.jsonl"] == "old"
    assert not (tmp_path / "log.jsonl").exists()
    (tmp_path / "log.jsonl").write_text("new")
    write_checkpoint(tmp_path, "new")
    settle_replaced(tmp_path)
    assert set(content(tmp_path).values()) == {"new", "mine"}


def test_a_new_run_without_a_checkpoint_gives_way_to_the_earlier_one(tmp_path: Path) -> None:
    write_run(tmp_path, "old")
    before = content(tmp_path)
    prepare_run_folder(tmp_path, overwrite=True)
    (tmp_path / "config.yaml").write_text("new")
    (tmp_path / "checkpoints").mkdir()
    settle_replaced(tmp_path)
    assert content(tmp_path) == before


def test_two_replacements_without_a_checkpoint_keep_the_first_run(tmp_path: Path) -> None:
    write_run(tmp_path, "old")
    for _ in range(2):  # each was killed before its first checkpoint
        prepare_run_folder(tmp_path, overwrite=True)
        (tmp_path / "log.jsonl").write_text("new")
    settle_replaced(tmp_path)
    assert content(tmp_path)["log.jsonl"] == "old"


@pytest.mark.slow
@pytest.mark.parametrize("moves", range(1, 2 * len(RUN_FILES)))
def test_a_crash_at_any_move_loses_nothing(moves: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while the old run is moved away or put back; then settled by the next start."""
    write_run(tmp_path, "old")
    before = content(tmp_path)
    rename, done = Path.rename, 0

    def crash(self: Path, target: Path) -> Path:
        nonlocal done
        done += 1
        if done > moves:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crash)
        with pytest.raises(KeyboardInterrupt):
            prepare_and_settle(tmp_path)
    settle_replaced(tmp_path)
    assert content(tmp_path) == before


def prepare_and_settle(folder: Path) -> None:
    prepare_run_folder(folder, overwrite=True)
    settle_replaced(folder)


def test_a_link_is_moved_and_not_what_it_points_at(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    write_run(run, "old")
    shutil.move(run / "checkpoints", elsewhere)
    (run / "checkpoints").symlink_to(elsewhere)
    prepare_run_folder(run, overwrite=True)
    write_checkpoint(run, "new")
    settle_replaced(run)
    assert not (run / "checkpoints").is_symlink()
    assert (elsewhere / "step-000001" / "trainer.pt").read_text() == "old"


def test_nothing_there(tmp_path: Path) -> None:
    settle_replaced(tmp_path / "never")
    refuse_earlier_run(tmp_path / "never", overwrite=False)
    prepare_run_folder(tmp_path / "new", overwrite=True)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        prepare_run_folder(tmp_path / "file" / "run", overwrite=False)


class TestOneTrainingAtATime:
    def test_a_second_one_is_refused_while_the_first_runs(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(run_folder, "LAST_SECONDS", 0.1)
        with only_training(tmp_path):
            with pytest.raises(ConfigError, match="another training runs in this folder; wait for its end, stop it"):
                refuse_running(tmp_path)
            with pytest.raises(ConfigError, match="another training runs"), only_training(tmp_path):
                pass
        refuse_running(tmp_path)
        with only_training(tmp_path):
            pass

    def test_a_lock_that_nobody_holds_is_no_training(self, tmp_path: Path) -> None:
        (tmp_path / run_folder.LOCK).touch()
        refuse_running(tmp_path)

    def test_asking_leaves_no_file(self, tmp_path: Path) -> None:
        refuse_running(tmp_path)
        refuse_running(tmp_path / "never")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("error", run_folder.NO_LOCKS)
    def test_a_file_system_without_locks(
        self, error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
    ) -> None:
        """Nothing is checked there, nothing is said, and no file stands for a lock after its process is gone."""

        def refused(file: int, operation: int) -> None:
            raise OSError(error, os.strerror(error))

        monkeypatch.setattr(fcntl, "flock", refused)
        with only_training(tmp_path), only_training(tmp_path):
            refuse_running(tmp_path)
        assert content(tmp_path) in ({}, {run_folder.LOCK: ""})
        assert not recwarn.list

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match="cannot be written"), only_training(tmp_path / "file" / "run"):
            pass
