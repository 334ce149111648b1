"""The hard neighbours of each pair of a manifest, on disk: what mining finds and the sampler draws from.

A file `NAME.npy` of numbers alone, and `NAME.npy.json` beside it, which says which manifest it belongs to and where it
comes from. Written last, it is also the sign that the other file is complete.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from spanbox.errors import DataError
from spanbox.settings import Settings

Neighbours = NDArray[np.int32]
"""(P, k): the places in the manifest of each pair's hard neighbours, hardest first, -1 where there are no more."""

By = Literal["sentences", "images", "spans", "regions", "coarse", "fine", "both"]

SearchName = Literal["exact", "approximate"]


class MiningSettings(Settings):
    """How hard neighbours are mined while a run goes on."""

    every: float | None = Field(
        None,
        gt=0,
        description="epochs between two minings with the current model; null: no mining",
    )
    count: int = Field(15, ge=1, description="neighbours of a pair")
    by: By = Field(
        "both",
        description="features that are the queries: sentences, images, spans, regions; coarse: the first two, fine: "
        "the others, both: all",
    )
    margin: float | None = Field(
        None,
        ge=0,
        le=1,
        description="leave out what is nearer than this share of the own positive, such as 0.95: it may be right",
    )
    search: SearchName = Field(
        "exact",
        description="exact: all pairs are compared; approximate: most of the nearest are found, sooner where there are "
        'hundreds of thousands (needs faiss: pip install "spanbox[faiss]")',
    )

    def steps(self, steps_per_epoch: int) -> int | None:
        """Steps between two minings; None: there is none."""
        return None if self.every is None else max(1, round(self.every * steps_per_epoch))


def save_neighbours(path: Path, neighbours: Neighbours, manifest: Path, origin: Mapping[str, object]) -> None:
    """Write the neighbours of all pairs of `manifest`; `origin`, what they were mined with, is kept beside them.

    Raises:
        DataError: `path` cannot be written.
    """
    check_writable(path)
    stat = manifest.stat()
    described = {
        "manifest": str(manifest),
        "manifest_size": stat.st_size,
        "manifest_mtime_ns": stat.st_mtime_ns,
        "pairs": len(neighbours),
        "k": neighbours.shape[1],
        **origin,
    }
    try:
        _description(path).unlink(missing_ok=True)
        with path.open("wb") as file:
            np.save(file, neighbours.astype(np.int32, copy=False), allow_pickle=False)
        _description(path).write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise _not_writable(path, error) from None


def remove_neighbours(path: Path) -> None:
    _description(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Make the folder of `path`, and see that a file can be made there: before long work rather than after it.

    Raises:
        DataError: it cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        raise _not_writable(path, error) from None


def load_neighbours(path: Path, manifest: Path, pairs: int) -> Neighbours:
    """The neighbours that were mined for this manifest of so many pairs.

    Raises:
        DataError: no such file, a damaged one, or one that was mined for another manifest or another state of it.
    """
    mine_again = f"mine anew: spanbox data mine CHECKPOINT {manifest} --out {path}"
    if not path.is_file():
        raise DataError(f"{path}: no such file of neighbours; make it: spanbox data mine CHECKPOINT {manifest}")
    try:
        described = json.loads(_description(path).read_text(encoding="utf-8"))
        size, mined_for = described["manifest_size"], described["manifest"]
        neighbours: Neighbours = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
        found = f"{type(error).__name__}: {error}"
        raise DataError(
            f"{path}: it or {_description(path).name} is missing or damaged ({found}); {mine_again}"
        ) from None
    if size != manifest.stat().st_size:
        raise DataError(
            f"{path}: was mined for {mined_for} when that had {size} bytes, but {manifest} has "
            f"{manifest.stat().st_size}; {mine_again}"
        )
    if neighbours.dtype != np.int32 or neighbours.ndim != 2 or len(neighbours) != pairs:
        raise DataError(
            f"{path}: expected int32 neighbours of {pairs} pairs, found {neighbours.dtype} of shape "
            f"{neighbours.shape}; {mine_again}"
        )
    lowest, highest = neighbours.min(initial=-1), neighbours.max(initial=-1)
    if lowest < -1 or highest >= pairs:
        raise DataError(f"{path}: holds places from {lowest} to {highest}, expected -1 to {pairs - 1}; {mine_again}")
    return neighbours


def _description(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _not_writable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be written ({error.strerror}); name another file")
