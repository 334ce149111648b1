"""The documentation as a site is built without a warning: no broken link, no parameter that is not there."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from command import HANGS

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("mkdocs", "mkdocstrings", "latex2mathml")), reason="needs spanbox[docs]"
)
def test_the_site(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANGS, check=False)
    assert done.returncode == 0, done.stderr
    pages = {path.name for path in tmp_path.glob("*.html")}
    assert {f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")} <= pages
    assert {"index.html", "README.zh-CN.html", "benchmarks.html"} <= pages
    assert "<math" in (tmp_path / "mathematics.html").read_text(encoding="utf-8")
    assert "encode_spans" in (tmp_path / "reference.html").read_text(encoding="utf-8")
    for page in tmp_path.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert 'src="http' not in text, page.name  # nothing is loaded from elsewhere
        assert 'rel="stylesheet" href="http' not in text, page.name
        assert not re.search(r"<p><code>(bash|json|python|yaml)\n", text), page.name  # a fence that is not a block
