"""The session of the explorer from runs and a manifest: models are loaded and the features of all pairs computed."""

from collections.abc import Sequence
from pathlib import Path

import spanbox
from spanbox.data.manifest import Manifest
from spanbox.explore.session import Searched, Session
from spanbox.wiring.embedding import embed, embed_to_disk, evaluation_dataset, features_folder


def open_session(paths: Sequence[Path], data: Path, device: str = "auto") -> Session:
    """A session of one or two models. Features of a run are kept as `spanbox evaluate` keeps them.

    Raises:
        CheckpointError, DataError: a model or the manifest cannot be opened.
    """
    manifest = Manifest(data, "drop")
    models = [_searched(path, name, manifest, device) for path, name in zip(paths, _names(paths), strict=True)]
    return Session(models, manifest)


def _searched(path: Path, name: str, manifest: Manifest, device: str) -> Searched:
    model = spanbox.load(path, device)
    dataset = evaluation_dataset(model, manifest)
    if (path / "checkpoints").is_dir():
        folder = features_folder(path / "evaluation", manifest.path)
        return Searched(name, model, embed_to_disk(model, dataset, folder, keep_states=True).bank)
    return Searched(name, model, embed(model, dataset, keep_states=True)[0])


def _names(paths: Sequence[Path]) -> list[str]:
    """Short names that differ from each other."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]
