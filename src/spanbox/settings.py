"""Base class of the config sections: frozen, unknown keys refused; and presets of a section."""

import os
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict


class Settings(BaseModel):
    """One section of the config, declared beside the component that it configures.

    Every field carries a `description` with its unit; `spanbox config schema` prints them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def _not_empty(path: str) -> str:
    if not path.strip():
        raise ValueError("expected a path")
    return path


PathText = Annotated[str, AfterValidator(_not_empty), AfterValidator(os.path.expanduser)]
"""A path in the config: `~` and `~name` are the home folder."""

MOST_GB = 1e6
"""Largest amount of memory in a config; far beyond it, bytes are no number."""


def with_preset(given: Any, presets: Mapping[str, dict[str, Any]]) -> Any:
    """The values given for a section, with those of its `preset` for the others."""
    preset = given.get("preset", "none") if isinstance(given, dict) else None
    return presets[preset] | given if isinstance(preset, str) and preset in presets else given


def list_of_presets(presets: Mapping[str, dict[str, Any]]) -> str:
    """The values of each preset, for the list of settings."""
    values = {name: ", ".join(f"{key}={_short(value)}" for key, value in of.items()) for name, of in presets.items()}
    return "; ".join(f"{name}: {text or 'no change'}" for name, text in values.items())


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return str(list(value))
    return value if isinstance(value, str) else f"{value:g}"
