"""What is embedded beside manifests: folders of images and columns of CSV files."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from embedded import write
from spanbox.api import Model
from spanbox.errors import DataError
from spanbox.search.index import open_index
from spanbox.search.sources import open_source


def test_a_folder_of_images(model: Model, scenes: Path, tmp_path: Path) -> None:
    folder = scenes / "images" / "test"
    (folder / "notes.txt").write_text("no image")
    write(model, folder, tmp_path / "out.npy", "images")
    index = open_index(tmp_path / "out.npy")
    names = sorted(path.name for path in folder.glob("*.jpg"))
    assert [row["image"] for row in index.columns] == names
    np.testing.assert_allclose(index.features[1], model.encode_images(folder / names[1]), atol=2e-6)


class TestCsv:
    def test_a_column_of_texts(self, model: Model, tmp_path: Path) -> None:
        with (tmp_path / "t.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["n", "title"], [1, 'a "red", boat'], [2, "蝴蝶\n两只"]])
        write(model, tmp_path / "t.csv", tmp_path / "out.npy", "texts", "title")
        index = open_index(tmp_path / "out.npy")
        assert [row["text"] for row in index.columns] == ['a "red", boat', "蝴蝶\n两只"]
        np.testing.assert_allclose(index.features[1], model.encode_texts("蝴蝶\n两只"), atol=2e-6)

    @pytest.mark.parametrize(
        ("content", "column", "message"),
        [
            (b"a,b\n1,2\n", None, "--column is not given; its columns are 'a', 'b'"),
            (b"a,b\n1,2\n", "c", "--column is 'c'"),
            (b"a,b\n1\n", "b", r"t\.csv:2: 1 fields in 2 columns"),
            (b"title\na red kite, above a boat\n", None, r"t\.csv:2: 2 fields in 1 columns; quote a field"),
            (b"a,a\n1,2\n", "a", "its columns are 'a', 'a'"),
            (b"title;image\na red kite;a.jpg\n", None, "its only column is 'title;image'; separate columns by commas"),
            (b"title\timage\na red kite\ta.jpg\n", None, "separate columns by commas"),
            (b"", None, "its columns are"),
            (b"a\n\xff\n", None, "cannot be read as CSV in UTF-8"),
            (b'a\n"b', None, "cannot be read as CSV"),
        ],
    )
    def test_files_that_are_wrong(self, tmp_path: Path, content: bytes, column: str | None, message: str) -> None:
        (tmp_path / "t.csv").write_bytes(content)
        with pytest.raises(DataError, match=message):
            open_source(tmp_path / "t.csv", "texts", column)

    @pytest.mark.timeout(20)
    def test_a_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "t.csv")
        with pytest.raises(DataError, match=r"t\.csv: cannot be read as CSV .*not a regular file"):
            open_source(tmp_path / "t.csv", "texts", None)

    def test_an_ending_in_capitals_and_a_column_with_a_semicolon(self, tmp_path: Path) -> None:
        (tmp_path / "T.CSV").write_bytes(b"what; why\na red kite\n")
        assert open_source(tmp_path / "T.CSV", "texts", "what; why").item(0).text == "a red kite"
