"""Functions of numbers, and softmax: recurrences, and integrals of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .table import Jet, choose, jet_rule, like, moves, smooth


@smooth("exp")
def exp(at: Any, x: Jet) -> Jet:
    """e^x."""
    return Jet(at.series.exp(x.rows))


@smooth("exp2")
def exp2(at: Any, x: Jet) -> Jet:
    """2^x."""
    return Jet(at.series.exp(x.rows * math.log(2)))


@smooth("expm1")
def expm1(at: Any, x: Jet) -> Jet:
    """e^x - 1."""
    return Jet(at.series.with_value(at.series.exp(x.rows), x.value.expm1()))


@smooth("log")
def log(at: Any, x: Jet) -> Jet:
    """The natural logarithm."""
    return Jet(at.series.log(x.rows))


@smooth("log2", "log10")
def log_of_base(at: Any, x: Jet) -> Jet:
    """Of base 2 or 10."""
    return Jet(at.series.log(x.rows) / math.log(2 if at.op.__name__.startswith("log2") else 10))


@smooth("log1p")
def log1p(at: Any, x: Jet) -> Jet:
    """Log(1 + x)."""
    return Jet(at.series.with_value(at.series.log(at.series.shifted(x.rows, 1.0)), x.value.log1p()))


@smooth("sqrt")
def sqrt(at: Any, x: Jet) -> Jet:
    """x^(1/2)."""
    return Jet(at.series.power(x.rows, 0.5))


@smooth("rsqrt")
def rsqrt(at: Any, x: Jet) -> Jet:
    """x^(-1/2)."""
    return Jet(at.series.power(x.rows, -0.5))


@jet_rule("pow")
def power(at: Any, x: Any, r: Any) -> Jet:
    """x^r with a number r, or a few; with an exponent that moves e^(r log x)."""
    if not isinstance(r, (Jet, Tensor)):
        return Jet(at.series.power(x.rows, r))
    if isinstance(r, Tensor) and r.numel() <= FEW:
        found = x.rows
        for exponent in r.unique().tolist():
            found = choose(r == exponent, at.series.power(x.rows, exponent), found).rows
        return Jet(found)
    jet = r if moves(r) else x
    return Jet(at.series.exp(at.series.product(like(r, jet), at.series.log(like(x, jet)))))


FEW = 64
"""Exponents that are taken one by one."""


@smooth("tan")
def tan(at: Any, x: Jet) -> Jet:
    """Sine over cosine."""
    s, c = at.series.sin_cos(x.rows)
    return Jet(at.series.product(s, at.series.reciprocal(c)))


@jet_rule("glu")
def glu(at: Any, x: Jet, axis: int = -1) -> Jet:
    """A sigmoid(b), of two halves."""
    a, b = x.rows.chunk(2, axis % x.ndim - x.ndim)
    return Jet(at.series.product(a, sigmoid_rows(at, b)))


@smooth("sin", "cos", "sinh", "cosh")
def trigonometric(at: Any, x: Jet) -> Jet:
    """Sine and cosine move together."""
    name = at.op.__name__.partition(".")[0]
    s, c = at.series.sin_cos(x.rows, 1 if name.endswith("h") else -1)
    return Jet(s if name.startswith("sin") else c)


@smooth("atan", "asin", "acos", "asinh", "atanh", "acosh")
def inverse_trigonometric(at: Any, x: Jet) -> Jet:
    """Integrals of 1 / (1 + x^2), (1 - x^2)^(-1/2) and their kin."""
    name = at.op.__name__.partition(".")[0]
    squared = at.series.square(x.rows)
    inner = at.series.shifted(
        squared if name in ("atan", "asinh") else squared if name == "acosh" else -squared, -1.0 if name == "acosh" else 1.0
    )
    slope = at.series.reciprocal(inner) if name in ("atan", "atanh") else at.series.power(inner, -0.5)
    return Jet(at.series.integrated(x.rows, -slope if name == "acos" else slope, getattr(x.value, name)()))


def sigmoid_rows(at: Any, a: Tensor) -> Tensor:
    """With u = 1 / (1 + e^-|a|) nothing overflows: sigmoid(a) is u for a >= 0, and 1 - u for a < 0."""
    sign = torch.where(a[0] < 0, -1.0, 1.0).to(a.dtype)
    u = at.series.reciprocal(at.series.shifted(at.series.exp(a * -sign), 1.0))
    return at.series.with_value(u * sign, a[0].sigmoid())


@smooth("sigmoid")
def sigmoid(at: Any, x: Jet) -> Jet:
    """1 / (1 + e^-x)."""
    return Jet(sigmoid_rows(at, x.rows))


def tanh_rows(at: Any, a: Tensor) -> Tensor:
    return at.series.with_value(sigmoid_rows(at, 2 * a) * 2, a[0].tanh())


@smooth("tanh")
def tanh(at: Any, x: Jet) -> Jet:
    """2 sigmoid(2 x) - 1."""
    return Jet(tanh_rows(at, x.rows))


def _erf(at: Any, a: Tensor) -> Tensor:
    slope = at.series.exp(-at.series.square(a)) * (2 / math.sqrt(math.pi))
    return at.series.integrated(a, slope, a[0].erf())


@smooth("erf", "erfc")
def erf(at: Any, x: Jet) -> Jet:
    """The integral of 2 e^(-x^2) / sqrt(pi)."""
    found = _erf(at, x.rows)
    return Jet(found if not at.op.__name__.startswith("erfc") else at.series.with_value(-found, x.value.erfc()))


@smooth("special_ndtr")
def normal_distribution(at: Any, x: Jet) -> Jet:
    """(1 + erf(x / sqrt 2)) / 2."""
    rows = at.series.shifted(_erf(at, x.rows / math.sqrt(2)), 1.0) / 2
    return Jet(at.series.with_value(rows, torch.special.ndtr(x.value)))


@smooth("gelu")
def gelu(at: Any, x: Jet, *, approximate: str = "none") -> Jet:
    """X (1 + erf(x / sqrt 2)) / 2, or the form with tanh: they differ by up to 5e-4."""
    a = x.rows
    if approximate == "tanh":
        cubic = at.series.added(a, at.series.product(at.series.square(a), a), 0.044715)
        gate = tanh_rows(at, cubic * math.sqrt(2 / math.pi))
    else:
        gate = _erf(at, a / math.sqrt(2))
    return Jet(at.series.product(a, at.series.shifted(gate, 1.0) * 0.5))


@smooth("silu")
def silu(at: Any, x: Jet) -> Jet:
    """X sigmoid(x)."""
    return Jet(at.series.product(x.rows, sigmoid_rows(at, x.rows)))


@smooth("softplus")
def softplus(at: Any, x: Jet, beta: float = 1, threshold: float = 20) -> Jet:
    """Log(1 + e^(beta x)) / beta, the integral of a sigmoid. (Above its threshold torch gives x: less than e^-20 beside it.)"""
    a = x.rows * beta
    slope = sigmoid_rows(at, a)
    return Jet(at.series.integrated(x.rows, slope, F.softplus(x.value, beta, threshold)))


@smooth("log_sigmoid", "log_sigmoid_forward")
def log_sigmoid(at: Any, x: Jet) -> Jet:
    """The integral of sigmoid(-x)."""
    return Jet(at.series.integrated(x.rows, sigmoid_rows(at, -x.rows), F.logsigmoid(x.value)))


@smooth("mish")
def mish(at: Any, x: Jet) -> Jet:
    """X tanh(softplus(x))."""
    inner = at.series.integrated(x.rows, sigmoid_rows(at, x.rows), torch.logaddexp(x.value, torch.zeros_like(x.value)))
    return Jet(at.series.product(x.rows, tanh_rows(at, inner)))


@jet_rule("softmax", "_softmax")
def softmax(at: Any, x: Jet, axis: int, *_: Any, **kwargs: Any) -> Jet:
    """E^(x - max) over its sum; the largest value at t = 0 is a constant of the jet."""
    rows = x.rows if kwargs.get("dtype") is None else x.rows.to(kwargs["dtype"])
    return Jet(softmax_rows(at, rows, axis % x.ndim - x.ndim))


def softmax_rows(at: Any, a: Tensor, axis: int, hidden: Tensor | None = None) -> Tensor:
    """Hidden entries are put out of the exponential, so that no infinity meets a zero."""
    value = a[0] if hidden is None else a[0].masked_fill(hidden, -math.inf)
    top = value.detach().amax(axis, keepdim=True)
    below = at.series.shifted(a, -(top if hidden is None else top.masked_fill(top.isneginf(), 0)))  # where all is hidden
    e = at.series.exp(below if hidden is None else below.masked_fill(hidden, 0))
    if hidden is not None:
        e = e.masked_fill(hidden, 0)
    total = e.sum(axis, keepdim=True)
    if hidden is not None:  # where all is hidden torch gives zeros
        total = at.series.shifted(total, hidden.all(axis, keepdim=True).to(total.dtype))
    return at.series.product(e, at.series.reciprocal(total))


@jet_rule("log_softmax", "_log_softmax")
def logsoftmax_rows(at: Any, x: Jet, axis: int, *_: Any, **kwargs: Any) -> Jet:
    """X - log sum e^x."""
    rows = x.rows if kwargs.get("dtype") is None else x.rows.to(kwargs["dtype"])
    return Jet(at.series.added(rows, _logsumexp(at, rows, axis % x.ndim - x.ndim), -1))


@jet_rule("logsumexp")
def logsumexp(at: Any, x: Jet, axes: Any, keepdim: bool = False) -> Jet:
    """Log sum e^x."""
    axes = [axes] if isinstance(axes, int) else axes
    if len(axes) > 1:
        raise ValueError(f"{at.where} sums over several axes at once: flatten them first")
    axis = axes[0] % x.ndim - x.ndim
    rows = _logsumexp(at, x.rows, axis)
    return Jet(rows if keepdim else rows.squeeze(axis))


def _logsumexp(at: Any, a: Tensor, axis: int) -> Tensor:
    top = a[0].detach().amax(axis, keepdim=True)
    return at.series.shifted(at.series.log(at.series.exp(at.series.shifted(a, -top)).sum(axis, keepdim=True)), top)
