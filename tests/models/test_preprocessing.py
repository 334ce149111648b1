"""Mean and deviation of the pixels, as the folder of a model states them."""

import json
from pathlib import Path
from typing import Any

import pytest

from spanbox.errors import ConfigError
from spanbox.models.preprocessing import Preprocessing


class TestPreprocessing:
    def write(self, folder: Path, values: Any, name: str = "preprocessor_config.json") -> Path:
        (folder / name).write_text(values if isinstance(values, str) else json.dumps(values))
        return folder

    def test_read_from_the_models_folder(self, tmp_path: Path) -> None:
        self.write(tmp_path, {"image_mean": [0.48, 0.45, 0.4], "image_std": [0.26, 0.25, 0.27], "do_resize": True})
        read = Preprocessing.from_model_folder(tmp_path, 224)
        assert read == Preprocessing(image_size=224, mean=(0.48, 0.45, 0.4), std=(0.26, 0.25, 0.27))

    def test_nested_in_a_processors_file(self, tmp_path: Path) -> None:
        values = {"image_processor": {"image_mean": [0.1, 0.1, 0.1], "image_std": [0.2, 0.2, 0.2]}}
        read = Preprocessing.from_model_folder(self.write(tmp_path, values, "processor_config.json"), 32)
        assert (read.mean, read.std) == ((0.1, 0.1, 0.1), (0.2, 0.2, 0.2))

    def test_one_half_where_nothing_is_said(self, tmp_path: Path) -> None:
        half = Preprocessing(image_size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        assert Preprocessing.from_model_folder(None, 32) == half
        assert Preprocessing.from_model_folder(tmp_path, 32) == half
        assert Preprocessing.from_model_folder(self.write(tmp_path, {"do_resize": True}), 32) == half

    @pytest.mark.parametrize(
        "values",
        [
            "{",
            "[1, 2]",
            "3",
            {"image_processor": [1]},
            {"image_mean": [0.5, 0.5]},
            {"image_std": "half"},
            {"image_std": [0.5, 0.0, 0.5]},
        ],
    )
    def test_damaged(self, values: Any, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"preprocessor_config\.json: image_mean and image_std cannot be read"):
            Preprocessing.from_model_folder(self.write(tmp_path, values), 32)
