"""What a result was measured on."""

import os
import platform
from datetime import date
from pathlib import Path

import torch


def describe() -> str:
    """Date, processor or card, and versions, for the head of a table."""
    cpuinfo = Path("/proc/cpuinfo")
    names = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    processor = next((line.partition(": ")[2] for line in names if line.startswith("model name")), platform.processor())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores of {processor}"
    return f"{date.today()}, {device}, PyTorch {torch.__version__}, Python {platform.python_version()}"
