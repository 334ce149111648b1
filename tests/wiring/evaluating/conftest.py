"""Small scenes, a run on them, an evaluation of it, and copies of these to change."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import miniature
from evaluations import read
from spanbox.data.manifest import Manifest, Record
from spanbox.wiring import EvaluationOptions, evaluate_to_folder, train


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences in English and in Chinese."""
    return miniature.write_scenes(tmp_path_factory.mktemp("scenes"), languages=("en", "zh"))


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run. Tests only look at it."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    vocabulary = "model.text.architecture.vocab_size=512"
    return train(miniature.demo_config(scenes, folder, vocabulary, "data.proposals=2")).run_dir


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / "copied", symlinks=True)


@pytest.fixture
def copied_scenes(scenes: Path, tmp_path: Path) -> Path:
    return shutil.copytree(scenes, tmp_path / "scenes")


@pytest.fixture(scope="module")
def evaluated(run: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that an evaluation on the test scenes writes."""
    out = tmp_path_factory.mktemp("evaluated")
    options = EvaluationOptions(examples=2, occlusion=10, predictions=out / "predictions.jsonl")
    evaluate_to_folder(run, scenes / "test.jsonl", out, options, "cpu")
    return out


@pytest.fixture
def examples(evaluated: Path) -> Any:
    return read(evaluated / "evaluation" / "examples.json")


@pytest.fixture(scope="module")
def records(scenes: Path) -> dict[str, Record]:
    return {record.id: record for record in Manifest(scenes / "test.jsonl")}
