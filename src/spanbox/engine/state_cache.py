"""States of a frozen tower on disk: each row is encoded once in a run, and found again by its content.

A tower in which nothing learns maps the same row to the same states in every epoch. They are kept in an SQLite file,
one entry per row, which several processes may share and a kill does not damage. A fingerprint in the name of the file
stands for everything else that the states depend on: weights, pooling, preprocessing, precision.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from spanbox.errors import DataError, OutputError
from spanbox.files import explained
from spanbox.structures import TensorBundle

KEYS_PER_QUERY = 500
WAIT_SECONDS = 60.0  # for another process that writes


class StateCache:
    """Encodes the rows of one tower with the help of a file.

    Raises:
        OutputError: the folder cannot be written.
        DataError: the file is damaged.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.path = folder / f"{fingerprint}.sqlite"
        self._template: TensorBundle | None = None  # one encoded row, for the type and the shapes
        with explained(self.path):
            folder.mkdir(parents=True, exist_ok=True)
        with self._explained():
            self._file = sqlite3.connect(self.path, timeout=WAIT_SECONDS, isolation_level=None)
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=NORMAL")
            self._file.execute("CREATE TABLE IF NOT EXISTS states (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")

    def encode(self, encode: Callable[[Any], Any], rows: Any) -> Any:
        """The states of rows: known ones from the file, the others by `encode`, then kept in the file.

        Args:
            rows: on the CPU. `rows.keys()` are their contents without padding, or None if they never occur again.
        """
        keys = rows.keys()
        if keys is None or not len(rows):
            return encode(rows)
        found = self._read(keys)
        missing = [number for number, key in enumerate(keys) if key not in found]
        if self._template is None and not missing:
            self._template = encode(rows[:1])[:1]
        if missing:
            encoded = encode(rows if len(missing) == len(rows) else rows[torch.tensor(missing)])
            self._template = encoded[:1]
            self._write([keys[number] for number in missing], encoded)
            if len(missing) == len(rows):
                return encoded
            found |= {keys[number]: dict(encoded[i : i + 1].named_tensors()) for i, number in enumerate(missing)}
        assert self._template is not None
        return _assembled(self._template, [found[key] for key in keys], rows.parts)

    def _read(self, keys: Sequence[bytes]) -> dict[bytes, dict[str, Tensor]]:
        found: dict[bytes, dict[str, Tensor]] = {}
        with self._explained():
            for start in range(0, len(keys), KEYS_PER_QUERY):
                some = keys[start : start + KEYS_PER_QUERY]
                query = f"SELECT key, value FROM states WHERE key IN ({', '.join('?' * len(some))})"
                found.update((key, safetensors.torch.load(value)) for key, value in self._file.execute(query, some))
        return found

    def _write(self, keys: Sequence[bytes], states: TensorBundle) -> None:
        on_cpu = states.to("cpu")
        values = [
            safetensors.torch.save({name: tensor.contiguous() for name, tensor in on_cpu[i : i + 1].named_tensors()})
            for i in range(len(on_cpu))
        ]
        with self._explained():
            self._file.execute("BEGIN IMMEDIATE")
            self._file.executemany("INSERT OR IGNORE INTO states VALUES (?, ?)", zip(keys, values, strict=True))
            self._file.execute("COMMIT")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise OutputError(f"{self.path}: {error}; make room, or set train.cache_frozen=null") from None
        except (sqlite3.DatabaseError, SafetensorError) as error:
            raise DataError(f"{self.path}: is damaged ({error}); remove it, it will be made again") from None


def _assembled(template: TensorBundle, states: list[dict[str, Tensor]], parts: int) -> TensorBundle:
    """Rows like `template`, from one dictionary per row; their second dimension of spans or regions gets `parts`."""
    fields = {}
    for name, like in template.named_tensors():
        tensors = [one[name].to(like.device) for one in states]
        if like.ndim > 2:
            tensors = [_padded(tensor, parts) for tensor in tensors]
        fields[name] = torch.cat(tensors)
    return type(template)(**{name: fields.get(name) for name in vars(template)})


def _padded(tensor: Tensor, parts: int) -> Tensor:
    """States (1, K, H) with padding added or cut off, so that K is the given number of parts."""
    missing = parts - tensor.shape[1]
    return torch.nn.functional.pad(tensor, (0, 0, 0, missing)) if missing > 0 else tensor[:, :parts]
