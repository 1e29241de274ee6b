r"""Differential operators of a network: mixed derivatives, Laplacians, and sums of them, by Taylor series in a few directions.

A K-th derivative along v is K! f_K(v). Mixed ones are combinations of such: with directions v_d and weights w_d that solve

    sum_d w_d v_d^beta / beta! = [beta = alpha]      for all |beta| = K
    D^alpha f = sum_d w_d f_K(v_d)

So every linear operator of one order is a weighted sum of K-th coefficients, which travels as one value (`Collapsed`).

Source: Griewank, Utke & Walther 2000, Math. Comp. 69, 1117 (directions by multi-indices); Dangel et al. 2025 (collapsing).
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
        weights = {v: w for v, w in weights.items() if w}
        if not weights:
            continue
        directions = torch.tensor(list(weights), dtype=x.dtype, device=x.device)
        sizes = torch.tensor([float(w) for w in weights.values()], dtype=x.dtype, device=x.device)
        found = _along(f, x, directions, sizes, order)
        total = found if total is None else total + found
    if total is None:
        raise ValueError("the operator has no terms")
    return total


def _width(x: Tensor) -> int:
    if x.ndim != 2:
        raise ValueError(f"x is (batch, n), got {tuple(x.shape)}")
    return x.shape[1]


def _along(f: Function, x: Tensor, directions: Tensor, weights: Tensor, order: int) -> Tensor:
    """sum_d w_d f_K(x; v_d), directions (D, n)."""
    program = f if isinstance(f, Program) else capture(f, x.detach())
    lines = directions.unsqueeze(1).expand(-1, *x.shape)
    values: dict[str, Any] = program.bind(program.tensors(x), detached=False)
    name = next(n for n, p in program.placeholders.items() if p.kind == "input")
    if order == 0:
        values[name] = x
        out = Run(Collapsed(2, weights)).of(program, values)
        return out * weights.sum()  # type: ignore[no-any-return]
    if order == 1:  # the sum of slopes is the slope along the sum
        line = torch.tensordot(weights, lines, dims=1)
        return jet(program, [x], [[line]])[1][0]
    series = Collapsed(order, weights)
    out = Run(series).of(program, {**values, name: Jet(series.rows(x, lines))})
    return out.rows[-1] if isinstance(out, Jet) else torch.zeros_like(out)


@functools.lru_cache(maxsize=256)
def _combination(alpha: tuple[int, ...]) -> tuple[tuple[tuple[int, ...], Fraction], ...]:
    """Directions and weights of one mixed derivative: whole numbers, and the solution of a system in fractions."""
    order = sum(alpha)
    used = [i for i, a in enumerate(alpha) if a]
    if not used:
        return (((0,) * len(alpha), Fraction(1)),)
    nodes = [v for v in itertools.product(range(order + 1), repeat=len(used)) if sum(v) == order]
    matrix = [
        [
            Fraction(math.prod(v**b for v, b in zip(node, beta, strict=True)), math.prod(map(math.factorial, beta)))
            for node in nodes
        ]
        for beta in nodes
    ]
    wanted = [Fraction(int(beta == tuple(alpha[i] for i in used))) for beta in nodes]
    found = []
    for node, w in zip(nodes, _solve(matrix, wanted), strict=True):
        if w:
            v = [0] * len(alpha)
            for i, value in zip(used, node, strict=True):
                v[i] = value
            found.append((tuple(v), w))
    return tuple(found)


def _solve(matrix: list[list[Fraction]], right: list[Fraction]) -> list[Fraction]:
    """Gauss and Jordan, exactly."""
    rows = [[*row, r] for row, r in zip(matrix, right, strict=True)]
    for i in range(len(rows)):
        pivot = next(j for j in range(i, len(rows)) if rows[j][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [v / rows[i][i] for v in rows[i]]
        for j in range(len(rows)):
            if j != i and rows[j][i]:
                factor = rows[j][i]
                rows[j] = [a - factor * b for a, b in zip(rows[j], rows[i], strict=True)]
    return [row[-1] for row in rows]
