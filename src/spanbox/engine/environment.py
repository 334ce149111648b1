"""What a run was trained with: versions and hardware, as `environment.json` in its folder."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def describe_environment() -> dict[str, Any]:
    """Versions of what computes, and the hardware of this machine."""
    return {
        "spanbox": version("spanbox"),
        "torch": str(torch.__version__),
        "transformers": version("transformers"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "cuda": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def write_environment(run_dir: Path) -> None:
    """Write `environment.json` into a run folder that is there."""
    content = json.dumps(describe_environment(), indent=1, ensure_ascii=False)
    (run_dir / "environment.json").write_text(content + "\n", encoding="utf-8")


def _processor() -> str:
    """The processor's name; where the system does not tell, that of its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
