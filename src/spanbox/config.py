"""The whole run as one validated tree: a recipe or a YAML file, dotted overrides, defaults.

Each section is declared beside the component that it configures; this module joins, reads and writes them.
"""

import difflib
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from spanbox.data.loader import DataSettings
from spanbox.documents import YAML_DEPTH, DocumentError, can_be_read_back, dump_yaml, parse_yaml, quoted, read_yaml
from spanbox.earlier_config import rename_earlier_keys
from spanbox.engine.settings import TrainSettings
from spanbox.engine.versions import other_version
from spanbox.errors import ConfigError
from spanbox.losses.fusion_settings import FusionLossSettings
from spanbox.losses.settings import LossSettings
from spanbox.models.dual_encoder import ModelSettings
from spanbox.settings import PathText, Settings
from spanbox.tasks.gmner import GmnerSettings

PROBLEMS_SHOWN = 10  # of a config with more
LONGEST_KEY = 100  # that is compared with the known ones
LONGEST_SHOWN = 120  # value in a message


class RunSettings(Settings):
    dir: PathText = Field("runs/default", description="folder for everything the run writes")
    overwrite: bool = Field(False, description="replace an earlier run in that folder")


class RunConfig(Settings):
    """Everything a run depends on."""

    seed: int = Field(0, ge=0, lt=2**32, description="seed of the weights, the order of the data and every random draw")
    run: RunSettings = Field(RunSettings(), description="where the results go")
    data: DataSettings = Field(DataSettings(), description="training and validation data")
    model: ModelSettings = Field(description="towers, pooling and projections")
    loss: LossSettings = Field(LossSettings(), description="the losses")
    gmner: GmnerSettings = Field(GmnerSettings(), description="`spanbox gmner train` alone: heads and their losses")
    train: TrainSettings = Field(TrainSettings(), description="optimiser, schedule and hardware")

    @model_validator(mode="after")
    def _levels(self) -> "RunConfig":
        if not self.loss.levels():
            raise ValueError("loss.coarse.weight and loss.fine.weight are both 0: nothing to learn; raise one")
        if self.loss.fine.used and not (self.data.max_spans and self.data.max_regions):
            raise ValueError(
                "loss.fine.weight is above 0, but data.max_spans or data.max_regions is 0: set loss.fine.weight=0 to "
                "train the coarse level alone"
            )
        return self

    @model_validator(mode="after")
    def _fusion(self) -> "RunConfig":
        kind, loss = self.model.fusion.kind, self.loss.fusion
        if not self.model.fusion.used:
            return self
        if not (loss.weight or (loss.parts_weight and self.loss.fine.used)):
            raise ValueError(
                f"model.fusion.kind is {kind}, but no loss trains it: raise loss.fusion.weight, or set "
                "model.fusion.kind=none"
            )
        if loss.negatives.used and kind != "conditioned_pooling":
            raise ValueError(
                f"loss.fusion.negatives has no effect with model.fusion.kind={kind}: use loss.fusion.candidates and "
                "loss.fusion.choice, or remove it"
            )
        for key in ("candidates", "choice"):
            if kind == "conditioned_pooling" and getattr(loss, key) != getattr(FusionLossSettings(), key):
                raise ValueError(
                    f"loss.fusion.{key} has no effect with model.fusion.kind={kind}: use loss.fusion.negatives, or "
                    "remove it"
                )
        return self


def recipe_names() -> list[str]:
    return sorted(path.name.removesuffix(".yaml") for path in _recipes().iterdir() if path.name.endswith(".yaml"))


def _recipes() -> Any:
    return files("spanbox") / "recipes"


def load_config(source: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The config of a recipe (`demo`) or a YAML file, with `dotted.key=value` overrides applied.

    Raises:
        ConfigError: no such file, not YAML, an unknown key (with the nearest known one) or a wrong value.
    """
    path = Path(source)
    if path.suffix in (".yaml", ".yml") and _exists(path):
        if path.name != "config.yaml":
            return _config_of(_read(path), str(path), overrides)
        if (path.parent / "checkpoints").is_dir():
            # The config of a run means the folder that it lies in, which may have been copied or renamed.
            overrides = [f"run.dir={quoted(str(path.parent))}", *overrides]
        try:
            return _config_of(_read(path), str(path), overrides)
        except ConfigError as error:
            raise ConfigError(f"{error}{other_version(path.parent)}") from None
    name = source.removesuffix(".yaml")
    if name in recipe_names():
        return parse_config((_recipes() / f"{name}.yaml").read_text(encoding="utf-8"), name, overrides)
    if _exists(path / "config.yaml"):
        raise ConfigError(f"{source}: a folder; give its config, {path / 'config.yaml'}")
    if _exists(path) and not path.is_dir():
        raise ConfigError(f"{source}: the name of a config file ends in .yaml or .yml")
    raise ConfigError(f"{source}: no such config file or recipe; recipes are {', '.join(recipe_names())}")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # no name that a file can have
        return False


def _read(path: Path) -> Any:
    try:
        return read_yaml(path)
    except DocumentError as error:
        raise _not_yaml(str(path), error) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}; give a YAML file") from None


def _not_yaml(name: str, error: DocumentError) -> ConfigError:
    return ConfigError(f"{name}: cannot be read as YAML: {error}")


def parse_config(text: str, name: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Like `load_config`, from YAML text; errors call it `name`."""
    try:
        tree = parse_yaml(text)
    except DocumentError as error:
        raise _not_yaml(name, error) from None
    return _config_of(tree, name, overrides)


def _config_of(tree: Any, name: str, overrides: Sequence[str]) -> RunConfig:
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ConfigError(f"{name}: expected keys and values, found {type(tree).__name__}")
    for override in overrides:
        _apply_override(tree, override)
    rename_earlier_keys(tree)
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{name}: the config is wrong:\n{list_problems(error, _explain)}") from None


def list_problems(error: ValidationError, explain: Callable[[ErrorDetails], str]) -> str:
    """The problems as indented lines, the first ones of many."""
    lines = [f"  {explain(problem)}" for problem in error.errors()[:PROBLEMS_SHOWN]]
    more = error.error_count() - len(lines)
    return "\n".join([*lines, f"  and {more} more"] if more else lines)


def without_actions(config: RunConfig) -> RunConfig:
    """The config without the settings that concern one start of a run: resuming it, replacing an earlier run."""
    return config.model_copy(
        update={
            "run": config.run.model_copy(update={"overwrite": False}),
            "train": config.train.model_copy(update={"resume": False}),
        }
    )


def dump_config(config: RunConfig) -> str:
    """The resolved config as YAML."""
    return dump_yaml(config.model_dump(mode="json"))


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    shown = _short(override)
    if not equals or not key:
        raise ConfigError(f"{shown} is not an override; write dotted.key=value, for example train.batch_size=256")
    *parents, last = key.split(".")
    if len(parents) > YAML_DEPTH:
        raise ConfigError(f"{shown}: the key has {len(parents) + 1} parts; see `spanbox config schema`")
    node = tree
    for parent in parents:
        if node.get(parent) is None:  # left out, or an optional section that is off
            node[parent] = {}
        child = node[parent]
        if not isinstance(child, dict):
            raise ConfigError(f"{shown}: {parent} holds a value, not a section")
        node = child
    try:
        node[last] = value.strip() if _COMMENT.fullmatch(value) else parse_yaml(value)
    except DocumentError as error:
        reason = str(error).removeprefix("line 1: ")
        as_text = shlex.quote(f"{key}={quoted(value)}")
        can_help = len(value) <= LONGEST_SHOWN and can_be_read_back(value)
        hint = f"; if it is a text, write {as_text}" if can_help else ""
        raise ConfigError(f"{shown}: the value cannot be read as YAML: {reason}{hint}") from None


_COMMENT = re.compile(r"\s*[^\s'\"\[{#].*?\s#.*")
"""A value, such as a path, without quotes or brackets, whose rest YAML would read as a comment. It is a text."""


def _short(value: object) -> str:
    """A value for a message; the middle of a long one is left out."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN // 2]}...{text[-LONGEST_SHOWN // 4 :]}"


def _explain(details: ErrorDetails) -> str:
    """One problem: the key, the value found, and the remedy."""
    parts = [str(part) for part in details["loc"]]
    known = _keys_and_sections()
    if details["type"] == "extra_forbidden":
        key = ".".join(parts)
        return f"{key[:LONGEST_KEY]}: unknown key{nearest_key(key, known)}"
    while parts and ".".join(parts) not in known:  # the members of a union, which users do not see
        parts.pop()
    key = ".".join(parts) or "the config"
    if details["type"] == "missing":
        return f"{key}: is missing and has no default; see `spanbox config schema`"
    message = details["msg"].removeprefix("Value error, ")
    if isinstance(details["input"], (Mapping, BaseModel)):
        return f"{key}: {message}"
    return f"{key}: {message}; found {_short(details['input'])}"


def nearest_key(key: str, known: Sequence[str]) -> str:
    """The hint of a message about an unknown key: a known one with the same last part, or spelled alike."""
    if len(key) <= LONGEST_KEY:
        same_end = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
        close = difflib.get_close_matches(key, same_end, 1, 0.0) or difflib.get_close_matches(key, known, 1)
        if close:
            return f"; the nearest known one is {close[0]}"
    return "; see `spanbox config schema`"


def known_keys() -> list[str]:
    """Every dotted key of the config, without the sections."""
    return [key for key, _, _ in describe_keys()]


@cache
def _keys_and_sections() -> list[str]:
    parts_of = [key.split(".") for key in known_keys()]
    return list(dict.fromkeys(".".join(parts[:depth]) for parts in parts_of for depth in range(1, len(parts) + 1)))


def describe_keys(section: type[BaseModel] = RunConfig, prefix: str = "") -> list[tuple[str, str, str]]:
    """Every dotted key with its default and its description."""
    rows = []
    for name, field in section.model_fields.items():
        inner = _section_of(field.annotation)
        if inner is not None:
            rows += describe_keys(inner, f"{prefix}{name}.")
        else:
            default = "required" if field.is_required() else as_written(field.default)
            rows.append((f"{prefix}{name}", default, field.description or ""))
    return rows


def as_written(value: Any) -> str:
    """A value in the form in which a config file holds it."""
    return str(value) if isinstance(value, str | float) else json.dumps(value, ensure_ascii=False)


def keys_of(section: str | None) -> list[tuple[str, str, str]]:
    """The rows of `describe_keys` for one key or section; None: all.

    Raises:
        ConfigError: there is no such key or section.
    """
    if section is None:
        return describe_keys()
    if section not in _keys_and_sections():
        raise ConfigError(f"{section[:LONGEST_KEY]}: unknown key{nearest_key(section, _keys_and_sections())}")
    return [row for row in describe_keys() if row[0] == section or row[0].startswith(f"{section}.")]


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, optional or not."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None
