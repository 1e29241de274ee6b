"""Normalisation layers: the statistic that divides is held constant, what remains is affine.

    y = gamma (x - mean x) / sigma + beta:     c_x = (I - 1 1^T / n) (gamma c / sigma),     beta is a leaf.

With the true derivative x * grad y would be 0: a norm does not feel the scale of its input (Euler, degree 0).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .maps import Shares
from .table import rule

aten = torch.ops.aten


@rule("layer_norm")
def layer_norm(
    at: Any, x: Tensor, shape: list[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    """Centring is linear, 1 / sigma is held."""
    y = _LayerNorm.apply(x, list(shape), weight, bias, eps)
    if bias is not None and at.biases == "distribute":
        return _distributed(y, _size(x, [-1 - i for i in range(len(shape))], eps), bias)
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
    """Y = w x / rms(x), with 1 / rms held. As one operator, or as recognised from primitives."""
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
    y = _standardised(spread, [2], eps).reshape(x.shape)
    return _rescaled(at, y, weight, bias, lambda: _size(spread, [2], eps).reshape(x.shape))


@rule("native_group_norm")
def native_group_norm(
    at: Any, x: Tensor, weight: Any, bias: Any, n: int, channels: int, size: int, groups: int, eps: float
) -> Any:
    """As `group_norm`; the statistics it also returns are constants."""
    _, mean, rstd = at.op(x.detach(), weight, bias, n, channels, size, groups, eps)
    return group_norm(at, x, groups, weight, bias, eps), mean, rstd


@rule("instance_norm")
def instance_norm(
    at: Any, x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, use_input_stats: bool, momentum: float, eps: float, *_: Any
) -> Tensor:
    """Statistics of each channel of each sample, held; or the running ones."""
    if use_input_stats:
        return own_statistics(at, x, weight, bias, list(range(2, x.ndim)), eps)
    return running_statistics(at, x, weight, bias, mean, var, eps)


@rule(
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "_batch_norm_with_update_functional"
)
def native_batch_norm(at: Any, x: Tensor, weight: Any, bias: Any, *rest: Any) -> Any:
    """Statistics of the batch, held; or the running ones. What else it returns are constants."""
    _, *others = at.op(x.detach(), weight, bias, *rest)
    *statistics, _, eps = rest
    training = next((r for r in statistics if isinstance(r, bool)), "no_training" not in at.op.__name__)
    if training:
        return own_statistics(at, x, weight, bias, [0, *range(2, x.ndim)], eps), *others
    return running_statistics(at, x, weight, bias, statistics[0], statistics[1], eps), *others


def own_statistics(at: Any, x: Tensor, weight: Any, bias: Any, dims: list[int], eps: float) -> Tensor:
    """(x - mean) / sigma over these axes of this very input: 1 / sigma is held."""
    return _rescaled(at, _standardised(x, dims, eps), weight, bias, lambda: _size(x, dims, eps))


def running_statistics(at: Any, x: Tensor, weight: Any, bias: Any, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """Y = g x + (beta - mu g), g = gamma / sqrt(var + eps): affine, the parenthesis is its bias."""
    gain = torch.rsqrt(var + eps) if weight is None else weight * torch.rsqrt(var + eps)
    return _rescaled(at, x, gain, -mean * gain if bias is None else bias - mean * gain, x.abs)


def _standardised(x: Tensor, dims: list[int], eps: float) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    return centred * torch.rsqrt(x.detach().var(dims, correction=0, keepdim=True) + eps)


def _size(x: Tensor, dims: list[int], eps: float) -> Tensor:
    """|J| |x| of `_standardised`: the centring has 1 - 1/n on the diagonal and -1/n beside it."""
    n = math.prod(x.shape[d] for d in dims)
    sizes = x.abs() * (1 - 2 / n) + x.abs().mean(dims, keepdim=True)
    return sizes * torch.rsqrt(x.detach().var(dims, correction=0, keepdim=True) + eps)


def _distributed(y: Tensor, size: Tensor, bias: Tensor) -> Tensor:
    """What a bias owns of y goes to the entries of x, in proportion to what each contributes in absolute value."""
    with torch.no_grad():
        q = (bias / size).masked_fill_(size == 0, 0)
    out: Tensor = Shares.apply(y.detach(), y, None, size, q)
    return out


def _rescaled(at: Any, y: Tensor, weight: Tensor | None, bias: Tensor | None, size: Callable[[], Tensor]) -> Tensor:
    """Scale and shift per channel (axis 1); the shift is a leaf. `size` is |J| |x| of y = J x."""
    channels = (-1, *[1] * (y.ndim - 2))
    y = y if weight is None else y * weight.reshape(channels)
    if bias is not None:
        y = y + bias.reshape(channels)
        if at.biases == "distribute":
            return _distributed(y, size(), bias.reshape(channels))  # the gain is that of all shares of an output
        at.adds(y, bias, f"bias:{at.site.path}", channel=1)
    return y


@rule("renorm")
def held_denominator(at: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """X / norm(x), as one operator."""
    y = at.op(x.detach(), *args, **kwargs)
    return _Scaled.apply(x, y, torch.where(x == 0, torch.zeros_like(y), y / x))
