"""The rules of DynamicLRP (Lee et al. 2025) as its code has them, for comparison: a table, and nothing else.

    sums          R_a = R |a| / (|a| + |b| + e), a constant that is no parameter gets nothing;  sum, mean: R |x| / (sum |x| + e)
    products      R_a = R |a| / (|a| + |b| + e), the same with values of different units;  a / b: |a| against |1 / b|
    x W           R_x = x ((R / (z + e sign z)) W^T): all of R to the input; the bias is a summand, shared as in sums
    A B           of two activations each gets all of R, so that R doubles
    attention     half to the values, nothing to queries and keys, and the other half is lost
    norms, activations, softmax, powers       R unchanged;  x - y and whatever the code does not know: R / 2 each

with e = 1e-11 and sign(0) = 1. Shares by absolute value are bounded and sum to R, and are blind to sign: a summand that
opposes the sum is credited with the sum's sign. The weight also gets all of R there; here weights are no parts, or R would
count twice. What doubles and what is lost is measured at its node.

The code walks autograd's graph, node by node, and lets relevance wait as a *promise* at operations that did not save their
operands. A recorded graph has every operand, so nothing waits (docs, "Why no promises"); recognised patterns are spelled out
again, for the rules speak of primitives.

Source: papers.toml "dynamiclrp"; its repository where code and text differ (text: e = 1e-12; half to the weight).
"""

from __future__ import annotations

import torch
from torch import Tensor

from termwise.core.program import Program

from .relevance_form import Carried, Place, Rule, moved, times, unchanged
from .rules.attention import FUSED
from .rules.linear import bias_axis
from .rules.maps import AFFINE
from .unfused import inlined

__all__ = ["RULES", "dynamiclrp"]

EPSILON = 1e-11


def dynamiclrp(program: Program) -> Carried:
    """The pass of a program under these rules, as autograd's graph has its operations."""
    return Carried(inlined(program), RULES, hold=False)


def _stabilised(z: Tensor) -> Tensor:
    return z + torch.where(z < 0, -EPSILON, EPSILON).to(z)


def _two(at: Place, r: Tensor, a: Tensor, b: Tensor) -> list[Tensor | None]:
    """|a| / (|a| + |b| + e) of R, to operands that autograd would follow; all of R where it follows one only."""
    followed = [active or learned for active, learned in zip(at.active, at.learned, strict=True)]
    if len(followed) < 2 or not all(followed):
        return [r if f else None for f in followed]
    size = a.abs() + b.abs() + EPSILON
    return [r * (a.abs() / size), r * (b.abs() / size)]


def absolute_sum(at: Place, r: Tensor) -> list[Tensor | None]:
    """A + b: by absolute value."""
    return _two(at, r, at.operands[0], at.operands[-1])


def absolute_product(at: Place, r: Tensor) -> list[Tensor | None]:
    """A b: by absolute value, too."""
    return absolute_sum(at, r)


def absolute_quotient(at: Place, r: Tensor) -> list[Tensor | None]:
    """A / b: |a| against |1 / b|."""
    return _two(at, r, at.operands[0], 1 / at.operands[-1])


def absolute_total(at: Place, r: Tensor) -> list[Tensor | None]:
    """Sum or mean of x: R |x| / (sum |x| + e)."""
    (x,) = at.operands
    count = at(torch.ones_like(x)).flatten()[0]  # of a sum how many entries there are, of a mean 1
    size = at(x.abs()) + EPSILON * count * at.value.numel() / x.numel()
    (spread,) = at.vjp(r / size)
    assert spread is not None
    return [x.abs() * spread]


def affine(at: Place, r: Tensor) -> list[Tensor | None]:
    """Bias against product by absolute value, then all of the product's share to the input."""
    name = at.site.op.__name__
    which = 0 if name.startswith(("addmm", "baddbmm", "addbmm")) else 2 if name.startswith(("linear", "conv")) else -1
    shares: list[Tensor | None] = [None] * len(at.operands)
    z = at.value
    if 0 <= which < len(at.operands):
        bias = at.operands[which]
        z = at(*[torch.zeros_like(x) if i == which else x for i, x in enumerate(at.operands)])
        if at.active[which] or at.learned[which]:
            wide = bias.reshape(-1, *[1] * (z.ndim - 1 - bias_axis(at.site, z) % z.ndim)) if which == 2 else bias
            size = wide.abs() + z.abs() + EPSILON
            shares[which] = r * (wide.abs() / size)
            r = r * (z.abs() / size)
    # cotangents of the product; the bias, being added, has none to take back
    for i, c in enumerate(at.vjp(r / _stabilised(z))):
        if i != which and at.active[i] and c is not None:
            shares[i] = times(at.operands[i], c)
    return shares


def values_alone(at: Place, r: Tensor) -> list[Tensor | None]:
    """Fused attention: V * A^T (R / (2 z + e sign z)), and nothing to queries and keys."""
    towards = at.vjp(r / _stabilised(2 * at.value))[2]
    assert towards is not None
    return [None, None, at.operands[2] * towards, *[None] * (len(at.operands) - 3)]


def equal(at: Place, r: Tensor) -> list[Tensor | None]:
    """X - y: half each, and half to nothing where one is a constant."""
    return [r / 2 if active or learned else None for active, learned in zip(at.active, at.learned, strict=True)]


RULES: dict[str, Rule] = {
    **dict.fromkeys(("add", "add_"), absolute_sum),
    **dict.fromkeys(("mul",), absolute_product),
    **dict.fromkeys(("div",), absolute_quotient),
    **dict.fromkeys(("sum", "mean"), absolute_total),
    **dict.fromkeys((*AFFINE, "baddbmm", "einsum"), affine),
    **dict.fromkeys(FUSED, values_alone),
    **dict.fromkeys(("sub", "rsub", "where"), equal),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "avg_pool1d", "avg_pool2d"), moved),
    **dict.fromkeys(("neg", "abs", "maximum", "minimum", "cumsum"), unchanged),
}
"""What it lays over the table of `termwise.predictions.relevance_form`."""
