"""The feature bank on disk: extracted once, part by part, and mapped into memory whenever it is used again.

    FOLDER/text.npy, image.npy, ...    one plain NumPy array for each field of `FeatureBank` that there is
    FOLDER/bank.json                   fingerprint of the features' origin, and the incidents in the data

Extraction holds one batch at a time, a metric the part it reads, so a set may be larger than memory. A bank is reused
as long as its fingerprint is unchanged. It is written under another name and renamed, so a folder holds a whole bank.
"""

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec
import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from spanbox.arrays import DamagedArrayError, open_array
from spanbox.evaluation.extract import FeatureBank, in_place
from spanbox.files import PARTIAL, explained
from spanbox.structures import Incident

VERSION = 2
FIELDS = tuple(entry.name for entry in fields(FeatureBank) if entry.default is MISSING)
FUSION_FIELDS = tuple(entry.name for entry in fields(FeatureBank) if entry.default is not MISSING)
"""Fields of a model with fusion, which may be absent."""
LARGEST_DESCRIPTION = 2**26
"""Bytes of bank.json that are read; a bank with more, which has some 500,000 incidents, is not used again."""

_FEATURES = ("text", "image", "spans", "regions")
_DTYPES: dict[str, tuple[type[np.generic], ...]] = {
    **dict.fromkeys((*_FEATURES, "spans_in_context", "regions_in_context"), (np.float32, np.float64)),
    **dict.fromkeys(("tokens", "patches"), (np.float16,)),
    "region_box": (np.float32,),
    "span_shown": (np.int8,),
}
"""Types of the arrays; int64 where nothing else is given."""
_ROWS = {
    "pairs": ("text", "image", "group", "sample", "place", "wording", "token_count", "patches", "content"),
    "spans": ("spans", "span_pair", "span_identity", "span_entity", "span_shown", "spans_in_context"),
    "regions": ("regions", "region_pair", "region_box", "regions_in_context"),
}
"""Arrays with one row for each of these."""

Fingerprint = Mapping[str, Any]
"""Everything that the features depend on, as plain JSON: a bank with another fingerprint is not used."""


class StoredBank(NamedTuple):
    """A bank that is mapped from its files, and the incidents of its extraction."""

    bank: FeatureBank
    incidents: list[Incident]


class _Description(msgspec.Struct):
    """`bank.json`."""

    version: int
    fingerprint: Any
    incidents: list[tuple[str, str, str]]


def open_bank(folder: Path, fingerprint: Fingerprint) -> StoredBank | None:
    """The bank of a folder; None where there is none, a damaged one or one with another fingerprint.

    Its tensors are mapped: they take memory as they are read. Writing to them changes no file.
    """
    try:
        path = folder / "bank.json"
        if not path.is_file() or path.stat().st_size > LARGEST_DESCRIPTION:
            return None
        description = msgspec.json.decode(path.read_bytes(), type=_Description)
        if description.version != VERSION or description.fingerprint != _as_json(fingerprint):
            return None
        arrays = {name: _open_field(folder, name) for name in _stored(folder)}
    except (OSError, DamagedArrayError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if not _is_consistent(arrays):
        return None
    return StoredBank(_as_bank(arrays), [Incident(*incident) for incident in description.incidents])


def write_bank(
    folder: Path, fingerprint: Fingerprint, parts: Iterable[FeatureBank], incidents: list[Incident]
) -> StoredBank:
    """Write the parts of a bank as they come, replace `folder` by it, and open it.

    Args:
        folder: of the bank alone.
        fingerprint: see `Fingerprint`.
        parts: one after another, each with indices from 0; see `extract_parts`. At least one.
        incidents: those of the data; read after the last part.

    Raises:
        OutputError: the folder cannot be written; the new bank is removed.
    """
    with explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".", suffix=PARTIAL, dir=folder.parent))
    try:
        with ExitStack() as stack:
            files: dict[str, _GrowingArray] = {}
            for part in in_place(parts):
                for name in part.present():
                    if name not in files:
                        files[name] = stack.enter_context(_GrowingArray(aside / f"{name}.npy", folder))
                    files[name].append(getattr(part, name))
        with explained(folder):
            description = _Description(VERSION, _as_json(fingerprint), [*map(_writable, incidents)])
            (aside / "bank.json").write_bytes(msgspec.json.encode(description))
            shutil.rmtree(folder, ignore_errors=True)  # arrays that a process has mapped stay readable there
            aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return StoredBank(_as_bank({name: _open_field(folder, name) for name in _stored(folder)}), list(incidents))


def _stored(folder: Path) -> list[str]:
    """The fields of a bank that are stored."""
    return [*FIELDS, *(name for name in FUSION_FIELDS if (folder / f"{name}.npy").is_file())]


class _GrowingArray:
    """A `.npy` file that grows by rows. NumPy reserves room in the header for the growing number of rows."""

    def __init__(self, path: Path, folder: Path) -> None:
        """`folder` is the one that errors name: `path` may lie aside until the bank is complete."""
        self._path = path
        self._folder = folder
        self._file: BinaryIO
        self._dtype: np.dtype[Any] | None = None
        self._row: tuple[int, ...] = ()
        self._rows = 0

    def __enter__(self) -> "_GrowingArray":
        with explained(self._folder):
            self._file = self._path.open("wb")
        return self

    def append(self, tensor: Tensor) -> None:
        rows: NDArray[Any] = tensor.numpy()
        if self._dtype is None:
            self._dtype, self._row = rows.dtype, rows.shape[1:]
            self._write_header()
        assert (rows.dtype, rows.shape[1:]) == (self._dtype, self._row), "parts of one bank"
        with explained(self._folder):
            self._file.write(np.ascontiguousarray(rows).data)
        self._rows += len(rows)

    def __exit__(self, *error: object) -> None:
        with explained(self._folder):
            try:
                if self._dtype is not None:
                    self._file.seek(0)
                    self._write_header()
            finally:
                self._file.close()

    def _write_header(self) -> None:
        assert self._dtype is not None
        header = {"descr": npy.dtype_to_descr(self._dtype), "fortran_order": False, "shape": (self._rows, *self._row)}
        npy.write_array_header_1_0(self._file, header)


def _as_bank(arrays: Mapping[str, NDArray[Any]]) -> FeatureBank:
    return FeatureBank(**{name: torch.from_numpy(array) for name, array in arrays.items()})


def _open_field(folder: Path, name: str) -> NDArray[Any]:
    matrix = name in (*_FEATURES, "region_box", "links", "spans_in_context", "regions_in_context", "tokens", "content")
    return open_array(folder / f"{name}.npy", _DTYPES.get(name, (np.int64,)), 3 if name == "patches" else 1 + matrix)


def _is_consistent(arrays: Mapping[str, NDArray[Any]]) -> bool:
    """Whether the arrays fit together: equal lengths and widths, and indices within them."""
    length = {name: len(arrays[names[0]]) for name, names in _ROWS.items()}
    if any(len(arrays[name]) != length[rows] for rows, names in _ROWS.items() for name in names if name in arrays):
        return False
    if not _states_fit(arrays):
        return False
    if len({arrays[name].shape[1] for name in _FEATURES}) > 1:
        return False
    if arrays["region_box"].shape[1] != 4 or arrays["links"].shape[1] != 2:
        return False
    indices = [("span_pair", "pairs"), ("region_pair", "pairs")]
    bounded = [(arrays[name], length[rows]) for name, rows in indices]
    bounded += [(arrays["links"][:, 0], length["spans"]), (arrays["links"][:, 1], length["regions"])]
    if any(index.size and not (index.min() >= 0 and index.max() < end) for index, end in bounded):
        return False
    span, region = arrays["links"].T
    return (
        bool((arrays["span_pair"][span] == arrays["region_pair"][region]).all())
        and bool((arrays["place"] >= 0).all())
        and bool((arrays["span_entity"] >= 0).all())
    )


def _states_fit(arrays: Mapping[str, NDArray[Any]]) -> bool:
    """Whether tokens, their counts and patches are all there and of one width, or all absent; parts in context too."""
    states = [name in arrays for name in ("tokens", "token_count", "patches")]
    contexts = [name in arrays for name in ("spans_in_context", "regions_in_context")]
    if any(states) != all(states) or any(contexts) != all(contexts):
        return False
    if any(contexts) and arrays["spans_in_context"].shape[1] != arrays["regions_in_context"].shape[1]:
        return False
    if not any(states):
        return "content" not in arrays
    if "content" in arrays and not (arrays["content"].shape[1] == 2 and (arrays["content"] > 0).all()):
        return False
    count = arrays["token_count"]
    return (
        bool((count >= 0).all())
        and int(count.sum()) == len(arrays["tokens"])
        and arrays["tokens"].shape[1] == arrays["patches"].shape[2]
    )


def _writable(incident: Incident) -> tuple[str, str, str]:
    """The incident without lone surrogates, as names of files may have them, which JSON cannot hold."""
    kind, sample, detail = (text.encode("utf-8", "replace").decode("utf-8") for text in incident)
    return kind, sample, detail


def _as_json(fingerprint: Fingerprint) -> Any:
    """The fingerprint as it is read from a file: tuples as lists."""
    return json.loads(json.dumps(fingerprint))
