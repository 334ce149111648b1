"""docs/tutorial.ipynb is docs/tutorial.md, and its cells run from top to bottom, on drawn photos and tiny towers."""

import csv
import importlib.util
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import miniature
from spanbox.cli.main import app
from spanbox.data.manifest import Manifest

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOK: dict[str, Any] = json.loads((DOCS / "tutorial.ipynb").read_text(encoding="utf-8"))
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def converter() -> Any:
    """docs/notebook.py."""
    spec = importlib.util.spec_from_file_location("notebook", DOCS / "notebook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_notebook_is_the_page() -> None:
    page = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    assert (DOCS / "tutorial.ipynb").read_text(encoding="utf-8") == converter().written(page), "python docs/notebook.py"


def test_a_page_becomes_cells() -> None:
    page = "# 目标\n\ntext\n\n```python\nprint(1)\n\nprint(2)\n```\n\n```bash\na b \\\n  c\nd\n```\n\nend\n"
    made = converter().notebook(page)
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in made["cells"]] == [
        ("markdown", "# 目标\n\ntext"),
        ("code", "print(1)\n\nprint(2)"),
        ("code", "!a b \\\n  c\n!d"),
        ("markdown", "end"),
    ]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in made["cells"][1:3])
    assert len({cell["id"] for cell in made["cells"]}) == 4


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(CELLS):
        if not cell.startswith("!"):
            exec(compile(cell, f"cell {number}", "exec"), namespace)  # our own text, from the repository
            continue
        for command in re.split(r"^!", cell.replace("\\\n", " "), flags=re.MULTILINE)[1:]:
            run(shlex.split(command, comments=True))
    assert (tmp_path / "grounded.png").is_file()
    assert (tmp_path / "runs" / "photos" / "report.html").is_file()


def test_the_csv_files_of_the_page_are_those_of_the_drawn_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(CELLS[0], "cell 0", "exec"), {})
    shown = re.findall(r"^```csv\n(.*?)\n", (DOCS / "tutorial.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for name, header in zip(("captions.csv", "boxes.csv"), shown, strict=True):
        with (tmp_path / name).open(encoding="utf-8") as file:
            assert next(csv.reader(file)) == header.split(",")


def test_the_script_reads_what_excel_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte order mark, and a text of two lines in quotation marks."""
    monkeypatch.chdir(tmp_path)
    (script,) = [cell for cell in CELLS if "def read(" in cell]
    rows = 'image,text\r\na.jpg,"一只\nred kite"\r\nb.jpg,a boat\r\n'
    (tmp_path / "captions.csv").write_bytes(rows.encode("utf-8-sig"))
    (tmp_path / "boxes.csv").write_bytes("image,words,x0,y0,x1,y1\r\na.jpg,red kite,1,2,3,4\r\n".encode("utf-8-sig"))
    exec(compile(script, "script", "exec"), {})
    (record,) = map(json.loads, (tmp_path / "val.jsonl").read_text(encoding="utf-8").splitlines())
    assert record["text"] == "一只\nred kite"
    assert record["entities"] == [{"start": 3, "end": 11, "boxes": [[1.0, 2.0, 3.0, 4.0]]}]


def run(words: list[str]) -> None:
    """One `spanbox` command, made small."""
    assert words[0] == "spanbox"
    small: list[str] = []
    if words[1] == "train":
        small = [each for each in miniature.SCHEDULE if "batch_size" not in each]
        save_towers(Path("models"), Path("train.jsonl"))
    with pytest.raises(SystemExit) as ended:
        app([*words[1:], *small])
    assert ended.value.code == 0, words


def save_towers(folder: Path, manifest: Path) -> None:
    """What lies in `models/`, in miniature."""
    assert len(Manifest(manifest)) == 20
    miniature.save_pretrained_towers(folder, manifest)
    (folder / "bert").rename(folder / "bert-base-uncased")
    (folder / "vit").rename(folder / "vit-base-patch16-224-in21k")
