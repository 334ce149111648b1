"""A linear-chain conditional random field over the tags of a sentence.

The score of a sequence of tags is the sum of the emissions of its tokens, a start score and the transitions. Its
probability is the softmax over all sequences that the rules allow (Lafferty et al., Conditional Random Fields, 2001).

Tokens without a tag (special tokens, padding) are left out: the tag before such a token is followed by the one behind.

    B sentences    T tokens    L tags
"""

import torch
from torch import Tensor, nn

from spanbox.structures import at_least_float32

FORBIDDEN = -1e4
"""Score of a step that the rules forbid; finite, so that every gradient is."""


class LinearChainCrf(nn.Module):
    """Learned start and transition scores.

    Args:
        may_start: (L,) bool, tags of the first token.
        may_follow: (L, L) bool, whether the tag of a column can follow that of a row.
    """

    start_penalty: Tensor
    step_penalty: Tensor

    def __init__(self, may_start: Tensor, may_follow: Tensor) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.zeros(may_start.shape))
        self.steps = nn.Parameter(torch.zeros(may_follow.shape))
        penalty = torch.tensor(FORBIDDEN)
        self.register_buffer("start_penalty", torch.where(may_start, 0.0, penalty), persistent=False)
        self.register_buffer("step_penalty", torch.where(may_follow, 0.0, penalty), persistent=False)

    def negative_log_likelihood(self, emissions: Tensor, tags: Tensor) -> Tensor:
        """Minus the log-probability of the tags.

        Args:
            emissions: (B, T, L), of any tokens.
            tags: (B, T) int64, below 0 on tokens without a tag.

        Returns:
            (B,), 0 for a sentence without a tagged token.
        """
        emissions, tags, lengths = _packed(at_least_float32(emissions), tags)
        return self._log_normaliser(emissions, lengths) - self._score(emissions, tags, lengths)

    def best_tags(self, emissions: Tensor, tagged: Tensor) -> list[list[int]]:
        """The most probable tags (Viterbi, 1967).

        Args:
            emissions: (B, T, L).
            tagged: (B, T) bool, tokens that get a tag.

        Returns:
            For each sentence the tags of its tagged tokens, in their order.
        """
        packed, _, lengths = _packed(at_least_float32(emissions), tagged.long() - 1)
        start, steps = self._scores(packed)
        best_BL = start + packed[:, 0] if packed.shape[1] else start.expand(len(packed), -1)
        pointers = []
        for place in range(1, packed.shape[1]):
            score_BL, from_BL = (best_BL[:, :, None] + steps).max(dim=1)
            there = (place < lengths)[:, None]
            best_BL = torch.where(there, score_BL + packed[:, place], best_BL)
            pointers.append(torch.where(there, from_BL, torch.arange(len(start), device=from_BL.device)))
        last_B = best_BL.argmax(dim=1)
        path = [last_B]
        for from_BL in reversed(pointers):
            path.append(from_BL.gather(1, path[-1][:, None])[:, 0])
        columns = torch.stack(path[::-1], dim=1).tolist()
        # Behind the end of a sentence the pointers stay at its last tag.
        return [row[:length] for row, length in zip(columns, lengths.tolist(), strict=True)]

    def _scores(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Start (L,) and transition (L, L) scores, with the rules."""
        start, steps = self.start + self.start_penalty, self.steps + self.step_penalty
        return start.to(like.dtype), steps.to(like.dtype)

    def _log_normaliser(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """Log of the sum over all sequences (B,), by the forward algorithm; 0 for an empty sentence.

        A step is a matrix product of probabilities, scaled by the largest of a row: L tags take one product instead
        of L^2 exponentials per sentence.
        """
        if not emissions.shape[1]:
            return emissions.sum(dim=(1, 2))
        start, steps = self._scores(emissions)
        largest = steps.detach().amax(dim=0)  # of the scores that lead to a tag: no column of the product vanishes
        probabilities = (steps - largest).exp()
        tiny = torch.finfo(emissions.dtype).tiny
        forward_BL = start + emissions[:, 0]
        for place in range(1, emissions.shape[1]):
            most_B1 = forward_BL.detach().amax(dim=1, keepdim=True)
            reached_BL = (forward_BL - most_B1).exp() @ probabilities
            step_BL = reached_BL.clamp(min=tiny).log() + most_B1 + largest + emissions[:, place]
            forward_BL = torch.where((place < lengths)[:, None], step_BL, forward_BL)
        return forward_BL.logsumexp(dim=1).where(lengths > 0, 0.0)

    def _score(self, emissions: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        """Score (B,) of the tags; 0 for an empty sentence."""
        start, steps = self._scores(emissions)
        there_BT = torch.arange(tags.shape[1], device=tags.device) < lengths[:, None]
        known_BT = tags.clamp(min=0)
        of_tokens = emissions.gather(2, known_BT[:, :, None])[:, :, 0]
        leading = torch.cat([start[known_BT[:, :1]], steps[known_BT[:, :-1], known_BT[:, 1:]]], dim=1)
        return torch.where(there_BT, of_tokens + leading[:, : tags.shape[1]], 0.0).sum(dim=1)


def _packed(emissions: Tensor, tags: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Emissions, tags and their number (B,) with the tagged tokens first, in their order."""
    tagged = tags >= 0
    lengths = tagged.sum(dim=1)
    order = (~tagged).to(torch.uint8).argsort(dim=1, stable=True)
    return emissions.gather(1, order[:, :, None].expand_as(emissions)), tags.gather(1, order), lengths
