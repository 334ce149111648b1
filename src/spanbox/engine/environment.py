"""Versions, hardware and precision of a run, stored as `environment.json` in its folder."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from spanbox.documents import read_object
from spanbox.engine.device import PRECISIONS, precision_name
from spanbox.files import write_json

ENVIRONMENT = "environment.json"


def describe_environment() -> dict[str, Any]:
    """Versions of spanbox and its main dependencies, and the hardware of this machine."""
    return {
        "spanbox": version("spanbox"),
        "torch": str(torch.__version__),
        "transformers": version("transformers"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "cuda": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def write_environment(run_dir: Path, precision: torch.dtype) -> None:
    """Write `environment.json`, with the precision of the towers, into an existing run folder."""
    write_json(run_dir / ENVIRONMENT, describe_environment() | {"precision": precision_name(precision)})


def earlier_precision(run_dir: Path) -> torch.dtype | None:
    """The precision in which a run began; None if that is not known."""
    return PRECISIONS.get(str(read_object(run_dir / ENVIRONMENT).get("precision")))


def _cpu_name() -> str:
    """Name of the CPU, or of its architecture where the system gives no name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
