"""The page in headless Chromium: it loads all that it shows, fits its window, sorts its tables, and asks for nothing.

The page is opened as it is, in a frame of the width in question (a window has a least width); a page around it looks
into the frame and writes down what it finds.
"""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

import run_folders
from command import HANGS
from spanbox.report.page import make_report
from spanbox.report.text import Language

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

PROBE = """<!doctype html><meta charset="utf-8"><body style="margin: 0"><script>
function look(frame) {
  const inner = frame.contentDocument, found = {};
  found.width = frame.contentWindow.innerWidth;
  found.overflow = inner.documentElement.scrollWidth - found.width;
  const images = [...inner.images];
  found.images = images.length;
  found.broken = images.filter((image) => !image.complete || !image.naturalWidth).length;
  found.empty = [...inner.querySelectorAll("svg.plot")].filter((plot) => !plot.getBoundingClientRect().height).length;
  found.plots = inner.querySelectorAll("svg.plot").length;
  found.scripts = inner.scripts.length;
  found.requests = frame.contentWindow.performance.getEntriesByType("resource").map((entry) => entry.name);
  const table = inner.querySelector("table.sortable");
  if (table) {
    const column = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[1].dataset.value));
    const button = table.tHead.rows[0].cells[1].querySelector("button");
    found.sorted = [];
    for (let click = 0; click < 2; click++) {
      button.click();
      found.sorted.push([button.parentElement.getAttribute("aria-sort"), column()]);
    }
  }
  const words = document.createElement("pre");
  words.id = "found";
  words.textContent = JSON.stringify(found);
  document.body.append(words);
}
</script><iframe src="FILE" onload="look(this)" style="border: 0; width: WIDTHpx; height: 900px"></iframe>"""


def open_page(html: str, width: int, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What is found on a page in a frame of that width, and what the console said."""
    page, around = folder / "page.html", folder / "around.html"
    page.write_text(html, encoding="utf-8")
    around.write_text(PROBE.replace("FILE", page.as_uri()).replace("WIDTH", str(width)), encoding="utf-8")
    quiet = ("background-networking", "component-update", "sync", "default-apps", "extensions", "gpu")
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM,
            *("--headless=new", "--no-sandbox", "--no-first-run", "--allow-file-access-from-files"),
            *(f"--disable-{what}" for what in quiet),
            f"--user-data-dir={folder / 'profile'}",
            f"--window-size={max(width, 1000)},1000",
            *("--virtual-time-budget=5000", "--enable-logging=stderr", "--v=0", "--dump-dom"),
            around.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
    )
    words = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert words, done.stderr[-2000:]
    return json.loads(unescape(words[1])), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs with all that a page can show, and an ablation."""
    folder = tmp_path_factory.mktemp("folders")
    manifest = run_folders.write_data(folder / "data")
    runs = [run_folders.write_run(folder / name, manifest=manifest) for name in ("a-rather-long-name-of-a-run", "b")]
    return [*runs, run_folders.write_ablation(folder / "plan")]


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize(("language", "count"), [("en", 1), ("zh", 3)])
def test_the_page_in_a_browser(folders: list[Path], tmp_path: Path, width: int, language: Language, count: int) -> None:
    html = make_report(folders[:count], language).html
    found, console = open_page(html, width, tmp_path)
    assert console == []
    assert found["requests"] == []
    assert found["scripts"] == 1
    assert found["width"] == width
    assert found["overflow"] <= 0
    assert found["images"] > 10
    assert found["broken"] == 0
    assert found["plots"] > 5
    assert found["empty"] == 0
    (first, down), (second, up) = found["sorted"]
    assert (first, second) == ("descending", "ascending")
    assert down == sorted(down, reverse=True)
    assert up == sorted(up)


def test_what_is_wrong_would_be_seen(tmp_path: Path) -> None:
    wrong = """<!doctype html><script>console.error("oh")</script><img src="data:image/png;base64,AAAA">
    <img src="http://127.0.0.1:9/absent.png"><div style="width: 3000px">wide</div>"""
    found, console = open_page(wrong, 390, tmp_path)
    assert any("oh" in line for line in console)
    assert found["overflow"] > 2000
    assert found["broken"] == 2
    assert [Path(url).name for url in found["requests"]] == ["absent.png"]
