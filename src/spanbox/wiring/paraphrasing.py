"""Paraphrases of a manifest by translators: Marian models from local folders, or functions of the user."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spanbox.data.back_translation import Translator
from spanbox.engine.device import choose_device
from spanbox.errors import ConfigError
from spanbox.models.translation import MarianTranslator
from spanbox.wiring.functions import UserFunction


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


class FunctionTranslator(UserFunction):
    """A translator from a user's function that maps a list of texts to a list of texts."""

    def translate(self, texts: Sequence[str]) -> Any:
        return self.function(list(texts))


def make_translators(via: Sequence[str], functions: Sequence[str], device: str) -> list[Translator]:
    """The translators of `--via DIR[,DIR...]` and `--translator module:function`.

    Raises:
        ConfigError: none is given, a folder or a function is missing, or a model cannot be loaded.
    """
    if not via and not functions:
        raise ConfigError("give a translator: --via DIR[,DIR], or --translator module:function")
    translators: list[Translator] = [FunctionTranslator(name, "--translator") for name in functions]
    chosen = choose_device(device)
    loaded: dict[str, MarianTranslator] = {}
    for chain in via:
        folders = [folder.strip() for folder in chain.split(",")]
        for folder in folders:
            if folder not in loaded:
                loaded[folder] = MarianTranslator(folder, chosen)
        translators.append(Chain([loaded[folder] for folder in folders]))
    return translators
