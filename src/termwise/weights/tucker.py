r"""Tucker-2: a kernel with fewer channels on both sides, and a basis that leads there and back.

    W[o, i, s] ~ sum_pq  out[o, p] core[p, q, s] in[i, q],      out, in with orthonormal columns

`hosvd` takes singular vectors of both unfoldings, with all of which the squares left out of the core are the error of every pair
of ranks at once; `tucker2` then alternates, each basis the best for the other, which never raises it.

Source: De Lathauwer, De Moor & Vandewalle 2000 (both); Kim et al. 2016 for convolutions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cp import three_axes
from .factorization import Factorization

__all__ = ["hosvd", "tucker2"]


def tucker2(weight: Tensor, ranks: tuple[int, int], *, sweeps: int = 10) -> Factorization:
    """Fewer channels on both sides of a kernel.

    Args:
        weight: W, shape (f, c, s) or (f, c, kh, kw).
        ranks: (p, q), of the outputs and of the inputs.
        sweeps: alternations after the singular vectors.

    Returns:
        A `Factorization` of form "tucker": factors out (f, p), core (p, q, s), in (c, q).

    Raises:
        ValueError: for ranks beyond f and c, or a weight of another shape.

    Cost: two eigenproblems of sizes f and c, and per sweep two products and eigenproblems. Memory: O(f c s).

    Example:
        >>> w = torch.randn(6, 5, 3, 3, dtype=torch.float64)
        >>> tucker2(w, (6, 5)).error() < 1e-12, tucker2(w, (3, 2)).factors["core"].shape
        (True, torch.Size([3, 2, 9]))
    """
    t = three_axes(weight)
    p, q = ranks
    if not (1 <= p <= t.shape[0] and 1 <= q <= t.shape[1]):
        raise ValueError(
            f"ranks of a weight of shape {tuple(weight.shape)} lie in 1..{t.shape[0]} and 1..{t.shape[1]}, got {ranks}"
        )
    out, into, _ = hosvd(t)
    out, into = out[:, :p], into[:, :q]
    for _ in range(sweeps):
        out = _leading(torch.einsum("ois,iq->oqs", t, into).flatten(1))[:, :p]
        into = _leading(torch.einsum("ois,op->ips", t, out).flatten(1))[:, :q]
    core = torch.einsum("ois,op,iq->pqs", t, out, into)
    factors = {"out": out.to(weight), "core": core.to(weight), "in": into.to(weight)}
    return Factorization(weight.detach().clone(), form="tucker", factors=factors)


def hosvd(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Singular vectors of both unfoldings of (f, c, s), shapes (f, f) and (c, c), and the squared relative error of every ranks.

    The error of ranks (p, q) is entry [p, q], shape (f + 1, c + 1): what lies in the core beyond them.
    """
    out, into = _leading(t.flatten(1)), _leading(t.transpose(0, 1).flatten(1))
    energy = torch.einsum("ois,op,iq->pqs", t, out, into).square().sum(2)
    kept = torch.zeros(len(out) + 1, len(into) + 1, dtype=t.dtype, device=t.device)
    kept[1:, 1:] = energy.cumsum(0).cumsum(1)
    total = kept[-1, -1].clamp_min(torch.finfo(t.dtype).tiny)
    return out, into, ((total - kept) / total).clamp_min(0)


def _leading(matrix: Tensor) -> Tensor:
    """Left singular vectors, the largest first, never the thick ones of the long side."""
    return torch.linalg.eigh(matrix @ matrix.T)[1].flip(1)
