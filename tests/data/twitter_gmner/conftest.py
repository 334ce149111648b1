"""A small set of Twitter-GMNER, with which the tests of its importer begin."""

from pathlib import Path

import pytest
from PIL import Image

from gmner_sets import TWEET, vinvl, voc


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The folder of a set that has everything once."""
    folder = tmp_path / "Twitter10000_v2.0"
    for name in ("txt", "xml", "images", "vinvl"):
        (folder / name).mkdir(parents=True)
    (folder / "txt" / "train.txt").write_text(TWEET)
    (folder / "xml" / "71044.xml").write_text(voc(("Tom", (1, 2, 30, 28)), ("New York City", (0, 0, 40, 30))))
    vinvl(folder / "vinvl" / "71044.jpg.npz", [[1.5, 2.25, 10.1, 20.2], [0, 0, 5, 5]])
    Image.new("RGB", (40, 30)).save(folder / "images" / "71044.jpg")
    return folder
