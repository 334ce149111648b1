"""docs/limits.md states the limits that the code has."""

import importlib
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "limits.md"
ROW = re.compile(r"\| ([\d,.]+)( MiB| bytes|) \| `([\w.]+)\.([A-Z_]+)` \|")
ROWS = [match.groups() for match in ROW.finditer(PAGE.read_text(encoding="utf-8"))]


def test_every_row_is_read() -> None:
    assert len(ROWS) == PAGE.read_text(encoding="utf-8").count("` |") > 20


@pytest.mark.parametrize(("stated", "unit", "module", "name"), ROWS, ids=lambda part: part.strip())
def test_a_limit_is_that_of_the_code(stated: str, unit: str, module: str, name: str) -> None:
    limit = getattr(importlib.import_module(f"spanbox.{module}"), name)
    assert float(stated.replace(",", "")) * (2**20 if unit == " MiB" else 1) == limit
