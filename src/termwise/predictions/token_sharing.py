"""Who gets a bias, and what an activation function counts as: the choices of DecompX, as two tables.

`BIASES`: a bias b is shared among the parts x_k of the state it was added to,

    x_k += w_k b,     w_k = |<x_k, b>| / sum_j |<x_j, b>|     ("absdot")

Where all weights of a position are 0 (no token has reached it) the bias is nobody's, and stays a constant of its own.

`ACTIVATIONS`: y = f(u) becomes slope(u) * x_k for every part and an offset that is shared as a bias is.

Source: papers.toml "decompx", section 3 and appendix. There, 1e-12 is added to every denominator: a slope then changes its
sign for u just below 0, and shares do not sum to 1. Here the quotients are exact, with their limits where 0 / 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["ACTIVATIONS", "ALONE", "BIASES", "fractions", "inner"]

Weigh = Callable[[Tensor, Tensor, int], Tensor]
Function = Callable[[Tensor], Tensor]


def inner(rows: Tensor, bias: Tensor, axis: int) -> Tensor:
    """<row, b> for every row along an axis, (rows, ..., 1, ...); along the last one as a matrix product, without a copy."""
    if axis != -1:
        return (rows * bias).sum(axis, keepdim=True)
    return (rows.movedim(0, -2) @ bias.unsqueeze(-1)).movedim(-2, 0)


def _absdot(rows: Tensor, bias: Tensor, axis: int) -> Tensor:
    return inner(rows, bias, axis).abs()


def _abssim(rows: Tensor, bias: Tensor, axis: int) -> Tensor:
    size = rows.norm(dim=axis, keepdim=True)
    return _absdot(rows, bias, axis).div_(size).masked_fill_(size == 0, 0)  # |b| is the same for all


def _norm(rows: Tensor, bias: Tensor, axis: int) -> Tensor:
    return rows.norm(dim=axis, keepdim=True)


def _equal(rows: Tensor, bias: Tensor, axis: int) -> Tensor:
    return (rows != 0).any(axis, keepdim=True).to(rows.dtype)


def _first(rows: Tensor, bias: Tensor, axis: int) -> Tensor:
    return torch.ones_like(rows.select(axis, 0).unsqueeze(axis))  # of which the interpreter keeps the first token's


BIASES: dict[str, Weigh | None] = {
    "absdot": _absdot, "abssim": _abssim, "norm": _norm, "equal": _equal, "dot": inner, "cls": _first, "parts": None,
}  # fmt: skip
"""Rule -> weights (rows, ..., 1) of parts (rows, ..., d) for a bias (..., d); None keeps biases apart."""

ALONE = ("parts", "cls", "dot")
"""Rules under which a token's part does not depend on other tokens' parts, so that chunks of tokens need one pass each."""


def fractions(weights: Tensor, total: Tensor) -> Tensor:
    """Weights / total, and 0 where the total is."""
    return weights.div_(total.masked_fill(total == 0, 1)).masked_fill_((total == 0).unsqueeze(0), 0)


# -- functions of one variable ----------------------------------------------------------------------------------------


def _zero_origin(f: Function, u: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
    """The straight line from (0, f(0)) through (u, f(u)); at u = 0 the tangent."""
    zero = f(torch.zeros_like(u))
    zero = zero.masked_fill(~zero.isfinite(), 0)  # log, reciprocal: no line from there
    if not zero.any():
        slope, same = y / u, u == 0
    else:  # a difference: below sqrt(eps) it is rounding only, and the tangent is as exact
        slope, same = (y - zero) / u, u.abs() < torch.finfo(u.dtype).eps ** 0.5
    if same.any():
        slope = torch.where(same, _derivative(f, torch.where(same, u, torch.ones_like(u))), slope)
    return slope, zero


def _tangent(f: Function, u: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    slope = _derivative(f, u)
    return slope, y - u * slope


def _relu(f: Function, u: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
    """A rectifier counts as 1 where u > 0 and 0 elsewhere; what f differs from that by is the offset."""
    far = f(torch.full_like(u, 64.0))
    if not torch.allclose(far, torch.full_like(u, 64.0), rtol=1e-3) or bool((f(torch.full_like(u, -64.0)).abs() > 1).any()):
        return _zero_origin(f, u, y)  # tanh, sigmoid: no rectifier
    slope = (u > 0).to(u.dtype)
    return slope, y - u * slope


def _derivative(f: Function, u: Tensor) -> Tensor:
    slope: Tensor = torch.func.jvp(f, (u,), (torch.ones_like(u),))[1]
    return slope


ACTIVATIONS: dict[str, Callable[[Function, Tensor, Tensor], tuple[Tensor, Tensor | None]]] = {
    "zero-origin": _zero_origin,
    "tangent": _tangent,
    "relu": _relu,
}
"""Mode -> (slope, offset) of f at u, where y = f(u) = slope * u + offset."""
