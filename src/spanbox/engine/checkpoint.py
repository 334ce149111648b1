"""Checkpoints: folders with everything needed to load a model or to resume training.

    checkpoints/step-000500/   model.safetensors, config.yaml, architecture.json, preprocessing.json, tokenizer/,
                               trainer.pt, and validation.json if this step was validated
    checkpoints/best, last     pointers to the best by the run's metric, and the newest

A checkpoint is written under another name and renamed into place: it is complete or absent. A pointer is a link, or a
small file with the folder's name on file systems without links. A copy of a run may hold the checkpoint itself in its
place, or nothing: then the newest complete step folder counts.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spanbox.documents import refuse_special
from spanbox.engine.versions import format_and_version, other_version
from spanbox.errors import CheckpointError, OutputError
from spanbox.files import PARTIAL, remove_entry, write_text
from spanbox.models.preprocessing import Preprocessing

STEP_FOLDER = "step-{:06d}"
_STEP = re.compile("step-([0-9]{6,})")  # a copy under a longer name is the user's
MODEL_FILES = ("model.safetensors", "config.yaml", "architecture.json", "preprocessing.json", "tokenizer")
RESUME_FILES = (*MODEL_FILES, "trainer.pt")
VALIDATION = "validation.json"  # metrics of the validation of a checkpoint's step
LONGEST_NAME = 100  # bytes of a pointer file


@dataclass(frozen=True)
class CheckpointFiles:
    """The parts of a checkpoint that are fixed for a run."""

    config_yaml: str
    tokenizer: Any
    architecture: dict[str, Any]  # of both towers
    preprocessing: Preprocessing


class CheckpointStore:
    """The `checkpoints/` folder of a run.

    Args:
        folder: made when needed.
        files: written into every checkpoint.
        keep: number of step folders to keep, the newest; the best is kept besides.
    """

    def __init__(self, folder: Path, files: CheckpointFiles, keep: int) -> None:
        self.folder = folder
        self.files = files
        self.keep = keep

    def save(
        self,
        step: int,
        weights: dict[str, Tensor],
        trainer_state: dict[str, Any],
        *,
        best: bool,
        metrics: dict[str, float] | None = None,
    ) -> Path:
        """Write a checkpoint, point `last` (and `best`) at it, and remove all but the newest `keep`.

        Args:
            metrics: of the validation of this step, if there was one.

        Raises:
            OutputError: the disk is full or the folder cannot be written. Earlier checkpoints are intact.
        """
        target = self.folder / STEP_FOLDER.format(step)
        with _explained_saving(target):
            self._remove_leftovers()
            if target != last_checkpoint(self.folder):  # else it exists already, and must never be missing
                if _pointed_at(self.folder, "best") == target:  # of a run that went back to an earlier step
                    remove_entry(self.folder / "best")
                self._write(target, weights, trainer_state, metrics)
            if best:
                self._point("best", target)
            self._point("last", target)
            self._remove_old()
        return target

    def _write(
        self,
        target: Path,
        weights: dict[str, Tensor],
        trainer_state: dict[str, Any],
        metrics: dict[str, float] | None,
    ) -> None:
        aside = self.folder / f".{target.name}{PARTIAL}"
        aside.mkdir(parents=True)
        try:
            save_file(weights, aside / "model.safetensors")
            write_text(aside / "config.yaml", self.files.config_yaml)
            write_text(aside / "architecture.json", json.dumps(self._architecture(), indent=1))
            write_text(aside / "preprocessing.json", self.files.preprocessing.model_dump_json(indent=1))
            self.files.tokenizer.save_pretrained(aside / "tokenizer")
            if metrics is not None:
                write_text(aside / VALIDATION, json.dumps(metrics, indent=1))
            torch.save(trainer_state, aside / "trainer.pt")
            _flush_to_disk(aside)
            remove_entry(target)
            aside.rename(target)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise

    def _architecture(self) -> dict[str, Any]:
        return {**format_and_version(), **self.files.architecture}

    def _point(self, name: str, target: Path) -> None:
        """Make `name` point at a step folder of this folder."""
        aside = self.folder / f".{name}{PARTIAL}"
        try:
            aside.symlink_to(target.name)
        except OSError:  # a file system without links
            write_text(aside, target.name)
        pointer = self.folder / name
        if pointer.is_dir() and not pointer.is_symlink():  # a copy of a run that followed the links
            pointer.rename(self.folder / f".{name}-copy{PARTIAL}")
        aside.replace(pointer)
        remove_entry(self.folder / f".{name}-copy{PARTIAL}")

    def _remove_old(self) -> None:
        pointed = {_pointed_at(self.folder, name) for name in ("best", "last")}
        for old in [*step_folders(self.folder).values()][: -self.keep]:
            if old not in pointed:
                removed = self.folder / f".{old.name}{PARTIAL}"  # so that half of it never passes for a checkpoint
                old.rename(removed)
                shutil.rmtree(removed)

    def _remove_leftovers(self) -> None:
        """Remove the files of a save that was killed."""
        for path in self.folder.glob(f".*{PARTIAL}"):
            remove_entry(path)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint folder for `path`: itself, or the best (else the last, else the newest complete) one of a run.

    Raises:
        CheckpointError: there is none.
    """
    if path.is_file() and path.name in ("best", "last"):  # a pointer where links cannot be made
        path = _pointed_at(path.parent, path.name) or path
    if all((path / name).is_file() for name in ("model.safetensors", "architecture.json")):
        return path.resolve()
    checkpoints = path / "checkpoints"
    best = _pointed_at(checkpoints, "best")
    found = best or last_checkpoint(checkpoints)
    if found is None:
        raise CheckpointError(
            f"{path}: no checkpoint here; expected a run folder or a folder with {', '.join(MODEL_FILES)}"
        )
    report_fallback(checkpoints / "best", found)
    return found.resolve()


def report_fallback(pointer: Path, found: Path) -> None:
    """Print where `best` or `last` is there, but another checkpoint was found since it is incomplete or dangling."""
    if os.path.lexists(pointer) and _pointed_at(pointer.parent, pointer.name) != found:
        print(f"{pointer}: points at no complete checkpoint; {found.name} is used", file=sys.stderr)


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint to resume from in a `checkpoints/` folder: `last`, or the newest complete step folder.

    Without either it is `best`, which may be all that was copied.
    """
    pointed = _pointed_at(folder, "last")
    if pointed is not None and _is_complete(pointed, RESUME_FILES):
        return pointed
    complete = [path for path in step_folders(folder).values() if _is_complete(path, RESUME_FILES)]
    return complete[-1] if complete else pointed or _pointed_at(folder, "best")


def step_folders(folder: Path) -> dict[int, Path]:
    """The checkpoints of a `checkpoints/` folder by their steps, ascending; other folders in it are left alone."""
    names = ((_STEP.fullmatch(path.name), path) for path in folder.glob("step-*") if path.is_dir())
    return dict(sorted((int(found[1]), path) for found, path in names if found))


def _pointed_at(folder: Path, name: str) -> Path | None:
    """The checkpoint that `best` or `last` points at; None where the pointer is missing, dangling or damaged."""
    pointer = folder / name
    if pointer.is_symlink():
        target = folder / pointer.readlink().name
    elif pointer.is_file() and pointer.stat().st_size <= LONGEST_NAME:
        target = folder / Path(pointer.read_text(encoding="utf-8", errors="replace").strip() or name).name
    else:
        target = pointer
    return target if target.is_dir() and _is_complete(target, MODEL_FILES) else None


def _is_complete(folder: Path, names: tuple[str, ...]) -> bool:
    return all((folder / name).exists() for name in names)


def _flush_to_disk(folder: Path) -> None:
    """Flush a folder: network disks report a full disk only here, and a power failure must not leave empty files."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


@contextmanager
def _explained_saving(target: Path) -> Iterator[None]:
    """Context that turns the errors of three libraries on a full disk into one OutputError."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if "DataLoader worker" in str(error):  # PyTorch raises the death of a worker anywhere
            raise
        reason = getattr(error, "strerror", None) or str(error)
        has_earlier = last_checkpoint(target.parent) is not None
        remedy = "resume, earlier checkpoints are intact" if has_earlier else "start again with run.overwrite=true"
        raise OutputError(
            f"{target}: the checkpoint cannot be written ({reason}); free space or check the rights, then {remedy}"
        ) from None


def load_weights(folder: Path, model: nn.Module, objective: nn.Module) -> None:
    """Read the weights of a checkpoint into a model and an objective of the same architecture.

    Raises:
        CheckpointError: the file is damaged, or made by another architecture; the first differences are named.
    """
    copy_weights(
        read_weights(folder),
        named_weights(model, objective),
        f"{folder}/model.safetensors: holds a model of another architecture than the config asks for",
        f"Use the config.yaml beside it, or another run.dir.{other_version(folder)}",
    )


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint by name.

    Raises:
        CheckpointError: the file is missing or damaged, or holds numbers that are not finite.
    """
    path = folder / "model.safetensors"
    remedy = "copy the checkpoint again, or use that of another step"
    try:
        refuse_special(path)
        weights: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); {remedy}") from None
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            raise CheckpointError(f"{path}: {name} has numbers that are not finite; {remedy}")
    return weights


def copy_weights(saved: dict[str, Tensor], own: dict[str, Tensor], what: str, remedy: str) -> None:
    """Copy weights into tensors of the same names and shapes.

    Raises:
        CheckpointError: names or shapes differ; `what`, the first differences, and `remedy`.
    """
    differences = _differences(saved, own)
    if differences:
        listed = "\n".join(f"  {line}" for line in differences[:5])
        more = f"\n  and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise CheckpointError(f"{what}:\n{listed}{more}\n{remedy}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])


# The exceptions of torch's unpickler on damaged files.
_UNREADABLE = (
    *(OSError, EOFError, RuntimeError, UnpicklingError, ArithmeticError, AssertionError, AttributeError),
    *(LookupError, MemoryError, TypeError, ValueError),
)


def load_trainer_state(folder: Path) -> dict[str, Any]:
    """Optimiser, random state and step of a checkpoint. Nothing in the file is executed.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path = folder / "trainer.pt"
    try:
        refuse_special(path)
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = error if isinstance(error, OSError) else type(error).__name__
        raise CheckpointError(
            f"{path}: cannot be read, it is missing, damaged or no training state ({reason}); to go on "
            "from an earlier step, point checkpoints/last at it"
        ) from None
    return state


def named_weights(model: nn.Module, objective: nn.Module) -> dict[str, Tensor]:
    """The weights of a model and its objective by their names in a checkpoint."""
    named = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    named |= {f"objective.{name}": tensor for name, tensor in objective.state_dict().items()}
    return named


def _differences(saved: dict[str, Tensor], own: dict[str, Tensor]) -> list[str]:
    lines = [f"{name} is in the checkpoint only" for name in sorted(saved.keys() - own.keys())]
    lines += [f"{name} is in the model only" for name in sorted(own.keys() - saved.keys())]
    lines += [
        f"{name} is {tuple(saved[name].shape)} in the checkpoint and {tuple(own[name].shape)} in the model"
        for name in sorted(own.keys() & saved.keys())
        if saved[name].shape != own[name].shape
    ]
    return lines
