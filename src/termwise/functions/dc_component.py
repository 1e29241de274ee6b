r"""The DC that an activation adds: its mean over a Gaussian pre-activation.

    E f(x),   x ~ N(m, s^2);      relu:  s phi(m/s) + m Phi(m/s),   at m = 0:  s / sqrt(2 pi)

Closed forms for what is piecewise linear and for GELU; Gauss-Legendre panels over m +- 12 s for everything else.

Source: papers.toml "dc-is-all-you-need" (a positive DC for any signal); Gaussian integrals.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["dc_component"]

PANELS, NODES, REACH = 256, 8, 12.0

FUNCTIONS: list[tuple[Callable[..., Tensor], nn.Module]] = [
    (torch.relu, nn.ReLU()), (F.relu, nn.ReLU()), (Tensor.relu, nn.ReLU()), (F.relu6, nn.ReLU6()), (F.hardtanh, nn.Hardtanh()),
    (F.leaky_relu, nn.LeakyReLU()), (F.gelu, nn.GELU()),
]  # fmt: skip
"""Functions, and the module that each is when called with nothing but x."""


def dc_component(act: Callable[[Tensor], Tensor], mean: float | Tensor, std: float | Tensor) -> Tensor:
    """The mean of an activation over a Gaussian.

        dc = E f(x),      x ~ N(mean, std^2)

    Args:
        act: element-wise. ReLU, |x|, ReLU6, hard tanh, leaky ReLU and GELU have closed forms, as torch's functions or modules.
        mean: a number or a tensor; integers are taken in float64.
        std: likewise, 0 or more; the two are broadcast. A std of 0 gives f(mean).

    Returns:
        Of the shape of the two together; float64 for numbers.

    Raises:
        ValueError: for a std below 0, or anything not finite; for an activation that changes the shape.

    Cost: O(1) per entry in closed form; else the activation at 2048 points per entry, exact to 1e-12 for smooth activations, to
        1e-5 std for those with kinks, to 1e-2 of the step for those that jump.

    Example:
        >>> dc = tw.functions.dc_component(torch.relu, 0.0, 2.0)
        >>> bool((dc - 2 / (2 * torch.pi) ** 0.5).abs() < 1e-12)
        True

    Source: Kechris et al. 2024 (the DC); the closed forms are integrals by parts.
    """
    m, s = torch.broadcast_tensors(
        *(v if isinstance(v, Tensor) and v.is_floating_point() else torch.as_tensor(v, dtype=torch.float64) for v in (mean, std))
    )
    if not bool(m.isfinite().all() and s.isfinite().all()):
        raise ValueError("mean and std are finite: there is NaN or infinity among them")
    if bool((s < 0).any()):
        raise ValueError(f"std is 0 or more, got {s.min().item():g}")
    closed = _closed(act)
    return closed(m, s) if closed else _quadrature(act, m, s)


def _closed(act: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The closed form of an activation's mean, where there is one."""
    act = next((module for function, module in FUNCTIONS if function is act), act)
    if isinstance(act, nn.Hardtanh):  # ReLU6 too
        low, high = act.min_val, act.max_val
        return lambda m, s: low + _relu(m - low, s) - _relu(m - high, s)
    if isinstance(act, nn.LeakyReLU):
        slope = act.negative_slope
        return lambda m, s: slope * m + (1 - slope) * _relu(m, s)
    if isinstance(act, nn.ReLU):
        return _relu
    if act in (torch.abs, Tensor.abs):
        return lambda m, s: 2 * _relu(m, s) - m
    if isinstance(act, nn.GELU) and act.approximate == "none":
        return _gelu
    return None


def _density(z: Tensor) -> Tensor:
    return torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)


def _relu(m: Tensor, s: Tensor) -> Tensor:
    """E max(x, 0)."""
    z = m / s.clamp_min(torch.finfo(s.dtype).tiny)
    return s * _density(z) + m * torch.special.ndtr(z)


def _gelu(m: Tensor, s: Tensor) -> Tensor:
    """E x Phi(x) = m Phi(r) + s^2 phi(r) / sqrt(1 + s^2), r = m / sqrt(1 + s^2)."""
    scale = (1 + s.square()).sqrt()
    return m * torch.special.ndtr(m / scale) + s.square() / scale * _density(m / scale)


def _quadrature(act: Callable[[Tensor], Tensor], m: Tensor, s: Tensor) -> Tensor:
    """Panels, since a kink spoils one of them and not all, as it would of a Gauss-Hermite rule."""
    z, w = (t.to(m) for t in _rule())
    column = (-1, *(1,) * m.ndim)
    points = m + s * z.view(column)
    out = act(points)
    if out.shape != points.shape:
        raise ValueError(f"an activation keeps the shape: this one made {tuple(out.shape)} of {tuple(points.shape)}")
    return (w.view(column) * out).sum(0)


@cache
def _rule() -> tuple[Tensor, Tensor]:
    """Nodes, and weights that carry the density."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    half = REACH / PANELS
    middles = -REACH + half * (2 * np.arange(PANELS) + 1)
    z = torch.from_numpy((middles[:, None] + half * nodes).ravel())
    return z, torch.from_numpy(np.tile(half * weights, PANELS)) * _density(z)
