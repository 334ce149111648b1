"""What the tests of evaluations share: options that take little time, files of JSON, edits of a text."""

import json
from pathlib import Path
from typing import Any

from spanbox.wiring import EvaluationOptions

LIGHT = EvaluationOptions(examples=1, occlusion=4)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
