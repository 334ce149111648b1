"""The initial model of a run: a new one, that of another run (`train.start`), or that of the run's checkpoint."""

from pathlib import Path
from typing import Any

from torch import Tensor

from spanbox.config import RunConfig, load_config
from spanbox.data.manifest import Manifest
from spanbox.engine.checkpoint import copy_weights, find_checkpoint, load_weights, named_weights, read_weights
from spanbox.engine.versions import other_version
from spanbox.errors import CheckpointError, ConfigError
from spanbox.losses.objective import Objective
from spanbox.losses.settings import LossSettings
from spanbox.models.dual_encoder import DualEncoder
from spanbox.wiring.building import PARTS, build_model, make_tokenizer
from spanbox.wiring.loading import TYPES, open_encoder, read_architecture

PARAMETERS = {"temperature": "{}_log_scale", "bias": "biases.{}", "weight": "log_variances.{}"}
"""Names of the learned parameters of a level in the objective, by the key of their initial value."""

FUSED = ("fusion.log_scale", "fusion.parts_log_scale")
"""Names of the temperatures of fused scores in the objective."""


def new_model(config: RunConfig, objective: Objective, manifest: Manifest | None = None) -> tuple[DualEncoder, Any]:
    """The model of a new run, and its tokenizer.

    Args:
        objective: gets the learned parameters of the objective of `train.start`.
        manifest: its texts are those that a tokenizer is trained on, for a text tower with random weights; None: no
            tokenizer is needed.

    Raises:
        SpanboxError: of the config, or of the run of `train.start`.
    """
    if config.train.start is not None:
        return model_of_another_run(find_checkpoint(Path(config.train.start)), config, objective, "train.start")
    tokenizer = None if manifest is None else make_tokenizer(config, manifest)
    return build_model(config.model, None if tokenizer is None else tokenizer.pad_token_id), tokenizer


def model_of_checkpoint(checkpoint: Path, config: RunConfig, objective: Objective) -> tuple[DualEncoder, Any]:
    """The model and tokenizer of a resumed run.

    Raises:
        ConfigError: `config` changes a setting that only has an effect at the start of a run.
        CheckpointError: the checkpoint is damaged, or of another architecture than the config asks for.
    """
    check_changes(config, load_config(str(checkpoint / "config.yaml")), checkpoint)
    model, tokenizer, _ = open_encoder(checkpoint, config, goes_on=True)
    load_weights(checkpoint, model, objective)
    return model, tokenizer


def check_changes(config: RunConfig, before: RunConfig, checkpoint: Path) -> None:
    """Refuse changed settings of a resumed run that would have no effect.

    Raises:
        ConfigError: names the keys.
    """
    if before.model.fusion.kind != config.model.fusion.kind:
        raise ConfigError(
            f"model.fusion.kind: {config.model.fusion.kind}, but {checkpoint} was trained with "
            f"{before.model.fusion.kind} and has its weights; set it to {before.model.fusion.kind}, or start a new run"
        )
    values: dict[str, tuple[Any, Any]] = {
        "train.start": (before.train.start, config.train.start),
        "gmner.temperature": (before.gmner.temperature, config.gmner.temperature),
    }
    if config.train.start is None:
        for part in PARTS:
            values[f"model.{part}.path"] = getattr(before.model, part).path, getattr(config.model, part).path
    levels = before.loss.levels()
    for name, level in config.loss.levels().items():
        known = levels[name].model_dump() if name in levels else level.learned
        values |= {f"loss.{name}.{key}": (known[key], value) for key, value in level.learned.items()}
    if config.model.fusion.used:
        values["loss.fusion.temperature"] = before.loss.fusion.temperature, config.loss.fusion.temperature
    changed = [
        f"{key}={new} (the run began with {old})"
        for key, (old, new) in values.items()
        if new is not None and new != old
    ]
    if changed:
        raise ConfigError(
            f"{', '.join(changed)}: a run that goes on has the weights and learned values of its checkpoint, so this "
            "would be ignored; leave it out, or start a new run"
        )


def model_of_another_run(
    checkpoint: Path, config: RunConfig, objective: Objective, given_by: str
) -> tuple[DualEncoder, Any]:
    """The model of another run with the settings of this one, and its tokenizer.

    A fusion that it does not have and updates of LoRA begin as in a new run. So do temperature, bias and weight of a
    level or of the fusion, where its loss or their initial value is another than in that run.

    Args:
        objective: gets the learned parameters of that run's objective.
        given_by: the setting or option that names the run, for messages.

    Raises:
        CheckpointError: it is damaged, a GMNER model, or of another architecture than the config asks for.
    """
    if TYPES in read_architecture(checkpoint):
        raise CheckpointError(f"{given_by}: {checkpoint} is a GMNER model; give the pretrained run that it began with")
    model, tokenizer, _ = open_encoder(checkpoint, config)
    own = named_weights(model, objective)
    saved = _named_as_with_lora(read_weights(checkpoint), own)
    new = {f"objective.{name}" for name in _set_by(config.loss, load_config(str(checkpoint / "config.yaml")).loss)}
    names = own.keys() | saved.keys()
    differing = {name for name in names if not _in_both(name, own, saved)}
    if any(name.startswith("model.fusion.") for name in differing):  # another fusion, of which no part is taken over
        new |= {name for name in names if name.startswith(("model.fusion.", "objective.fusion."))}
    for name in names:
        optional = name.startswith("objective.") or (".lora_" in name and name not in saved)
        if name in new or (optional and name in differing):
            own.pop(name, None)
            saved.pop(name, None)
    what = f"{given_by}: {checkpoint} holds a model of another architecture than the config asks for"
    remedy = f"Set model.dim, projections, pools and lora as in {checkpoint}/config.yaml.{other_version(checkpoint)}"
    copy_weights(saved, own, what, remedy)
    return model, tokenizer


def _in_both(name: str, own: dict[str, Tensor], saved: dict[str, Tensor]) -> bool:
    return name in own and name in saved and own[name].shape == saved[name].shape


def _set_by(loss: LossSettings, before: LossSettings) -> set[str]:
    """Parameters of the objective that start from the config of the new run, not from the checkpoint."""
    fusion, fusion_before = loss.fusion, before.fusion
    same = (fusion.loss, fusion.temperature) == (fusion_before.loss, fusion_before.temperature)
    names = set() if same else set(FUSED)
    levels_before = before.levels()
    for name, level in loss.levels().items():
        old = levels_before.get(name)
        if old == level:  # all goes on from there, also a temperature that follows a schedule
            continue
        learned_before = old.learned if old is not None and old.loss == level.loss else {}
        for key, parameter in PARAMETERS.items():
            if key not in level.learned or learned_before.get(key) != level.learned[key]:
                names.add(parameter.format(name))
    return names


def _named_as_with_lora(saved: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of layers without LoRA, under the names that they have in a model with it."""
    renamed = {name.replace(".base_layer.", "."): name for name in own if ".base_layer." in name}
    return {name if name in own else renamed.get(name, name): tensor for name, tensor in saved.items()}
