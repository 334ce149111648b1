"""The pretraining task: a dual encoder and the contrastive losses of its levels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from spanbox.engine.large_batch import States
from spanbox.engine.negatives import NegativesWatch
from spanbox.engine.task import BlockedLoss, StepInputs, is_trained
from spanbox.losses.fusion import pairs_of_a_strip
from spanbox.losses.kernel import WHOLE_SHARE, Share
from spanbox.losses.objective import Objective
from spanbox.models.dual_encoder import DualEncoder
from spanbox.models.fusion import PairFusion, pairs_at_once
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
        targets = batch.targets
        if self.model.fusion is None:
            targets = replace(targets, token_mask=None, span_tokens=None)
        return StepInputs({"text": inputs.texts, "image": inputs.images}, targets, inputs.places)

    def encode(self, tower: str, rows: Any) -> Any:
        return self._encode[tower](rows)

    def trains(self, tower: str) -> bool:
        return self.model.fusion is not None or is_trained(self.towers[tower])

    def features(self, states: Mapping[str, States], rest: Any) -> Any:
        return self.model.features(states["text"], states["image"], rest)  # type: ignore[arg-type]

    def losses(self, features: Any, targets: Any, share: Share) -> Losses:
        unseen = self._watch.unseen() if self._step is not None else []
        self._watch.add(name for name in unseen if self.objective.contrasts_something(name, features, targets))
        losses: Losses = self.objective(features, targets, share, self.model.fusion)
        return losses

    def unblocked(self, features: Any) -> Any:
        return replace(features, tokens=None, patches=None)

    def blocked_losses(self, features: Any) -> Sequence[BlockedLoss]:
        fusion, losses = self.model.fusion, self.objective.fusion
        if fusion is None or losses is None:
            return []
        if isinstance(fusion, PairFusion):
            size = pairs_at_once(features)
            every = torch.arange(size, device=features.text.device)

            def of_pairs(features: Any, targets: Any) -> Tensor:
                return fusion.pair_scores(features, targets, every, every).sum()

            def of_parts(features: Any, targets: Any) -> Tensor:
                spans, regions = fusion.in_context(features, targets)
                return spans.sum() + regions.sum()

            return [BlockedLoss(size, grows=False, loss=loss) for loss in (of_pairs, of_parts)]

        def of_matrices(features: Any, targets: Any) -> Tensor:
            return torch.stack([term for _, term in losses(features, targets, WHOLE_SHARE, fusion).values()]).sum()

        states = features.tokens.shape[1] + features.patches.shape[1]
        per_pair = max(1, features.spans.shape[1], features.regions.shape[1])
        return [BlockedLoss(pairs_of_a_strip(states, per_pair), grows=True, loss=of_matrices)]

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
