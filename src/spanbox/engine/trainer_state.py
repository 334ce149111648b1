"""The type of `trainer.pt`: checked before a run resumes, since the file may be damaged or come from a stranger."""

from collections.abc import Mapping
from math import isfinite
from typing import Annotated, Any

import msgspec
import torch
from msgspec import Meta, Struct
from msgspec.structs import fields
from torch import Tensor

from spanbox.errors import CheckpointError

LARGEST_STEP = 2**53

Step = Annotated[int, Meta(ge=0, le=LARGEST_STEP)]


class Incidents(Struct):
    """The state of an `IncidentTally`."""

    samples: dict[str, Any]  # int64 tensors, checked by hand
    broken: dict[str, str]
    examples: dict[str, str] = {}  # missing in older checkpoints


class TrainerState(Struct):
    """The state of a `Trainer`."""

    step: Step
    seconds: float
    best: float | None
    best_metrics: dict[str, float]
    incidents: Incidents
    optimiser: dict[str, Any]  # checked by `check_moments`
    since_best: Step = 0  # missing in older checkpoints


def check_trainer_state(state: object) -> None:
    """Raise CheckpointError unless `state` has the types that `Trainer.state` writes."""
    required = [field.encode_name for field in fields(TrainerState) if field.required]
    missing = [name for name in required if name not in state] if isinstance(state, dict) else []
    if missing:
        raise CheckpointError(
            f"trainer.pt: has no {', '.join(missing)}; another version of spanbox wrote it, or it is damaged. The "
            "model of the checkpoint can be used, but its training cannot go on here"
        )
    try:
        checked = msgspec.convert(state, TrainerState)
    except msgspec.ValidationError as error:
        raise _damaged(str(error)) from None
    except (OverflowError, RecursionError) as error:  # an integer of hundreds of digits
        raise _damaged(type(error).__name__) from None
    if not (isfinite(checked.seconds) and checked.seconds >= 0):
        raise _damaged(f"seconds is {checked.seconds}")
    for kind, ids in checked.incidents.samples.items():
        if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.ndim != 1:
            raise _damaged(f"the incidents {kind!r} are not a list of hashes")


def check_moments(saved: Mapping[str, Any], shapes: list[torch.Size]) -> None:
    """Raise CheckpointError unless the optimiser state has whole moments for parameters of these shapes."""
    state = saved.get("state")
    if not isinstance(state, dict):
        raise _damaged("it has no moments")
    for index, moments in state.items():
        if type(index) is not int or not 0 <= index < len(shapes) or not isinstance(moments, dict):
            raise _damaged(f"moments of the parameter {index!r}, of {len(shapes)}")
        if moments.keys() != {"step", "exp_avg", "exp_avg_sq"}:
            raise _damaged(f"moments of the parameter {index} are {sorted(map(str, moments))}")
        for name, moment in moments.items():
            shape = torch.Size() if name == "step" else shapes[index]
            if not isinstance(moment, Tensor) or not moment.is_floating_point() or moment.shape != shape:
                raise _damaged(f"{name} of the parameter {index} is not a tensor of shape {tuple(shape)}")
            if not moment.isfinite().all() or (name != "exp_avg" and (moment < 0).any()):
                raise _damaged(f"{name} of the parameter {index} holds a value that cannot be")


def group_sizes(saved: Mapping[str, Any]) -> list[int]:
    """Number of parameters of each group of an optimiser state. Raises CheckpointError."""
    try:
        return [len(group["params"]) for group in saved["param_groups"]]
    except (KeyError, TypeError, IndexError):
        raise _damaged("it has no groups of parameters") from None


def _damaged(reason: str) -> CheckpointError:
    return CheckpointError(
        f"trainer.pt: the state of training is damaged ({reason}); copy the checkpoint again, or remove its folder to "
        "resume from an earlier one"
    )
