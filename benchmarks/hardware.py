"""The hardware and the versions of a measurement."""

import os
import platform
from datetime import date
from pathlib import Path

import torch


def describe() -> str:
    """Date, GPU or CPU, and versions, for the head of a table."""
    cpuinfo = Path("/proc/cpuinfo")
    names = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    cpu = next((line.partition(": ")[2] for line in names if line.startswith("model name")), platform.processor())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores of {cpu}"
    return f"{date.today()}, {device}, PyTorch {torch.__version__}, Python {platform.python_version()}"
