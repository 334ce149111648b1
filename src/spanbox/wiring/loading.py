"""Loading a trained model from its checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from spanbox.config import RunConfig, load_config
from spanbox.data.tokenizer import load_tokenizer
from spanbox.documents import DocumentError, read_json
from spanbox.engine.checkpoint import find_checkpoint, load_weights
from spanbox.engine.device import choose_device
from spanbox.engine.versions import other_version, refuse_newer_format
from spanbox.errors import CheckpointError
from spanbox.losses.objective import Objective
from spanbox.models.dual_encoder import DualEncoder
from spanbox.models.export import ImageProcessorFiles, make_exportable
from spanbox.models.preprocessing import Preprocessing
from spanbox.models.tower_settings import TowerSettings
from spanbox.models.towers import build_text_tower, build_vision_tower
from spanbox.wiring.building import PARTS, build_objective, fitted_to
from spanbox.wiring.inference import Inference

Level = Literal["coarse", "fine"]

FEATURES: dict[Level, str] = {"coarse": "sentences and images", "fine": "spans and regions"}
"""What each level compares."""
TYPES = "types"  # key of `architecture.json` that a GMNER model has, and no other


@dataclass(frozen=True)
class Loaded(Inference):
    """A trained model from its checkpoint."""

    objective: Objective
    checkpoint: Path

    @property
    def reranks(self) -> bool:
        """Whether its fusion learned to score pairs of a sentence and an image (`loss.fusion.weight` above 0)."""
        return self.model.fusion is not None and self.config.loss.fusion.weight > 0

    def untrained(self, level: Level) -> str | None:
        """Why the features of a level mean nothing; None if they were trained. See `untrained`."""
        return untrained(self.config, level)

    def save_towers(self, folder: Path | str) -> None:
        """Save both encoders as transformers folders, `text/` and `vision/`, with tokenizer and image processor.

        LoRA updates are merged into the weights. `model.text.model.save_pretrained(folder)` saves one encoder so.

        Raises:
            OutputError: the folder cannot be written.
        """
        self.model.text.model.save_pretrained(Path(folder) / "text")
        self.model.vision.model.save_pretrained(Path(folder) / "vision")


def untrained(config: RunConfig, level: Level) -> str | None:
    """The reason if the features of a level mean nothing, since their projections have random weights; else None.

    A run that began with another one (`train.start`) has the projections of that one.
    """
    shared = config.model.projections == "shared"
    fused = config.model.fusion.used and config.loss.fusion.weight > 0
    if level in config.loss.levels() or shared or config.train.start is not None:
        return None
    if level == "fine" and fused:  # tokens and patches are projected as spans and regions
        return None
    return (
        f"this model was trained with loss.{level}.weight=0, so features of {FEATURES[level]} come from random "
        "projections and mean nothing"
    )


def load(path: Path | str, device: str = "cpu") -> Loaded:
    """The model of a checkpoint folder, or of the best (else last) checkpoint of a run folder.

    Raises:
        CheckpointError: there is none, it is damaged, or it holds a GMNER model.
        ConfigError: the device does not exist.
    """
    folder = find_checkpoint(Path(path))
    model, tokenizer, config = open_encoder(folder)
    if TYPES in read_architecture(folder):
        raise CheckpointError(f"{folder}: is a GMNER model, see `spanbox gmner predict --help`; give a pretrained run")
    objective = build_objective(config)
    load_weights(folder, model, objective)
    make_exportable(model.text.model, tokenizer)
    make_exportable(model.vision.model, ImageProcessorFiles(model.preprocessing))
    return Loaded(model.to(choose_device(device)).eval(), tokenizer, config, objective, folder)


def open_encoder(
    folder: Path, config: RunConfig | None = None, *, goes_on: bool = False
) -> tuple[DualEncoder, Any, RunConfig]:
    """The dual encoder of a checkpoint folder without its weights, the tokenizer, and the config.

    Args:
        config: settings of the towers, such as frozen layers and image size; None: those of the run.
            Architectures are those of the checkpoint.
        goes_on: the run of the checkpoint goes on with `config`, whose own architectures count where it has some.
    """
    architecture = read_architecture(folder)
    given, config = config, config or load_config(str(_there(folder / "config.yaml")))
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    preprocessing = _preprocessing(folder / "preprocessing.json")
    settings = config.model.model_copy(update=_towers(config, architecture, folder))
    if goes_on and config.train.start is None:
        own = fitted_to(tokenizer.pad_token_id, config.model)
        with_architecture = [part for part in PARTS if getattr(own, part).architecture is not None]
        settings = settings.model_copy(update={str(part): getattr(own, part) for part in with_architecture})
    text = build_text_tower(settings.text, pad_token_id=tokenizer.pad_token_id)
    vision = build_vision_tower(settings.vision)
    asked = given is not None and given.model.vision.image_size is not None
    if preprocessing.image_size != vision.image_size and not asked:
        remedy = "" if given is None else f"; set model.vision.image_size={preprocessing.image_size}"
        raise CheckpointError(
            f"{folder}/preprocessing.json: image_size is {preprocessing.image_size}, but the vision tower takes "
            f"{vision.image_size} pixels{remedy}"
        )
    preprocessing = preprocessing.model_copy(update={"image_size": vision.image_size})
    return DualEncoder(text, vision, preprocessing, settings), tokenizer, config


def read_architecture(folder: Path) -> dict[str, Any]:
    """The content of `architecture.json`: the format and the towers of a checkpoint.

    Raises:
        CheckpointError: it is damaged, or a newer spanbox wrote it in a format that this version cannot read.
    """
    architecture = _read_object(folder / "architecture.json")
    refuse_newer_format(folder, architecture)
    return architecture


def _there(path: Path) -> Path:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; a checkpoint is copied as a whole")
    return path


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = read_json(_there(path))
    except (DocumentError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); copy the checkpoint again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected an object, found {type(content).__name__}; copy the checkpoint again")
    return content


def _towers(config: RunConfig, architecture: dict[str, Any], folder: Path) -> dict[str, TowerSettings]:
    """The settings of both towers with the architectures of a checkpoint in place of paths."""
    towers: dict[str, TowerSettings] = {}
    for part in PARTS:
        given = architecture.get(part)
        if not isinstance(given, dict) or not isinstance(given.get("model_type"), str):
            raise CheckpointError(f"{folder}/architecture.json: {part} has no model_type; copy the checkpoint again")
        settings: TowerSettings = getattr(config.model, part)
        towers[part] = settings.model_copy(update={"path": None, "architecture": given})
    return towers


def _preprocessing(path: Path) -> Preprocessing:
    try:
        return Preprocessing.model_validate(_read_object(path))
    except ValidationError as error:
        found = error.errors()[0]
        raise CheckpointError(
            f"{path}: {'.'.join(map(str, found['loc']))}: {found['msg']}{other_version(path.parent)}"
        ) from None
