"""Dual-level vision-language contrastive pretraining: sentences with images, spans with boxes."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from spanbox.api import Model

__version__ = "0.1.0"


def load(path: Path | str, device: "str | torch.device" = "cpu") -> "Model":
    """Load the trained model of a run folder (its best checkpoint) or of a checkpoint folder.

    Args:
        path: the folder.
        device: auto, cpu, cuda or cuda:N, or a device of PyTorch.

    Returns:
        The model in evaluation mode, with all that encoding needs.

    Raises:
        CheckpointError: there is none, it is damaged, or it holds a GMNER model.
        ConfigError: the device does not exist.

    Examples:
        >>> model = spanbox.load("runs/demo")
        >>> model.ground("photo.jpg", "a red kite above a boat", spans=["red kite", "boat"])
    """
    from spanbox.api import load as load_model  # imports PyTorch and transformers

    return load_model(path, device)
