"""A file of features as an index: the nearest items to a query.

The search is exact: every feature is compared, block by block. `approximate` uses an inverted file of faiss, for
millions of items.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from spanbox.arrays import DamagedArrayError, open_array
from spanbox.errors import DataError
from spanbox.evaluation.approximate import import_faiss
from spanbox.search.embedding import META, import_pyarrow, items_file, parquet_schema
from spanbox.search.sources import COLUMNS, Kind

BLOCK = 2**17
"""Items compared at a time."""
CELLS_PER_ROOT = 4
PROBED = 1 / 16
"""Cells of the inverted file per square root of the number of items, and the share of them that a query compares."""
TRAINED_ON = 64
"""Features per cell that the cells are learned from."""
_SEARCHING = Lock()
"""Held by an exact search, which uses all cores: many at once would wait for each other's threads for seconds."""


class Hit(NamedTuple):
    """An item near a query."""

    row: int
    score: float
    values: dict[str, Any]  # its columns


@dataclass(frozen=True)
class Index:
    """Features (N, D) of unit length, and the columns of their items."""

    path: Path
    kind: Kind
    folder: Path  # that images are relative to
    checkpoint: Path
    weights: str  # digest of those that made the features
    features: NDArray[np.float32]
    columns: Sequence[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.features)

    def image_of(self, hit: Hit) -> Path | None:
        """The image of an item; None where it has none."""
        name = hit.values.get("image")
        return None if name is None else self.folder / name

    def nearest(self, query: NDArray[np.float32], count: int, *, approximate: bool = False) -> list[Hit]:
        """The `count` items most similar to a query (D,), best first; of equal ones the first.

        Args:
            query: a feature.
            count: number of items, at most.
            approximate: search in an inverted file of faiss, which the first call builds in memory.

        Raises:
            ConfigError: approximate without faiss.
            DataError: some features are not finite.
        """
        if not len(self):
            return []
        if approximate:
            scores, rows = self._approximately(query, min(count, len(self)))
        else:
            with _SEARCHING:
                scores, rows = self._exactly(query, min(count, len(self)))
        return [Hit(row, score, dict(self.columns[row])) for row, score in zip(rows, scores, strict=True)]

    def _exactly(self, query: NDArray[np.float32], count: int) -> tuple[list[float], list[int]]:
        best_scores, best_rows = np.empty(0, np.float32), np.empty(0, np.int64)
        asked = np.asarray(query, np.float32)
        for start in range(0, len(self), BLOCK):
            block = np.asarray(self.features[start : start + BLOCK] @ asked)
            if not np.isfinite(block).all():
                raise self._not_finite()
            scores = np.concatenate([best_scores, block])
            rows = np.concatenate([best_rows, np.arange(start, start + len(block))])
            kept = _top(scores, count)
            best_scores, best_rows = scores[kept], rows[kept]
        return best_scores.tolist(), best_rows.tolist()

    def _approximately(self, query: NDArray[np.float32], count: int) -> tuple[list[float], list[int]]:
        scores, rows = self._inverted_file.search(np.ascontiguousarray(query[None], np.float32), count)
        found = rows[0] >= 0  # fewer items in the probed cells
        return scores[0][found].tolist(), rows[0][found].tolist()

    def _not_finite(self) -> DataError:
        return DataError(f"{self.path}: some features are not finite; embed again")

    @cached_property
    def _inverted_file(self) -> Any:
        faiss = import_faiss()
        if not all(np.isfinite(self.features[start : start + BLOCK]).all() for start in range(0, len(self), BLOCK)):
            raise self._not_finite()
        cells = max(1, min(round(CELLS_PER_ROOT * len(self) ** 0.5), len(self) // 40))
        made = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(self.features.shape[1]), self.features.shape[1], cells, faiss.METRIC_INNER_PRODUCT
        )
        made.cp.seed = 0
        made.train(np.ascontiguousarray(self.features[:: max(1, len(self) // (TRAINED_ON * cells))]))
        for start in range(0, len(self), BLOCK):
            made.add(np.ascontiguousarray(self.features[start : start + BLOCK]))
        made.nprobe = max(1, round(PROBED * cells))
        return made


def open_index(path: Path) -> Index:
    """Open a file that `spanbox embed` wrote.

    Raises:
        DataError: it is not such a file, or damaged.
        ConfigError: Parquet without pyarrow.
    """
    try:
        if not path.is_file():
            raise FileNotFoundError("no such file")
        meta, features, columns = _open_parquet(path) if path.suffix == ".parquet" else _open_npy(path)
        if features.shape != (len(columns), meta.dim):
            raise ValueError(f"{features.shape} features of {len(columns)} items")
        return Index(path, meta.kind, Path(meta.folder), Path(meta.checkpoint), meta.weights, features, columns)
    except (DamagedArrayError, OSError, ValueError, KeyError, TypeError, msgspec.MsgspecError) as error:
        raise DataError(f"{path}: no index that `spanbox embed` wrote ({error})") from None


def _top(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Indices of the largest scores, best first; of equal ones the first."""
    place = max(0, len(scores) - count)
    above = np.flatnonzero(scores >= np.partition(scores, place)[place])
    return above[np.argsort(-scores[above], kind="stable")[:count]]


class _Meta(msgspec.Struct):
    """The metadata of an index file."""

    kind: Kind
    dim: int
    folder: str
    checkpoint: str
    weights: str


def _open_parquet(path: Path) -> tuple[_Meta, NDArray[np.float32], Sequence[dict[str, Any]]]:
    pyarrow = import_pyarrow()
    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise ValueError(error) from None
    meta = msgspec.json.decode((table.schema.metadata or {})[META.encode()], type=_Meta)
    if not table.schema.equals(parquet_schema(meta.kind, meta.dim)) or any(each.null_count for each in table.columns):
        raise ValueError(f"its columns are not those of {meta.kind}")
    flat = table["feature"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return meta, flat.reshape(len(table), meta.dim), _Rows(table.drop_columns(["feature"]))


class _Rows(Sequence[dict[str, Any]]):
    """The rows of a table, converted one by one when they are read."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: Any) -> Any:
        return self._table.slice(index, 1).to_pylist()[0]


def _open_npy(path: Path) -> tuple[_Meta, NDArray[np.float32], Sequence[dict[str, Any]]]:
    features = open_array(path, [np.float32], 2)
    with items_file(path).open("rb") as file:
        meta = msgspec.json.decode(next(file, b""), type=_Meta)
        row = msgspec.defstruct("Row", COLUMNS[meta.kind].items(), forbid_unknown_fields=True)
        read = msgspec.json.Decoder(row).decode
        return meta, features, [msgspec.structs.asdict(read(line)) for line in file]
