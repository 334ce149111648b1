"""The hard neighbours of each pair of a manifest, on disk: mining writes them, the sampler draws from them.

An array `NAME.npy`, and `NAME.npy.json` beside it, with a digest of the manifest and the settings of the mining. The
description is written last, so that its presence means that the array is complete.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from spanbox.arrays import DamagedArrayError, open_array
from spanbox.errors import DataError
from spanbox.files import check_writable_file, explained, replacing, write_json
from spanbox.settings import Settings

Neighbours = NDArray[np.int32]
"""(P, k): the places in the manifest of each pair's hard neighbours, hardest first, -1 where there are no more."""

By = Literal["sentences", "images", "spans", "regions", "coarse", "fine", "both"]

SearchName = Literal["exact", "approximate"]

LARGEST_DESCRIPTION = 2**20
"""Bytes of a description that are read."""


class MiningSettings(Settings):
    """Mining of hard neighbours during a run."""

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
        description="skip negatives above this fraction of the positive's similarity, such as 0.95: they may be right",
    )
    search: SearchName = Field(
        "exact",
        description="exact: all pairs are compared; approximate: finds most of the nearest, in less time where there "
        'are hundreds of thousands of pairs (needs faiss: pip install "spanbox[faiss]")',
    )

    def steps(self, steps_per_epoch: int) -> int | None:
        """Steps between two minings; None: no mining."""
        return None if self.every is None else max(1, round(self.every * steps_per_epoch))


class _Description(msgspec.Struct):
    """The file beside the neighbours, as far as loading needs it."""

    manifest: str
    manifest_digest: str


def save_neighbours(path: Path, neighbours: Neighbours, manifest: Path, origin: Mapping[str, object]) -> None:
    """Write the neighbours of all pairs of `manifest`, and beside them `origin`, the settings of the mining.

    Raises:
        OutputError: `path` cannot be written.
    """
    described = {
        "manifest": str(manifest),
        "manifest_digest": manifest_digest(manifest),
        "pairs": len(neighbours),
        "k": neighbours.shape[1],
        **origin,
    }
    with explained(path):
        _description(path).unlink(missing_ok=True)  # it must not describe other neighbours, whatever happens next
    with replacing(path) as file:
        np.save(file, neighbours.astype(np.int32, copy=False), allow_pickle=False)
    write_json(_description(path), described)


def remove_neighbours(path: Path) -> None:
    _description(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Check that the neighbours can be written to `path`, before long work. Raises OutputError."""
    check_writable_file(path, ".npy")
    check_writable_file(_description(path), ".json")


def manifest_digest(manifest: Path) -> str:
    """A digest of a manifest's content: neighbours are places in it, so its lines and their order count."""
    with manifest.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def load_neighbours(path: Path, manifest: Path, pairs: int) -> Neighbours:
    """The neighbours that were mined for this manifest of so many pairs.

    Raises:
        DataError: no such file, a damaged one, or one that was mined for another manifest or another state of it.
    """
    command = f"spanbox data mine CHECKPOINT {manifest} --out {path}"
    mine_again = f"mine again: {command}"
    if not path.is_file():
        raise DataError(f"{path}: no such file of neighbours; make it: {command}")
    try:
        described = _read_description(_description(path))
        neighbours: Neighbours = open_array(path, [np.int32], 2)
    except DamagedArrayError as error:
        raise DataError(f"{path}: expected the int32 neighbours of {pairs} pairs ({error}); {mine_again}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{_description(path)}: is missing or damaged ({error}); {mine_again}") from None
    if described.manifest_digest != manifest_digest(manifest):
        raise DataError(
            f"{path}: was mined for {described.manifest}, and {manifest} has other lines or another order; {mine_again}"
        )
    if len(neighbours) != pairs:
        raise DataError(
            f"{path}: holds neighbours of {len(neighbours)} pairs, and the run trains on {pairs} of {manifest}. Set "
            "data.subset as it was when they were mined, null for `spanbox data mine`; or write fewer pairs as a "
            "separate manifest (spanbox data sample) and mine that"
        )
    lowest, highest = neighbours.min(initial=-1), neighbours.max(initial=-1)
    if lowest < -1 or highest >= pairs:
        raise DataError(f"{path}: holds places from {lowest} to {highest}, expected -1 to {pairs - 1}; {mine_again}")
    return neighbours


def _read_description(path: Path) -> _Description:
    """Raises OSError or ValueError."""
    if not path.is_file():
        raise FileNotFoundError("no such file")
    if path.stat().st_size > LARGEST_DESCRIPTION:
        raise ValueError(f"larger than {LARGEST_DESCRIPTION} bytes")
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Description)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from None


def _description(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
