"""The texts of the report in English and in Chinese: one YAML file per language, with the same keys."""

import math
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml

Language = Literal["en", "zh"]


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
        """The label of a group of entities, by the kind of groups and its name in the metrics."""
        return self.groups.get(f"{kind}.{name}", name)

    def count(self, name: str) -> str:
        """The label of a count, a finding, an incident or a part of the data."""
        return self.counts.get(name, name)

    def metric(self, name: str) -> str:
        """The label of a metric; its dotted name where it has none."""
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
    """A share in percent; a dash for None."""
    return "–" if value is None else _minus(f"{100 * value:z.1f} %")


def points(value: float) -> str:
    """A difference of shares in percentage points with its sign."""
    return _minus(f"{100 * value:+z.1f}")


def number(value: float | None) -> str:
    """A number with four significant digits, or one decimal from 100; a dash for None, NaN and infinities."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 1e15:
        return _minus(f"{value:z,.0f}")
    return _minus(f"{value:z,.1f}" if abs(value) >= 100 else f"{value:z.4g}")


def signed(value: float) -> str:
    """A difference of numbers with its sign."""
    return _minus(f"{value:+z.3g}")


def similarity(value: float, decimals: int = 2) -> str:
    """A similarity."""
    return _minus(f"{value:z.{decimals}f}")


def _minus(text: str) -> str:
    """The formatted number with a minus sign in place of the hyphen, and no sign before a zero (format `z`)."""
    return text.replace("-", "−")
