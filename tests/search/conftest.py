"""A tiny model and its scenes, for each file of tests."""

from pathlib import Path

import pytest

import miniature
import spanbox
from spanbox.api import Model
from spanbox.wiring import train


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.write_scenes(tmp_path_factory.mktemp("scenes"), languages=("en", "zh"))


@pytest.fixture(scope="module")
def model(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    run = tmp_path_factory.mktemp("runs") / "run"
    train(miniature.demo_config(scenes, run))
    return spanbox.load(run)
