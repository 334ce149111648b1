"""Settings of all tests: two workers, offline, one thread, no GPU, the same seed, output without colours."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so before anything else
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start, too
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # or tokenizers warns when a test forks after using one

import pytest
import torch

for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):  # or rich takes a captured stream for a terminal
    os.environ.pop(name, None)

SLOW_FOLDERS = {"cli", "explore", "export", "report", "search", "wiring"}
"""Tests of whole commands, runs and pages."""


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs, so that the tests compute the same on every machine; `pytest -m cuda` runs those that need one."""
    if config.option.markexpr != "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two for the whole suite. Single files and tests run in this process, which starts sooner; `-n 2` overrides."""
    return 2 if config.args_source is pytest.Config.ArgsSource.TESTPATHS else 0


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`make test-fast` does not import what it would leave out."""
    only_fast = config.option.markexpr == "not slow"
    return True if only_fast and collection_path.name in SLOW_FOLDERS and collection_path.is_dir() else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Path(__file__).parent
    for item in items:
        if item.path.relative_to(tests).parts[0] in SLOW_FOLDERS:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small data set of drawn scenes, in English."""
    import miniature  # with transformers, which most tests do not need

    return miniature.write_scenes(tmp_path_factory.mktemp("scenes"))
