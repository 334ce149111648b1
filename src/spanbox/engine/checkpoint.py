"""Checkpoints: folders that hold all that is needed to load a model or to go on training.

    checkpoints/step-000500/   model.safetensors, config.yaml, architecture.json, preprocessing.json, tokenizer/,
                               trainer.pt
    checkpoints/best, last     links to the best by the run's metric, and the newest

A checkpoint is written aside and renamed into place: it is complete or not there.
"""

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spanbox.errors import CheckpointError
from spanbox.models.preprocessing import Preprocessing

STEP_FOLDER = "step-{:06d}"


@dataclass(frozen=True)
class CheckpointFiles:
    """What a checkpoint holds beside the state of training: fixed for a run."""

    config_yaml: str
    tokenizer: Any
    architecture: dict[str, Any]  # of both towers
    preprocessing: Preprocessing


class CheckpointStore:
    """The `checkpoints/` folder of a run.

    Args:
        folder: it is made when needed.
        files: written into every checkpoint.
        keep: how many step folders to keep, the newest; the best is kept besides.
    """

    def __init__(self, folder: Path, files: CheckpointFiles, keep: int) -> None:
        self.folder = folder
        self.files = files
        self.keep = keep

    def save(self, step: int, weights: dict[str, Tensor], trainer_state: dict[str, Any], *, best: bool) -> Path:
        """Write a checkpoint, point `last` (and `best`) at it, and remove what is more than `keep`."""
        target = self.folder / STEP_FOLDER.format(step)
        if target.resolve() != (self.folder / "last").resolve():  # or it is there already, and must never be missing
            self._write(target, weights, trainer_state)
        if best:
            self._point("best", target)
        self._point("last", target)
        self._remove_old()
        return target

    def _write(self, target: Path, weights: dict[str, Tensor], trainer_state: dict[str, Any]) -> None:
        aside = self.folder / f".{target.name}.partial"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        save_file(weights, aside / "model.safetensors")
        (aside / "config.yaml").write_text(self.files.config_yaml, encoding="utf-8")
        (aside / "architecture.json").write_text(json.dumps(self.files.architecture, indent=1), encoding="utf-8")
        (aside / "preprocessing.json").write_text(self.files.preprocessing.model_dump_json(indent=1), encoding="utf-8")
        self.files.tokenizer.save_pretrained(aside / "tokenizer")
        torch.save(trainer_state, aside / "trainer.pt")
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)

    def _point(self, name: str, target: Path) -> None:
        aside = self.folder / f".{name}.partial"
        aside.unlink(missing_ok=True)
        aside.symlink_to(target.name)
        aside.replace(self.folder / name)

    def _remove_old(self) -> None:
        steps = sorted(self.folder.glob("step-*"), key=lambda path: (len(path.name), path.name))  # by number
        linked = {(self.folder / name).resolve() for name in ("best", "last")}
        for old in steps[: -self.keep]:
            if old.resolve() not in linked:
                shutil.rmtree(old)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint folder that `path` means: itself, or the best (else the last) one of a run folder.

    Raises:
        CheckpointError: there is none.
    """
    candidates = (path, path / "checkpoints" / "best", path / "checkpoints" / "last")
    for folder in candidates:
        if all((folder / name).is_file() for name in ("model.safetensors", "architecture.json")):
            return folder.resolve()
    raise CheckpointError(
        f"{path}: no checkpoint here; expected a run folder or a folder with model.safetensors and architecture.json"
    )


def load_weights(folder: Path, model: nn.Module, objective: nn.Module) -> None:
    """Read the weights of a checkpoint into a model and an objective of the same architecture.

    Raises:
        CheckpointError: the file is damaged, or made by another architecture; the first differences are named.
    """
    path = folder / "model.safetensors"
    try:
        saved = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    own = named_weights(model, objective)
    differences = _differences(saved, own)
    if differences:
        listed = "\n".join(f"  {line}" for line in differences[:5])
        more = f"\n  and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise CheckpointError(
            f"{path}: holds a model of another architecture than the config asks for:\n{listed}{more}\n"
            "Use the config.yaml beside it, or another run.dir."
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])


def load_trainer_state(folder: Path) -> dict[str, Any]:
    """Optimiser, random state and step of a checkpoint. Nothing in the file is executed.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path = folder / "trainer.pt"
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, UnpicklingError) as error:
        raise CheckpointError(
            f"{path}: cannot be read, it is missing, damaged or no training state ({type(error).__name__}); to go on "
            "from an earlier step, point checkpoints/last at it"
        ) from None
    return state


def named_weights(model: nn.Module, objective: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint holds of a model and its objective, by name."""
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


RUN_FILES = (
    *("checkpoints", "neighbours", "evaluation", "tensorboard", "wandb"),
    *("log.jsonl", "trackers.json", "metrics.json", "environment.json", "report.html", "config.yaml"),
)
"""What a run writes into its folder."""


def remove_run(folder: Path, names: Iterable[str] = RUN_FILES) -> None:
    """Remove what an earlier run left in `folder`, and nothing else."""
    for path in (folder / name for name in names):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif os.path.lexists(path):
            path.unlink()
