r"""How far a series reaches: its radius of convergence, estimated from its coefficients.

The singularities of networks' activations come in pairs off the real axis, so ratios of coefficients oscillate. Mercer and
Roberts' estimate allows for a pair at angle +-theta:

    b_k^2 = (f_(k+1) f_(k-1) - f_k^2) / (f_k f_(k-2) - f_(k-1)^2),      b_k = (1/rho) (1 - (1 + p)/k + ...)

so that a line through b_k against 1/k meets 1/k = 0 at 1/rho. Where ratios do not oscillate (one singularity, on the axis) the
line through them is taken instead (Domb and Sykes), for there b_k is 0/0. For a norm of many outputs signs mean nothing, and
the root test is taken: log |f_k| = -k log rho + p log k + c. Few orders give a rough answer, and say so.

Source: Mercer & Roberts 1990, SIAM J. Appl. Math. 50, 1547; Domb & Sykes 1957 (the line in 1/k).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Radius", "radius"]

FEW = 9
"""Coefficients below which an estimate is called rough."""

MANY = 18
"""Coefficients from which on estimates that keep growing are believed: no singularity anywhere."""


@dataclass(frozen=True)
class Radius:
    """An estimate of a radius of convergence.

    Attributes:
        value: the estimate; inf for a series that seems to converge everywhere, nan where nothing can be said.
        low, high: the range of the estimates it was made from.
        rough: whether they are few, or far apart.
    """

    value: float
    low: float
    high: float
    rough: bool

    def __float__(self) -> float:
        """The estimate."""
        return self.value

    def __str__(self) -> str:
        """With its range where it is rough."""
        return f"{self.value:.4g}" + (f" (rough: {self.low:.3g} to {self.high:.3g})" if self.rough else "")


def radius(coefficients: Tensor | Sequence[float]) -> Radius:
    """The radius of convergence of sum_k f_k t^k.

    Args:
        coefficients: (K + 1,) of one number's series, or (K + 1, *S), whose norms over S are taken.

    Raises:
        ValueError: for fewer than four coefficients.

    Example:
        >>> estimate = tw.functions.radius([1 / 2**k for k in range(20)])  # 1 / (1 - t/2)
        >>> abs(float(estimate) - 2) < 1e-6
        True
    """
    if isinstance(coefficients, Tensor) and coefficients.is_complex():
        coefficients = torch.view_as_real(coefficients.detach().resolve_conj())
    f = coefficients.detach().double().cpu().numpy() if isinstance(coefficients, Tensor) else np.asarray(coefficients, float)
    if len(f) < 4:
        raise ValueError(f"a radius needs four coefficients or more, got {len(f)}")
    if np.isnan(f).any():
        return Radius(math.nan, math.nan, math.nan, rough=True)
    norms = np.sqrt((f.reshape(len(f), -1) ** 2).sum(1))
    present = np.flatnonzero(norms)
    gap = int(np.diff(present).max()) if len(present) > 1 else 1
    if not len(present) or len(f) - 1 - present[-1] > max(2, gap):
        return Radius(math.inf, math.inf, math.inf, rough=False)  # it ends: a polynomial
    if f.ndim > 1 and f[0].size > 1:
        return _summary(_roots(norms), len(f))
    f, stride = _without_gaps(f.reshape(len(f)), present)
    estimates = (_one(f) or _pairs(f)) if len(f) >= 6 else []
    estimates = estimates or _roots(np.abs(f))
    found = _summary(estimates, len(f))
    power = 1 / stride
    return Radius(found.value**power, found.low**power, found.high**power, found.rough)


def _without_gaps(f: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, int]:
    """Of a series in t^stride its coefficients, and stride; what stands between is 0, or in every other place only rounding."""
    stride = int(np.gcd.reduce(present - present[0])) if len(present) > 3 else 1
    if stride > 1:
        return f[present[0] :: stride], stride
    if len(f) >= 8:
        sizes = np.log(np.maximum(np.abs(f), 1e-300))
        trend = (sizes[:-2] + sizes[2:]) / 2  # of the neighbours
        for start in (0, 1):
            if (sizes[1:-1][start::2] < trend[start::2] - 25).all():
                return f[start::2], 2
    return f, 1


def _one(f: np.ndarray) -> list[float]:
    """Domb and Sykes, for one singularity on the axis: ratios f_k / f_(k-1) that hardly change, and their intercept over 1/k."""
    orders = np.arange(max(2, len(f) // 2), len(f))
    if (f[orders] * f[orders - 1] == 0).any():
        return []
    ratios = f[orders] / f[orders - 1]
    if (np.abs(ratios * f[orders - 2] / f[orders - 1] - 1) > 0.05).any():
        return []
    _, value = np.polyfit(1 / orders, ratios, 1)
    return [1 / abs(value) if abs(value) > 1e-3 * abs(ratios[-1]) else math.inf]  # an entire function's ratios go to 0


def _pairs(f: np.ndarray) -> list[float]:
    """Mercer and Roberts: the intercept of b_k over 1/k in the upper half of the orders, at all of them and at half of them."""
    size = np.abs(f).max()
    b: dict[int, float] = {}
    for k in range(2, len(f) - 1):
        scale = np.abs(f[k - 2 : k + 2]).max()
        if scale == 0 or scale < 1e-290 * size:
            continue
        g = f[k - 2 : k + 2] / scale
        above, below = g[3] * g[1] - g[2] ** 2, g[2] * g[0] - g[1] ** 2
        if abs(below) > 1e-14 and above / below > 0:
            b[k] = math.sqrt(above / below)

    def intercept(orders: list[int]) -> float:
        if len(orders) < 3:
            return math.nan
        _, value = np.polyfit([1 / k for k in orders], [b[k] for k in orders], 1)
        return 1 / value if value > 0 else math.inf

    last = len(f) - 2
    whole = intercept([k for k in b if k >= last / 2])
    half = intercept([k for k in b if last / 4 <= k <= last / 2])
    single = [1 / b[k] for k in sorted(b)[-3:]]
    if math.isnan(whole):
        return single
    if len(f) >= MANY and not math.isnan(half) and (math.isinf(whole) or whole > 1.3 * half) and single[-1] > single[0]:
        return [math.inf]  # they keep growing
    if math.isinf(whole):
        return [*reversed(single), math.inf]
    return [whole] if len(f) >= FEW + 3 else [whole, *single]


def _roots(norms: np.ndarray) -> list[float]:
    """Log |f_k| = -k log rho + p log k + c, in the upper half of the orders."""
    orders = [k for k in range(max(1, len(norms) // 3), len(norms)) if norms[k] > 0]
    if len(orders) < 3:
        return [norms[k] ** (-1 / k) for k in orders]
    columns = np.array([[k, math.log(k), 1.0] for k in orders])
    columns = columns if len(orders) > 5 else columns[:, [0, 2]]
    fit, *_ = np.linalg.lstsq(columns, np.log(norms[orders]), rcond=None)
    return [math.exp(-fit[0]), *(float(norms[k - 1] / norms[k]) for k in orders[-2:] if norms[k - 1] > 0)]


def _summary(estimates: list[float], count: int) -> Radius:
    if not estimates:
        return Radius(math.nan, math.nan, math.nan, rough=True)
    low, high = min(estimates), max(estimates)
    return Radius(estimates[0], low, high, rough=count < FEW or (low != high and not high - low <= 0.02 * low))
