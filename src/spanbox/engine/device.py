"""Where the towers run, and in which arithmetic."""

import re

import torch
from torch import nn

from spanbox.engine.large_batch import Encode
from spanbox.errors import ConfigError
from spanbox.structures import Batch, Features


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device called `name`; `auto` is the card of this process, else the processor."""
    if name == "auto":
        return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ConfigError(f"train.device: {name!r} is no device to train on; expected auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"train.device: {name!r} is asked for, but the CUDA devices that PyTorch sees are "
            f"{torch.cuda.device_count()}; use train.device=cpu or a lower number"
        )
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        capable = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if capable else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def make_encode(module: nn.Module, device: torch.device, precision: torch.dtype) -> Encode:
    """Features of pairs that may lie on the processor, by a module on `device`, in the precision of the run."""

    def encode(chunk: Batch) -> Features:
        chunk = chunk.trimmed().to(device, non_blocking=True)
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            features: Features = module(chunk)
        return features

    return encode
