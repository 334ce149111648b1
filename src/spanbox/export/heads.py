"""The layers between towers and features, as plain files.

heads.safetensors    `text`, `image`, `spans`, `regions`: weight (D, P) and bias (D,) of each
heads.json           pooling before each of them, and the numbers for comparing features
"""

import json
from pathlib import Path
from typing import Any, get_args

from safetensors.torch import save_file

from spanbox.api import Model
from spanbox.files import write_text
from spanbox.models.dual_encoder import Part


def write_heads(model: Model, folder: Path) -> None:
    """Write both files into a folder."""
    weights = {}
    for part in get_args(Part):
        layer = model.model.projection_of(part)
        weights[f"{part}.weight"] = layer.weight.detach().cpu().clone().contiguous()
        weights[f"{part}.bias"] = layer.bias.detach().cpu().clone().contiguous()
    save_file(weights, folder / "heads.safetensors")
    write_text(folder / "heads.json", json.dumps(heads_settings(model), indent=2) + "\n")


def heads_settings(model: Model) -> dict[str, Any]:
    """Pooling, sizes and numbers that apply to the features."""
    settings = model.model.settings
    return {
        "dim": model.dim,
        "text": {"pool": model.model.text.settings.pool, "max_tokens": model.config.data.max_tokens},
        "image": {
            "pool": model.model.vision.settings.pool,
            "size": model.model.vision.image_size,
            "aspect": model.config.data.aspect,
        },
        "spans": settings.spans.model_dump(),
        "regions": settings.regions.model_dump(),
        "temperature": model.objective.temperatures(),
        "presence_threshold": model.threshold,
    }
