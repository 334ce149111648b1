"""The folder of a run: how it is recognised, how a new run replaces an earlier one without losing it too soon, and that
one training at a time writes into it.

runs/NAME/             the files of a run, see RUN_FILES; others in the folder are left alone
runs/NAME/.replaced/   the earlier run that `run.overwrite` replaces, until the new one has its first checkpoint
runs/NAME/.lock        locked by the training that runs in the folder
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOLCK, ENOSYS, ENOTSUP, EOPNOTSUPP
from pathlib import Path

from filelock import FileLock, Timeout

from spanbox.engine.checkpoint import last_checkpoint
from spanbox.errors import ConfigError
from spanbox.files import LOCK, check_writable_folder, explained, remove_entry

RUN_FILES = (
    *("checkpoints", "neighbours", "evaluation", "tensorboard", "wandb"),
    *("log.jsonl", "trackers.json", "metrics.json", "environment.json", "report.html", "config.yaml"),
)
"""What a run writes into its folder. The checkpoints come first: a run that is moved away loses them first, a run that
is put back gets them last, so that a crash in between is noticed."""

REPLACED = ".replaced"
NO_LOCKS = (ENOSYS, ENOLCK, ENOTSUP, EOPNOTSUPP)
"""Errors of file systems without locks, such as Lustre and NFS without their lock service."""

LAST_SECONDS = 15.0
"""The loader processes of a killed training see its end, and let go of its lock, within some seconds."""


@contextmanager
def only_training(run_dir: Path) -> Iterator[None]:
    """Context in which no other training writes into a folder, which is made. The lock ends with the process.

    On file systems without locks nothing is checked.

    Raises:
        ConfigError: another training runs there.
        OutputError: the folder cannot be written.
    """
    lock = FileLock(run_dir / LOCK, fallback_to_soft=False)  # a file as a lock would outlive a killed process
    with explained(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=LAST_SECONDS)
        except Timeout:  # an OSError too
            raise ConfigError(
                f"{run_dir}: another training runs in this folder; wait for its end, stop it, or choose another run.dir"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
    try:
        yield
    finally:
        lock.release()


def refuse_running(run_dir: Path) -> None:
    """Raises ConfigError if a training runs in the folder."""
    if (run_dir / LOCK).exists():
        with only_training(run_dir):
            pass


def prepare_run_folder(run_dir: Path, *, overwrite: bool) -> None:
    """Make room for a new run. An earlier one is moved to `.replaced/`, and only where `overwrite` is set.

    Raises:
        ConfigError: the folder holds a run.
        OutputError: it cannot be written.
    """
    check_writable_folder(run_dir)
    settle_replaced(run_dir)
    refuse_earlier_run(run_dir, overwrite=overwrite)
    with explained(run_dir):
        for name in files_of_run(run_dir):
            (run_dir / REPLACED).mkdir(exist_ok=True)
            (run_dir / name).rename(run_dir / REPLACED / name)


def refuse_earlier_run(run_dir: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds anything of a run, unless `overwrite` is set. Changes nothing.

    Raises:
        ConfigError: the folder holds a run; the message has the remedies.
    """
    found = files_of_run(run_dir)
    if found and not overwrite:
        can_resume = last_checkpoint(run_dir / "checkpoints") is not None
        raise ConfigError(
            f"{run_dir}: holds a run already ({', '.join(found)}); {'resume it (--resume), ' if can_resume else ''}"
            "replace it (run.overwrite=true), or choose another run.dir"
        )


def settle_replaced(run_dir: Path) -> bool:
    """Remove the replaced run if the new one has a checkpoint; else put it back in the place of the new one.

    Returns whether it was put back.

    Raises:
        OutputError: the folder cannot be written.
    """
    replaced = run_dir / REPLACED
    if not replaced.is_dir():
        return False
    with explained(run_dir):
        put_back = files_of_run(replaced) if last_checkpoint(run_dir / "checkpoints") is None else []
        for name in reversed(put_back):
            remove_entry(run_dir / name)
            (replaced / name).rename(run_dir / name)
        shutil.rmtree(replaced)
    return bool(put_back)


def files_of_run(folder: Path) -> list[str]:
    """The names of those RUN_FILES that are in a folder."""
    return [name for name in RUN_FILES if os.path.lexists(folder / name)]
