"""Layers of the fusion: attention to another set of states in a transformer or gated layer, and pooling by a query.

n sets of states    T own states of a set    M states of the memory, which is attended to    F width    h heads
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spanbox.models.fusion_settings import FusionSettings


class Seen(NamedTuple):
    """Attention and gates of a layer, for heatmaps."""

    attention: Tensor  # (n, T, M), rows sum to 1
    gate: Tensor | None  # (n, T), mean over the width, in (0, 1): share of the attended states in the new state


START_SHARPNESS = 15.0
"""Factor of the cosines of `ContentAttention` at the start: about the inverse of a usual temperature of the losses."""

SHARPEST = 100.0
"""Largest factor: beyond it a state attends to one place only, and gets no gradient."""


class Attention(nn.Module):
    """Multi-head attention of states to each other.

    Args:
        directed: half of the heads attend from a state to itself and earlier ones, the others to itself and later
            ones, so that order counts from the first step. A single head attends to all. Source: Shen et al., DiSAN,
            2018.
    """

    def __init__(self, settings: FusionSettings, *, directed: bool = False) -> None:
        super().__init__()
        self.heads = settings.heads
        self.directed = directed
        self.dropout = settings.dropout
        width = settings.width
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """States (n, T, F) after attention to each other.

        Args:
            states: (n, T, F).
            mask: (n, T) bool, the states that exist; at least one of each row.
        """
        attended = F.scaled_dot_product_attention(
            self._split(self.query(states)),
            self._split(self.key(states)),
            self._split(self.value(states)),
            attn_mask=self._seen(states, mask),
            dropout_p=self.dropout if self.training else 0.0,
        )
        joined: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return joined

    def _seen(self, states: Tensor, mask: Tensor | None) -> Tensor | None:
        """(n or 1, h or 1, T or 1, T) bool, the states that each head attends to from each state."""
        there = None if mask is None else mask[:, None, None]
        if not self.directed or self.heads == 1:
            return there
        places = torch.arange(states.shape[1], device=states.device)
        later = places > places[:, None]  # (T, T)
        heads = torch.arange(self.heads, device=states.device)[:, None, None] % 2 == 0
        hidden = torch.where(heads, later, later.T)[None]
        seen = ~hidden if there is None else ~hidden & there
        return seen | torch.eye(len(places), dtype=torch.bool, device=states.device)

    def _split(self, states: Tensor) -> Tensor:
        """(n, T, F) to (n, h, T, F / h)."""
        return states.reshape(*states.shape[:2], self.heads, states.shape[2] // self.heads).transpose(1, 2)


class ContentAttention(nn.Module):
    """Attention of states to the states of a memory whose content is like theirs.

    The content is the first part of a state, in a space where tokens and patches that match are close. At the start, a
    state attends by the cosine of both contents and takes over the states of the memory as they are.
    """

    def __init__(self, settings: FusionSettings) -> None:
        super().__init__()
        self.content = content = settings.content
        self.dropout = settings.dropout
        self.query = nn.Linear(content, content, bias=False)
        self.key = nn.Linear(content, content, bias=False)
        self.value = nn.Linear(settings.width, settings.width)
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(START_SHARPNESS)))
        for linear in (self.query, self.key, self.value):
            nn.init.eye_(linear.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, states: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """States (n, T, F) that the states attend to in the memory.

        Args:
            states: (n, T, F).
            memory: (n, M, F).
            mask: (n, M) bool, the states of the memory that exist; at least one of each row.
        """
        query, key = self._queries_keys(states, memory)
        return F.scaled_dot_product_attention(
            query,
            key,
            self.value(memory),
            attn_mask=None if mask is None else mask[:, None],
            dropout_p=self.dropout if self.training else 0.0,
            scale=1.0,
        )

    def weights(self, states: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """Attention (n, T, M). Arguments as in `forward`."""
        query, key = self._queries_keys(states, memory)
        logits = query @ key.mT
        return (logits if mask is None else logits.masked_fill(~mask[:, None], -torch.inf)).softmax(dim=-1)

    def _queries_keys(self, states: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        query = F.normalize(self.query(states[..., : self.content]), dim=-1)
        key = F.normalize(self.key(memory[..., : self.content]), dim=-1)
        return self.log_sharpness.exp().clamp(max=SHARPEST) * query, key


class SelfLayer(nn.Module):
    """A transformer layer: states attend to each other, then a feed-forward network.

    Source: Vaswani et al., Attention Is All You Need, 2017, section 3.1, the encoder; normalised before each part.
    """

    def __init__(self, settings: FusionSettings) -> None:
        super().__init__()
        self.norms = _norms(2, settings)
        self.to_own = Attention(settings, directed=True)
        self.feed_forward = _feed_forward(settings)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """Arguments as in `Attention.forward`."""
        states = states + self.dropout(self.to_own(self.norms[0](states), mask))
        fed: Tensor = states + self.feed_forward(self.norms[1](states))
        return fed


class CrossLayer(nn.Module):
    """A transformer layer: states attend to each other, then to the memory, then a feed-forward network.

    Source: Vaswani et al., Attention Is All You Need, 2017, section 3.1, the decoder; normalised before each part.
    """

    def __init__(self, settings: FusionSettings) -> None:
        super().__init__()
        self.norms = _norms(3, settings)
        self.to_own = Attention(settings)
        self.to_memory = ContentAttention(settings)
        self.feed_forward = _feed_forward(settings)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, states: Tensor, own_mask: Tensor | None, memory: Tensor, mask: Tensor | None) -> Tensor:
        states = self._after_own(states, own_mask)
        states = states + self.dropout(self.to_memory(self.norms[1](states), memory, mask))
        fed: Tensor = states + self.feed_forward(self.norms[2](states))
        return fed

    def seen(self, states: Tensor, own_mask: Tensor | None, memory: Tensor, mask: Tensor | None) -> Seen:
        return Seen(self.to_memory.weights(self.norms[1](self._after_own(states, own_mask)), memory, mask), None)

    def _after_own(self, states: Tensor, own_mask: Tensor | None) -> Tensor:
        after: Tensor = states + self.dropout(self.to_own(self.norms[0](states), own_mask))
        return after


class GatedLayer(nn.Module):
    """States mix with attended states of the memory: `g * attended + (1 - g) * own`, then a feed-forward network.

    The gate is `g = sigmoid(W [own; attended] + c)`, of each dimension.

    Source: Arevalo et al., Gated Multimodal Units for Information Fusion, 2017; here of own and attended states.
    """

    def __init__(self, settings: FusionSettings) -> None:
        super().__init__()
        self.norms = _norms(2, settings)
        self.to_memory = ContentAttention(settings)
        self.gate = nn.Linear(2 * settings.width, settings.width)
        self.feed_forward = _feed_forward(settings)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, states: Tensor, own_mask: Tensor | None, memory: Tensor, mask: Tensor | None) -> Tensor:
        attended = self.dropout(self.to_memory(self.norms[0](states), memory, mask))
        gate = self._gate(states, attended)
        states = gate * attended + (1 - gate) * states
        fed: Tensor = states + self.feed_forward(self.norms[1](states))
        return fed

    def seen(self, states: Tensor, own_mask: Tensor | None, memory: Tensor, mask: Tensor | None) -> Seen:
        normed = self.norms[0](states)
        gate = self._gate(states, self.to_memory(normed, memory, mask))
        return Seen(self.to_memory.weights(normed, memory, mask), gate.mean(dim=2))

    def _gate(self, states: Tensor, attended: Tensor) -> Tensor:
        gate: Tensor = self.gate(torch.cat([states, attended], dim=2)).sigmoid()
        return gate


LAYERS = {"gated": GatedLayer, "cross_attention": CrossLayer}


class Stack(nn.Module):
    """Layers in which states attend to a memory that stays as it is, then a normalisation."""

    def __init__(self, settings: FusionSettings) -> None:
        super().__init__()
        self.layers = nn.ModuleList(LAYERS[settings.kind](settings) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(settings.width)

    def forward(self, states: Tensor, own_mask: Tensor | None, memory: Tensor, mask: Tensor | None) -> Tensor:
        """States (n, T, F) after the layers.

        Args:
            states: (n, T, F).
            own_mask: (n, T) bool, the states that exist; None: all.
            memory: (n, M, F).
            mask: (n, M) bool, the states of the memory that exist; None: all.
        """
        own_mask, mask = never_empty(own_mask), never_empty(mask)
        for layer in self.layers:
            states = layer(states, own_mask, memory, mask)
        normed: Tensor = self.norm(states)
        return normed

    def seen(self, states: Tensor, own_mask: Tensor | None, memory: Tensor, mask: Tensor | None) -> list[Seen]:
        """What each layer attends to, lowest first. Arguments as in `forward`."""
        own_mask, mask = never_empty(own_mask), never_empty(mask)
        seen = []
        for layer in self.layers:
            assert isinstance(layer, (CrossLayer, GatedLayer))
            seen.append(layer.seen(states, own_mask, memory, mask))
            states = layer(states, own_mask, memory, mask)
        return seen


class QueryPooling(nn.Module):
    """Pools sets of states by a query: one attention layer, for any query and any set.

    Source: text-conditioned attention pooling of Xiao et al., FLAIR, 2024, here for any query and either side.
    """

    def __init__(self, dim: int, settings: FusionSettings) -> None:
        super().__init__()
        width = settings.width
        self.heads = settings.heads
        self.query = nn.Linear(dim, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, dim)
        self.dropout = nn.Dropout(settings.dropout)

    def keys_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (n, M, h, F / h) of sets (n, M, F)."""
        return self._split(self.key(states)), self._split(self.value(states))

    def cosines(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Cosine (q, n) of each query with its pooled state of each set.

        Args:
            queries: (q, D).
            keys, values: (n, M, h, F / h).
            mask: (n, M) bool, the states that exist; None: all.
        """
        weights = self.dropout(self.weights(queries, keys, mask))
        pooled: Tensor = self.out(torch.einsum("qhnm,nmhd->qnhd", weights, values).flatten(2))  # (q, n, D)
        return F.cosine_similarity(queries[:, None], pooled, dim=2)

    def own_cosines(self, queries: Tensor, states: Tensor, mask: Tensor | None) -> Tensor:
        """Cosine (n,) of each query (n, D) with its pooled state of its own set (n, M, F)."""
        (keys, values), query = self.keys_values(states), self._split(self.query(queries))
        logits = torch.einsum("nhd,nmhd->nhm", query, keys) / math.sqrt(keys.shape[-1])
        weights = self.dropout(_softmax(logits, None if mask is None else mask[:, None]))
        pooled: Tensor = self.out(torch.einsum("nhm,nmhd->nhd", weights, values).flatten(1))
        return F.cosine_similarity(queries, pooled, dim=1)

    def weights(self, queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        """Attention (q, h, n, M) of queries (q, D); rows sum to 1."""
        query = self._split(self.query(queries))
        logits = torch.einsum("qhd,nmhd->qhnm", query, keys) / math.sqrt(keys.shape[-1])
        return _softmax(logits, mask)

    def _split(self, states: Tensor) -> Tensor:
        return states.reshape(*states.shape[:-1], self.heads, states.shape[-1] // self.heads)


def _softmax(logits: Tensor, mask: Tensor | None) -> Tensor:
    mask = never_empty(mask)
    return (logits if mask is None else logits.masked_fill(~mask, -torch.inf)).softmax(dim=-1)


def never_empty(mask: Tensor | None) -> Tensor | None:
    """The mask, all True in rows without a True value: attention to nothing is NaN."""
    return None if mask is None else mask | ~mask.any(dim=-1, keepdim=True)


def _norms(number: int, settings: FusionSettings) -> nn.ModuleList:
    return nn.ModuleList(nn.LayerNorm(settings.width) for _ in range(number))


def _feed_forward(settings: FusionSettings) -> nn.Module:
    width = settings.width
    layers = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
    return nn.Sequential(*layers, nn.Dropout(settings.dropout))
