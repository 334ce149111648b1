"""Results of models on disk, such as translations, so that none is made twice."""

import os
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

import msgspec

from spanbox.data.manifest import MAX_LINE_BYTES
from spanbox.files import explained


class Cached(Protocol):
    """A model, or a function of the user, whose results are kept."""

    @property
    def name(self) -> str:
        """Name for messages and manifests."""

    @property
    def key(self) -> str:
        """Key of its results, which changes whenever the results may change."""


class _Entry(msgspec.Struct, frozen=True):
    """A line of the cache."""

    key: str
    text: str


class ResultCache:
    """Texts by the key of a model and its input: one JSON object per line of a file, appended as they are made.

    A line that a kill cut off, or that is damaged, is left out when the file is read again.

    Raises:
        OutputError: the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[bytes, str] = {}
        decoder = msgspec.json.Decoder(_Entry)
        line = b"\n"
        with explained(path), path.open("a+b") as file:
            file.seek(0)
            for line in iter(lambda: file.readline(MAX_LINE_BYTES), b""):
                try:
                    entry = decoder.decode(line)
                    self._known[bytes.fromhex(entry.key)] = entry.text
                except (msgspec.DecodeError, ValueError, RecursionError):
                    continue
            if not line.endswith(b"\n"):
                file.write(b"\n")

    def __len__(self) -> int:
        return len(self._known)

    def get(self, model: str, given: str) -> str | None:
        """The result for an input by the model with this key; None if there is none yet."""
        return self._known.get(_key(model, given))

    def add(self, model: str, inputs: Sequence[str], results: Sequence[str]) -> None:
        """Keep results; they are on the disk when this returns."""
        lines = []
        for given, result in zip(inputs, results, strict=True):
            key = _key(model, given)
            self._known[key] = result
            lines.append(msgspec.json.encode(_Entry(key.hex(), result)) + b"\n")
        with explained(self.path), self.path.open("ab") as file:
            file.write(b"".join(lines))
            file.flush()
            os.fsync(file.fileno())


def storable(text: str) -> str:
    """A text that UTF-8 can hold: halves of characters, as a model may give of an emoji, become question marks."""
    return text.encode(errors="replace").decode()


def _key(model: str, given: str) -> bytes:
    return blake2b(f"{model}\0{given}".encode(errors="surrogatepass"), digest_size=16).digest()
