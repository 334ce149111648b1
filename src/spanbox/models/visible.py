"""Selection of the visible patches of masked views, so that a view costs only its visible patches.

The embeddings of a transformers encoder get a subclass of their own class, which keeps all weight names. The visible
patches are an attribute that the tower sets around its call. `torch.compile` guards attributes, but not forward hooks.
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


def make_selective(embeddings: nn.Module, stride: int) -> None:
    """Let `embeddings` select patches of `stride` pixels, in place. Names and values of the weights stay."""
    embeddings.__class__ = _selective_class(type(embeddings))  # type: ignore[arg-type]
    embeddings.stride = stride  # type: ignore[assignment]
    embeddings.kept = None  # type: ignore[assignment]


@cache
def _selective_class(embeddings_class: Any) -> Any:
    return type(f"Selective{embeddings_class.__name__}", (_SelectiveEmbeddings, embeddings_class), {})
