"""A map on a finer grid with the same sum: A' R B, where the rows of A and B are hat functions that sum to 1.

Every entry of the coarse map keeps its relevance and gives it to pixels by the weights of bilinear interpolation. Where the
fine grid is a multiple of the coarse one this is bilinear interpolation over the number of pixels per entry.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["enlarged"]


def enlarged(small: Float[Tensor, "*batch h w"], size: Sequence[int]) -> Float[Tensor, "*batch height width"]:
    """The map spread over `size` (height, width).

    Example:
        >>> small = torch.randn(2, 3, 3, dtype=torch.float64)
        >>> torch.allclose(enlarged(small, (8, 12)).sum((1, 2)), small.sum((1, 2)))
        True
    """

    def hats(coarse: int, fine: int) -> Tensor:
        each = torch.eye(coarse, dtype=small.dtype, device=small.device)
        if fine <= coarse:  # nothing to fill in
            return each
        rows = torch.nn.functional.interpolate(each[None], fine, mode="linear", align_corners=False)[0]
        return rows / rows.sum(1, keepdim=True)

    return hats(small.shape[-2], size[0]).mT @ small @ hats(small.shape[-1], size[1])
