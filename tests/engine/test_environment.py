import json
import os
from pathlib import Path

import torch

from spanbox.engine.environment import describe_environment, write_environment


def test_versions_and_hardware_are_named(tmp_path: Path) -> None:
    write_environment(tmp_path, torch.bfloat16)
    written = json.loads((tmp_path / "environment.json").read_text(encoding="utf-8"))
    assert written == describe_environment() | {"precision": "bfloat16"}
    assert written["torch"] == torch.__version__
    assert written["cores"] == os.cpu_count()
    assert written["cpu"]
    assert all(name in written for name in ("spanbox", "transformers", "python", "platform", "cuda"))
