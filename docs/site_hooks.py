"""Hooks of mkdocs: pages from outside docs/, and formulas as MathML, which browsers draw without a script."""

import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"index.md": "README.md", "README.zh-CN.md": "README.zh-CN.md", "benchmarks.md": "benchmarks/README.md"}
CODE = re.compile(r"(^ *```.*?^ *```|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^\s$](?:[^$\n]*[^\s$])?)\$", re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add README and the benchmarks as pages, with their links as seen from docs/."""
    for page, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_from_docs(text, Path(source).parent)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to README and benchmarks lead to their pages; formulas become MathML."""
    markdown = markdown.replace("](../benchmarks/README.md", "](benchmarks.md")
    return "".join(part if CODE.fullmatch(part) else FORMULA.sub(_mathml, part) for part in CODE.split(markdown))


def _from_docs(text: str, folder: Path) -> str:
    """A page with links that hold in docs/; files that are no pages become plain text."""

    def link(match: re.Match[str]) -> str:
        words, target, anchor = match[1], match[2], match[3] or ""
        path = (folder / target).as_posix().replace("benchmarks/../", "")
        known = {source: page for page, source in PAGES.items()}
        if path in known:
            return f"[{words}]({known[path]}{anchor})"
        if path.startswith("docs/"):
            return f"[{words}]({path.removeprefix('docs/')}{anchor})"
        return words

    return re.sub(r"\[([^\]]+)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)", link, text)


def _mathml(match: re.Match[str]) -> str:
    display = match[1] is not None
    return str(convert(match[1] or match[2], display="block" if display else "inline")).replace("\n", " ")
