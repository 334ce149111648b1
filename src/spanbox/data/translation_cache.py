"""Translations on disk, so that none is made twice."""

import os
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import msgspec

from spanbox.data.manifest import MAX_LINE_BYTES
from spanbox.files import explained


class _Entry(msgspec.Struct, frozen=True):
    """A line of the cache."""

    key: str
    text: str


class TranslationCache:
    """Translations by translator and text: one JSON object per line of a file, appended as they are made.

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

    def get(self, translator: str, text: str) -> str | None:
        """The translation of a text by the translator with this key; None if there is none yet."""
        return self._known.get(_key(translator, text))

    def add(self, translator: str, texts: Sequence[str], translations: Sequence[str]) -> None:
        """Keep translations; they are on the disk when this returns."""
        lines = []
        for text, translation in zip(texts, translations, strict=True):
            key = _key(translator, text)
            self._known[key] = translation
            lines.append(msgspec.json.encode(_Entry(key.hex(), translation)) + b"\n")
        with explained(self.path), self.path.open("ab") as file:
            file.write(b"".join(lines))
            file.flush()
            os.fsync(file.fileno())


def _key(translator: str, text: str) -> bytes:
    return blake2b(f"{translator}\0{text}".encode(errors="surrogatepass"), digest_size=16).digest()
