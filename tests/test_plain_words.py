"""Texts for users use the terms of docs/glossary.md: some vague or ambiguous words are refused."""

import ast
import re
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from spanbox.cli.main import app
from spanbox.config import describe_keys

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "README.zh-CN.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
USE_INSTEAD = {
    r"\bcards?\b": "GPU",
    r"\bprocessors?\b": "CPU",
    r"\banew\b": "again, or new",
    r"\bmend(s|ed)?\b": "fix",
    r"\b(is|are) told\b": "is reported",
    r"\bwhat asks\b": "queries",
    r"\bone an? (split|line|file)\b": "one per ...",
    "物体": "目标",
    "热图": "热力图",
    "显卡": "GPU",
}


def refused(text: str) -> list[str]:
    """The refused words in a text, the value `train.clock=processor` and terms that contain one aside."""
    terms = r"clock=processor|\b((model|data|dataset) card|image processor)s?\b|card\.py|`card`"
    text = re.sub(terms, "", text, flags=re.IGNORECASE)
    found = [(match[0], term) for word, term in USE_INSTEAD.items() for match in re.finditer(word, text, re.IGNORECASE)]
    return [f"{word}: use {term}" for word, term in found]


def help_texts() -> dict[str, str]:
    """The help of every command and option."""
    texts = {}

    def collect(command: object, name: str) -> None:
        options = [getattr(option, "help", None) or "" for option in getattr(command, "params", [])]
        texts[name] = "\n".join([getattr(command, "help", None) or "", *options])
        for child, inner in getattr(command, "commands", {}).items():
            collect(inner, f"{name} {child}")

    collect(get_command(app), "spanbox")
    return texts


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents(document: str) -> None:
    assert not refused((ROOT / document).read_text(encoding="utf-8"))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_report(language: str) -> None:
    texts = yaml.safe_load((ROOT / "src/spanbox/report/texts" / f"{language}.yaml").read_text(encoding="utf-8"))
    assert not refused(str(texts))


def test_help() -> None:
    texts = help_texts()
    assert len(texts) > 12
    assert not {name: words for name, text in texts.items() if (words := refused(text))}


def test_settings() -> None:
    assert not {key: words for key, _, meaning in describe_keys() if (words := refused(meaning))}


def test_messages_and_docstrings() -> None:
    """Words with a second meaning in code (a card of a page, an image processor) are allowed there."""
    found = []
    for path in sorted((ROOT / "src/spanbox").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words = [each for each in refused(node.value) if not each.endswith((": use GPU", ": use CPU"))]
                found += [f"{path.name}, line {node.lineno}: {each}" for each in words]
    assert not found


def test_words_are_found() -> None:
    assert refused("What each card was told, once a file, is mended") == ["card: use GPU", "mended: use fix"]
    assert refused("数据集中的物体") == ["物体: use 目标"]
    assert not refused("cardinality, train.clock=processor")
