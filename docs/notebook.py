"""Makes `tutorial.ipynb` of `tutorial.md`: `python docs/notebook.py`. A test compares both.

Blocks of Python become cells, those of bash cells with `!`; all else is text. There are no outputs.
"""

import json
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```\n", re.DOTALL | re.MULTILINE)


def notebook(page: str) -> dict[str, Any]:
    """A page as a notebook (nbformat 4.5)."""
    text, *blocks = BLOCK.split(page)
    cells = [_cell("markdown", text)]
    for language, code, after in zip(blocks[::3], blocks[1::3], blocks[2::3], strict=True):
        cells += [_cell("code", code if language == "python" else _shell(code)), _cell("markdown", after)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    used = [{"id": f"cell-{number}", **cell} for number, cell in enumerate(c for c in cells if c["source"])]
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": used}


def _cell(kind: str, text: str) -> dict[str, Any]:
    cell: dict[str, Any] = {"cell_type": kind, "metadata": {}, "source": text.strip("\n").splitlines(keepends=True)}
    return cell if kind == "markdown" else {**cell, "execution_count": None, "outputs": []}


def _shell(code: str) -> str:
    """Commands for the shell, each behind a `!`; one that ends in a backslash goes on in the next line."""
    return re.sub(r"(?<!\\\n)^(?=.)", "!", code, flags=re.MULTILINE)


def written(page: str) -> str:
    """The file of the notebook of a page."""
    return json.dumps(notebook(page), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    made = written((FOLDER / "tutorial.md").read_text(encoding="utf-8"))
    (FOLDER / "tutorial.ipynb").write_text(made, encoding="utf-8")
