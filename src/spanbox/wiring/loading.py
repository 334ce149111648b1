"""A trained model from its checkpoint, with all that it needs to be used."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spanbox.config import RunConfig, parse_config
from spanbox.data.tokenizer import load_tokenizer
from spanbox.engine.checkpoint import find_checkpoint, load_weights
from spanbox.engine.device import choose_device
from spanbox.errors import CheckpointError
from spanbox.losses.objective import Objective
from spanbox.models.dual_encoder import DualEncoder
from spanbox.models.preprocessing import Preprocessing
from spanbox.models.towers import build_text_tower, build_vision_tower


@dataclass(frozen=True)
class Loaded:
    """A trained model with all that it needs to be used."""

    model: DualEncoder  # in evaluation mode
    objective: Objective
    tokenizer: Any
    config: RunConfig
    checkpoint: Path


def load(path: Path | str, device: str = "cpu") -> Loaded:
    """The model of a checkpoint folder, or of the best (else last) checkpoint of a run folder.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    folder = find_checkpoint(Path(path))
    config = parse_config(_read(folder / "config.yaml"), str(folder / "config.yaml"))
    try:
        architecture = json.loads(_read(folder / "architecture.json"))
        preprocessing = Preprocessing.model_validate_json(_read(folder / "preprocessing.json"))
    except ValueError as error:
        raise CheckpointError(f"{folder}: architecture.json or preprocessing.json is damaged ({error})") from None
    settings = config.model.model_copy(
        update={
            part: getattr(config.model, part).model_copy(update={"path": None, "architecture": architecture[part]})
            for part in ("text", "vision")
        }
    )
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    text = build_text_tower(settings.text, pad_token_id=tokenizer.pad_token_id)
    model = DualEncoder(text, build_vision_tower(settings.vision), preprocessing, settings)
    objective = Objective(config.loss, config.model.dim)
    load_weights(folder, model, objective)
    return Loaded(model.to(choose_device(device)).eval(), objective, tokenizer, config, folder)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); a checkpoint is copied as a whole") from None
