"""Device and floating-point precision of the towers."""

import re

import torch

from spanbox.errors import ConfigError


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device called `name`; `auto` is the GPU of this process if there is one, else the CPU.

    Raises:
        ConfigError: an unknown name, or a GPU that is not there.
    """
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"train.device: auto gives each process a GPU, and process {local_rank} of this machine has none: "
                f"PyTorch finds {torch.cuda.device_count()}; start as many by torchrun --nproc-per-node, or set "
                "train.device=cpu"
            )
        return torch.device("cuda", local_rank)
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ConfigError(f"train.device: {name!r} is not a device to train on; expected auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"train.device: {name!r} is set, but PyTorch finds {torch.cuda.device_count()} CUDA devices; use "
            "train.device=cpu or a lower number"
        )
    return device


PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CPU_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "avx10_2", "bf16", "sve_bf16")
"""Those of x86 and ARM that compute in bfloat16."""


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The precision called `name`; `auto` is bfloat16 on GPUs that compute in it, else float32.

    On CPUs training measures (`engine/speed.py`). PyTorch emulates bfloat16 on older GPUs (V100, T4), which
    is slower than float32 there.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and _computes_in_bfloat16(device) else torch.float32
    return PRECISIONS[name]


def precision_name(precision: torch.dtype) -> str:
    """The name of a precision, as `choose_precision` takes it."""
    return str(precision).removeprefix("torch.")


def cpu_computes_in_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16; emulated, it is slower than float32."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in CPU_INSTRUCTIONS)


def _computes_in_bfloat16(device: torch.device) -> bool:
    with torch.cuda.device(device):  # PyTorch's test is about the current device
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Context in which the towers compute in the precision of the run."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


def casting_once(device: torch.device) -> torch.autocast:
    """Context in which several uses of `autocast` share the cast weights; all of them with gradients, or all without.

    PyTorch casts each weight once in the outermost context, and keeps the result with its part of the graph.
    """
    return torch.autocast(device.type, enabled=False)
