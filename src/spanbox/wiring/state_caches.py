"""The caches of towers that are frozen whole (`train.cache_frozen`)."""

import hashlib
import json
from pathlib import Path

import torch

from spanbox.config import RunConfig
from spanbox.engine.distributed import Ranks
from spanbox.engine.state_cache import StateCache
from spanbox.engine.task import is_trained
from spanbox.errors import ConfigError
from spanbox.models.dual_encoder import DualEncoder
from spanbox.models.towers import Tower
from spanbox.wiring.building import uses_views


def make_state_caches(
    config: RunConfig, model: DualEncoder, ranks: Ranks, precision: torch.dtype
) -> dict[str, StateCache]:
    """A cache for each tower in which nothing learns and whose input is the same in every epoch.

    Raises:
        ConfigError: there is no such tower, the towers are cut up (fsdp), or their states pass through a projection
            that learns (fusion).
        OutputError: the folder cannot be written.
        DataError: a cache is damaged.
    """
    if config.train.cache_frozen is None:
        return {}
    if config.train.parallel == "fsdp" and ranks.world_size > 1:
        raise ConfigError("train.cache_frozen: not with train.parallel=fsdp, whose ranks encode together")
    if config.model.fusion.used:
        raise ConfigError(
            "train.cache_frozen: not with model.fusion, whose projections of tokens and patches learn although the "
            "tower is frozen; set one of the two to null or none"
        )
    changes = {"text": _changes_of_texts(config), "image": _changes_of_images(config)}
    towers = {"text": model.text, "image": model.vision}
    reasons = {name: "learns" if is_trained(tower) else changes[name] for name, tower in towers.items()}
    if all(reasons.values()):
        raise ConfigError(
            f"train.cache_frozen: no tower can be kept: the text tower {reasons['text']}, the vision tower "
            f"{reasons['image']}; freeze one whole (model.vision.freeze=all), or set train.cache_frozen=null"
        )
    folder = Path(config.train.cache_frozen)
    return {
        name: StateCache(folder, f"{name}-{_fingerprint(towers[name], model, precision)}")
        for name, reason in reasons.items()
        if not reason
    }


def _changes_of_texts(config: RunConfig) -> str:
    return "reads augmented texts (data.augment.text)" if config.data.augment.text.active else ""


def _changes_of_images(config: RunConfig) -> str:
    if config.data.augment.image.active:
        return "reads augmented images (data.augment.image)"
    filled = uses_views(config) and config.data.views.fill != "drop"
    return "reads images that are filled at random (data.views.fill)" if filled else ""


def _fingerprint(tower: Tower, model: DualEncoder, precision: torch.dtype) -> str:
    """Digest of all that the states of a row depend on, besides the row."""
    digest = hashlib.blake2b(digest_size=12)
    settings = [model.settings.model_dump(mode="json"), model.preprocessing.model_dump(mode="json"), str(precision)]
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in tower.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
