"""The whole run as one validated tree: a recipe, dotted overrides, defaults.

Each section is declared beside the component that it configures; here they are only put together and read.
"""

import difflib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from spanbox.data.loader import DataSettings
from spanbox.engine.settings import TrainSettings
from spanbox.errors import ConfigError
from spanbox.losses.settings import LossSettings
from spanbox.models.dual_encoder import ModelSettings
from spanbox.settings import Settings


class RunSettings(Settings):
    dir: str = Field("runs/default", description="folder for everything the run writes")
    overwrite: bool = Field(False, description="remove an earlier run in that folder first")


class RunConfig(Settings):
    """Everything a run depends on."""

    seed: int = Field(0, ge=0, lt=2**32, description="of weights, order and every random draw")
    run: RunSettings = Field(RunSettings(), description="where results go")
    data: DataSettings = Field(DataSettings(), description="what is learned from")
    model: ModelSettings = Field(description="towers, pooling and projections")
    loss: LossSettings = Field(LossSettings(), description="what is minimised")
    train: TrainSettings = Field(TrainSettings(), description="how it is minimised")

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


def recipe_names() -> list[str]:
    return sorted(path.name.removesuffix(".yaml") for path in _recipes().iterdir() if path.name.endswith(".yaml"))


def _recipes() -> Any:
    return files("spanbox") / "recipes"


def load_config(source: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The config of a recipe (`demo`) or a YAML file, with `dotted.key=value` overrides applied.

    Raises:
        ConfigError: no such file, no YAML, an unknown key (with the nearest known one) or a wrong value.
    """
    path = Path(source)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        text, name = _read_yaml(path), str(path)
    elif source.removesuffix(".yaml") in recipe_names():
        name = source.removesuffix(".yaml")
        text = (_recipes() / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        raise ConfigError(f"{source}: no such config file, nor a recipe; recipes are {', '.join(recipe_names())}")
    return parse_config(text, name, overrides)


def _read_yaml(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from None


def parse_config(text: str, name: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Like `load_config`, from YAML text; `name` is what errors call it."""
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: is no YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{name}: expected keys and values, found {type(tree).__name__}")
    for override in overrides:
        _apply_override(tree, override)
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        problems = "\n".join(f"  {_explain(details)}" for details in error.errors())
        raise ConfigError(f"{name}: the config is wrong:\n{problems}") from None


def without_actions(config: RunConfig) -> RunConfig:
    """The config without what belongs to one start of a run: going on from a checkpoint, removing an earlier run."""
    return config.model_copy(
        update={
            "run": config.run.model_copy(update={"overwrite": False}),
            "train": config.train.model_copy(update={"resume": False}),
        }
    )


def dump_config(config: RunConfig) -> str:
    """The resolved config as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is no override; write dotted.key=value, for example train.batch_size=256")
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        if node.get(parent) is None:  # left out, or an optional section that is off
            node[parent] = {}
        child = node[parent]
        if not isinstance(child, dict):
            raise ConfigError(f"{override!r}: {parent} holds a value, not a section")
        node = child
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{override!r}: the value is no YAML: {error}") from None


def _explain(details: ErrorDetails) -> str:
    """One problem: the key, what was found, and how to mend it."""
    parts = [str(part) for part in details["loc"]]
    known = _keys_and_sections()
    if details["type"] == "extra_forbidden":
        key = ".".join(parts)
        return f"{key}: unknown key; the nearest known one is {difflib.get_close_matches(key, known, 1, 0.0)[0]}"
    while parts and ".".join(parts) not in known:  # which member of a union was tried is nothing to the user
        parts.pop()
    key = ".".join(parts) or "the config"
    if details["type"] == "missing":
        return f"{key}: is missing and has no default; see `spanbox config schema`"
    message = details["msg"].removeprefix("Value error, ")
    if isinstance(details["input"], (Mapping, BaseModel)):
        return f"{key}: {message}"
    return f"{key}: {message}; found {details['input']!r}"


def known_keys() -> list[str]:
    """Every dotted key of the config, sections left out."""
    return [key for key, _, _ in describe_keys()]


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
            default = "required" if field.is_required() else str(field.default)
            rows.append((f"{prefix}{name}", default, field.description or ""))
    return rows


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, also where it may be left out."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None
