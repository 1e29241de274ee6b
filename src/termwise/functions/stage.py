r"""One stage of a multi-stage network: a small network whose first layer oscillates as fast as what it has to fit.

    u(x) = eps * N(z),    z = (x - centre) / reach in [-1, 1]^d
    N: tanh layers; with kappa the first is sin((kappa z) W + b) instead

kappa multiplies z W only. Weights are Xavier's, a normal cut at two standard deviations; biases start at 0.

Source: Wang & Lai 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["Stage", "StageRecord"]


@dataclass(frozen=True)
class StageRecord:
    """What one stage was given, and what it left.

    Attributes:
        eps: the magnitude that it was scaled by.
        f_d: dominant frequency of what it was given, periods per unit of length and axis; empty for the first stage.
        kappa: factor of its first layer, per axis, for inputs in [-1, 1]; empty for the first stage.
        left: root mean square of what is left after it.
        iterations: of the optimizer.
    """

    eps: float
    f_d: tuple[float, ...]
    kappa: tuple[float, ...]
    left: float
    iterations: int


class Stage(nn.Module):
    """eps N(z), a function of points (n, d) with one value each.

    Attributes:
        eps: its magnitude.
        kappa: (d,), or empty for a network of tanh alone.
    """

    eps: Tensor
    kappa: Tensor
    centre: Tensor
    reach: Tensor

    def __init__(
        self, box: tuple[Tensor, Tensor], hidden: Sequence[int], eps: float, kappa: Tensor, generator: torch.Generator
    ) -> None:
        """Over the box from its lowest to its highest corner."""
        super().__init__()
        low, high = box
        self.register_buffer("centre", (low + high) / 2)
        self.register_buffer("reach", (high - low) / 2)
        self.register_buffer("eps", torch.tensor(eps, dtype=torch.float64))
        self.register_buffer("kappa", kappa)
        sizes = list(pairwise([len(low), *hidden, 1]))
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(a, b, dtype=torch.float64)) for a, b in sizes)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(b, dtype=torch.float64)) for _, b in sizes)
        for w in self.weights:
            std = (2 / sum(w.shape)) ** 0.5
            nn.init.trunc_normal_(w, std=std, a=-2 * std, b=2 * std, generator=generator)

    def network(self, x: Tensor) -> Tensor:
        """N, of magnitude 1: (n, d) to (n,)."""
        z = (x - self.centre) / self.reach
        waves = len(self.kappa) > 0
        z = (z * self.kappa if waves else z) @ self.weights[0] + self.biases[0]
        z = torch.sin(z) if waves else torch.tanh(z)
        for w, b in zip(self.weights[1:-1], self.biases[1:-1], strict=True):
            z = torch.tanh(z @ w + b)
        return (z @ self.weights[-1] + self.biases[-1]).squeeze(1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, d) to (n,)."""
        return self.eps * self.network(x)
