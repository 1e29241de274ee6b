"""Products of activations: half each.

    y = a b is of degree 2 in (a, b), so x * grad y = 2 y (Euler) and the own derivative, halved, conserves.

With one operand constant the product is linear in the other. Operands that are held (normalisers, the gates of a
recurrence) count as constant: the other one takes all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .table import active, hold, rule, share

PRODUCTS = ("mm", "bmm", "mv", "dot", "vdot", "matmul", "outer", "ger", "inner", "kron", "tensordot", "einsum", "linalg_cross", "cross", "chain_matmul", "linalg_vecdot", "bilinear", "_trilinear")  # fmt: skip


@rule("mul", *PRODUCTS)
def product(at: Any, *operands: Any, **kwargs: Any) -> Tensor:
    """y = a b: c_a = b c / 2, c_b = a c / 2, of k activations 1/k each; all to the other where one is held."""
    if at.site.held:
        operands = tuple(hold(v)[0] if i in at.site.held else v for i, v in enumerate(operands))
    return share(at.op(*operands, **kwargs), 1 / max(1, active(*operands)))


def signal_takes_all(at: Any, *operands: Any, **kwargs: Any) -> Tensor:
    """As `product`, but the gate of u * silu(g) is held constant: c_u = c silu(g), nothing to g (CP-LRP, LRP-all)."""
    gates = [] if at.site.held else at.site.gates
    return product(at, *[hold(v)[0] if i in gates else v for i, v in enumerate(operands)], **kwargs)


@rule("div", "true_divide")
def quotient(at: Any, a: Any, b: Any, **kwargs: Any) -> Tensor:
    """a / b: all to a where b is constant or the normaliser of a; else half each, as of a * (1 / b).

    1 / b is of degree -1, so b gets minus its own derivative.
    """
    if kwargs.get("rounding_mode"):
        return at.op(*hold(a, b), **kwargs)
    if 1 in at.site.held:
        (b,) = hold(b)
    if active(a, b) == 2:
        return share(at.op(a, flipped(b)), 1 / 2)
    return at.op(a, flipped(b)) if active(b) else at.op(a, b)


def flipped(x: Tensor) -> Tensor:
    """The same value with the opposite derivative."""
    y = x.view_as(x)
    y.register_hook(torch.neg)
    return y


@rule("addcmul")
def addcmul(at: Any, x: Any, a: Any, b: Any, *, value: float = 1) -> Tensor:
    """x + value a b."""
    y = at.op(torch.zeros_like(x), a, b, value=value)
    if not active(a, b):
        total = at.op(x, a, b, value=value)
        at.adds(total, y, at.constant_name(1))
        return total
    y = share(y, 1 / active(a, b)) + x
    if not active(x):
        at.adds(y, x, at.constant_name(0))
    return y


@rule("prod", "cumprod")
def running_product(at: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A product of n factors: 1/n to each. Of a running product, entry k has k factors."""
    y = at.op(x, *args, **kwargs)
    dim = args[0] if args and isinstance(args[0], int) and not isinstance(args[0], bool) else None
    n = x.numel() if dim is None else x.shape[dim]
    name = getattr(at.op, "__name__", "")
    if name.startswith("cumprod") and dim is not None:
        counts = torch.arange(1, n + 1, dtype=y.dtype, device=y.device)
        counts = counts.reshape(-1, *[1] * (y.ndim - 1 - dim % y.ndim))
        y.register_hook(lambda c: c / counts)
        return y
    return share(y, 1 / n)


@rule("var", "_euclidean_dist")
def degree_two(at: Any, *args: Any, **kwargs: Any) -> Tensor:
    """A sum of squares is of degree 2: own derivative, halved."""
    y = at.op(*args, **kwargs)
    return share(y, 1 / 2)


@rule("cdist", "_cdist_forward", "dist", "pairwise_distance", "_pdist_forward", "pdist")
def distance(at: Any, *args: Any, **kwargs: Any) -> Tensor:
    """A distance is of degree 1 in both points together; a constant point is an offset no derivative sees."""
    y = at.op(*args, **kwargs)
    return y


@rule("cosine_similarity")
def cosine(at: Any, a: Tensor, b: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """a b / (|a| |b|): norms held constant, the product half each."""
    norms = a.detach().norm(dim=dim).clamp_min(eps) * b.detach().norm(dim=dim).clamp_min(eps)
    return share((a * b).sum(dim) / norms, 1 / max(1, active(a, b)))
