"""The commands and the code of docs/tutorial.md run from top to bottom, on miniature photos and towers."""

import csv
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

import miniature
from spanbox.cli.main import app
from spanbox.data.manifest import Manifest

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
BLOCKS = re.findall(
    r"^```(bash|python|csv)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
)
PHOTOS = 20


@pytest.mark.slow
def test_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_photos(tmp_path)
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(block, PAGE.name, "exec"), {"__name__": "tutorial"})  # our own text, from the repository
            if not (tmp_path / "models").exists() and (tmp_path / "train.jsonl").exists():
                make_towers(tmp_path)
        elif language == "bash":
            for line in block.replace("\\\n", " ").splitlines():
                run(shlex.split(line, comments=True))
    assert (tmp_path / "grounded.png").is_file()


def test_the_csv_files_of_the_page_are_those_of_the_script() -> None:
    captions, boxes = [block for language, block in BLOCKS if language == "csv"]
    assert captions.startswith("image,text\n")
    assert boxes.startswith("image,words,x0,y0,x1,y1\n")


def make_photos(folder: Path) -> None:
    """As many photos as a batch of the page needs, each with its sentence and boxes."""
    (folder / "photos").mkdir()
    captions, boxes = [["image", "text"]], [["image", "words", "x0", "y0", "x1", "y1"]]
    for number in range(PHOTOS + 5):
        name = f"photos/{number}.jpg"
        Image.new("RGB", (64, 48), (10 * number % 256, 99, 150)).save(folder / name)
        captions.append([name, f"a red kite above boat {number}"])
        boxes.append([name, "red kite", "12", "8", "40", "30"])
        if number % 2:
            boxes.append([name, "boat", "20", "34", "60", "46"])
    Image.new("RGB", (64, 48)).save(folder / "new.jpg")
    for file, rows in (("captions.csv", captions), ("boxes.csv", boxes)):
        with (folder / file).open("w", newline="", encoding="utf-8") as opened:
            csv.writer(opened).writerows(rows)


def make_towers(folder: Path) -> None:
    assert len(Manifest(folder / "train.jsonl")) == PHOTOS
    miniature.save_pretrained_towers(folder / "models", folder / "train.jsonl")
    (folder / "models" / "bert").rename(folder / "models" / "bert-base-uncased")
    (folder / "models" / "vit").rename(folder / "models" / "vit-base-patch16-224-in21k")


def run(words: list[str]) -> None:
    """One `spanbox` command, made small."""
    assert words[0] == "spanbox"
    small = [each for each in miniature.SCHEDULE if "batch_size" not in each] if words[1] == "train" else []
    with pytest.raises(SystemExit) as ended:
        app([*words[1:], *small])
    assert ended.value.code == 0, words
