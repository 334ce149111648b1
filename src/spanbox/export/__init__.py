"""A trained model in the form that other libraries open, without spanbox.

    transformers             both towers, the layers after them, and the pair as a VisionTextDualEncoderModel
    sentence-transformers    the sentence encoder
    onnx                     both towers with their layers

Each target is a folder with a model card. open_clip is not a target: its image encoders are other networks, and its
projections have no bias.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from spanbox.api import Model
from spanbox.errors import OutputError
from spanbox.export.card import model_card
from spanbox.export.onnx_files import write_onnx
from spanbox.export.sentence_transformers_folder import write_sentence_transformers
from spanbox.export.transformers_folders import write_transformers
from spanbox.files import PARTIAL, check_writable_folder, explained, write_text
from spanbox.models.pretrained import quiet

Target = Literal["transformers", "onnx", "sentence-transformers"]
WRITERS: dict[Target, Callable[[Model, Path], list[str]]] = {
    "transformers": write_transformers,
    "onnx": write_onnx,
    "sentence-transformers": write_sentence_transformers,
}
LEVELS: dict[Target, tuple[Literal["coarse", "fine"], ...]] = {
    "transformers": ("coarse", "fine"),
    "onnx": ("coarse", "fine"),
    "sentence-transformers": ("coarse",),
}
"""Levels whose features a target has."""
FUSION_NOTE = "Without the fusion: fused scores of pairs take `spanbox.load` and its `pair_scores`."


def export_model(model: Model, target: Target, out: Path, licence: str | None = None) -> list[str]:
    """Write a model as a new folder, whole or not at all.

    Args:
        model: from `spanbox.load`.
        target: library that will open it.
        out: the folder; it must not exist, or be empty.
        licence: identifier for the model card, such as `apache-2.0`.

    Returns:
        Notes on limitations, such as a part that the target cannot hold; the model card has them too.

    Raises:
        OutputError: the folder is not empty or cannot be written.
        ConfigError: the target cannot represent this model, or needs a package that is not installed.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out}: exists already and is not empty; name another folder, or remove it")
    is_there = out.is_dir()  # then it is filled, since a mount point, a link or the working folder cannot be replaced
    parent = out if is_there else out.parent
    check_writable_folder(parent)
    with explained(out), quiet(), TemporaryDirectory(PARTIAL, f".{out.name}-", parent) as aside:
        folder = Path(aside) / "exported"
        folder.mkdir()
        notes = [*WRITERS[target](model, folder), *([FUSION_NOTE] if model.model.fusion is not None else [])]
        notes += filter(None, (model.untrained(level) for level in LEVELS[target]))
        write_text(folder / "README.md", model_card(model, target, folder, notes, licence))
        if is_there:
            for path in folder.iterdir():
                path.replace(out / path.name)
        else:
            folder.replace(out)
    return notes
