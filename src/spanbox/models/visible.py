"""Selection of patches: the visible ones of masked views, those of the picture beside padding. Only they are computed.

The embeddings and rotary positions of a transformers encoder get a subclass of their own class, which keeps all weight
names. The patches are an attribute that the tower sets around its call. `torch.compile` guards attributes, but not
forward hooks.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


class _SelectiveEmbeddings(nn.Module):
    """Mixin before a family's embeddings: pixels (N, 3, S, S) -> tokens (N, T, H), or (N, prefix + n, H).

    Attributes:
        kept: (N, n) int64, the visible patches, counted row by row; None: all of them.
    """

    stride: int
    kept: Tensor | None

    def forward(self, pixel_values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        embedded: Tensor = super().forward(pixel_values, *args, **kwargs)
        if self.kept is None:
            return embedded
        patches = (pixel_values.shape[-2] // self.stride) * (pixel_values.shape[-1] // self.stride)
        prefix = embedded.shape[1] - patches  # class token and registers, always kept
        always = torch.arange(prefix, device=embedded.device).expand(len(self.kept), -1)
        places = torch.cat([always, self.kept + prefix], dim=1)
        return embedded.gather(1, places[:, :, None].expand(-1, -1, embedded.shape[2]))


class _SelectivePositions(nn.Module):
    """Mixin before a family's rotary positions: pixels (N, 3, S, S) -> cosines and sines (P, d), or (N, 1, n, d).

    Attributes:
        kept: as of the embeddings.
    """

    kept: Tensor | None

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        cosines, sines = super().forward(pixel_values)
        if self.kept is None:
            return cosines, sines
        return cosines[self.kept][:, None], sines[self.kept][:, None]


SELECTIVE: dict[str, Any] = {"embeddings": _SelectiveEmbeddings, "rope_embeddings": _SelectivePositions}


def make_selective(model: nn.Module, stride: int) -> None:
    """Let an encoder select patches of `stride` pixels, in place. Names and values of the weights stay."""
    for name, mixin in SELECTIVE.items():
        module: Any = getattr(model, name, None)
        if module is not None:
            module.__class__ = _selective_class(type(module), mixin)  # type: ignore[arg-type]
            module.stride, module.kept = stride, None


def select(model: nn.Module, kept: Tensor | None) -> None:
    """Set the patches (N, n) that a selective encoder encodes; None: all."""
    for name in SELECTIVE:
        module: Any = getattr(model, name, None)
        if module is not None:
            module.kept = kept


@cache
def _selective_class(base: Any, mixin: Any) -> Any:
    return type(f"Selective{base.__name__}", (mixin, base), {})
