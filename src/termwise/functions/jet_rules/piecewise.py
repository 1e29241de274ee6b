"""What has kinks takes the branch that the value at t = 0 is on, and says where the branch ends."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .products import mul
from .table import Jet, channels, choose, jet_rule, like, moves, rows_of, values


@jet_rule("relu")
def relu(at: Any, x: Jet) -> Jet:
    """X where it is positive."""
    at.kink(x)
    return Jet(x.rows * at.positive(x))


@jet_rule("leaky_relu")
def leaky_relu(at: Any, x: Jet, slope: float = 0.01) -> Jet:
    """X, or slope x below 0."""
    at.kink(x)
    return Jet(torch.where(at.positive(x), x.rows, x.rows * slope))


@jet_rule("prelu", "_prelu_kernel")
def prelu(at: Any, x: Jet, slope: Any) -> Jet:
    """The same with a learned slope per channel."""
    x = Jet(rows_of(at, x))
    at.kink(x)
    below = mul(at, x, channels(slope, x.ndim - 2) if at.op.__name__.startswith("prelu") and x.ndim > 2 else slope)
    return choose(at.positive(x), x.rows, below.rows)


@jet_rule("abs")
def absolute(at: Any, x: Jet) -> Jet:
    """X or -x."""
    at.kink(x)
    return Jet(x.rows * torch.where(at.positive(x), 1.0, -1.0).to(x.rows.dtype))


@jet_rule("elu")
def elu(at: Any, x: Jet, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Jet:
    """Scale x above 0, scale alpha (e^(input_scale x) - 1) below."""
    at.kink(x)
    capped = torch.cat([x.rows[:1].clamp(max=0), x.rows[1:]]) * input_scale  # the other branch must not overflow
    curved = at.series.with_value(at.series.exp(capped), capped[0].expm1()) * (scale * alpha)
    return choose(at.positive(x), x.rows * scale, curved)


@jet_rule("selu")
def selu(at: Any, x: Jet) -> Jet:
    """Elu with two fixed numbers."""
    return elu(at, x, 1.6732632423543772, 1.0507009873554805)


@jet_rule("celu")
def celu(at: Any, x: Jet, alpha: float = 1) -> Jet:
    """X above 0, alpha (e^(x / alpha) - 1) below."""
    return elu(at, x, alpha, 1, 1 / alpha)


@jet_rule("clamp", "clamp_min", "clamp_max", "hardtanh", "relu6")
def clamp(at: Any, x: Any, low: Any = None, high: Any = None) -> Jet:
    """X between its ends, and these beyond."""
    name = at.op.__name__.partition(".")[0]
    if name == "clamp_max":
        low, high = None, low
    elif name == "hardtanh":
        low, high = -1.0 if low is None else low, 1.0 if high is None else high
    elif name == "relu6":
        low, high = 0.0, 6.0
    return _between(at, Jet(rows_of(at, x)), low, high)


def _between(at: Any, x: Jet, low: Any, high: Any) -> Jet:
    for end, inside in ((low, 1), (high, -1)):
        if end is not None:
            bound = like(end, x)
            distance = Jet(at.series.added(x.rows, bound, -1) * inside)
            at.kink(distance)
            x = choose(at.positive(distance), x.rows, bound)
    return x


@jet_rule("threshold")
def threshold(at: Any, x: Jet, end: float, value: float) -> Jet:
    """X above an end, and a number up to it."""
    above = Jet(at.series.shifted(x.rows, -end))
    at.kink(above)
    return choose(at.positive(above), x.rows, like(value, x))


@jet_rule("hardshrink", "softshrink")
def shrunk(at: Any, x: Jet, size: float = 0.5) -> Jet:
    """0 between two ends, and beyond them x, or x less the nearer end."""
    soft = at.op.__name__.startswith("soft")
    found = torch.zeros_like(x.rows)
    for sign in (1.0, -1.0):
        beyond = Jet(at.series.shifted(x.rows * sign, -size))
        at.kink(beyond)
        found = choose(at.positive(beyond), beyond.rows * sign if soft else x.rows, found).rows
    return Jet(found)


@jet_rule("hardsigmoid", "hardswish")
def hard(at: Any, x: Jet) -> Jet:
    """Clamp(x / 6 + 1 / 2, 0, 1), and x times that."""
    gate = _between(at, Jet(at.series.shifted(x.rows / 6, 0.5)), 0.0, 1.0)
    return gate if at.op.__name__.startswith("hardsigmoid") else Jet(at.series.product(x.rows, gate.rows))


@jet_rule("where")
def where(at: Any, condition: Tensor, a: Any, b: Any) -> Jet:
    """By a condition that does not move."""
    if moves(condition):
        condition = condition.value.bool()
    jet = a if moves(a) else b
    return choose(condition, like(a, jet), like(b, jet))


@jet_rule("masked_fill")
def masked_fill(at: Any, x: Any, mask: Tensor, value: Any) -> Jet:
    """Another value in some places, mostly a constant: zeros in the later rows."""
    jet = x if moves(x) else value
    return choose(mask, like(value, jet), rows_of(at, x))


@jet_rule("maximum", "minimum")
def larger(at: Any, a: Any, b: Any) -> Jet:
    """The larger or smaller of two, entry by entry."""
    sign = 1 if at.op.__name__.startswith("max") else -1
    distance = Jet(at.series.added(rows_of(at, a), rows_of(at, b), -1) * sign)
    at.kink(distance)
    return choose(at.positive(distance), rows_of(at, a), rows_of(at, b))


@jet_rule("amax", "amin", "max", "min")
def extreme(at: Any, x: Any, axis: Any = None, keepdim: bool = False) -> Any:
    """The entry that is largest at t = 0 (of equal ones, the one that grows, or with ties="torch" the first)."""
    if isinstance(axis, (Jet, Tensor)):
        return larger(at, x, axis)
    name = at.op.__name__.partition(".")[0]
    rows, axes = x.rows, [*range(x.ndim)] if axis in (None, []) else [axis] if isinstance(axis, int) else [*axis]
    axes = sorted(a % x.ndim for a in axes)
    kept = [a for a in range(x.ndim) if a not in axes]
    flat = rows.permute(0, *(a + 1 for a in kept), *(a + 1 for a in axes)).flatten(len(kept) + 1)
    index = _winner(at, flat, largest=name.endswith("max"))
    found = flat.gather(-1, index.expand(len(flat), *index.shape)).squeeze(-1)
    if keepdim:
        found = found.reshape(len(found), *(1 if a in axes else s for a, s in enumerate(rows.shape[1:])))
    if name in ("max", "min") and isinstance(axis, int):
        return Jet(found), index.squeeze(-1).unsqueeze(axis) if keepdim else index.squeeze(-1)
    return Jet(found)


def _winner(at: Any, rows: Tensor, *, largest: bool) -> Tensor:
    """Index (..., 1) of the entry of the last axis that is extreme just after t = 0, and when another overtakes it."""
    value = rows[0] if largest else -rows[0]
    best = value.amax(-1, keepdim=True)
    tied = value == best
    for k in range(1, len(rows)):
        if at.ties == "torch" or not bool((tied.sum(-1) > 1).any()):
            break
        nxt = (rows[k] if largest else -rows[k]).masked_fill(~tied, -math.inf)
        tied = tied & (nxt == nxt.amax(-1, keepdim=True))
    index = tied.to(torch.uint8).argmax(-1, keepdim=True)
    winner = rows.gather(-1, index.expand(len(rows), *index.shape))
    at.kink(Jet((winner - rows) if largest else (rows - winner)), other_than=index)
    return index


@jet_rule(
    "max_pool1d", "max_pool2d", "max_pool1d_with_indices", "max_pool2d_with_indices", "adaptive_max_pool2d", "adaptive_max_pool1d"
)
def max_pool(at: Any, x: Jet, *args: Any, **kwargs: Any) -> Any:
    """The winner at t = 0 of every window, in all rows. (Ties: the first one.)"""
    name = at.op.__name__.partition(".")[0].removesuffix("_with_indices")
    spatial = int(name[-2])
    pool = getattr(F, name)
    index = pool(x.value, *_pool_arguments(args), return_indices=True, **kwargs)[1]
    flat = x.rows.flatten(-spatial)
    found = flat.gather(-1, index.flatten(-spatial).expand(len(flat), *index.shape[:-spatial], -1))
    found = found.reshape(len(flat), *index.shape)
    at.unwatched()
    both = at.op.__name__.partition(".")[0].endswith("_with_indices") or name.startswith("adaptive")
    return (Jet(found), index) if both else Jet(found)


def _pool_arguments(args: Any) -> list[Any]:
    """An empty stride means that of the kernel."""
    return [None if i == 1 and isinstance(a, (list, tuple)) and not a else a for i, a in enumerate(args)]


@jet_rule("sort", "topk")
def ordered(at: Any, x: Jet, *args: Any, **kwargs: Any) -> Any:
    """The order of t = 0, for every row."""
    at.unwatched()
    _, index = at.op(x.value, *args, **kwargs)
    place = 1 if at.op.__name__.startswith("topk") else 0  # behind k
    axis = kwargs.get("dim", args[place] if len(args) > place else -1)
    axis = axis % x.ndim + 1 if x.ndim else 0
    return Jet(x.rows.gather(axis, index.expand(len(x.rows), *index.shape))), index


@jet_rule("cummax", "cummin")
def running_extreme(at: Any, x: Jet, axis: int) -> tuple[Jet, Tensor]:
    """The winners of t = 0, for every row."""
    at.unwatched()
    _, index = at.op(x.value, axis)
    return Jet(x.rows.gather(axis % x.ndim + 1, index.expand(len(x.rows), *index.shape))), index


@jet_rule("eq", "ne", "lt", "le", "gt", "ge")
def compared(at: Any, a: Any, b: Any) -> Tensor:
    """As it is at t = 0; where the two are equal it changes."""
    jet = a if moves(a) else b
    at.kink(Jet(at.series.added(like(a, jet), like(b, jet), -1)))
    return at.op(*values((a, b)))  # type: ignore[no-any-return]


@jet_rule("sign", "sgn", "floor", "ceil", "round", "trunc", "argmax", "argmin", "argsort")
def steps(at: Any, *args: Any, **kwargs: Any) -> Any:
    """Constant in pieces: only the value at t = 0. Where the next step is, nobody looks."""
    at.unwatched()
    return at.op(*values(args), **kwargs)


@jet_rule(
    "isnan", "isinf", "isneginf", "logical_not", "bitwise_not", "bitwise_and", "bitwise_or", "zeros_like", "ones_like",
    "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "sym_size", "sym_numel", "sym_stride",
)  # fmt: skip
def unmoved(at: Any, *args: Any, **kwargs: Any) -> Any:
    """Of the shape or kind of a value, which do not move."""
    return at.op(*values(args), **kwargs)


@jet_rule("getitem")
def getitem(at: Any, values: Any, index: Any) -> Any:
    """One of several values."""
    return values[index]
