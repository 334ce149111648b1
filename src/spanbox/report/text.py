"""What the report says, in English and in Chinese: one YAML file a language, with the same keys in both."""

from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")


class Texts:
    """The sentences and labels of one language."""

    def __init__(self, language: Language) -> None:
        self.language = language
        content = yaml.safe_load((files("spanbox.report") / "texts" / f"{language}.yaml").read_text(encoding="utf-8"))
        self.sentences: dict[str, str] = content["sentences"]
        self.families: dict[str, str] = content["families"]
        self.measures: dict[str, str] = content["measures"]
        self.groups: dict[str, str] = content["groups"]
        self.counts: dict[str, str] = content["counts"]

    def __call__(self, key: str, **values: Any) -> str:
        """The sentence of `key`, with its gaps filled."""
        return self.sentences[key].format(**values)

    def group(self, kind: str, name: str) -> str:
        """A group of entities as a reader would call it: of a kind of groups, by its name in the metrics."""
        return self.groups.get(f"{kind}.{name}", name)

    def count(self, name: str) -> str:
        """What is counted, or a part of the data, as a reader would call it."""
        return self.counts.get(name, name)

    def metric(self, name: str) -> str:
        """A metric as a reader would call it; its dotted name where nobody has given it another."""
        for family in sorted(self.families, key=len, reverse=True):
            if name == family:
                return self.families[family]
            if name.startswith(f"{family}."):
                rest = name.removeprefix(f"{family}.")
                kind, _, group = rest.partition(".")
                measure = self.measures.get(rest) or (f"{self.measures.get(kind, kind)} {group}" if group else rest)
                return f"{self.families[family]}{self.sentences['metric_joint']}{measure}"
        return name


@cache
def texts(language: Language) -> Texts:
    """The texts of a language."""
    return Texts(language)


def percent(value: float | None) -> str:
    """A share as people read it; a dash where there is none."""
    return "–" if value is None else _minus(f"{100 * value:.1f} %")


def points(value: float) -> str:
    """A difference of shares, in percentage points with their sign."""
    return _minus(f"{100 * value:+.1f}")


def number(value: float | None) -> str:
    """A number with as many digits as say something; a dash where there is none."""
    if value is None:
        return "–"
    if value == int(value) and abs(value) < 1e15:
        return _minus(f"{value:,.0f}")
    return _minus(f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}")


def signed(value: float) -> str:
    """A difference of numbers, with its sign."""
    return _minus(f"{value:+.3g}")


def _minus(text: str) -> str:
    return text.replace("-", "−")
