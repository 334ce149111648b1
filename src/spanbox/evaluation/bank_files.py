"""The feature bank on disk: extracted once, part by part, and mapped into memory whenever it is asked for again.

    FOLDER/text.npy, image.npy, ...    one plain NumPy array for each field of `FeatureBank`
    FOLDER/bank.json                   what the features were made of, and what was met in the data; written last

Extraction holds one batch at a time, a metric what it looks at, so that a set may be larger than memory. A bank is
reused as long as its fingerprint is the one asked for. Half a bank has no `bank.json`, and is replaced.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from spanbox.evaluation.extract import FeatureBank, in_place
from spanbox.structures import Incident

VERSION = 1
FIELDS = tuple(entry.name for entry in fields(FeatureBank))

Fingerprint = Mapping[str, Any]
"""What features depend on, as plain JSON: where this differs, a bank is of no use."""


class StoredBank(NamedTuple):
    """A bank that is mapped from its files, and what was met in the data when it was made."""

    bank: FeatureBank
    incidents: list[Incident]


def open_bank(folder: Path, fingerprint: Fingerprint) -> StoredBank | None:
    """The bank of a folder; None where there is none, only half of one, a damaged one or one of something else.

    Its tensors are mapped: they take memory as they are read. Writing to them changes no file.
    """
    try:
        description = json.loads((folder / "bank.json").read_text(encoding="utf-8"))
        if description["fingerprint"] != _as_json(fingerprint) or description["version"] != VERSION:
            return None
        # Copy on write and not read only, which PyTorch warns of.
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False) for name in FIELDS}
        if {name: _shape(array) for name, array in arrays.items()} != description["shapes"]:
            return None
        incidents = [Incident(*incident) for incident in description["incidents"]]
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None
    return StoredBank(FeatureBank(**{name: torch.from_numpy(array) for name, array in arrays.items()}), incidents)


def write_bank(
    folder: Path, fingerprint: Fingerprint, parts: Iterable[FeatureBank], incidents: list[Incident]
) -> StoredBank:
    """Write the parts of a bank as they come, in place of what `folder` holds, and open it.

    Args:
        folder: of the bank alone.
        fingerprint: what the features depend on.
        parts: one after another, each with indices of its own; see `extract_parts`. At least one.
        incidents: those met in the data; looked at after the last part.
    """
    shutil.rmtree(folder, ignore_errors=True)  # mapped files stay with who has mapped them
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        files = {name: stack.enter_context(_GrowingArray(folder / f"{name}.npy")) for name in FIELDS}
        for part in in_place(parts):
            for name, file in files.items():
                file.append(getattr(part, name))
    shapes = {name: file.shape for name, file in files.items()}
    description = {"version": VERSION, "fingerprint": fingerprint, "shapes": shapes, "incidents": incidents}
    (folder / "bank.json").write_text(json.dumps(description, ensure_ascii=False), encoding="utf-8")
    stored = open_bank(folder, fingerprint)
    assert stored is not None, "a bank that was just written"
    return stored


class _GrowingArray:
    """A `.npy` file that rows are added to. NumPy leaves room in the header for the number of rows to grow."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO
        self._dtype: np.dtype[Any] | None = None
        self._row: tuple[int, ...] = ()
        self._rows = 0

    @property
    def shape(self) -> list[int]:
        return [self._rows, *self._row]

    def __enter__(self) -> "_GrowingArray":
        self._file = self._path.open("wb")
        return self

    def append(self, tensor: Tensor) -> None:
        rows: NDArray[Any] = tensor.numpy()
        if self._dtype is None:
            self._dtype, self._row = rows.dtype, rows.shape[1:]
            self._write_header()
        assert (rows.dtype, rows.shape[1:]) == (self._dtype, self._row), "parts of one bank"
        self._file.write(np.ascontiguousarray(rows).data)
        self._rows += len(rows)

    def __exit__(self, *error: object) -> None:
        if self._dtype is not None:
            self._file.seek(0)
            self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        assert self._dtype is not None
        header = {"descr": npy.dtype_to_descr(self._dtype), "fortran_order": False, "shape": tuple(self.shape)}
        npy.write_array_header_1_0(self._file, header)


def _shape(array: NDArray[Any]) -> list[int]:
    return list(array.shape)


def _as_json(fingerprint: Fingerprint) -> Any:
    """The fingerprint as it comes back from a file: tuples as lists."""
    return json.loads(json.dumps(fingerprint))
