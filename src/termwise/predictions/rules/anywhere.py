"""Rules that fit any operation: LRP-epsilon, R unchanged, own derivative, absolute shares, and those of two pictures.

For sums and averages LRP-epsilon gives each summand its share in proportion, which zennit calls Norm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .elementwise import _Ratio
from .maps import AFFINE, one_activation, shared
from .table import SPLITTING, Rule, active, lossy, plain, sized

__all__ = ["absolute", "deconvolution", "epsilon", "guided", "own_derivative", "unchanged"]


@sized
def epsilon(size: float = 1e-6) -> Rule:
    """LRP-epsilon: c_x = W^T (c |z| / (|z| + eps)). Small outputs pass less on; what stays behind is lost.

    Args:
        size: epsilon, in units of the outputs z. 0 is LRP-0.
    """

    def weights(z: Tensor, total: Any, whole: Tensor) -> tuple[Tensor, None]:
        p = z.abs() if whole is z else torch.where(z < 0, -whole, whole)
        return p.div_(z.abs() + size).nan_to_num_(nan=1.0, posinf=0.0, neginf=0.0), None  # 0 / 0, with size 0

    @lossy
    def damped(at: Any, *args: Any, **kwargs: Any) -> Any:
        if at.op.__name__.partition(".")[0] in AFFINE and one_activation(at, args):
            return shared(at, args, kwargs, weights, absolute=False)
        z = plain(at)(at, *args, **kwargs)
        with torch.no_grad():
            p, _ = weights(z, None, z)
        return _Ratio.apply(z, z.detach(), p)

    SPLITTING.add(damped)
    return damped


@lossy
def own_derivative(at: Any, *args: Any, **kwargs: Any) -> Any:
    """Whatever the operation is, its own derivative; what that loses is measured."""
    return at.op(*args, **kwargs)


@lossy
def unchanged(at: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """R passes as it is, entry by entry: c_x = c y / x. Lost where x is 0; no part for a bias or f(0)."""
    with torch.no_grad():
        y = at.op(x, *args, **kwargs)
        if not isinstance(y, Tensor) or y.shape != x.shape or active(*args):
            raise ValueError(
                f"{at.site.name} does not give one value for each entry of one activation: its R cannot pass as it is"
            )
        ratio = (y / x).masked_fill_(x == 0, 0)
    return _Ratio.apply(x, y, ratio)


def absolute(at: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Summands share by size, whatever their sign: c_a = c z sign(a) / (|a| + |b|). For add, sub, sum and mean.

    Conserves and never amplifies, but a summand that opposes the output is credited with the output's sign.
    """
    name = at.op.__name__.partition(".")[0]
    if name in ("sum", "mean"):
        total, constants = at.op(x.abs(), *args, **kwargs), []
    elif name in ("add", "sub", "rsub"):
        other, *scale = args
        alpha = abs((scale[0] if scale else 1) * kwargs.get("alpha", 1))
        scales = (alpha, 1) if name == "rsub" else (1, alpha)
        sizes = [abs(v) * k for v, k in zip((x, other), scales, strict=True)]
        total = sizes[0] + sizes[1]
        constants = [(i, k) for i, (v, k) in enumerate(zip((x, other), sizes, strict=True)) if not active(v)]
    else:
        raise ValueError(f"{at.site.name} is no sum: shares by size are for add, sub, sum and mean")
    for i, size in constants:
        at.adds(total, size, at.constant_name(i))
    with torch.no_grad():
        y = at.op(x, *args, **kwargs)
        ratio = (y / total).masked_fill_(total == 0, 0)
    return _Ratio.apply(total, y, ratio)


@lossy
def deconvolution(at: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """DeconvNet's ReLU (Zeiler and Fergus 2014): c_x = max(c, 0), whatever x was."""
    with torch.no_grad():
        y = at.op(x, *args, **kwargs)
    return _positive(_Ratio.apply(x, y, torch.ones_like(y)))


@lossy
def guided(at: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Guided backpropagation's ReLU (Springenberg et al. 2015): c_x = max(c, 0) f'(x)."""
    return _positive(at.op(x, *args, **kwargs))


def _positive(y: Tensor) -> Tensor:
    y.register_hook(lambda c: c.clamp_min(0))
    return y
