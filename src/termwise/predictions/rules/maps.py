"""An affine operation as a map of x, and how its relevance is shared out.

    y = W x + b,      z = W x + b,      A = |W| |x| + |b|      (the same operation on absolute values)

A rule for affine operations is two weights per output, p on z and q on A. They arrive at x and b by two vector-Jacobian
products:

    c_x = W^T (p c) + sign(x) |W|^T (q c),        R_b = b sum(p c) + |b| sum(q c)

What a bias owns may be given to x instead (`biases=` of `explain`): "zero" computes p and q as if there was no b, so that x
receives all of y c; "distribute" adds R_b to the entries of x in proportion to |x_i w_ij|.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .table import active

__all__ = [
    "AFFINE", "AffineMap", "Shares", "Weights", "affine_map", "bias_axis", "bias_place", "nonnegative", "one_activation",
    "proportional", "shared",
]  # fmt: skip

AFFINE = (
    "linear", "addmm", "mm", "bmm", "matmul", "conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d", "expert_product",
)  # fmt: skip
"""Operators to which rules for affine operations apply. A product of two activations keeps its own rule."""

Weights = Callable[[Tensor, Any, Tensor], tuple[Tensor | None, Tensor | None]]
"""From z, A and the value whose relevance is shared (z itself, unless the bias is left out) to p and q; None is 1 and 0."""


class AffineMap(NamedTuple):
    """Operands of an affine operation (addmm's factors within them), and the operation on other operands."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    apply: Callable[[Tensor, Tensor, Tensor | None], Tensor]


def affine_map(at: Any, args: Any, kwargs: Any) -> AffineMap:
    """The map of this call."""
    if at.op.__name__.startswith("addmm"):
        bias, x, weight = args
        alpha, beta = kwargs.get("alpha", 1), kwargs.get("beta", 1)
        weight, bias = weight if alpha == 1 else weight * alpha, bias if beta == 1 else bias * beta
        return AffineMap(x, weight, bias, lambda x, w, b: x @ w if b is None else at.op(b, x, w))
    x, weight, *rest = args
    bias = rest[0] if rest and isinstance(rest[0], Tensor) else None
    return AffineMap(x, weight, bias, lambda x, w, b: at.op(x, w, *([b] if rest else []), *rest[1:], **kwargs))


def one_activation(at: Any, args: Any) -> bool:
    """Whether x is the one activation of an affine operation: with two it is a product, and keeps its own rule."""
    x, others = (args[1], (args[0], args[2])) if at.op.__name__.startswith("addmm") else (args[0], args[1:3])
    return active(x) == 1 and not active(*others)


def bias_axis(at: Any, y: Tensor) -> int:
    """Axis of `y` that holds the channels: the last of a linear layer, the first after the batch of a convolution."""
    name = getattr(at.op, "__name__", "")
    if name.startswith("conv") and not name.startswith("conv_tbc"):
        spatial = {"1": 1, "2": 2, "3": 3}.get(name.partition("d")[0][-1:], y.ndim - 2)
        return y.ndim - 1 - spatial
    return -1


def bias_place(at: Any, bias: Tensor | None, y: Tensor) -> tuple[str, int | None]:
    """The part of a bias, and its axis in y. More axes than one are a mask or positions, and not the layer's bias."""
    if bias is not None and bias.ndim != 1:
        return at.constant_name(0), None
    return f"bias:{at.site.path}", bias_axis(at, y)


def nonnegative(x: Tensor) -> bool:
    """Whether x is its own absolute value, as behind a ReLU: one look at it saves its signs on the way there and back."""
    return bool(x.numel()) and bool(x.detach().amin() >= 0)


def proportional(z: Tensor, total: Any, whole: Tensor) -> tuple[Tensor | None, None]:
    """LRP-0: p = 1; of another value than z its share, which is lost where z is 0."""
    return (None if whole is z else (whole / z).masked_fill_(z == 0, 0)), None


def shared(at: Any, args: Any, kwargs: Any, weights: Weights, *, absolute: bool) -> Tensor:
    """The operation's value, whose relevance is shared by `weights`; they see A only where `absolute` asks for it."""
    x, weight, bias, apply = affine_map(at, args, kwargs)
    vector = bias is not None and bias.ndim == 1  # more axes are a mask or positions: not the layer's bias
    policy = at.biases if vector else "parts"
    kept = None if policy in ("zero", "distribute") else bias
    z = at.op(*args, **kwargs) if kept is bias else apply(x, weight, None)
    total = None
    if absolute or policy == "distribute":
        total = apply(x if nonnegative(x) else x.abs(), weight.abs(), None if kept is None else kept.abs())
    with torch.no_grad():
        if policy == "distribute":
            whole, b = at.op(*args, **kwargs), bias.reshape(-1, *[1] * (z.ndim - 1 - bias_axis(at, z) % z.ndim))
            p, q = weights(whole, total + b.abs(), whole)
            owned = (b if p is None else b * p) + (0 if q is None else b.abs() * q)
            extra = (owned / total).masked_fill_(total == 0, 0)
            q = extra if q is None else q + extra
        else:
            whole = z if kept is bias else at.op(*args, **kwargs)
            p, q = weights(z, total, whole)
    if kept is not None:
        place = bias_place(at, kept, z)
        at.adds(z, kept, *place)
        if q is not None:
            at.adds(total, kept.abs(), *place)
    return z if p is None and q is None else Shares.apply(whole, z, p, total, q)


class Shares(torch.autograd.Function):
    """A value, with p c as the derivative towards z and q c towards A."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, z: Tensor, p: Tensor | None, total: Tensor | None, q: Tensor | None) -> Tensor:
        ctx.save_for_backward(p, q)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> Any:
        p, q = ctx.saved_tensors
        first = c if p is None else c * p
        return None, first, None, None if q is None else first if q is p else c * q, None
