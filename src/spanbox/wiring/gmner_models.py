"""GMNER models: made on a pretrained run or a recipe, and opened from their checkpoints."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from spanbox.config import RunConfig
from spanbox.data.tagged import MOST_TYPES
from spanbox.engine.checkpoint import find_checkpoint, load_weights
from spanbox.engine.device import choose_device
from spanbox.errors import CheckpointError
from spanbox.models.gmner import GmnerModel
from spanbox.wiring.loading import TYPES, open_encoder, read_architecture


@dataclass(frozen=True)
class LoadedGmner:
    """A trained GMNER model with its tokenizer and config."""

    model: GmnerModel
    tokenizer: Any
    config: RunConfig
    checkpoint: Path


def load_gmner(path: Path, device: str = "cpu") -> LoadedGmner:
    """The model of a checkpoint folder, or of the best (else last) checkpoint of a run of `spanbox gmner train`.

    Raises:
        CheckpointError: there is none, it is damaged, or it is a run of `spanbox train`.
    """
    loaded = open_gmner(find_checkpoint(path))
    loaded.model.to(choose_device(device)).eval()
    return loaded


def open_gmner(checkpoint: Path, config: RunConfig | None = None) -> LoadedGmner:
    """The model of a checkpoint folder, ready for further training: on the CPU, in training mode.

    Args:
        config: of the run that goes on; None: that of the checkpoint.
    """
    encoder, tokenizer, config = open_encoder(checkpoint, config)
    types = read_architecture(checkpoint).get(TYPES)
    if types is None:
        raise CheckpointError(
            f"{checkpoint}: is a pretrained model without entity types; train a GMNER model on it: spanbox gmner "
            f"train TRAIN.jsonl --val VAL.jsonl --from {checkpoint} --out runs/ner"
        )
    named = isinstance(types, list) and all(isinstance(name, str) for name in types)
    if not named or not 0 < len(types) <= MOST_TYPES:
        raise CheckpointError(
            f"{checkpoint}/architecture.json: types is not a list of at most {MOST_TYPES} names; copy the checkpoint "
            "again"
        )
    model = GmnerModel(encoder, types, scale=1 / config.gmner.temperature, grounds=config.gmner.regions)
    load_weights(checkpoint, model, nn.Module())
    return LoadedGmner(model, tokenizer, config, checkpoint)
