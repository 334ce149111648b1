"""Image size and normalisation of the vision tower. Images stay uint8 until they are normalised on the device."""

from pathlib import Path

from pydantic import Field, PositiveFloat

from spanbox.documents import read_json
from spanbox.errors import ConfigError
from spanbox.settings import Settings

Channels = tuple[float, float, float]
Deviations = tuple[PositiveFloat, PositiveFloat, PositiveFloat]

FILE_NAMES = ("preprocessor_config.json", "processor_config.json")


class Preprocessing(Settings):
    """Side of the square input and the normalisation of its channels."""

    image_size: int = Field(gt=0, description="side of the square input, in pixels")
    mean: Channels = Field((0.5, 0.5, 0.5), description="mean of each channel, of values in [0, 1]")
    std: Deviations = Field((0.5, 0.5, 0.5), description="standard deviation of each channel, of values in [0, 1]")

    @classmethod
    def from_model_folder(cls, folder: Path | None, image_size: int) -> "Preprocessing":
        """Mean and deviation from the preprocessor file of the model folder; 0.5 each without such a file.

        Raises:
            ConfigError: the folder's preprocessor file is damaged.
        """
        paths = [folder / name for name in FILE_NAMES] if folder else []
        shipped = [path for path in paths if path.is_file()]
        if not shipped:
            return cls(image_size=image_size)
        try:
            values = read_json(shipped[0])
            values = dict(values.get("image_processor", values))
            names = {"mean": "image_mean", "std": "image_std"}
            return cls(image_size=image_size, **{ours: values[name] for ours, name in names.items() if name in values})
        except (AttributeError, OSError, TypeError, ValueError) as error:  # unreadable, or no such values
            raise ConfigError(f"{shipped[0]}: image_mean and image_std cannot be read: {error}") from None
