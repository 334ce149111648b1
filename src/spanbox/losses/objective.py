"""The training loss: a coarse and a fine contrastive loss, each in both directions."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spanbox.losses.blocks import Selection, both_directions
from spanbox.losses.formulas import LOSSES
from spanbox.losses.fusion import FusionObjective, PairObjective, PoolingObjective
from spanbox.losses.kernel import WHOLE_SHARE, Share
from spanbox.losses.levels import coarse_contrast, copies_contrast, fine_contrast, has_views
from spanbox.losses.negatives import selected
from spanbox.losses.noise import with_agreed_links
from spanbox.losses.relations import WHOLE
from spanbox.losses.settings import LevelSettings, LossSettings
from spanbox.losses.views import Gate, sentence_ranking, span_ranking
from spanbox.structures import Features, Losses, Targets, stable_id

MAX_LOG_SCALE = math.log(100.0)  # CLIP's bound: a temperature below 0.01 makes training unstable
EXAMINED_PAIRS = 64  # rows of an examined block, in pairs
CONTRASTS = {"coarse": coarse_contrast, "fine": fine_contrast, "copies": copies_contrast}
RANKINGS = {"coarse": sentence_ranking, "fine": span_ranking}


class Objective(nn.Module):
    """Weighted sum of the coarse and the fine loss and, if used, of the losses of copies and of views.

    Schedules and random choices follow `set_progress`; the initial state is the start of a run.

    Args:
        dim: dimension of the features; needed only for a gate.
        fusion: kind of the fusion; "none": there is no loss of fused scores.
        seed: of random negatives and candidates, with the step.
    """

    def __init__(self, settings: LossSettings, dim: int | None = None, fusion: str = "none", *, seed: int = 0) -> None:
        super().__init__()
        self.settings = settings
        self.coarse_log_scale = _log_scale(settings.coarse)
        self.fine_log_scale = _log_scale(settings.fine)
        if settings.copies.used:
            self.copies_log_scale = _log_scale(settings.copies)
        self.biases = nn.ParameterDict()
        self.log_variances = nn.ParameterDict()
        for name, level in settings.levels().items():
            if level.bias is not None:
                self.biases[name] = nn.Parameter(torch.tensor(level.bias))
            if level.weight_schedule == "uncertainty":
                self.log_variances[name] = nn.Parameter(torch.tensor(-math.log(level.weight)))
        self.gate: Gate | None = None
        if settings.views.gate:
            assert dim is not None, "a gate needs the width of the features"
            self.gate = Gate(dim)
        self.fusion: FusionObjective | None = None
        if fusion != "none":
            make = PoolingObjective if fusion == "conditioned_pooling" else PairObjective
            self.fusion = make(settings.fusion, parts=settings.fine.used, seed=seed)
        self._seed, self._done, self._step = seed, 0.0, 0

    def forward(
        self, features: Features, targets: Targets, share: Share = WHOLE_SHARE, fusion: nn.Module | None = None
    ) -> Losses:
        """Losses of a whole batch, from its features, ids and links.

        Args:
            features, targets: of all pairs, also those of other ranks.
            share: the part that this rank computes. The ranks' losses add up to those of the whole batch, and so do
                their gradients of every feature and parameter.
            fusion: scores pairs, if features have tokens and patches.
        """
        scales = {name: log_scale.detach().exp() for name, log_scale in self._log_scales().items()}
        targets = with_agreed_links(features, targets, self.settings.noise, scales, self._done)
        terms: dict[str, Tensor] = {}
        total = features.text.new_zeros(())
        for name, level in self.settings.levels().items():
            contrast = CONTRASTS[name](features, targets, self.settings.views)
            scale = self._log_scales()[name].exp()
            terms[name] = both_directions(
                contrast, LOSSES[level.loss], scale, self._options(name), self._selection(name), share
            )
            total = total + self._weighted(name, terms[name], share.ranks)
        if self.settings.views.ranked and has_views(features):
            terms["views"] = self._ranking(features, targets, share)
            total = total + self.settings.views.weight * terms["views"]
        if self.fusion is not None and features.tokens is not None:
            for name, (weight, term) in self.fusion(features, targets, share, fusion).items():
                terms[name] = term
                total = total + weight * term
        return Losses(total, terms)

    @torch.no_grad()
    def set_progress(self, done: float, step: int = 0) -> None:
        """Set the temperatures that are not learned, and the weights, for the share `done` of the run.

        Fixed ones too: a run that goes on has those of its checkpoint until then.

        Args:
            step: of the run; random negatives depend on it and on the seed.
        """
        self._done, self._step = done, step
        if self.fusion is not None:
            self.fusion.set_progress(done, step)
        for name, level in self.settings.levels().items():
            if "temperature" not in level.learned:
                self._log_scales()[name].fill_(-math.log(level.temperature_at(done)))

    @torch.no_grad()
    def contrasts_something(self, name: str, features: Features, targets: Targets) -> bool:
        """Whether any row of a level has both a positive and a negative in this batch.

        Rows are examined in blocks, the first of which usually decides.
        """
        relation_of = CONTRASTS[name](features, targets, self.settings.views).relation
        for start in range(0, len(targets), EXAMINED_PAIRS):
            relation = relation_of(slice(start, start + EXAMINED_PAIRS), WHOLE)
            if (relation.positives.any(dim=1) & relation.negatives.any(dim=1)).any():
                return True
        return False

    def temperatures(self) -> dict[str, float]:
        """Temperature of each level, for the log."""
        return {name: math.exp(-log_scale.item()) for name, log_scale in self._log_scales().items()}

    def weights(self) -> dict[str, float]:
        """Weight of each level that is used, for the log."""
        learned = {name: math.exp(-log_variance.item()) for name, log_variance in self.log_variances.items()}
        return {name: learned.get(name, level.weight_at(self._done)) for name, level in self.settings.levels().items()}

    @torch.no_grad()
    def clamp_temperatures(self) -> None:
        """Clamp the temperatures to their bound. On the parameter, after a step: a clamp inside `forward` would have no
        gradient beyond the bound."""
        for log_scale in self._log_scales().values():
            log_scale.clamp_(max=MAX_LOG_SCALE)

    def _log_scales(self) -> dict[str, nn.Parameter]:
        scales = {"coarse": self.coarse_log_scale, "fine": self.fine_log_scale}
        of_copies = {"copies": self.copies_log_scale} if self.settings.copies.used else {}
        return scales | of_copies | ({} if self.fusion is None else self.fusion.log_scales())

    def _options(self, name: str) -> dict[str, Any]:
        """Further arguments of the loss of a level: numbers of the config and the learned bias."""
        level = self.settings.levels()[name]
        options = {option: getattr(level, option) for option in LOSSES[level.loss].options}
        return options | ({"bias": self.biases[name]} if name in self.biases else {})

    def _selection(self, name: str) -> Selection | None:
        """Selection of negatives of a level, or None for all; the same on every rank."""
        negatives = self.settings.levels()[name].negatives
        if not negatives.used_at(self._done):
            return None
        generator = torch.Generator().manual_seed(stable_id(f"negatives {name} {self._seed} {self._step}"))
        return partial(selected, negatives, generator)

    def _ranking(self, features: Features, targets: Targets, share: Share) -> Tensor:
        """The ranking loss of views, summed over the levels."""
        rankings = (RANKINGS[name] for name in self.settings.levels() if name in RANKINGS)
        nothing = features.text.new_zeros(())
        return sum((rank(features, targets, self.settings.views, self.gate, share) for rank in rankings), start=nothing)

    def _weighted(self, name: str, term: Tensor, ranks: int) -> Tensor:
        """The weighted term of a level, a share of so many ranks. Learned weights: Kendall et al., 2018, eq. 7, times
        two."""
        if name in self.log_variances:
            log_variance: Tensor = self.log_variances[name]
            return (-log_variance).exp() * term + log_variance / ranks
        return self.settings.levels()[name].weight_at(self._done) * term


def _log_scale(level: LevelSettings) -> nn.Parameter:
    learned = level.temperature_schedule == "learnable" and level.used
    return nn.Parameter(torch.tensor(-math.log(level.temperature)), requires_grad=learned)
