"""Configs and weights of transformers encoders, from a local folder or random.

Nothing is downloaded. Missing weights are an error; transformers would initialise them at random and print a table.
"""

import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from difflib import get_close_matches
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from spanbox.documents import is_lfs_pointer, read_json
from spanbox.errors import CheckpointError, ConfigError, first_line

Part = Literal["text", "vision"]

MOST_LAYERS = 1_000
_SMALL_FILES = (
    *("config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "merges.txt"),
)
_COUNTS = (
    *("hidden_size", "intermediate_size", "vocab_size", "patch_size", "image_size", "dim", "hidden_dim"),
    *("num_attention_heads", "num_hidden_layers", "num_channels", "n_heads", "n_layers"),
)
_EXAMPLES: dict[Part, str] = {"text": "google-bert/bert-base-uncased", "vision": "google/vit-base-patch16-224-in21k"}
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_WRONG_ARCHITECTURE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)


def model_folder(path: str, part: Part) -> Path:
    """The local folder of a model: `path`, or the folder of that name in the cache.

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
    check_files(folder, f"{part} tower")
    return folder


def check_files(folder: Path, what: str) -> None:
    """Check the files of a model before they are opened.

    Raises:
        ConfigError: one is not a regular file, or a Git LFS pointer. The message begins with `what`.
    """
    for file in folder.iterdir():
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise ConfigError(
                f"{what}: {file} is not a regular file; remove it, or fetch the model with `hf download NAME "
                "--local-dir DIR`."
            )
    _refuse_lfs_pointers(folder, what)


def fingerprint(folder: Path) -> str:
    """A text that changes with the files of a model."""
    state = blake2b(digest_size=12)
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        size = path.stat()
        state.update(f"{path.name} {size.st_size} {size.st_mtime_ns}\n".encode())
    return state.hexdigest()


def _refuse_lfs_pointers(folder: Path, what: str) -> None:
    """A folder cloned without Git LFS has small text files in place of the large ones."""
    names = {path.name for path in folder.glob("*.safetensors")} or {path.name for path in folder.glob("*.bin")}
    for name in sorted(names | set(_SMALL_FILES)):
        file = folder / name
        if is_lfs_pointer(file):
            raise ConfigError(
                f"{what}: {file} is a Git LFS pointer, not the file. Run `git lfs pull` in its folder, or fetch "
                "the model with `hf download NAME --local-dir DIR`."
            )


def config_from_folder(folder: Path, part: Part) -> Any:
    """The transformers config of `folder`, or of the `part` of a two-tower model such as CLIP.

    Raises:
        ConfigError: config.json is not a transformers config.
    """
    try:
        read_json(folder / "config.json")  # within limits; transformers has none
        with quiet():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        config = getattr(config, f"{part}_config", config)
        _check_values(config)
    except (OSError, *_WRONG_ARCHITECTURE) as error:
        raise ConfigError(
            f"{part} tower: {folder}/config.json is not a transformers config: {first_line(error)}"
        ) from error
    return config


def config_from_architecture(architecture: dict[str, Any], part: Part) -> Any:
    """The transformers config with the values of `architecture`, which has a `model_type`.

    Raises:
        ConfigError: an unknown `model_type`, an unknown key (transformers would ignore it), an impossible value.
    """
    values = dict(architecture)
    model_type = values.pop("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ConfigError(f"{part} tower: transformers has no model_type {model_type!r}.{_nearest(model_type)}")
    config_class: Any = CONFIG_MAPPING[model_type]
    known = {*_own_fields(config_class), *config_class.attribute_map}
    for key in values:
        if key not in known:
            raise ConfigError(
                f"{part} tower: architecture has the key {key!r}, which {model_type!r} does not have."
                f"{_nearest(key, known)}"
            )
    try:
        with quiet():
            config = config_class(**values)
        _check_values(config)
    except _WRONG_ARCHITECTURE as error:
        raise ConfigError(
            f"{part} tower: architecture is not a valid {model_type!r} config: {first_line(error)}"
        ) from error
    return config


def architecture_of(config: Any) -> dict[str, Any]:
    """The architecture in a transformers config as plain JSON; the inverse of `config_from_architecture`."""
    values = config.to_dict()
    return {"model_type": config.model_type} | {key: values[key] for key in _own_fields(type(config)) if key in values}


def random_model(config: Any, model_class: Any, part: Part) -> nn.Module:
    """A model with random weights, float32, in training mode."""
    try:
        with quiet():
            # from_config exists on the Auto classes only.
            build = getattr(model_class, "from_config", None) or model_class._from_config
            _check_size(config, build)
            model: nn.Module = build(config, dtype=torch.float32)
    except _WRONG_ARCHITECTURE as error:
        raise ConfigError(
            f"{part} tower: a {config.model_type!r} of this architecture cannot be built: {first_line(error)}"
        ) from error
    return model.train()


def _check_values(config: Any) -> None:
    """Raise ValueError for numbers with which a model could not run, or would take too long to build."""
    for name, value in config.to_dict().items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is {value}, a finite number is needed")
        if not isinstance(value, int):
            continue
        if "layers" in name and value > MOST_LAYERS:
            raise ValueError(f"{name} is {value}, at most {MOST_LAYERS} layers are built")
        if name in _COUNTS and value < 1:
            raise ValueError(f"{name} is {value}, at least 1 is needed")
        if name == "num_channels" and value != 3:
            raise ValueError(f"num_channels is {value}, images have 3")


def _check_size(config: Any, build: Callable[..., nn.Module]) -> None:
    """Raise ValueError for a model that this machine cannot hold, before anything is allocated."""
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in build(config, dtype=torch.float32).parameters()) * 4
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise ValueError(f"its weights take {size / 2**30:,.0f} GiB, this machine has {memory / 2**30:,.0f}")


def pretrained_model(
    folder: Path, config: Any, model_class: Any, part: Part, drop_unused: Callable[[nn.Module], None]
) -> nn.Module:
    """The model of `config` with the weights in `folder`, float32, in training mode.

    `drop_unused` removes modules that the tower does not use; their weights may be missing from the folder.

    Raises:
        CheckpointError: weights cannot be read, or weights of the tower are missing.
    """
    try:
        with quiet():
            model, report = model_class.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,  # the folder may have half precision, which does not train
                # transformers handles this prefix for CLIP, not for Chinese CLIP.
                key_mapping={rf"^{part}_model\.": ""},
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, SafetensorError, *_WRONG_ARCHITECTURE) as error:
        raise CheckpointError(f"{part} tower: cannot load the weights of {folder}: {error}") from error
    drop_unused(model)
    missing = sorted(set(report["missing_keys"]) & set(model.state_dict()))
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]  # read by no tower
    if missing:
        raise CheckpointError(
            f"{part} tower: {folder} lacks {len(missing)} of the weights of the tower, the first is "
            f"{missing[0]!r}. Give a folder with the whole encoder; if only a pooler is missing, set pool to "
            "cls or mean."
        )
    trained: nn.Module = model.train()
    return trained


def unknown_family(config: Any, known: dict[str, Any], part: Part) -> ConfigError:
    """The error for an unsupported `model_type`."""
    return ConfigError(
        f"{part} tower: {config.model_type!r} is not a supported family for the {part} tower. "
        f"Known: {', '.join(sorted(known))}."
    )


def _cached_folder(path: str, part: Part) -> Path:
    """Folder of a model in the cache. Given only a name, transformers could still request files from the hub."""
    if _HUB_NAME.fullmatch(path):
        with suppress(FileNotFoundError):
            return Path(snapshot_download(path, local_files_only=True))
    raise ConfigError(
        f"{part} tower: there is no folder {path}, nor a model of this name in the local cache; nothing is downloaded "
        f"during a run. Fetch a model with `hf download NAME --local-dir DIR`, such as {_EXAMPLES[part]}, and set "
        f"model.{part}.path=DIR."
    )


def _own_fields(config_class: Any) -> list[str]:
    """The fields of a config class that are not common to all configs."""
    shared = {field.name for field in fields(PreTrainedConfig)}
    return [f.name for f in fields(config_class) if f.name not in shared and not f.name.startswith("_")]


def _nearest(name: str, known: Any = CONFIG_MAPPING) -> str:
    close = get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the progress bars and loading tables of transformers, not its errors."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
