"""Normalisations: a variance, its root, a product."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .table import Jet, axes_of, channels, choose, jet_rule, moves, rows_of


def _normed(at: Any, d: Tensor, axes: list[int], eps: float) -> Tensor:
    """D (mean(d d) + eps)^(-1/2)."""
    variance = at.series.square(d).mean(axes, keepdim=True)
    return at.series.product(d, at.series.power(at.series.shifted(variance, eps), -0.5))


def _scaled(at: Any, rows: Tensor, weight: Any, bias: Any) -> Jet:
    """A gain for every row, an offset for the first."""
    if weight is not None:
        rows = at.series.product(rows, rows_of(at, weight)) if moves(weight) else rows * weight
    if bias is None or moves(bias):
        return Jet(rows if bias is None else at.series.added(rows, bias.rows))
    return Jet(at.series.shifted_(rows, bias))


@jet_rule("layer_norm")
def layer_norm(at: Any, x: Jet, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> Jet:
    """Variance by 1/n, eps within the root."""
    axes = list(range(-len(shape), 0))
    a = rows_of(at, x)
    return _scaled(at, _normed(at, a - a.mean(axes, keepdim=True), axes, eps), weight, bias)


@jet_rule("rms_norm")
def rms_norm(at: Any, x: Jet, shape: Any, weight: Any = None, eps: float | None = None) -> Jet:
    """X (mean(x x) + eps)^(-1/2)."""
    a = rows_of(at, x)
    eps = torch.finfo(a.dtype).eps if eps is None else eps
    return _scaled(at, _normed(at, a, list(range(-len(shape), 0)), eps), weight, None)


@jet_rule("native_layer_norm")
def native_layer_norm(at: Any, *args: Any) -> tuple[Jet, None, None]:
    """Its first value."""
    return layer_norm(at, *args), None, None


@jet_rule("group_norm")
def group_norm(at: Any, x: Jet, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> Jet:
    """A layer norm of each group of channels."""
    a = rows_of(at, x)
    g = a.reshape(*a.shape[:2], groups, -1)
    normed = _normed(at, g - g.mean(-1, keepdim=True), [-1], eps).reshape(-1, *a.shape[1:])
    return _scaled(at, normed, *(channels(v, a.ndim - 3) for v in (weight, bias)))


@jet_rule("instance_norm")
def instance_norm(
    at: Any, x: Any, weight: Any, bias: Any, mean: Any, var: Any, own: bool, momentum: float, eps: float, *_: Any
) -> Jet:
    """A layer norm of each channel, or with running statistics an affine map."""
    if not own:
        return batch_norm(at, x, weight, bias, mean, var, False, momentum, eps)
    a = rows_of(at, x)
    axes = list(range(3 - a.ndim, 0))
    normed = _normed(at, a - a.mean(axes, keepdim=True), axes, eps)
    return _scaled(at, normed, *(channels(v, a.ndim - 3) for v in (weight, bias)))


@jet_rule("batch_norm")
def batch_norm(
    at: Any, x: Jet, weight: Any, bias: Any, mean: Tensor, var: Tensor, training: bool, momentum: float, eps: float, *_: Any
) -> Jet:
    """In eval mode an affine map of every channel."""
    if training or mean is None:
        raise ValueError(f"{at.where} takes its statistics from the batch: call model.eval(), or track running statistics")
    a, trailing = rows_of(at, x), rows_of(at, x).ndim - 3
    centred = at.series.shifted(a, -channels(mean, trailing).expand(a.shape[1:]))
    gain = channels(torch.rsqrt(var + eps), trailing)
    return _scaled(at, centred * gain, *(channels(v, trailing) for v in (weight, bias)))


@jet_rule("linalg_vector_norm", "norm", "linalg_norm")
def vector_norm(at: Any, x: Jet, order: Any = 2, axes: Any = None, keepdim: bool = False, **_: Any) -> Jet:
    """The root of a sum of squares, or the sum of absolute values."""
    axes = axes_of(x, axes)
    if order == 1:
        at.kink(x)
        return Jet(torch.where(at.positive(x), x.rows, -x.rows).sum(axes, keepdim=keepdim))
    if order != 2:
        raise ValueError(f"{at.where} is a norm of order {order}: there are jet rules for 1 and 2")
    return Jet(at.series.power(at.series.square(x.rows).sum(axes, keepdim=keepdim), 0.5))


@jet_rule("var", "std")
def variance(at: Any, x: Jet, *args: Any, correction: float | None = 1, keepdim: bool = False) -> Jet:
    """The mean of squared deviations, by n - correction; its root."""
    axes = next((a for a in args if not isinstance(a, bool)), None)
    flags = [a for a in args if isinstance(a, bool)]
    if flags:  # (axes, unbiased, keepdim), of the older overloads
        correction, keepdim = int(flags[0]), flags[1] if len(flags) > 1 else keepdim
    axes = axes_of(x, axes)
    n = math.prod(x.rows.shape[a] for a in axes)
    d = x.rows - x.rows.mean(axes, keepdim=True)
    found = at.series.square(d).sum(axes, keepdim=keepdim) / (n - (1 if correction is None else correction))
    return Jet(at.series.power(found, 0.5) if at.op.__name__.startswith("std") else found)


@jet_rule("hypot")
def hypot(at: Any, a: Any, b: Any) -> Jet:
    """The root of a a + b b."""
    return Jet(at.series.power(at.series.added(at.series.square(rows_of(at, a)), at.series.square(rows_of(at, b))), 0.5))


@jet_rule("cdist", "_euclidean_dist")
def distances(at: Any, a: Any, b: Any, p: float = 2.0, *_: Any) -> Jet:
    """The length of every difference."""
    if p != 2:
        raise ValueError(f"{at.where} of order {p} has no jet rule: there is one for lengths (p=2)")
    a, b = rows_of(at, a).unsqueeze(-2), rows_of(at, b).unsqueeze(-3)
    squares = at.series.square(at.series.added(a, b, -1)).sum(-1)
    return Jet(at.series.power(squares, 0.5))


@jet_rule("cosine_similarity")
def cosine_similarity(at: Any, a: Any, b: Any, axis: int = 1, eps: float = 1e-8) -> Jet:
    """A b over both lengths, which are eps at least."""
    a, b = rows_of(at, a), rows_of(at, b)
    axes = max(a.ndim, b.ndim) - 1
    axis = axis % axes - axes
    a, b = (v.reshape(len(v), *[1] * (axes + 1 - v.ndim), *v.shape[1:]) for v in (a, b))
    found = at.series.product(a, b).sum(axis)
    for v in (a, b):
        squares = at.series.square(v).sum(axis)
        floor = at.series.constant(torch.full_like(squares[0], eps**2))
        found = at.series.product(found, at.series.power(choose(squares[0] > eps**2, squares, floor).rows, -0.5))
    return Jet(found)
