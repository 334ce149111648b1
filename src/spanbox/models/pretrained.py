"""Opening transformers encoders: their configs, and their weights from a local folder or from scratch.

Nothing is ever downloaded. What transformers prints while it loads is replaced by checks: weights that the tower needs
and that the folder lacks are an error, where transformers would fill them with random numbers and say so in a table.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from spanbox.documents import read_json
from spanbox.errors import CheckpointError, ConfigError

Part = Literal["text", "vision"]

MOST_LAYERS = 1_000
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_WRONG_ARCHITECTURE = (
    ArithmeticError,
    AttributeError,
    KeyError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)


def model_folder(path: str, part: Part) -> Path:
    """The local folder of a model: `path` itself, or where the cache keeps the model of that name.

    Raises:
        ConfigError: neither exists, or the folder has no config.json.
    """
    folder = Path(path)
    if not folder.is_dir():
        folder = _cached_folder(path, part)
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"{part} tower: the folder {folder} has no config.json. Give the folder that transformers saved, "
            "or one fetched with `hf download NAME --local-dir DIR`."
        )
    return folder


def config_from_folder(folder: Path, part: Part) -> Any:
    """The transformers config of `folder`, or of its `part` where it is a two-tower model such as CLIP.

    Raises:
        ConfigError: config.json is not one of transformers.
    """
    try:
        read_json(folder / "config.json")  # within limits; transformers has none
        with _quiet():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, *_WRONG_ARCHITECTURE) as error:
        raise ConfigError(f"{part} tower: {folder}/config.json is not a transformers config: {error}") from error
    return getattr(config, f"{part}_config", config)


def config_from_architecture(architecture: dict[str, Any], part: Part) -> Any:
    """The transformers config with the values of `architecture`, which names its `model_type`.

    Raises:
        ConfigError: an unknown `model_type`, an unknown key (transformers itself would ignore it), an impossible value.
    """
    values = dict(architecture)
    model_type = values.pop("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ConfigError(f"{part} tower: transformers knows no model_type {model_type!r}.{_nearest(model_type)}")
    config_class: Any = CONFIG_MAPPING[model_type]
    known = {*_own_fields(config_class), *config_class.attribute_map}
    for key in values:
        if key not in known:
            raise ConfigError(
                f"{part} tower: architecture has the key {key!r}, which {model_type!r} does not know."
                f"{_nearest(key, known)}"
            )
    try:
        with _quiet():
            return config_class(**values)
    except _WRONG_ARCHITECTURE as error:
        raise ConfigError(f"{part} tower: architecture is not a valid {model_type!r} config: {error}") from error


def architecture_of(config: Any) -> dict[str, Any]:
    """The part of a transformers config that shapes the model, as plain JSON: inverse of `config_from_architecture`."""
    values = config.to_dict()
    return {"model_type": config.model_type} | {key: values[key] for key in _own_fields(type(config)) if key in values}


def random_model(config: Any, model_class: Any, part: Part) -> nn.Module:
    """A model with random weights, float32, in training mode."""
    try:
        with _quiet():
            # from_config exists on the Auto classes only.
            build = getattr(model_class, "from_config", None) or model_class._from_config
            _check_size(config, build)
            model: nn.Module = build(config, dtype=torch.float32)
    except _WRONG_ARCHITECTURE as error:
        raise ConfigError(
            f"{part} tower: a {config.model_type!r} of this architecture cannot be built: {error}"
        ) from error
    return model.train()


def _check_size(config: Any, build: Callable[..., nn.Module]) -> None:
    """Raise ValueError for a model that this machine cannot hold, before anything is allocated."""
    for name, value in config.to_dict().items():
        if "layers" in name and isinstance(value, int) and value > MOST_LAYERS:
            raise ValueError(f"{name} is {value}, at most {MOST_LAYERS} layers are built")
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in build(config, dtype=torch.float32).parameters()) * 4
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise ValueError(f"its weights take {size / 2**30:,.0f} GiB, this machine has {memory / 2**30:,.0f}")


def pretrained_model(
    folder: Path, config: Any, model_class: Any, part: Part, drop_unused: Callable[[nn.Module], None]
) -> nn.Module:
    """The model of `config` with the weights in `folder`, float32, in training mode.

    `drop_unused` takes out what the tower does not use; what it takes out may be missing from the folder.

    Raises:
        CheckpointError: the weights cannot be read, or some that the tower uses are missing.
    """
    try:
        with _quiet():
            model, report = model_class.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,  # the folder's own may be half precision, which does not train
                key_mapping={rf"^{part}_model\.": ""},  # transformers knows this prefix of CLIP, not of Chinese CLIP
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{part} tower: cannot load the weights of {folder}: {error}") from error
    drop_unused(model)
    missing = sorted(set(report["missing_keys"]) & set(model.state_dict()))
    if missing:
        raise CheckpointError(
            f"{part} tower: {folder} lacks {len(missing)} of the weights that the tower needs, the first is "
            f"{missing[0]!r}. Give a folder that holds the whole encoder; if only a pooler is missing, set pool to "
            "cls or mean."
        )
    trained: nn.Module = model.train()
    return trained


def refuse_batch_norm(model: nn.Module, model_type: str, part: Part) -> None:
    """Raise ConfigError if `model` contains batch normalisation."""
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise ConfigError(
            f"{part} tower: {model_type!r} contains BatchNorm, which mixes the samples of a chunk with each other and "
            "updates its statistics on each of the two forward passes of the exact large-batch step. Use an encoder "
            "with layer normalisation, for example ConvNeXt in place of ResNet."
        )


def refuse_family(config: Any, known: dict[str, Any], part: Part) -> ConfigError:
    """The error for a `model_type` that is no `part` tower: for its BatchNorm if it has any, else for being unknown."""
    try:
        with _quiet(), torch.device("meta"):
            model = AutoModel.from_config(config)
    except (ImportError, *_WRONG_ARCHITECTURE):
        pass
    else:
        refuse_batch_norm(model, config.model_type, part)
    return ConfigError(
        f"{part} tower: {config.model_type!r} is not a family that can be a {part} tower here. "
        f"Known are: {', '.join(sorted(known))}."
    )


def _cached_folder(path: str, part: Part) -> Path:
    """Where the cache keeps a model. Found here: given a name, transformers may still ask the hub for other files."""
    if not _HUB_NAME.fullmatch(path):
        raise ConfigError(
            f"{part} tower: there is no folder {path}. Fetch a model with `hf download NAME --local-dir DIR` and "
            "give DIR."
        )
    try:
        return Path(snapshot_download(path, local_files_only=True))
    except FileNotFoundError:
        raise ConfigError(
            f"{part} tower: {path!r} is neither a folder nor a model in the local cache, and nothing is downloaded "
            f"during a run. Fetch it with `hf download {path} --local-dir DIR` and set path to DIR."
        ) from None


def _own_fields(config_class: Any) -> list[str]:
    """What a config class adds to the bookkeeping that all of them share."""
    shared = {field.name for field in fields(PreTrainedConfig)}
    return [f.name for f in fields(config_class) if f.name not in shared and not f.name.startswith("_")]


def _nearest(name: str, known: Any = CONFIG_MAPPING) -> str:
    close = get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and loading tables of transformers; its errors are still raised."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
