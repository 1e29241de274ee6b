"""Products of what moves: Cauchy sums, matrix by matrix where they are matrices."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .smooth import softmax_rows
from .table import Jet, channels, jet_rule, leveled, moves, rows_of, smooth


@jet_rule("mul")
def mul(at: Any, a: Any, b: Any) -> Jet:
    """Cauchy's product; by a constant every row."""
    if not (moves(a) and moves(b)):
        jet, other = (a, b) if moves(a) else (b, a)
        if not isinstance(other, Tensor) or other.ndim == 0:
            return Jet(jet.rows * other)
    return Jet(at.series.product(rows_of(at, a), rows_of(at, b)))


@jet_rule("square")
def square(at: Any, x: Jet) -> Jet:
    """X x."""
    return Jet(at.series.square(x.rows))


@jet_rule("div")
def div(at: Any, a: Any, b: Any, **kwargs: Any) -> Jet:
    """A times the reciprocal of b."""
    if kwargs.get("rounding_mode"):
        raise ValueError(f"{at.where} rounds: its derivatives are 0 almost everywhere, and no series says where it jumps")
    if not moves(b):
        if isinstance(b, Tensor) and b.ndim > a.ndim:
            return Jet(at.series.product(a.rows, at.series.constant(b.reciprocal())))
        return Jet(a.rows / b)
    inverse = at.series.reciprocal(b.rows)
    if not isinstance(a, (Jet, Tensor)):
        return Jet(inverse * a)
    return Jet(at.series.product(rows_of(at, a), inverse))


@smooth("reciprocal")
def reciprocal(at: Any, x: Jet) -> Jet:
    """1 / x."""
    return Jet(at.series.reciprocal(x.rows))


@jet_rule("matmul", "mm", "bmm", "mv", "dot")
def matmul(at: Any, a: Any, b: Any) -> Jet:
    """A matrix product of what moves with what moves or not."""
    a, b = rows_of(at, a), rows_of(at, b)
    vector, covector = a.ndim == 2, b.ndim == 2
    a, b = a.unsqueeze(-2) if vector else a, b.unsqueeze(-1) if covector else b
    axes = max(a.ndim, b.ndim)
    a, b = (v.reshape(len(v), *[1] * (axes - v.ndim), *v.shape[1:]) for v in (a, b))
    c = at.series.matmul(a, b)
    c = c.squeeze(-2) if vector else c
    return Jet(c.squeeze(-1) if covector else c)


@jet_rule("linear")
def linear(at: Any, x: Any, weight: Any, bias: Any = None) -> Jet:
    """X W^T + b."""
    if moves(weight):
        rows = matmul(at, x, Jet(weight.rows.transpose(-1, -2))).rows
    else:
        rows = F.linear(x.rows, weight) if moves(x) else at.series.constant(F.linear(x, weight))
    if bias is None or moves(bias):
        return Jet(rows if bias is None else at.series.added(rows, bias.rows))
    return Jet(at.series.shifted_(rows, bias))


@jet_rule("addmm", "baddbmm")
def addmm(at: Any, bias: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Jet:
    """Beta bias + alpha a b."""
    rows = matmul(at, a, b).rows if moves(a) or moves(b) else at.series.constant(a @ b)
    return Jet(at.series.added(rows * alpha, rows_of(at, bias) * beta))


@jet_rule("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def convolution(at: Any, x: Any, weight: Any, bias: Any = None, *rest: Any, **kwargs: Any) -> Jet:
    """All rows in one batch, for each row of the weight."""
    kernel = (weight.value if moves(weight) else weight).ndim
    rest = (*rest[:6],)

    def apply(rows: Tensor, w: Tensor) -> Tensor:
        batch = rows.reshape(-1, *rows.shape[-(kernel - 1) :])
        y = at.op(batch, w, None, *rest, **kwargs)
        return y.reshape(*rows.shape[: -(kernel - 1)], *y.shape[1:])

    if moves(x) and moves(weight):
        rows = at.series.product(x.rows, weight.rows, apply)
    elif moves(weight):
        rows = torch.stack([apply(x, w) for w in weight.rows])
    else:
        rows = apply(rows_of(at, x), weight)
    if bias is None:
        return Jet(rows)
    bias = channels(bias, kernel - 2)
    return Jet(at.series.added(rows, bias.rows) if moves(bias) else at.series.shifted_(rows, bias))


@jet_rule("scaled_dot_product_attention")
def attention(
    at: Any, q: Any, k: Any, v: Any, mask: Any = None, dropout: float = 0.0, causal: bool = False, *,
    scale: float | None = None, enable_gqa: bool = False,
) -> Jet:  # fmt: skip
    """Softmax(q k^T scale + mask) v; the mask touches the first row only, and is put in after the products."""
    if dropout:
        raise ValueError(f"{at.where} drops weights at random (dropout_p={dropout:g}): pass 0")
    q, k, v = (rows_of(at, value) for value in (q, k, v))
    if enable_gqa:
        k, v = (value.repeat_interleave(q.shape[-3] // value.shape[-3], -3) for value in (k, v))
    scores = at.series.matmul(q, k.transpose(-1, -2)) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    hidden = None
    if causal:
        rows, columns = scores.shape[-2:]
        hidden = torch.ones(rows, columns, dtype=torch.bool, device=scores.device).triu(1)
    elif moves(mask):
        scores = at.series.added(scores, mask.rows)
    elif mask is not None:
        hidden = ~mask if mask.dtype == torch.bool else mask.isneginf()
        if mask.dtype != torch.bool:
            scores = at.series.shifted(scores, mask.masked_fill(hidden, 0).expand(scores.shape[1:]))
    weights = softmax_rows(at, scores, -1, hidden)
    return Jet(at.series.matmul(weights, v.to(weights.dtype)))


@jet_rule("bilinear")
def bilinear(at: Any, a: Any, b: Any, weight: Any, bias: Any = None) -> Jet:
    """A W b + bias, of what moves or not."""
    a, w = rows_of(at, a), rows_of(at, weight)
    w = w.reshape(len(w), *[1] * (a.ndim - 2), *w.shape[1:])  # axes for the samples
    read = at.series.product(a, w, lambda a, w: torch.einsum("...i,...oij->...oj", a, w))
    rows = at.series.product(read, rows_of(at, b), lambda r, b: torch.einsum("...oj,...j->...o", r, b))
    return Jet(rows if bias is None else at.series.added(rows, rows_of(at, bias)))


@jet_rule("lerp")
def lerp(at: Any, a: Any, b: Any, weight: Any) -> Jet:
    """A + weight (b - a)."""
    difference = at.series.added(rows_of(at, b), rows_of(at, a), -1)
    return Jet(at.series.added(rows_of(at, a), mul(at, Jet(difference), weight).rows))


@jet_rule("addcmul")
def addcmul(at: Any, x: Any, a: Any, b: Any, *, value: float = 1) -> Jet:
    """X + value a b."""
    rows = mul(at, a, b).rows if moves(a) or moves(b) else at.series.constant(a * b)
    return Jet(at.series.added(rows_of(at, x), rows, value))


@jet_rule("prod", "cumprod")
def running_product(at: Any, x: Jet, axis: int | None = None, keepdim: bool = False, **_: Any) -> Jet:
    """One factor after the other."""
    rows = x.rows.flatten(1) if axis is None else x.rows
    axis = 1 if axis is None else axis % x.ndim + 1
    factors = rows.unbind(axis)
    found = [factors[0]]
    for factor in factors[1:]:
        found.append(at.series.product(found[-1], factor))
    if at.op.__name__.startswith("cumprod"):
        return Jet(torch.stack(leveled(found), axis))
    return Jet(found[-1].unsqueeze(axis) if keepdim else found[-1])


@jet_rule("einsum")
def einsum(at: Any, equation: str, operands: Any, **_: Any) -> Jet:
    """Sums of products of two, or a sum over one."""
    if "." in equation or "->" not in equation or len(operands) > 2:
        raise ValueError(f"{at.where} ({equation!r}) has no jet rule: write two operands, all axes and an arrow")
    given, wanted = equation.replace(" ", "").split("->")
    row = next(letter for letter in "ZYXWVU" if letter not in equation)
    if len(operands) == 1:
        return Jet(torch.einsum(f"{row}{given}->{row}{wanted}", operands[0].rows))
    first, second = given.split(",")

    def times(a: Tensor, b: Tensor) -> Tensor:
        moving = [row if len(v.shape) > len(names) else "" for v, names in ((a, first), (b, second))]
        return torch.einsum(f"{moving[0]}{first},{moving[1]}{second}->{row if any(moving) else ''}{wanted}", a, b)

    return Jet(at.series.product(*(rows_of(at, v) for v in operands), times))
