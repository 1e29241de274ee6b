r"""Rotary position encoding: pairs of entries are turned by an angle that grows with the position.

    (x_2i, x_2i+1) at position p   ->   turned by p base^(-2i / d)

Source: Su et al. 2021, pairs of neighbours, as in the code of papers.toml "pldr".
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["rotate"]


def rotate(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    """Heads (batch, H, n, d), d even, turned by the angles of positions (batch or 1, n)."""
    # angles in float64: at position 1e5 those of float32 are off by 1e-2
    rates = base ** (-torch.arange(0, x.shape[-1], 2, device=x.device, dtype=torch.float64) / x.shape[-1])
    angles = positions[:, None, :, None] * rates
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
