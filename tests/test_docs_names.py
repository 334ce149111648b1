"""Options of commands and keys of the config that the documents name exist."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from spanbox.cli.main import app
from spanbox.config import known_keys

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *("README.md", "README.zh-CN.md", "CHANGELOG.md", "benchmarks/README.md"),
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]


def options_of(command: object, name: str) -> dict[str, set[str]]:
    """The options of a command and of all below it, by their names."""
    own = {option for parameter in getattr(command, "params", []) for option in getattr(parameter, "opts", [])}
    found = {name: own | {"--help"}}
    for child, inner in getattr(command, "commands", {}).items():
        found |= options_of(inner, f"{name} {child}")
    return found


def unknown_options(text: str) -> list[str]:
    """`COMMAND OPTION` for every option in a text that its command does not have."""
    options, unknown = options_of(get_command(app), "spanbox"), []
    for line in re.findall(r"\bspanbox [a-z][^`\n|]*", text.replace("\\\n", " ")):
        name, *words = line.split()
        while words and f"{name} {words[0].rstrip('`:.,')}" in options:
            name = f"{name} {words.pop(0).rstrip('`:.,')}"
        given = [match[0] for word in words if (match := re.match(r"--[a-z][a-z-]*", word))]
        unknown += [f"{name} {option}" for option in given if option not in options[name]]
    return unknown


def unknown_keys(text: str) -> list[str]:
    """The keys of `key=value` in a text that no config has."""
    found = re.findall(r"\b((?:data|gmner|loss|model|run|train)\.[a-z_.]+)=", text)
    return [key for key in found if key not in known_keys() and ".architecture." not in key]


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    assert not unknown_options(text)
    assert not unknown_keys(text)


def test_unknown_names_are_found() -> None:
    assert unknown_options("`spanbox data check my.jsonl --htlm page.html`") == ["spanbox data check --htlm"]
    assert unknown_keys("train.bach_size=16 and train.batch_size=16") == ["train.bach_size"]
