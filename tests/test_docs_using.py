"""The Python examples of docs/using.md run from top to bottom."""

import re
from pathlib import Path

import pytest
from PIL import Image

import miniature
from spanbox.wiring import train

PAGE = Path(__file__).parents[1] / "docs" / "using.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(miniature.demo_config(miniature.write_scenes(tmp_path / "data"), tmp_path / "runs" / "first"))
    for name in ("photo.jpg", "other.jpg"):
        Image.new("RGB", (64, 48), "white").save(name)
    names: dict[str, object] = {}
    assert len(BLOCKS) >= 5
    for block in BLOCKS:
        exec(compile(block, PAGE.name, "exec"), names)  # our own text, from the repository
    assert names["scores"].shape == (2, 2)  # type: ignore[attr-defined]
