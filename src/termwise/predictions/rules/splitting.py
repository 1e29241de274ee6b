"""Rules for affine operations that treat positive and negative contributions differently, and epsilon.

With z = W x + b and A = |W| |x| + |b| (the same operation on absolute values) the positive contributions to an output
sum to P = (z + A) / 2 and the negative ones to (z - A) / 2; the bias is one contribution among the others. So any rule
with weights p on z and q on A, p z + q A = z, costs one more forward and two vector-Jacobian products:

    c_x = W^T (p c) + sign(x) |W|^T (q c),        R_b = b sum(p c) + |b| sum(q c)

Batch norm behind a convolution is folded into it first (`termwise.predictions.fold`): signs do not commute with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .linear import affine, affine_bias_first, bias_axis
from .products import product
from .table import Rule, active, lossy

__all__ = ["AFFINE", "SPLITTING", "epsilon", "gamma", "own_derivative", "zplus"]

AFFINE = (
    "linear", "addmm", "mm", "bmm", "matmul", "conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d",
)  # fmt: skip
"""Operators to which these rules apply. A product of two activations keeps its own rule."""

SPLITTING: set[Rule] = set()
"""Rules before which batch norm is folded into the affine operation it follows."""


def epsilon(size: float = 1e-6) -> Rule:
    """LRP-epsilon: c_x = W^T (c |z| / (|z| + eps)). Small outputs pass less on; what stays behind is lost.

    Args:
        size: epsilon, in units of the outputs z. 0 is LRP-0.
    """

    @lossy
    def epsilon(at: Any, *args: Any, **kwargs: Any) -> Tensor:
        z = _plain(at)(at, *args, **kwargs)
        with torch.no_grad():
            weight = z.abs()
            weight.div_(weight + size).nan_to_num_(nan=1.0)  # 0 / 0, with size 0
        return _Weighted.apply(z, weight)

    return epsilon


class _Weighted(torch.autograd.Function):
    """z, with c * weight as its derivative."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return c * weight, None


def gamma(size: float = 0.25) -> Rule:
    """Generalised LRP-gamma: contributions of the output's own sign t weigh 1 + gamma.

    R_i = sum_j [(1 + g/2) x_i w_ij + t_j (g/2) |x_i w_ij|] R_j / den_j,  den = (1 + g/2) z + t (g/2) A.
    Conserves: |den| >= |z|. Where den is 0, c passes as through LRP-0.

    Args:
        size: gamma; 0 is LRP-0, infinity z+ for positive outputs.
    """

    def weights(z: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        # z / den = |z| / ((1 + g/2) |z| + (g/2) A): never above 1, so nothing needs a stabiliser
        scale = (1 + size / 2) / (size / 2)
        r = z.abs()
        r.div_(torch.add(total, r, alpha=scale)).nan_to_num_(nan=1 / scale)  # g/2 of that
        return r * scale, r.copysign_(z)

    return _splitting(weights, f"gamma({size})", conserves=True)


def zplus() -> Rule:
    """z+ (alpha 1, beta 0): only positive contributions receive. R_i = sum_j (x_i w_ij)^+ R_j / (P_j + b_j^+).

    Where an output has no positive contribution its relevance is lost, and booked.
    """

    def weights(z: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        positive = z + total  # twice P
        # below this P is the rounding of two equal sums, and dividing by it would explode
        none = positive <= 8 * torch.finfo(z.dtype).eps * total
        half = (z / positive).masked_fill_(none, 0)
        return half, half

    return _splitting(weights, "zplus", conserves=False)


def _splitting(weights: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], name: str, *, conserves: bool) -> Rule:
    """The rule whose p and q are `weights(z, A)`."""

    def split(at: Any, *args: Any, **kwargs: Any) -> Tensor:
        x, weight, bias = _operands(at, args)
        if active(weight) or not active(x) or active(bias):
            return _plain(at)(at, *args, **kwargs)
        z = _apply(at, args, kwargs, x, weight, bias)
        total = _apply(at, args, kwargs, x.abs(), weight.abs(), None if bias is None else bias.abs())
        if bias is not None:
            where = f"bias:{at.site.path}"
            scale = kwargs.get("beta", 1)
            channel = None if bias.ndim != 1 else bias_axis(at, z)
            at.adds(z, bias * scale, where, channel=channel)
            at.adds(total, bias.abs() * abs(scale), where, channel=channel)
        with torch.no_grad():
            p, q = weights(z, total)
        return _Split.apply(z, total, p, q)

    split.__name__ = name
    SPLITTING.add(split)
    return split if conserves else lossy(split)


class _Split(torch.autograd.Function):
    """z, with p c as the derivative towards z and q c towards A."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, total: Tensor, p: Tensor, q: Tensor) -> Tensor:
        ctx.save_for_backward(p, q)
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> Any:
        p, q = ctx.saved_tensors
        return c * p, c * q, None, None


def _plain(at: Any) -> Rule:
    """The table's own rule for this affine operation."""
    name = at.op.__name__
    return affine_bias_first if name.startswith("add") else affine if name.startswith(("linear", "conv")) else product


def _operands(at: Any, args: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """x, W and b of any affine operation."""
    if at.op.__name__.startswith("addmm"):
        bias, x, weight = args
        return x, weight, bias
    x, weight, *rest = args
    return x, weight, rest[0] if rest and isinstance(rest[0], Tensor) else None


def _apply(at: Any, args: Any, kwargs: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The operation on other operands."""
    if at.op.__name__.startswith("addmm"):
        return at.op(bias, x, weight, **{k: abs(v) if x is not args[1] else v for k, v in kwargs.items()})
    return at.op(x, weight, *([bias] if len(args) > 2 else []), *args[3:], **kwargs)


@lossy
def own_derivative(at: Any, *args: Any, **kwargs: Any) -> Any:
    """Whatever the operation is, its own derivative; what that loses is measured."""
    return at.op(*args, **kwargs)
