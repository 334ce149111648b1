"""Dual-level vision-language contrastive pretraining: sentences with images, words with pixels."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spanbox.wiring import Loaded

__version__ = "0.1.0"


def load(path: Path | str, device: str = "cpu") -> "Loaded":
    """The trained model of a run folder (its best checkpoint) or of a checkpoint folder, ready to encode.

    Example:
        >>> trained = spanbox.load("runs/demo")
        >>> trained.model.text, trained.model.vision, trained.tokenizer
    """
    from spanbox.wiring import load as load_checkpoint  # imports PyTorch and transformers

    return load_checkpoint(path, device)
