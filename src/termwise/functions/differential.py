r"""Differential operators of a network: mixed derivatives, Laplacians, and sums of them, by Taylor series in a few directions.

A K-th derivative along v is K! f_K(v). Mixed ones are combinations of such:

    D^K f [u_1, ..., u_K] = 2^(1-K) sum_signs (s_2 ... s_K) f_K(u_1 + s_2 u_2 + ... + s_K u_K)         (polarisation)

So every linear operator of one order is a weighted sum of K-th coefficients, which travels as one value (`Collapsed`).

Source: Griewank, Utke & Walther 2000, Math. Comp. 69, 1117 (mixed derivatives from directions); Dangel et al. 2025 (collapsing).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from termwise.core.capture import capture
from termwise.core.interpret import evaluate
from termwise.core.program import Program

from .collapsed import Collapsed
from .jet import Run, jet
from .jet_rules import Jet

__all__ = ["biharmonic", "derivatives", "laplacian", "linear_operator", "partial"]

Function = nn.Module | Callable[..., Tensor] | Program


def derivatives(f: Function, x: Tensor, v: Tensor, order: int) -> list[Tensor]:
    """D^k f(x)[v, ..., v] for k = 0 ... order.

    Args:
        f: a function of one tensor.
        x: the point.
        v: the direction, of its shape.
        order: the highest.

    Example:
        >>> x = torch.tensor(0.5, dtype=torch.float64)
        >>> bool((tw.functions.derivatives(torch.sin, x, torch.ones_like(x), 4)[4] - x.sin()).abs() < 1e-14)
        True
    """
    if order < 0:
        raise ValueError(f"order is 0 or more, got {order}")
    value, found = jet(f, [x], [[v, *[torch.zeros_like(x)] * (order - 1)] if order else []], convention="derivatives")
    return [value, *found]


def laplacian(
    f: Function,
    x: Tensor,
    weights: Tensor | None = None,
    *,
    method: str = "collapsed",
    samples: int = 32,
    generator: torch.Generator | None = None,
) -> Tensor:
    """sum_i d^2 f / dx_i^2, or the weighted trace tr(S^T H S), sample by sample.

    Args:
        f: a function of (batch, n), each sample by itself.
        x: (batch, n).
        weights: S, (n, m): the operator is the sum over its columns of second derivatives along them; the identity by default.
        method: "collapsed", exact, n directions in one run; or "hutchinson", for large n: a mean over random signs, unbiased,
            with a variance of 2 sum_(i != j) H_ij^2 / samples.
        samples: random directions of "hutchinson".
        generator: of their signs.

    Returns:
        Of the shape of f(x).

    Raises:
        ValueError: unless x is (batch, n), for an unknown method, weights of another height.

    Cost: one run over n + 2 values (n + 1 + n without collapsing).

    Example:
        >>> x = torch.randn(5, 3, dtype=torch.float64)
        >>> bool(torch.allclose(tw.functions.laplacian(lambda x: x.square().sum(1), x), torch.full((5,), 6.0).double()))
        True

    Source: Li et al. 2023 (forward Laplacian); Dangel et al. 2025; Hutchinson 1990.
    """
    n = _width(x)
    if method == "hutchinson" and samples < 1:
        raise ValueError(f"samples is 1 or more, got {samples}")
    if method not in ("collapsed", "hutchinson"):
        raise ValueError(f"method is 'collapsed' or 'hutchinson', got {method!r}")
    columns = torch.eye(n, dtype=x.dtype, device=x.device) if weights is None else weights.to(x)
    if columns.ndim != 2 or len(columns) != n:
        raise ValueError(f"weights are ({n}, m), one column per direction; got {tuple(columns.shape)}")
    scale = 1.0
    if method == "hutchinson":
        signs = torch.randint(0, 2, (columns.shape[1], samples), generator=generator).to(x) * 2 - 1
        columns, scale = columns @ signs, 1 / samples
    return _along(f, x, columns.T, torch.full((columns.shape[1],), 2 * scale, dtype=x.dtype, device=x.device), 2)


def partial(f: Function, x: Tensor, alpha: Sequence[int]) -> Tensor:
    """One mixed partial derivative, d^|alpha| f / dx^alpha, sample by sample.

    Args:
        f: a function of (batch, n).
        x: (batch, n).
        alpha: how often to differentiate by each of the n variables.

    Example:
        >>> x = torch.tensor([[2.0, 3.0]], dtype=torch.float64)
        >>> tw.functions.partial(lambda x: x[:, 0] ** 2 * x[:, 1], x, (1, 1)).item()
        4.0
    """
    return linear_operator(f, x, {tuple(alpha): 1.0})


def biharmonic(f: Function, x: Tensor) -> Tensor:
    """The Laplacian of the Laplacian, sum_ij d^4 f / dx_i^2 dx_j^2, sample by sample; n^2 directions.

    Args:
        f: a function of (batch, n).
        x: (batch, n).
    """
    n = _width(x)
    terms: dict[tuple[int, ...], float] = {}
    for i, j in itertools.product(range(n), repeat=2):
        alpha = [0] * n
        alpha[i] += 2
        alpha[j] += 2
        terms[tuple(alpha)] = terms.get(tuple(alpha), 0.0) + 1.0
    return linear_operator(f, x, terms)


def linear_operator(f: Function, x: Tensor, terms: Mapping[tuple[int, ...], float]) -> Tensor:
    """sum_alpha c_alpha d^|alpha| f / dx^alpha, sample by sample: one collapsed run for each order that occurs.

    Args:
        f: a function of (batch, n).
        x: (batch, n).
        terms: multi-index -> coefficient, e.g. ``{(2, 0): 1.0, (0, 1): -1.0}`` for f_xx - f_y.

    Raises:
        ValueError: for multi-indices of another length, or negative ones.
    """
    n = _width(x)
    for alpha in terms:
        if len(alpha) != n or min(alpha) < 0:
            raise ValueError(f"multi-indices have {n} entries of 0 or more, got {alpha}")
    total: Tensor | None = None
    for order in sorted({sum(alpha) for alpha in terms}):
        weights: dict[tuple[int, ...], Fraction] = {}
        for alpha, c in terms.items():
            if sum(alpha) == order:
                for v, w in _combination(alpha):
                    weights[v] = weights.get(v, Fraction(0)) + w * Fraction(c)
        weights = {v: w for v, w in weights.items() if w} or {(0,) * n: Fraction(0)}
        directions = torch.tensor(list(weights), dtype=x.dtype, device=x.device)
        sizes = torch.tensor([float(w) for w in weights.values()], dtype=x.dtype, device=x.device)
        found = _along(f, x, directions, sizes, order)
        total = found if total is None else total + found
    if total is None:
        raise ValueError("the operator has no terms: give multi-indices with coefficients, as {(2, 0): 1.0}")
    return total


def _width(x: Tensor) -> int:
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor (batch, n), got {type(x).__name__}")
    if x.ndim != 2:
        raise ValueError(f"x is (batch, n), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"x is a tensor of {x.dtype}, in which there are no derivatives: give a floating one")
    return x.shape[1]


def _along(f: Function, x: Tensor, directions: Tensor, weights: Tensor, order: int) -> Tensor:
    """sum_d w_d f_K(x; v_d), directions (D, n)."""
    program = f if isinstance(f, Program) else capture(f, x.detach())
    lines = directions.unsqueeze(1).expand(-1, *x.shape)
    values: dict[str, Any] = program.bind(program.tensors(x), detached=False)
    name = next(n for n, p in program.placeholders.items() if p.kind == "input")
    if order == 0:
        return evaluate(program.graph, values) * weights.sum()  # type: ignore[no-any-return]
    if order == 1:  # the sum of slopes is the slope along the sum
        line = torch.tensordot(weights, lines, dims=1)
        return jet(program, [x], [[line]])[1][0]
    series = Collapsed(order, weights)
    out = Run(series).of(program, {**values, name: Jet(series.rows(x, lines))})
    return out.rows[-1] if isinstance(out, Jet) else torch.zeros_like(out)


@functools.lru_cache(maxsize=256)
def _combination(alpha: tuple[int, ...]) -> tuple[tuple[tuple[int, ...], Fraction], ...]:
    """Directions and weights of one mixed derivative: u_1, ..., u_K are the unit vectors that alpha counts."""
    order, used = sum(alpha), [i for i, a in enumerate(alpha) if a]
    if len(used) <= 1:  # K! f_K along the axis itself
        return ((tuple(int(a > 0) for a in alpha), Fraction(math.factorial(order))),)
    units = [i for i in used for _ in range(alpha[i])]
    weights: dict[tuple[int, ...], int] = {}
    for signs in itertools.product((1, -1), repeat=order - 1):
        v = [0] * len(alpha)
        for i, sign in zip(units, (1, *signs), strict=True):
            v[i] += sign
        sign = math.prod(signs)
        first = next((x for x in v if x), 0)
        if first < 0:  # f_K(-v) = (-1)^K f_K(v)
            v, sign = [-x for x in v], sign * (-1) ** order
        if first:
            weights[tuple(v)] = weights.get(tuple(v), 0) + sign
    return tuple((v, Fraction(w, 2 ** (order - 1))) for v, w in weights.items() if w)
