"""A model with its tokenizer and config: the value that the functions of this package pass on for encoding data."""

from dataclasses import dataclass
from typing import Any

import torch

from spanbox.config import RunConfig
from spanbox.engine.device import autocast, choose_precision
from spanbox.models.dual_encoder import DualEncoder
from spanbox.structures import Batch, Features


@dataclass(frozen=True)
class Inference:
    """A model in evaluation mode, with its tokenizer and the config of its run."""

    model: DualEncoder
    tokenizer: Any
    config: RunConfig

    @property
    def device(self) -> torch.device:
        """Device of both towers."""
        return self.model.device

    @property
    def precision(self) -> torch.dtype:
        """Precision of the towers on this device."""
        return choose_precision(self.config.train.precision, self.device)

    def in_precision(self) -> torch.autocast:
        """Context in which the towers compute in the precision of the run."""
        return autocast(self.device, self.precision)

    def encode_batch(self, batch: Batch) -> Features:
        """Features of a batch of the collator, on any device."""
        with self.in_precision():
            features: Features = self.model(batch)
        return features
