r"""From the queries of a head to the tensor that stands between query and key in power-law graph attention.

    A     = R_m(... R_1(LN(q^T q))),     R(A) = LN(A + GLU_l(... GLU_1(A))),     GLU(A) = W_3 (silu(W_1 A) * W_2 A)
    A_LM  = u silu(u) + 1e-9 > 0,        u = W A + b
    A_P   = A_LM^p,                      entry by entry, p learned
    G_LM  = a A_P + b_a

q is (n, d_k), turned by its positions; all tensors are d_k x d_k, so that n is gone. W, b, p, a, b_a are a head's own, the layers
R are shared by heads and act on rows. q^T q sums over the whole sequence: whoever uses G of a text has seen its end.

Source: papers.toml "pldr".
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["EnergyCurvature", "MetricNetwork", "SwiGLU"]

FLOOR = 1e-9
"""Below which no entry of A_LM falls."""


class EnergyCurvature(NamedTuple):
    """The deductive outputs, each (batch, heads, d_k, d_k): metric A, A_LM > 0, potential A_P, energy-curvature G_LM."""

    A: Tensor
    A_LM: Tensor
    A_P: Tensor
    G_LM: Tensor


class SwiGLU(nn.Module):
    """W_3 (silu(W_1 x) * W_2 x), each with a bias; Xavier uniform, biases 0."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, width)
        for layer in (self.gate, self.up, self.down):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to the same."""
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


class _ResidualMetric(nn.Module):
    def __init__(self, d: int, hidden: int, denses: int) -> None:
        super().__init__()
        self.chain, self.norm = nn.Sequential(*(SwiGLU(d, hidden) for _ in range(denses))), nn.LayerNorm(d, eps=1e-6)

    def forward(self, metric: Tensor) -> Tensor:
        out: Tensor = self.norm(metric + self.chain(metric))
        return out


class MetricNetwork(nn.Module):
    """The network of the equations above; a cached G makes it superfluous.

    Args:
        n_heads: H.
        d_head: d_k.
        layers: m, residual layers.
        denses: l, gated maps in each.
        hidden: their width.
    """

    def __init__(self, n_heads: int, d_head: int, layers: int, denses: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_head, eps=1e-6)
        self.residual = nn.Sequential(*(_ResidualMetric(d_head, hidden, denses) for _ in range(layers)))
        self.weight, self.power, self.coupling = (nn.Parameter(torch.empty(n_heads, d_head, d_head)) for _ in range(3))
        self.bias, self.coupling_bias = (nn.Parameter(torch.zeros(n_heads, d_head, d_head)) for _ in range(2))
        for drawn in (self.weight, self.power, self.coupling):
            nn.init.xavier_normal_(drawn)
        # FLOOR^-1/2 is 3e4, FLOOR^-1 is 1e9
        self.power.data.clamp_(-0.5, 0.5)

    def forward(self, q: Tensor, keep: Tensor | None = None) -> EnergyCurvature:
        """Queries (batch, H, n, d_k), and which positions count, (batch, n)."""
        if keep is not None:
            q = q.masked_fill(~keep[:, None, :, None], 0)
        metric: Tensor = self.residual(self.norm(q.mT @ q))
        u = self.weight @ metric + self.bias
        # half precision has no 1e-9 and few digits for a power: from here in single, at least
        u = u.to(torch.promote_types(u.dtype, torch.float32))
        positive = u * F.silu(u) + FLOOR
        potential = positive.pow(self.power.to(u.dtype))
        curvature = self.coupling.to(u.dtype) @ potential + self.coupling_bias.to(u.dtype)
        return EnergyCurvature(metric, positive, potential, curvature.to(q.dtype))
