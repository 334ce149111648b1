"""Tables of Arrow: Parquet files, and data sets saved by Hugging Face's `datasets`. Both are read by pyarrow.

`Dataset.save_to_disk` writes Arrow streams, which `state.json` lists; a `DatasetDict` is a folder of such folders,
which `dataset_dict.json` lists. The streams carry the names of classes in their schema, and images as `{bytes, path}`.

A few rows of Parquet, or one batch of a stream, are held in memory, up to `LARGEST_BATCH`: some kilobytes can unpack to
gigabytes. pyarrow trusts the offsets that an Arrow file gives, so every batch is validated before a value of it is
read. Nothing is mapped: a file that shrinks would end the process.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from spanbox.data.importers import is_file
from spanbox.data.importers.driver import Images, Pairs, Source, read_typed
from spanbox.data.importers.fields import FieldReader, FieldSpec, read_spec, split_name, split_of_file
from spanbox.documents import IS_LFS_POINTER, is_lfs_pointer
from spanbox.errors import ConfigError, DataError

ROWS = 64  # of Parquet that are read at once, at most
USUAL_BATCH = 64 << 20  # bytes of these rows; fewer rows are read where they are larger
LARGEST_BATCH = 384 << 20  # bytes of memory for one batch
BUFFER = 1 << 20  # bytes of a column of Parquet
TEXTS = ("text", "caption", "captions", "sentence", "sentences")  # columns of the text where --spec names none
_IPC_FILE = b"ARROW1"
_END_OF_STREAM = b"\0\0\0\0"

ReadBatches = Callable[[Path, FieldSpec | None], Iterator[Any]]


class _DataFile(msgspec.Struct):
    filename: str


class _State(msgspec.Struct):
    data_files: list[_DataFile] = msgspec.field(name="_data_files")
    split: str | None = msgspec.field(name="_split", default=None)
    indices: list[_DataFile] | None = msgspec.field(name="_indices_data_files", default=None)


class _Splits(msgspec.Struct):
    splits: list[str]


def parquet(source: Source) -> Pairs:
    """A `.parquet` file or a folder of them, of the split that its name or its folder names."""
    pyarrow = _import_pyarrow()
    root = source.root
    paths = [root] if root.is_file() else sorted(root.rglob("*.parquet"))
    if not paths:
        raise DataError(f"{root}: no .parquet files")
    for path in paths:
        if not is_file(path):  # opening a pipe would wait for its writer
            raise DataError(f"{path}: is not a file that can be read")
        with _explained(path):
            source.total += pyarrow.parquet.read_metadata(path).num_rows

    def files() -> Iterator[tuple[str, Path]]:
        for path in paths:
            in_folder = path.parent != root and path != root
            yield split_of_file(path.stem, path.parent.name if in_folder else ""), path

    yield from _pairs(source, files(), _parquet_batches)


def huggingface(source: Source) -> Pairs:
    """A folder of `Dataset.save_to_disk` or `DatasetDict.save_to_disk`, or one `.arrow` file."""
    root = source.root
    if root.is_file():
        files = [(split_of_file(root.stem), root)]
    elif is_file(root / "dataset_dict.json"):
        names = read_typed(root / "dataset_dict.json", _Splits).splits
        files = [(name, path) for name in names for _, path in _saved(root / _plain_name(root, name))]
    else:
        source.file("state.json", expected="expected a folder of save_to_disk, or a .arrow file")
        files = list(_saved(root))
    yield from _pairs(source, iter(files), _arrow_batches)


def _saved(folder: Path) -> Iterator[tuple[str, Path]]:
    state = read_typed(folder / "state.json", _State)
    if state.indices:
        raise DataError(f"{folder}: holds a selection of its rows; load it with `datasets` and save it again")
    for file in state.data_files:
        path = folder / _plain_name(folder, file.filename)
        if not is_file(path):
            raise DataError(f"{path}: no such file, but state.json lists it")
        yield state.split or "all", path


def _plain_name(folder: Path, name: str) -> str:
    if Path(name).name != name or name == ".." or "\0" in name:
        raise DataError(f"{folder}: {name!r} is not the plain name of a file or folder; refused")
    return name


def _pairs(source: Source, files: Iterator[tuple[str, Path]], read_batches: ReadBatches) -> Pairs:
    spec = read_spec(source)
    folder = source.root.parent if source.root.is_file() else source.root
    images = Images(source, source.image_folder() if source.images else folder)
    numbers: Counter[str] = Counter()
    for split, path in files:
        split = split_name(split)
        for batch, own in _batches(path, spec, read_batches):
            features = _features(batch.schema)
            reader = FieldReader(source, own, images)
            for row in _rows(path, batch, own.columns()):
                numbers[split] += 1
                named = {name: with_class_names(value, features.get(name)) for name, value in row.items()}
                yield from reader.read(named, numbers[split], split)


def _batches(path: Path, spec: FieldSpec | None, read_batches: ReadBatches) -> Iterator[tuple[Any, FieldSpec]]:
    """The batches of a file with the names of its fields."""
    batches = read_batches(path, spec)
    while True:
        with _explained(path), _limited_memory():
            batch = next(batches, None)
            if batch is not None:
                batch.validate(full=True)
        if batch is None:
            return
        yield batch, spec or _default_spec(path, batch.schema.names)


def _rows(path: Path, batch: Any, columns: list[str]) -> Iterator[dict[str, Any]]:
    missing = [name for name in columns if name not in batch.schema.names]
    if missing:
        raise DataError(f"{path}: has no column {missing[0]!r}, but {', '.join(batch.schema.names)[:200]}")
    for place in range(batch.num_rows):
        with _explained(path):
            row = {name: batch.column(name)[place].as_py() for name in columns}
        yield row


def _parquet_batches(path: Path, spec: FieldSpec | None) -> Iterator[Any]:
    with _import_pyarrow().parquet.ParquetFile(path, buffer_size=BUFFER) as file:
        names = file.schema_arrow.names
        wanted = [name for name in (spec or _default_spec(path, names)).columns() if name in names]
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        of_a_row = sum(group.total_byte_size for group in groups) // max(1, file.metadata.num_rows)
        rows = max(1, min(ROWS, USUAL_BATCH // max(1, of_a_row)))
        yield from file.iter_batches(rows, columns=wanted, use_threads=False)


def _arrow_batches(path: Path, spec: FieldSpec | None) -> Iterator[Any]:
    pyarrow = _import_pyarrow()
    with path.open("rb") as start:
        is_ipc_file = start.read(len(_IPC_FILE)) == _IPC_FILE
        start.seek(-len(_END_OF_STREAM), os.SEEK_END)
        if not is_ipc_file and start.read() != _END_OF_STREAM:  # a reader would stop here as if all was read
            raise DataError(f"{path}: was cut off, or is not an Arrow stream")
    with pyarrow.OSFile(str(path)) as file:
        if is_ipc_file:
            with pyarrow.ipc.open_file(file) as reader:
                for number in range(reader.num_record_batches):
                    yield reader.get_batch(number)
        else:
            with pyarrow.ipc.open_stream(file) as reader:
                yield from reader


@contextmanager
def _limited_memory() -> Iterator[None]:
    """Context in which the process gets at most `LARGEST_BATCH` bytes more, where the system has such a limit."""
    try:
        import resource

        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        yield
        return
    pyarrow, (soft, hard) = _import_pyarrow(), resource.getrlimit(resource.RLIMIT_AS)
    pool, limit = pyarrow.default_memory_pool(), taken + LARGEST_BATCH
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # the others reserve addresses that they may never use
    resource.setrlimit(resource.RLIMIT_AS, (limit if soft == resource.RLIM_INFINITY else min(limit, soft), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        pyarrow.set_memory_pool(pool)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Context that turns pyarrow's errors on a damaged file into a DataError that names the file."""
    if is_lfs_pointer(path):
        raise DataError(f"{path}: is {IS_LFS_POINTER}")
    try:
        yield
    except MemoryError:
        raise DataError(
            f"{path}: a batch of its rows takes more than {LARGEST_BATCH >> 20} MiB; save it with fewer rows in a row "
            "group or batch"
        ) from None
    except (_import_pyarrow().ArrowException, OSError, ValueError, TypeError, LookupError, OverflowError,
            NotImplementedError, RecursionError) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: cannot be read, it is damaged or of another format ({reason})") from None


def _default_spec(path: Path, names: list[str]) -> FieldSpec:
    text = next((name for name in TEXTS if name in names), None)
    if "image" not in names or text is None:
        raise DataError(
            f"{path}: has the columns {', '.join(names)[:200]}; expected image and text (or {', '.join(TEXTS[1:])}), "
            "or --spec FILE.yaml with the names of the columns, see docs/data.md"
        )
    return FieldSpec(image="image", text=text)


def _features(schema: Any) -> dict[str, Any]:
    """The features that `datasets` keeps in a schema, by column."""
    try:
        content: Any = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = content["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def with_class_names(value: Any, feature: Any) -> Any:
    """A value in which numbers of a `ClassLabel` are replaced by their names.

    Args:
        feature: its type as `datasets` writes it, such as `{"_type": "List", "feature": {"_type": "ClassLabel", ...}}`.
    """
    if isinstance(feature, list) and feature:  # an older form of a list
        feature = {"_type": "List", "feature": feature[0]}
    if not isinstance(feature, dict):
        return value
    inner = feature.get("feature")
    if feature.get("_type") == "ClassLabel":
        names = feature.get("names")
        if isinstance(names, list) and isinstance(value, int) and 0 <= value < len(names):
            return str(names[value])
        return value
    if isinstance(value, list):
        return [with_class_names(entry, inner) for entry in value]
    if isinstance(value, dict):
        if isinstance(inner, dict) and "_type" not in inner:  # a list of objects, saved as an object of lists
            return {name: with_class_names(entry, {"feature": inner.get(name)}) for name, entry in value.items()}
        return {name: with_class_names(entry, feature.get(name)) for name, entry in value.items()}
    return value


def _import_pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("Parquet and Arrow files need pyarrow: pip install 'spanbox[parquet]'") from None
    return pyarrow
