"""Element-wise functions of one activation: all relevance but that of f(0) goes to x.

    y = f(x) = f(0) + x * (f(x) - f(0)) / x:      c_x = c * (f(x) - f(0)) / x,      f(0) is a constant leaf.

Where f(0) is not finite (log, reciprocal, negative powers) it is taken as 0. At x = 0 the ratio is f'(0).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .table import active, hold, lossy, rule

ELEMENTWISE = (
    "gelu", "silu", "elu", "selu", "celu", "mish", "tanh", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh",
    "asinh",
    "acosh", "atanh", "exp", "exp2", "expm1", "log", "log1p", "log2", "log10", "sqrt", "rsqrt", "reciprocal", "sigmoid",
    "softplus", "log_sigmoid", "hardtanh", "hardsigmoid", "hardswish", "relu6", "hardshrink", "softshrink",
    "erf", "erfc", "erfinv", "square", "clamp", "clamp_min", "clamp_max", "clip", "logit", "sinc",
    "pointwise", "lgamma", "digamma", "special_i0", "special_ndtr", "threshold", "special_log_ndtr", "special_erfcx",
    "frac", "special_expit", "special_entr",
    "fmod", "remainder", "deg2rad", "rad2deg", "special_i0e", "special_i1", "special_i1e",
)  # fmt: skip


@rule(*ELEMENTWISE)
def elementwise(at: Any, x: Tensor, *rest: Any, **kwargs: Any) -> Tensor:
    """c_x = c (f(x) - f(0)) / x, with f(0) as a leaf."""
    if active(*rest):
        raise ValueError(
            f"{at.site.name} takes an activation beside its first argument, which its rule does not know: give it a rule "
            "of its own in `rules`"
        )
    return function(at, lambda x: at.op(x, *rest, **kwargs), x, varies=any(isinstance(r, Tensor) for r in rest))


def function(at: Any, f: Callable[[Tensor], Tensor], x: Tensor, *, varies: bool) -> Tensor:
    """Y = f(x) element by element; `varies` where f differs from element to element (it has tensor operands)."""
    with torch.no_grad():
        y = f(x)
        origin, slope = _at_zero(at, f, x, varies)
        if isinstance(origin, float) and origin == 0:
            ratio = torch.div(y, x).nan_to_num_(nan=slope, posinf=math.inf, neginf=-math.inf)
        else:
            # below sqrt(eps) the difference is rounding only, and the tangent is as exact
            near = x.abs() < math.sqrt(torch.finfo(x.dtype).eps)
            ratio = torch.where(near, slope, (y - origin) / torch.where(near, torch.ones_like(x), x))
            if (masked := x.isinf()).any():  # exp(-inf) of a masked score: a value that no x made
                origin = torch.where(masked, y, origin)
    y = _Ratio.apply(x, y, ratio)
    at.adds(y, origin, at.constant_name(-1))
    return y


class _Ratio(torch.autograd.Function):
    """y, with c * ratio as the derivative towards x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, ratio: Tensor) -> Tensor:
        ctx.save_for_backward(ratio)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> Any:
        (ratio,) = ctx.saved_tensors
        return c * ratio, None, None


def _at_zero(at: Any, f: Callable[[Tensor], Tensor], x: Tensor, varies: bool) -> tuple[Any, Any]:
    """f(0) and f'(0): numbers, kept for the site; tensors where f varies. An infinite f(0) counts as 0."""
    key = (x.dtype, x.device)
    if not varies and key in at.site.memo:
        known: tuple[float, float] = at.site.memo[key]
        return known
    zero = torch.zeros(x.shape if varies else (), dtype=x.dtype, device=x.device)
    with torch.enable_grad():
        zero.requires_grad_()
        value = f(zero)
        slope = torch.autograd.grad(value.sum(), zero, allow_unused=True)[0] if value.requires_grad else None
    value = value.detach()
    slope = torch.zeros_like(value) if slope is None else slope
    slope = torch.where(value.isfinite(), slope, math.inf)
    value = torch.where(value.isfinite(), value, 0)
    if varies:
        return value, slope
    at.site.memo[key] = (value.item(), slope.item())
    return value.item(), slope.item()


@rule("pow")
def power(at: Any, base: Any, exponent: Any) -> Tensor:
    """x^p is of degree p: c_x = c x^(p-1). An exponent that is an activation makes it a function of the exponent."""
    if active(base):
        return elementwise(at, base, exponent)
    if not active(exponent):
        return at.op(base, exponent)
    return function(at, lambda p: at.op(base, p), exponent, varies=isinstance(base, Tensor))


@rule("maximum", "minimum", "fmax", "fmin", "copysign", "hypot")
def two_operands(at: Any, a: Any, b: Any) -> Tensor:
    """Against a constant a function of the other; of two activations own derivative (of degree one: max, |a| sign b)."""
    if active(a, b) != 1:
        return at.op(a, b)
    if active(a):
        return function(at, lambda x: at.op(x, b), a, varies=True)
    return function(at, lambda x: at.op(a, x), b, varies=True)


@rule("atan2", "logaddexp", "logaddexp2", "xlogy", "special_xlogy")
@lossy
def two_mixed_operands(at: Any, a: Any, b: Any) -> Tensor:
    """As `two_operands`; of no one degree, so that with two activations something is lost, and booked."""
    return two_operands(at, a, b)


@rule("angle")
@lossy
def angle(at: Any, x: Tensor) -> Tensor:
    """As `atan2` of its imaginary and its real part: of degree 0, so that what arrives is lost, and booked."""
    return at.op(x)


@rule("max", "min")
def extreme(at: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The winner takes all: along an axis, or of two."""
    if args and isinstance(args[0], Tensor):
        return two_operands(at, x, *args)
    return at.op(x, *args, **kwargs)


@rule("sign", "sgn", "floor", "ceil", "round", "trunc", "heaviside", "floor_divide", "nextafter")
def step(at: Any, *args: Any, **kwargs: Any) -> Tensor:
    """A step function is flat wherever it has a derivative: its value is a constant, and keeps its relevance."""
    return at.op(*hold(*args), **kwargs)
