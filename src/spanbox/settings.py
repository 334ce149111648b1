"""Base class of the config sections: frozen, unknown keys refused."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """One section of the config, declared beside the component that it configures.

    Every field carries a `description` with its unit; `spanbox config schema` prints them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
