"""Rules for affine operations that treat positive and negative contributions differently, and epsilon.

With z0 = W x and A = |W| |x| (the same operation on absolute values) the positive contributions to an output sum to
P = (z0 + A) / 2 and the negative ones to (z0 - A) / 2. So any rule with weights p on z0 and q on A costs one more
forward and two vector-Jacobian products, nothing per contribution:

    c_x = W^T (p c) + sign(x) |W|^T (q c)

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

__all__ = ["AFFINE", "SPLITTING", "epsilon", "gamma", "zplus"]

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
        y = _plain(at)(_Silent(at), *args, **kwargs)
        damping = (y.detach().abs() / (y.detach().abs() + size)).nan_to_num_(nan=1.0)
        out = _Damped.apply(y, damping)
        if (bias := _bias(at, args, kwargs)) is not None:
            channel = _channel(at, y)
            at.adds_scaled(out, _along(bias, channel, y) * damping, f"bias:{at.site.path}", channel)
        return out

    return epsilon


class _Damped(torch.autograd.Function):
    """y, with c * damping as its derivative."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, damping: Tensor) -> Tensor:
        ctx.save_for_backward(damping)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> Any:
        (damping,) = ctx.saved_tensors
        return c * damping, None


def gamma(size: float = 0.25) -> Rule:
    """Generalised LRP-gamma: contributions of the output's own sign t weigh 1 + gamma.

    R_i = sum_j [(1 + g/2) x_i w_ij + t_j (g/2) |x_i w_ij|] R_j / den_j,
    den = (1 + g/2) z0 + t (g/2) A + b + g b^t. Conserves: |den| >= |z|; where den is 0, c passes as it is.
    """

    def coefficients(z: Tensor, z0: Tensor, total: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t = torch.where(z < 0, -1.0, 1.0).to(z)
        extra = torch.where(b * t > 0, b, torch.zeros_like(b)) * size
        den = (1 + size / 2) * z0 + (size / 2) * t * total + b + extra
        s = torch.where(den == 0, torch.ones_like(z), z / torch.where(den == 0, torch.ones_like(z), den))
        return (1 + size / 2) * s, (size / 2) * t * s, (b + extra) * s

    return _splitting(coefficients, f"gamma({size})", conserves=True)


def zplus() -> Rule:
    """z+ (alpha 1, beta 0): only positive contributions receive. R_i = sum_j (x_i w_ij)^+ R_j / (P_j + b_j^+).

    Where an output has no positive contribution its relevance is lost, and booked.
    """

    def coefficients(z: Tensor, z0: Tensor, total: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b = b.clamp_min(0)
        positive = (z0 + total) / 2
        # below this P is the rounding of two equal sums, and dividing by it would explode
        positive = torch.where(positive < 4 * torch.finfo(z.dtype).eps * total, torch.zeros_like(positive), positive)
        den = positive + b
        s = torch.where(den == 0, torch.zeros_like(z), z / torch.where(den == 0, torch.ones_like(z), den))
        return s / 2, s / 2, b * s

    return _splitting(coefficients, "zplus", conserves=False)


Coefficients = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def _splitting(coefficients: Coefficients, name: str, *, conserves: bool) -> Rule:
    """The rule with weights p, q and the bias's share, given by `coefficients(z, z0, A, b)`."""

    def split(at: Any, *args: Any, **kwargs: Any) -> Tensor:
        x, weight, bias, apply = _operands(at, args, kwargs)
        if active(weight) or not active(x):
            return _plain(at)(at, *args, **kwargs)
        z0 = apply(x, weight)
        total = apply(x.abs(), weight.abs())
        with torch.no_grad():
            channel = _channel(at, z0)
            b = torch.zeros_like(z0) if bias is None else _along(bias, channel, z0)
            z = z0 + b
            p, q, shares = coefficients(z, z0, total, b)
        y = _Split.apply(z0, total, z, p, q)
        if bias is not None:
            at.adds_scaled(y, shares, f"bias:{at.site.path}", channel)
        return y

    split.__name__ = name
    SPLITTING.add(split)
    return split if conserves else lossy(split)


class _Split(torch.autograd.Function):
    """z, with p c as the derivative towards z0 and q c towards A."""

    @staticmethod
    def forward(ctx: Any, z0: Tensor, total: Tensor, z: Tensor, p: Tensor, q: Tensor) -> Tensor:
        ctx.save_for_backward(p, q)
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> Any:
        p, q = ctx.saved_tensors
        return c * p, c * q, None, None, None


class _Silent:
    """A place at which constants are not booked: the caller books them itself."""

    def __init__(self, at: Any) -> None:
        self._at = at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._at, name)

    def adds(self, *_: Any, **__: Any) -> None:
        """Nothing."""


def _plain(at: Any) -> Rule:
    name = at.op.__name__
    return affine_bias_first if name.startswith("add") else affine if name.startswith(("linear", "conv")) else product


def _operands(at: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor, Tensor | None, Callable[[Tensor, Tensor], Tensor]]:
    """x, W, b and (x, W) -> W x, of any affine operation."""
    name = at.op.__name__
    if name.startswith("addmm"):
        bias, x, weight = args
        scaled = bias * kwargs.get("beta", 1)
        return x, weight, scaled, lambda x, w: kwargs.get("alpha", 1) * (x @ w)
    x, weight, *rest = args
    bias = rest[0] if rest else None
    if name.startswith(("linear", "conv")):
        return x, weight, bias, lambda x, w: at.op(x, w, None, *rest[1:], **kwargs)
    return x, weight, None, lambda x, w: at.op(x, w, *rest, **kwargs)


def _channel(at: Any, y: Tensor) -> int:
    return bias_axis(at, y) % y.ndim


def _along(bias: Tensor, channel: int, y: Tensor) -> Tensor:
    """A bias vector, shaped to lie along the channels of y."""
    return bias.reshape(-1, *[1] * (y.ndim - 1 - channel)).expand_as(y)


def _bias(at: Any, args: Any, kwargs: Any) -> Tensor | None:
    return _operands(at, args, kwargs)[2]


def own_derivative(at: Any, *args: Any, **kwargs: Any) -> Any:
    """Whatever the operation is, its own derivative; what that loses is measured."""
    return at.op(*args, **kwargs)


lossy(own_derivative)
