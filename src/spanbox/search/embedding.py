"""The features of all items of a source, as a Parquet or NumPy file.

    OUT.parquet     one row for each item or part: the columns of `sources`, and `feature`, a list of D float32
    OUT.npy         features (N, D) float32; OUT.items.jsonl: the columns, one JSON object per line
    .OUT.parts/     finished parts, until the whole is written

Items are encoded in parts of fixed size, each in batches of fixed size, and a finished part is never encoded again. So
an interrupted run goes on where it stopped, and its file is the same, bit for bit, as that of one that was not
interrupted on the same machine with the same number of threads. With several processes (`torchrun`) each takes every
n-th part.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spanbox import __version__
from spanbox.api import Model
from spanbox.arrays import DamagedArrayError, open_array
from spanbox.documents import DocumentError, read_json
from spanbox.engine.distributed import Ranks
from spanbox.errors import ConfigError, DataError, OutputError
from spanbox.files import check_writable_file, explained, remove_entry, replacing, write_text
from spanbox.progress import Progress
from spanbox.search.sources import COLUMNS, Item, Kind, Source
from spanbox.structures import Incident

PART = 1024
"""Items of a part."""
META = "spanbox"
"""Key of the metadata of a Parquet file."""
Row = tuple[Any, ...]
"""Values of the columns of a row."""
Parts = Iterator[tuple[list[Row], NDArray[np.float32]]]


@dataclass(frozen=True)
class Embedded:
    """Counts of what `embed_source` wrote."""

    rows: int
    resumed: int  # parts that an earlier run had finished
    incidents: list[Incident]


def embed_source(model: Model, source: Source, out: Path, *, batch_size: int, ranks: Ranks) -> Embedded | None:
    """Write the features of a source. Returns None on other ranks than the main one.

    Raises:
        ConfigError: Parquet without pyarrow.
        DataError: no item could be encoded.
        OutputError: `out` cannot be written; checked first.
    """
    check_output(out)
    parts = _Parts(out, _description(model, source, batch_size))
    if ranks.is_main:
        parts.prepare()
    ranks.wait_for_all()
    numbers = range(ranks.rank, -(-source.count // PART), ranks.world_size)
    left = [number for number in numbers if not parts.is_finished(number)]
    with Progress(
        f"encoding {source.kind}", len(numbers), len(numbers) - len(left), quiet=not ranks.is_main
    ) as progress:
        for done, number in enumerate(left, start=len(numbers) - len(left) + 1):
            items = [source.item(index) for index in range(number * PART, min((number + 1) * PART, source.count))]
            parts.write(number, *_encode(model, source, items, batch_size))
            progress.update(done, f"{min(done * PART * ranks.world_size, source.count)} items")
    ranks.wait_for_all()
    if not ranks.is_main:
        return None
    embedded = _assemble(model, source, parts, out, len(numbers) - len(left))
    parts.remove()
    return embedded


def check_output(out: Path) -> None:
    """Check the ending of an output file, its package and its folder. Raises ConfigError or OutputError."""
    if out.suffix not in (".parquet", ".npy"):
        raise OutputError(f"{out}: expected a file that ends in .parquet or .npy")
    if out.suffix == ".parquet":
        import_pyarrow()
    check_writable_file(out, out.suffix)


def import_pyarrow() -> Any:
    """The optional package pyarrow. Raises ConfigError where it is missing."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("Parquet files need pyarrow: pip install 'spanbox[parquet]', or use a .npy file") from None
    return pyarrow


class _Parts:
    """The folder of finished parts. A part is a `.npy` of features and a `.json` of rows, which is written last.

    Names of parts begin with a digest of all that their features depend on, so that two processes that write one file
    by different models never take parts of each other.
    """

    def __init__(self, out: Path, description: dict[str, Any]) -> None:
        self.folder = out.parent / f".{out.name}.parts"
        self.description = description
        self.digest = hashlib.blake2b(json.dumps(description).encode(), digest_size=8).hexdigest()

    def prepare(self) -> None:
        """Make the folder; parts of another model, source or setting are removed."""
        with explained(self.folder):
            self.folder.mkdir(exist_ok=True)
            for path in self.folder.iterdir():
                if not path.name.startswith((self.digest, ".")):  # not a file that a process is writing
                    remove_entry(path)

    def is_finished(self, number: int) -> bool:
        return self._rows(number).is_file()

    def write(self, number: int, rows: list[Row], features: NDArray[np.float32], incidents: list[Incident]) -> None:
        with replacing(self._features(number)) as file:
            np.save(file, features)
        write_text(self._rows(number), json.dumps({"rows": rows, "incidents": incidents}, ensure_ascii=False))

    def read(self, number: int) -> tuple[list[Row], NDArray[np.float32], list[Incident]]:
        """Raises OutputError where the files are damaged."""
        try:
            content = read_json(self._rows(number))
            features = open_array(self._features(number), [np.float32], 2)
            rows = [tuple(row) for row in content["rows"]]
            incidents = [Incident(*each) for each in content["incidents"]]
            assert len(rows) == len(features)
        except FileNotFoundError:
            raise OutputError(
                f"{self.folder}: finished parts are gone, as where another command writes the same file; wait for it, "
                "or name another file"
            ) from None
        except (AssertionError, DamagedArrayError, DocumentError, KeyError, OSError, TypeError) as error:
            raise OutputError(f"{self.folder}: a finished part is damaged ({error}); remove this folder") from None
        return rows, features, incidents

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _features(self, number: int) -> Path:
        return self.folder / f"{self.digest}-{number:06d}.npy"

    def _rows(self, number: int) -> Path:
        return self.folder / f"{self.digest}-{number:06d}.json"


def _description(model: Model, source: Source, batch_size: int) -> dict[str, Any]:
    """Everything that the features depend on."""
    return {
        "spanbox": __version__,
        "kind": source.kind,
        "dim": model.dim,
        "checkpoint": str(model.checkpoint.resolve()),
        "weights": weights_digest(model),
        "folder": str(source.folder.resolve()),
        "items": source.digest,
        "device": model.device.type,
        "batch_size": batch_size,
        "part": PART,
    }


def weights_digest(model: Model) -> str:
    """A digest of the weights of a model; features of models with another digest are not comparable."""
    with (model.checkpoint / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def _encode(
    model: Model, source: Source, items: Sequence[Item], batch_size: int
) -> tuple[list[Row], NDArray[np.float32], list[Incident]]:
    """Rows, features and incidents of a part. What cannot be encoded is left out and becomes an incident."""
    rows: list[Row] = []
    features: list[NDArray[np.float32]] = [np.empty((0, model.dim), np.float32)]
    incidents: list[Incident] = []
    for start in range(0, len(items), batch_size):
        batch = [item for item in items[start : start + batch_size] if item.rows]
        for item, encoded in _encode_what_can_be(model, source, batch, incidents):
            rows += item.rows
            features.append(encoded)
    return rows, np.concatenate(features), incidents


def _encode_what_can_be(
    model: Model, source: Source, items: Sequence[Item], incidents: list[Incident]
) -> list[tuple[Item, NDArray[np.float32]]]:
    """Items with their features. Where one fails, each is encoded by itself, and then each span or box of it."""
    try:
        features = _features(model, source, items)
        if not all(np.isfinite(each).all() for each in features):
            raise DataError("its features are not finite; the training of this model may have diverged")
        return list(zip(items, features, strict=True))
    except DataError as error:
        apart = [[item] for item in items] if len(items) > 1 else [[part] for part in _parts_of(items[0])]
        if len(apart) == 1:
            incidents.append(Incident(f"{source.kind} left out", items[0].id, str(error)))
            return []
        return [done for one in apart for done in _encode_what_can_be(model, source, one, incidents)]


def _parts_of(item: Item) -> list[Item]:
    """Copies of the item, each with a single one of its spans or boxes."""
    return [replace(item, parts=item.parts[at : at + 1], rows=item.rows[at : at + 1]) for at in range(len(item.rows))]


def _features(model: Model, source: Source, items: Sequence[Item]) -> list[NDArray[np.float32]]:
    """Features (rows, D) of each item of one batch."""
    if not items:
        return []
    size = len(items)
    texts = [item.text or "" for item in items]
    images = [item.image for item in items if item.image is not None]
    parts: list[Any] = [list(item.parts) for item in items]
    match source.kind:
        case "texts":
            return list(model.encode_texts(texts, batch_size=size)[:, None])
        case "images":
            return list(model.encode_images(images, batch_size=size)[:, None])
        case "spans":
            return list(model.encode_spans(texts, parts, batch_size=size))
        case "regions":
            return list(model.encode_regions(images, parts, batch_size=size))


def _assemble(model: Model, source: Source, parts: _Parts, out: Path, resumed: int) -> Embedded:
    """Write the file of all parts."""
    incidents: list[Incident] = []
    count = 0

    def finished() -> Iterator[tuple[list[Row], NDArray[np.float32]]]:
        nonlocal count
        for number in range(-(-source.count // PART)):
            rows, features, found = parts.read(number)
            incidents.extend(found)
            count += len(rows)
            yield rows, features
        if not count:  # raised while the file is written, so that an earlier one stays
            example = f": {incidents[0].detail}" if incidents else ""
            raise DataError(f"nothing to embed, there are no {source.kind}{example}")

    meta = {key: value for key, value in parts.description.items() if key not in ("part", "batch_size")}
    if out.suffix == ".parquet":
        _write_parquet(out, source, model.dim, meta, finished())
    else:
        _write_npy(out, source, model.dim, meta, finished())
    return Embedded(count, resumed, incidents)


def _write_parquet(out: Path, source: Source, dim: int, meta: dict[str, Any], parts: Parts) -> None:
    pyarrow = import_pyarrow()
    columns = COLUMNS[source.kind]
    schema = parquet_schema(source.kind, dim).with_metadata({META: json.dumps(meta)})
    with replacing(out) as file, pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for rows, features in parts:
            values = [[row[place] for row in rows] for place in range(len(columns))]
            flat = pyarrow.array(features.reshape(-1), pyarrow.float32())
            arrays = [pyarrow.array(column, field.type) for column, field in zip(values, schema, strict=False)]
            arrays.append(pyarrow.FixedSizeListArray.from_arrays(flat, dim))
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))


def parquet_schema(kind: Kind, dim: int) -> Any:
    """The columns of a Parquet file of features."""
    pyarrow = import_pyarrow()
    types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float32()}
    fields = [pyarrow.field(name, types[values]) for name, values in COLUMNS[kind].items()]
    return pyarrow.schema([*fields, pyarrow.field("feature", pyarrow.list_(pyarrow.float32(), dim))])


def _write_npy(out: Path, source: Source, dim: int, meta: dict[str, Any], parts: Parts) -> None:
    """Both files are written before either takes its place: features never lie beside the rows of others."""
    blocks = []
    with replacing(out) as features_file, replacing(items_file(out)) as file:
        file.write(json.dumps(meta, ensure_ascii=False).encode() + b"\n")
        for rows, features in parts:
            blocks.append(features)  # mapped files, not memory
            for row in rows:
                named = dict(zip(COLUMNS[source.kind], row, strict=True))
                file.write(json.dumps(named, ensure_ascii=False).encode() + b"\n")
        head = {"descr": "<f4", "fortran_order": False, "shape": (sum(map(len, blocks)), dim)}
        np.lib.format.write_array_header_1_0(features_file, head)
        for block in blocks:
            features_file.write(np.ascontiguousarray(block, "<f4").tobytes())
        features_file.flush()
        out.unlink(missing_ok=True)  # its rows are replaced first


def items_file(out: Path) -> Path:
    """The file of rows beside a `.npy` file: the metadata in its first line, then one row per line."""
    return out.with_suffix(".items.jsonl")
