"""Paraphrases of a manifest by translators: Marian models from local folders, or functions of the user."""

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from inspect import getsourcefile
from pathlib import Path
from typing import Any

from spanbox.data.back_translation import Translator
from spanbox.engine.device import choose_device
from spanbox.errors import ConfigError
from spanbox.models.translation import MarianTranslator


@dataclass
class Chain:
    """Translators one after the other, such as into another language and back."""

    links: Sequence[MarianTranslator]

    @property
    def name(self) -> str:
        return ", ".join(link.name for link in self.links)

    @property
    def key(self) -> str:
        return " > ".join(link.key for link in self.links)

    def translate(self, texts: Sequence[str]) -> list[str]:
        """The texts after the last translator; empty ones stay so."""
        current = list(texts)
        for link in self.links:
            filled = [text for text in current if text]
            translations = iter(link.translate(filled) if filled else [])
            current = [next(translations) if text else "" for text in current]
        return current


@dataclass
class FunctionTranslator:
    """A function of the user: from a list of texts to a list of texts."""

    name: str  # module:function
    function: Callable[[list[str]], Any]

    @property
    def key(self) -> str:
        """Changes with the file of the function."""
        try:
            source = Path(getsourcefile(self.function) or "").read_bytes()
        except (OSError, TypeError):  # built in, or a callable object
            source = b""
        return f"{self.name} {blake2b(source, digest_size=12).hexdigest()}"

    def translate(self, texts: Sequence[str]) -> Any:
        return self.function(list(texts))


def make_translators(via: Sequence[str], functions: Sequence[str], device: str) -> list[Translator]:
    """The translators of `--via DIR[,DIR...]` and `--translator module:function`.

    Raises:
        ConfigError: none is given, a folder or a function is missing, or a model cannot be loaded.
    """
    if not via and not functions:
        raise ConfigError("give a translator: --via DIR[,DIR], or --translator module:function")
    translators: list[Translator] = [load_function(name) for name in functions]
    chosen = choose_device(device)
    loaded: dict[str, MarianTranslator] = {}
    for chain in via:
        folders = [folder.strip() for folder in chain.split(",")]
        for folder in folders:
            if folder not in loaded:
                loaded[folder] = MarianTranslator(folder, chosen)
        translators.append(Chain([loaded[folder] for folder in folders]))
    return translators


def load_function(path: str) -> FunctionTranslator:
    """The function of an import path, `module:function`; modules of the working folder are found first.

    Raises:
        ConfigError: there is none.
    """
    module_name, colon, name = path.partition(":")
    if not (module_name and colon and name):
        raise ConfigError(f"--translator: {path!r} is no import path; expected module:function")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"--translator: the module {module_name!r} cannot be imported ({reason})") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"--translator: {module_name!r} has no function {name!r}")
    return FunctionTranslator(path, function)
