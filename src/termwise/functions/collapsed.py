r"""Collapsed Taylor mode: sums of K-th derivatives along many directions, at little more than half the price.

    L f = sum_d w_d D^K f [v_d, ..., v_d]

The highest coefficient enters every operation linearly, so its weighted sum over directions can travel in place of it: 1 value,
K - 1 coefficients for each direction, and 1 sum, instead of 1 + K for each. A product, and with it every recurrence, is that of
`Taylor` with the last row summed:

    c_K = a_0 b_K + a_K b_0 + sum_d w_d sum_(0<i<K) a_(i,d) b_(K-i,d)

Source: Dangel et al. 2025, arXiv 2505.13644 (collapsed Taylor mode); Li et al. 2023, arXiv 2307.08214 (forward Laplacian, K = 2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .taylor import Taylor, aligned

__all__ = ["Collapsed"]


class Collapsed(Taylor):
    """Rows: the value; coefficients 1 ... order - 1, each for all directions; the weighted sum of the last one.

    Args:
        order: K, at least 2.
        weights: (directions,), those of the sum.
    """

    def __init__(self, order: int, weights: Tensor) -> None:
        """A sum over as many directions as there are weights."""
        super().__init__(order)
        self.weights = weights
        self.directions = len(weights)

    def rows(self, value: Tensor, directions: Tensor) -> Tensor:
        """Rows of the straight lines value + t v_d; `directions` is (directions, *S)."""
        zeros = value.new_zeros((self.order - 2) * self.directions + 1, *value.shape)
        return torch.cat([value.unsqueeze(0), directions, zeros])

    def split(self, a: Tensor) -> list[Tensor]:
        """By order: (1, *S), (directions, *S) ..., (1, *S); only the first for a constant."""
        return [a] if len(a) == 1 else list(a.split([1, *[self.directions] * (self.order - 1), 1]))

    def join(self, orders: Sequence[Tensor]) -> Tensor:
        """The rows of what `split` gives."""
        shape = torch.broadcast_shapes(*(o.shape[1:] for o in orders))
        return torch.cat(
            [o.expand(n, *shape) for o, n in zip(orders, [1, *[self.directions] * (self.order - 1), 1], strict=True)]
        )

    def _sum(self, value: Tensor) -> Tensor:
        """Weighted, over directions."""
        return torch.tensordot(self.weights.to(value.dtype), value, dims=1).unsqueeze(0)

    def _cauchy(
        self, a: list[Tensor], b: list[Tensor], k: int, times: Callable[[Tensor, Tensor], Tensor], low: int = 0
    ) -> Tensor | None:
        """The sum of a_i b_(k-i) over i = low ... k, at the last order summed over directions."""
        total = None
        for i in range(low, k + 1):
            term = times(a[i], b[k - i])
            if k == self.order and 0 < i < k:
                term = self._sum(term)
            total = term if total is None else total + term
        return total

    # -- what differs from Taylor: who meets whom ---------------------------------------------------------------------

    def product(self, a: Tensor, b: Tensor, times: Callable[[Tensor, Tensor], Tensor] = torch.mul) -> Tensor:
        """Products of rows of the same direction."""
        a, b = aligned(a, b) if times is torch.mul else (a, b)
        if len(a) == 1 or len(b) == 1:
            return times(a[0] if len(a) == 1 else a, b[0] if len(b) == 1 else b)
        x, y = self.split(a), self.split(b)
        return self.join([self._cauchy(x, y, k, times) for k in range(self.order + 1)])  # type: ignore[misc]

    def square(self, a: Tensor) -> Tensor:
        """A a."""
        return self.product(a, a)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """Matrix products of rows of the same direction."""
        return torch.matmul(a, b) if len(a) == 1 or len(b) == 1 else self.product(a, b, torch.matmul)

    # -- functions: their own series at the value, which knows no directions, and then the chain rule --------------------

    def compose(self, f: Tensor, a: Tensor) -> Tensor:
        """sum_j f_j (a - a_0)^j, of the coefficients f, (n + 1, *S), of a function at the value a_0."""
        f = torch.cat([f, f.new_zeros(self.order + 1 - len(f), *f.shape[1:])])
        x = self.split(a)
        c = [f[:1], *(f[1] * v for v in x[1:])]
        power = dict(enumerate(x))
        for j in range(2, self.order + 1):
            power = {
                k: torch.stack([x[i] * power[k - i] for i in range(1, k - j + 2)]).sum(0) if k > j else x[1] * power[k - 1]
                for k in range(j, self.order + 1)
            }
            power[self.order] = self._sum(power[self.order])
            for k, value in power.items():
                c[k] = torch.addcmul(c[k], f[j], value)
        return self.join(c)

    def through(self, function: Callable[[Taylor, Tensor], Tensor], a: Tensor) -> Tensor:
        """A function of numbers: its series along a_0 + t, and the chain rule."""
        series = Taylor(self.order)
        if len(a) == 1:
            return function(series, a)
        return self.compose(function(series, torch.stack([a[0], torch.ones_like(a[0])])), a)

    def integrated(self, a: Tensor, slope: Tensor, value: Tensor) -> Tensor:
        """F(a) where f' = slope is known: c_k = (1/k) sum_j j a_j slope_(k-j)."""
        if len(a) == 1:
            return value.unsqueeze(0)
        x, g = self.split(a), self.split(slope)
        slopes = [x[j] * j for j in range(self.order + 1)]
        orders = [self._cauchy(slopes, g, k, torch.mul, low=1) / k for k in range(1, self.order + 1)]  # type: ignore[operator]
        return self.join([value.unsqueeze(0), *orders])

    def exp(self, a: Tensor) -> Tensor:
        """e^a."""
        return self.through(Taylor.exp, a)

    def reciprocal(self, a: Tensor) -> Tensor:
        """1 / a."""
        return self.through(Taylor.reciprocal, a)

    def log(self, a: Tensor) -> Tensor:
        """The natural logarithm."""
        return self.through(Taylor.log, a)

    def power(self, a: Tensor, r: float) -> Tensor:
        """a^r."""
        return self.through(lambda series, x: series.power(x, r), a)

    def sin_cos(self, a: Tensor, sign: float = -1) -> tuple[Tensor, Tensor]:
        """Both."""
        s, c = (self.through(lambda series, x, i=i: series.sin_cos(x, sign)[i], a) for i in range(2))
        return s, c
