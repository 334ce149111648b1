"""Beside a torchvision that cannot be imported, every family is built all the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import spanbox
from command import HANGS

BUILD_ALL = """
import tiny
from spanbox.models.tower_settings import TowerSettings, VisionTowerSettings
from spanbox.models.towers import build_text_tower, build_vision_tower
for architecture in tiny.TEXT_ARCHITECTURES:
    build_text_tower(TowerSettings(architecture=architecture))
for architecture in tiny.VISION_ARCHITECTURES:
    build_vision_tower(VisionTowerSettings(architecture=architecture, **tiny.needs(architecture)))
from transformers import CLIPModel, AutoTokenizer
print("built")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "first"),
    [
        ("RuntimeError('operator torchvision::nms does not exist')", ""),
        ("OSError('libcudart.so.13: cannot open')", "import transformers\n"),
    ],
    ids=["alone", "transformers first"],
)
def test_broken_torchvision(error: str, first: str, tmp_path: Path) -> None:
    package, info = tmp_path / "torchvision", tmp_path / "torchvision-0.99.0.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").write_text(f"__version__ = '0.99.0'\nraise {error}\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.99.0\n")
    paths = [tmp_path, Path(spanbox.__file__).parents[1], Path(__file__).parents[1]]
    done = subprocess.run(
        [sys.executable, "-c", first + BUILD_ALL],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))},
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
    )
    assert done.stdout == "built\n", done.stderr[-2000:]
