"""Base class of the config sections: frozen, unknown keys refused."""

import os
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


class Settings(BaseModel):
    """One section of the config, declared beside the component that it configures.

    Every field carries a `description` with its unit; `spanbox config schema` prints them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


PathText = Annotated[str, AfterValidator(os.path.expanduser)]
"""A path in the config: `~` and `~name` are the home folder."""

MOST_GB = 1e6
"""Largest amount of memory in a config; far beyond it, bytes are no number."""
