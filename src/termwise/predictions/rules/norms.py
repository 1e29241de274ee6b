"""Normalisation layers: the statistic that divides is held constant, what remains is affine.

    y = gamma (x - mean x) / sigma + beta:     c_x = (I - 1 1^T / n) (gamma c / sigma),     beta is a leaf.

With the true derivative x * grad y would be 0: a norm does not feel the scale of its input (Euler, degree 0).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .table import rule

aten = torch.ops.aten


@rule("layer_norm")
def layer_norm(
    at: Any, x: Tensor, shape: list[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    """Centring is linear, 1 / sigma is held."""
    y = _LayerNorm.apply(x, list(shape), weight, bias, eps)
    at.adds(y, bias, f"bias:{at.site.path}")
    return y


@rule("native_layer_norm")
def native_layer_norm(at: Any, x: Tensor, shape: Any, weight: Any, bias: Any, eps: float) -> Any:
    """As `layer_norm`; the statistics it also returns are constants."""
    _, mean, rstd = aten.native_layer_norm(x.detach(), shape, weight, bias, eps)
    return layer_norm(at, x, shape, weight, bias, eps), mean, rstd


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        y, _, rstd = aten.native_layer_norm(x, shape, weight, bias, eps)
        ctx.shape = shape
        ctx.save_for_backward(rstd, weight)
        return y

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> Any:
        rstd, weight = ctx.saved_tensors
        # the fused kernel computes rstd (g - mean g - xhat mean(g xhat)); for an input of zeros with mean 0, xhat = 0,
        # and what is left is the centring with rstd held: one pass instead of four
        zeros, mean = torch.zeros_like(c), torch.zeros_like(rstd)
        grad, _, _ = aten.native_layer_norm_backward(c, zeros, ctx.shape, mean, rstd, weight, None, [True, False, False])
        return grad, None, None, None, None


@rule("rms_norm", "_fused_rms_norm")
def rms_norm(at: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """y = w x / rms(x), with 1 / rms held. As one operator, or as recognised from primitives."""
    constant = getattr(at.op, "constant", None)
    if constant is not None:  # the model's own primitives, with the statistic detached
        return constant(x, *args)
    shape, weight, eps = [*args, None, None][:3]
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    with torch.no_grad():
        y = at.op(x, *args, **kwargs)
        value = y[0] if isinstance(y, tuple) else y
        gain = torch.rsqrt(x.square().mean([-1 - i for i in range(len(shape))], keepdim=True) + eps)
        gain = gain if weight is None else gain * weight
    value = _Scaled.apply(x, value, gain)
    return (value, *y[1:]) if isinstance(y, tuple) else value


class _Scaled(torch.autograd.Function):
    """y, with c * gain as the derivative towards x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, gain: Tensor) -> Tensor:
        ctx.save_for_backward(gain)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> Any:
        (gain,) = ctx.saved_tensors
        return c * gain, None, None


@rule("group_norm")
def group_norm(
    at: Any, x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    """Per group: centring is linear, 1 / sigma is held."""
    spread = x.reshape(x.shape[0], groups, -1)
    centred = spread - spread.mean(-1, keepdim=True)
    rstd = torch.rsqrt(spread.detach().var(-1, correction=0, keepdim=True) + eps)
    return _rescaled(at, (centred * rstd).reshape(x.shape), weight, bias)


@rule("instance_norm", "_native_batch_norm_legit", "native_batch_norm", "_batch_norm_with_update_functional")
def instance_norm(at: Any, x: Tensor, weight: Any = None, bias: Any = None, *rest: Any) -> Any:
    """Statistics of this very input (instance norm, or a batch norm that keeps no running ones): 1 / sigma is held."""
    tuple_form = "native" in at.op.__name__
    *_, eps = rest[: -1 if "instance" in at.op.__name__ else None]
    dims = [0, *range(2, x.ndim)] if tuple_form else list(range(2, x.ndim))
    centred = x - x.mean(dims, keepdim=True)
    variance, mean = torch.var_mean(x.detach(), dims, correction=0, keepdim=True)
    rstd = torch.rsqrt(variance + eps)
    y = _rescaled(at, centred * rstd, weight, bias)
    return (y, mean.flatten(), rstd.flatten()) if tuple_form else y


def _rescaled(at: Any, y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Scale and shift per channel (axis 1); the shift is a leaf."""
    channels = (-1, *[1] * (y.ndim - 2))
    y = y if weight is None else y * weight.reshape(channels)
    if bias is not None:
        y = y + bias.reshape(channels)
        at.adds(y, bias, f"bias:{at.site.path}", channel=1)
    return y


@rule("local_response_norm", "linalg_normalize")
def held_denominator(at: Any, x: Tensor, *args: Any) -> Tensor:
    """x / norm(x), as one operator."""
    y = at.op(x.detach(), *args)
    return _Scaled.apply(x, y, torch.where(x == 0, torch.zeros_like(y), y / x))
