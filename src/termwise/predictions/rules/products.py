"""Products of activations: half each.

    y = a b is of degree 2 in (a, b), so x * grad y = 2 y (Euler) and the own derivative, halved, conserves.

With one operand constant the product is linear in the other. Operands that are held (normalisers, the gates of a
recurrence) count as constant: the other one takes all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .elementwise import function
from .table import active, hold, rule, share

PRODUCTS = (
    "mm", "bmm", "mv", "dot", "vdot", "matmul", "outer", "ger", "inner", "kron", "tensordot", "einsum", "linalg_cross",
    "cross", "expert_product", "chain_matmul", "linalg_vecdot", "_trilinear", "trapezoid",
)  # fmt: skip


@rule("mul", *PRODUCTS)
def product(at: Any, *operands: Any, **kwargs: Any) -> Tensor:
    """Y = a b: c_a = b c / 2, c_b = a c / 2, of k activations 1/k each; all to the other where one is held."""
    if at.site.held:
        operands = tuple(hold(v)[0] if i in at.site.held else v for i, v in enumerate(operands))
    return share(at.op(*operands, **kwargs), 1 / max(1, active(*operands)))


def signal_takes_all(at: Any, *operands: Any, **kwargs: Any) -> Tensor:
    """As `product`, but the gate of u * silu(g) is held constant: c_u = c silu(g), nothing to g (CP-LRP, LRP-all)."""
    gates = [] if at.site.held else at.site.gates
    return product(at, *[hold(v)[0] if i in gates else v for i, v in enumerate(operands)], **kwargs)


@rule("div", "true_divide")
def quotient(at: Any, a: Any, b: Any, **kwargs: Any) -> Tensor:
    """A / b: all to a where b is constant or the normaliser of a; else half each, as of a * (1 / b).

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
    """X + value a b."""
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
    n = x.numel() if dim is None or not x.ndim else x.shape[dim]
    name = getattr(at.op, "__name__", "")
    if name.startswith("cumprod") and x.ndim:
        counts = torch.arange(1, n + 1, dtype=y.dtype, device=y.device)
        return share(y, 1 / counts.reshape(-1, *[1] * (y.ndim - 1 - dim % y.ndim)))
    return share(y, 1 / n)


@rule("glu")
def gated(at: Any, x: Tensor, dim: int = -1) -> Tensor:
    """Y = a sigmoid(b), a and b the halves of x: half each, and of the gate's half all but that of sigmoid(0) to b."""
    a, b = x.chunk(2, dim)
    gate = function(at, torch.sigmoid, b, varies=False)
    return share(a * gate, 1 / 2)


def gated_by_constant(at: Any, x: Tensor, dim: int = -1) -> Tensor:
    """As `gated`, with the gate held constant: all to a (CP-LRP)."""
    a, b = x.chunk(2, dim)
    return a * torch.sigmoid(b.detach())


@rule("linalg_solve")
def solution(at: Any, a: Tensor, b: Tensor, **kwargs: Any) -> Tensor:
    """A^-1 b, as a quotient: of degree -1 in A and 1 in b, half each of two activations."""
    return share(at.op(flipped(a) if active(a) else a, b, **kwargs), 1 / max(1, active(a, b)))


@rule("var_mean")
def variance_and_mean(at: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Of degree 2, and linear."""
    var, mean = at.op(*args, **kwargs)
    return share(var.view_as(var), 1 / 2), mean  # a view: no ratio arrives at a variance that nobody uses


@rule("var")
def degree_two(at: Any, *args: Any, **kwargs: Any) -> Any:
    """A sum of squares is of degree 2: own derivative, halved."""
    return share(at.op(*args, **kwargs), 1 / 2)


@rule("pdist", "_pdist_forward")
def distances_within(at: Any, x: Tensor, p: float = 2) -> Tensor:
    """|x_i - x_j|_p is of degree 1; for p = 0 it is a count, and constant."""
    return at.op(x.detach() if p == 0 else x, p)


@rule("cdist", "_cdist_forward", "_euclidean_dist")
def distances(at: Any, a: Tensor, b: Tensor, *args: Any) -> Tensor:
    """|a_i - b_j|_p, every pair."""
    p = args[0] if args else 2
    if p == 0:  # a count, and constant
        return at.op(*hold(a, b), *args)
    if active(a, b) == 2:
        return at.op(a, b, *args)
    return _norm_of_difference(at, a.unsqueeze(-2), b.unsqueeze(-3), p)


@rule("dist")
def distance(at: Any, a: Tensor, b: Tensor, p: float = 2) -> Tensor:
    """|a - b|_p over all entries."""
    return at.op(*hold(a, b), p) if p == 0 else _norm_of_difference(at, a, b, p, dim=None)


@rule("pairwise_distance")
def pairwise_distance(at: Any, a: Tensor, b: Tensor, p: float = 2, eps: float = 1e-6, keepdim: bool = False) -> Tensor:
    """|a - b + eps|_p, row by row."""
    return _norm_of_difference(at, a, b, p, eps=eps, keepdim=keepdim)


def _norm_of_difference(
    at: Any, a: Tensor, b: Tensor, p: float, dim: int | None = -1, eps: float = 0.0, keepdim: bool = False
) -> Tensor:
    """Of degree 1 in the difference, in which a constant point is a summand."""
    difference = a - b + eps
    at.adds(difference, eps, at.constant_name(-1))
    if not active(a):
        at.adds(difference, a, at.constant_name(0))
    if not active(b):
        at.adds(difference, -b, at.constant_name(1))
    return torch.linalg.vector_norm(difference, p, dim, keepdim)


@rule("cosine_similarity")
def cosine(at: Any, a: Tensor, b: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """A b / (|a| |b|): norms held constant, the product half each."""
    a, b = torch.broadcast_tensors(a, b)
    norms = a.detach().norm(dim=dim).clamp_min(eps) * b.detach().norm(dim=dim).clamp_min(eps)
    return share((a * b).sum(dim) / norms, 1 / max(1, active(a, b)))
