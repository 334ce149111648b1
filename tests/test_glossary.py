"""The glossary: every term in both languages, once; every guide is reachable from the READMEs."""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GLOSSARY = ROOT / "docs" / "glossary.md"
ROW = re.compile(r"^\| (?!term |---)(.*) \|$", flags=re.MULTILINE)
CHINESE = re.compile(r"[\u4e00-\u9fff]")
GUIDES = sorted((ROOT / "docs").glob("*.md"))


def rows() -> list[list[str]]:
    return [line.split(" | ") for line in ROW.findall(GLOSSARY.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_each_term_is_defined_in_both_languages(row: list[str]) -> None:
    term, chinese, meaning, chinese_meaning = row
    assert re.fullmatch(r"[a-z -]+", term)
    assert not CHINESE.search(meaning)
    assert meaning.endswith(".")
    assert CHINESE.search(chinese)
    assert CHINESE.search(chinese_meaning)
    assert chinese_meaning.endswith("。")


@pytest.mark.parametrize("column", [0, 1])
def test_no_term_is_used_twice(column: int) -> None:
    assert len(rows()) > 40
    assert max(Counter(row[column] for row in rows()).values()) == 1


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_the_readmes_list_every_guide(readme: str) -> None:
    text = (ROOT / readme).read_text(encoding="utf-8")
    assert not [guide.name for guide in GUIDES if f"](docs/{guide.name})" not in text]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_links_between_documents_resolve(guide: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", guide.read_text(encoding="utf-8"))
    assert not [target for target in targets if not (guide.parent / target).exists()]
