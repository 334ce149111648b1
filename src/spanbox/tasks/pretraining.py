"""The pretraining task: a dual encoder and the contrastive losses of its levels."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from spanbox.engine.large_batch import States
from spanbox.engine.negatives import NegativesWatch
from spanbox.engine.task import StepInputs
from spanbox.losses.kernel import Share
from spanbox.losses.objective import Objective
from spanbox.models.dual_encoder import DualEncoder
from spanbox.structures import Batch, Losses


class Pretraining:
    """Trains a dual encoder by an objective."""

    def __init__(self, model: DualEncoder, objective: Objective) -> None:
        self.model = model
        self.objective = objective
        self.towers: Mapping[str, nn.Module] = {"text": model.text, "image": model.vision}
        self._encode: dict[str, Callable[[Any], Any]] = {"text": model.encode_text, "image": model.encode_images}
        self._watch = NegativesWatch(objective.settings.levels())
        self._step: int | None = None  # none has begun, so losses are computed for a measurement

    def inputs(self, batch: Batch) -> StepInputs:
        inputs = self.model.inputs(batch)
        return StepInputs({"text": inputs.texts, "image": inputs.images}, batch.targets, inputs.places)

    def encode(self, tower: str, rows: Any) -> Any:
        return self._encode[tower](rows)

    def features(self, states: Mapping[str, States], rest: Any) -> Any:
        return self.model.features(states["text"], states["image"], rest)  # type: ignore[arg-type]

    def losses(self, features: Any, targets: Any, share: Share) -> Losses:
        unseen = self._watch.unseen() if self._step is not None else []
        self._watch.add(name for name in unseen if self.objective.contrasts_something(name, features, targets))
        losses: Losses = self.objective(features, targets, share)
        return losses

    def before_step(self, done: float, step: int) -> None:
        self._step = step
        self.objective.set_progress(done, step)

    def after_step(self) -> None:
        self.objective.clamp_temperatures()

    def notes(self, *, last: bool) -> list[str]:
        """Levels that have nothing to contrast.

        Raises:
            TrainingError: no level has anything to contrast.
        """
        whole_run = self._watch.steps == self._step  # not resumed
        return [
            f"the {name} level has nothing to contrast: no row of the last steps had both a positive and a negative"
            for name in self._watch.at_step_end(last=whole_run and last)
        ]

    def log_values(self) -> dict[str, float]:
        temperatures = {f"temperature.{name}": value for name, value in self.objective.temperatures().items()}
        return temperatures | {f"weight.{name}": value for name, value in self.objective.weights().items()}

    def compile(self) -> None:
        self.model.compile_towers()
