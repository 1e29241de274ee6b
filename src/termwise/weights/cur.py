r"""CUR: a weight matrix written with some of its own columns and rows.

    W ~ C U R,      C = W[:, q],      R = W[p, :],      U = C^+ W R^+

The columns q and rows p are chosen on the leading singular vectors V_r of an importance matrix: W itself, or CURing's
|W_ij| |x_j|. DEIM takes, vector after vector, the row in which the next one is worst predicted by the rows so far,

    p_j = argmax |v_j - V_{j-1} (V_{j-1}[p])^-1 v_j[p]|

which is what Gaussian elimination with partial pivoting does. U is then the best link in the Frobenius norm.

Bound, for any bases P, Q with orthonormal columns, in the spectral norm:

    |W - CUR| <= |Q[q]^-1| |W (I - Q Q^T)| + |P[p]^-1| |(I - P P^T) W|

which with singular vectors of W itself is (eta_p + eta_q) sigma_{r+1}.

Cost: one thin singular value decomposition; r (m + n + r) numbers instead of m n.
Source: Park & Moon 2025 (CURing), importance and link; Sorensen & Embree 2016, A DEIM induced CUR factorization, choice and
bound; Drmac & Gugercin 2016 (QDEIM). CURing's own code interpolates with the newest row alone, which may choose a row twice
and has worse constants: not followed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from termwise.core.arguments import integer
from termwise.core.pictures import Picture

from .evidence import Evidence
from .factorization import Factorization
from .factorization_pictures import chosen
from .ladder import Fitted, Ladder, Replacement, ranks_below, with_dense
from .layers import Layer
from .products import interchanged, triple, triple_size

__all__ = ["CURDecomposition", "break_even", "cur", "cur_choices", "deim", "fit_cur", "qdeim"]

Selection = Literal["deim", "qdeim", "norm", "leverage", "random"]


@dataclass(frozen=True, eq=False, repr=False)
class CURDecomposition(Factorization):
    """A weight as C U R. Its part "columns" has one term for each chosen column: C_j (U R)_j, shape (m, n, r).

    Args:
        whole: W, shape (m, n).
        parts: left out: they are made from the factors.
        form: "cur".
        factors: C, shape (m, r), U, shape (r, r), R, shape (r, n).
        rows: p, shape (r,): R is W[p].
        columns: q, shape (r,): C is W[:, q].
        bases: P, shape (m, r), and Q, shape (n, r), that they were chosen on; without them there is no bound.
    """

    form: str = "cur"
    rows: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    columns: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    bases: Mapping[str, Tensor] = field(default_factory=dict)

    def bound(self) -> float:
        """|W - CUR| in the spectral norm is not above this; infinite where no theorem speaks (link "cross").

        Cost: two spectral norms of (m, n), O(m n min(m, n)).
        """
        if not self.bases:
            return math.inf
        w, p, q = self.whole.double(), self.bases["P"], self.bases["Q"]
        smallest = [float(torch.linalg.svdvals(base[chosen])[-1]) for base, chosen in ((p, self.rows), (q, self.columns))]
        left = [float(torch.linalg.matrix_norm(e, 2)) for e in (w - p @ (p.T @ w), w - (w @ q) @ q.T)]
        return math.inf if min(smallest) == 0 else left[0] / smallest[0] + left[1] / smallest[1]

    def pictures(self, sample: int = 0) -> list[Picture]:
        """As of every factorization, and which columns and rows were chosen."""
        found = super().pictures()
        if len(self.columns):
            found += [chosen("Columns", self.whole, self.columns, 1), chosen("Rows", self.whole, self.rows, 0)]
        return found


def cur(
    weight: Tensor,
    rank: int,
    *,
    importance: Tensor | None = None,
    selection: Selection = "deim",
    link: Literal["optimal", "cross"] = "optimal",
    generator: torch.Generator | None = None,
) -> CURDecomposition:
    """Write a matrix with `rank` of its columns and rows.

    Args:
        weight: W, shape (m, n).
        rank: r, from 1 to min(m, n).
        importance: of each entry, shape (m, n); W itself when not given. CURing's is |W_ij| |x_j|, x_j all that input j was.
        selection: "deim"; "qdeim" (see `qdeim`, its bound is often smaller); "norm", "leverage" (the largest norms in the
            importance, or in its singular vectors); "random".
        link: "optimal": U = C^+ W R^+, least |W - CUR|; "cross": U = W[p, q]^-1, which reproduces the chosen rows and columns.
        generator: of "random"; seed 0 when not given.

    Returns:
        A `CURDecomposition`, in the dtype of the weight; worked out in float64.

    Raises:
        ValueError: for a weight that is no matrix or not finite, a rank that is not possible, an importance of another shape, an
            unknown selection or link, or a cross that has no inverse.

    Cost: one thin singular value decomposition of (m, n), and O((m + n) r^2).

    Example:
        >>> w = torch.randn(6, 3, dtype=torch.float64) @ torch.randn(3, 8, dtype=torch.float64)
        >>> found = cur(w, rank=3).check()
        >>> bool((found.factors["C"] == w[:, found.columns]).all()), bool((found.factors["R"] == w[found.rows]).all())
        (True, True)
    """
    rank = _checked(weight, rank, importance, selection, link)
    w = weight.detach().double()
    s = w if importance is None else importance.detach().double()
    u, _, vh = torch.linalg.svd(s, full_matrices=False)
    basis, cobasis = u[:, :rank], vh[:rank].T
    if selection == "random":
        generator = generator or torch.Generator().manual_seed(0)
        p, q = (torch.randperm(size, generator=generator)[:rank].to(w.device) for size in w.shape)
    elif selection == "norm":
        p, q = (s.norm(dim=axis).argsort(descending=True, stable=True)[:rank] for axis in (1, 0))
    elif selection == "leverage":
        p, q = (base.norm(dim=1).argsort(descending=True, stable=True)[:rank] for base in (basis, cobasis))
    else:
        p, q = ({"deim": deim, "qdeim": qdeim}[selection](base) for base in (basis, cobasis))
    c, r = w[:, q], w[p]
    middle = _inverse_of_the_cross(w[p][:, q]) if link == "cross" else _best_link(w, c, r)
    factors = {name: factor.to(weight.dtype) for name, factor in (("C", c), ("U", middle), ("R", r))}
    bases = {"P": basis.clone(), "Q": cobasis.clone()} if link == "optimal" else {}
    return CURDecomposition(weight.detach(), factors=factors, rows=p, columns=q, bases=bases)


def deim(basis: Tensor) -> Tensor:
    """Rows in which a basis is interpolated: greedily, where the next vector is worst predicted by the rows so far.

    Args:
        basis: V, shape (n, r), r <= n, of full rank.

    Returns:
        r different rows, shape (r,), in the order of choice: the first k are those of the first k vectors.

    Cost: one elimination, O(n r^2).

    Example:
        >>> deim(torch.tensor([[0.6, 0.0], [0.8, 0.0], [0.0, 1.0]])).tolist()
        [1, 2]
    """
    _, pivots = torch.linalg.lu_factor(basis)
    return interchanged(pivots, len(basis))[: basis.shape[1]]


def qdeim(basis: Tensor) -> Tensor:
    """Rows in which a basis is interpolated: each time the longest one, once the directions of the others are taken out.

    Args:
        basis: V, shape (n, r), r <= n, of full rank.

    Returns:
        r different rows, shape (r,): the pivots of a QR decomposition of V^T.

    Cost: O(n r^2).
    """
    rest, chosen = basis.clone(), []
    for _ in range(basis.shape[1]):
        chosen.append(rest.square().sum(1).argmax())
        unit = rest[chosen[-1]] / rest[chosen[-1]].norm()
        rest -= torch.outer(rest @ unit, unit)
        rest[chosen[-1]] = 0
    return torch.stack(chosen)


def break_even(shape: tuple[int, int]) -> int:
    """The largest rank at which r (m + n + r) numbers are no more than m n.

    Example:
        >>> r = break_even((64, 64))
        >>> r * (128 + r) <= 64 * 64 < (r + 1) * (128 + r + 1)
        True
    """
    m, n = shape
    return (math.isqrt(m * m + 6 * m * n + n * n) - (m + n)) // 2


def _best_link(w: Tensor, c: Tensor, r: Tensor) -> Tensor:
    """C^+ W R^+, through orthonormal bases: C^+ of a C that is near to singular keeps its digits."""
    (q, upper), (z, lower) = torch.linalg.qr(c), torch.linalg.qr(r.T)
    return torch.linalg.pinv(upper) @ (q.T @ w @ z) @ torch.linalg.pinv(lower).T


def _inverse_of_the_cross(cross: Tensor) -> Tensor:
    try:
        return torch.linalg.inv(cross)
    except torch.linalg.LinAlgError:
        raise ValueError(
            f"the {len(cross)} x {len(cross)} entries where chosen rows and columns cross have no inverse: "
            f"take link='optimal', or a lower rank"
        ) from None


def _checked(weight: Tensor, rank: int, importance: Tensor | None, selection: str, link: str) -> int:
    """The rank, where everything makes sense."""
    if weight.ndim != 2 or not weight.is_floating_point() or not weight.isfinite().all():
        raise ValueError(f"weight is a matrix of finite numbers, got shape {tuple(weight.shape)} of {weight.dtype}")
    found = integer(rank)
    if found is None or not 1 <= found <= min(weight.shape):
        raise ValueError(f"rank lies in 1..{min(weight.shape)} for a weight of shape {tuple(weight.shape)}, got {rank!r}")
    if importance is not None and (importance.shape != weight.shape or not importance.isfinite().all()):
        raise ValueError(
            f"importance has the weight's shape {tuple(weight.shape)} and finite entries, got {tuple(importance.shape)}"
        )
    if selection not in ("deim", "qdeim", "norm", "leverage", "random") or link not in ("optimal", "cross"):
        raise ValueError(
            f"selection is 'deim', 'qdeim', 'norm', 'leverage' or 'random' and link 'optimal' or 'cross', "
            f"got {selection!r} and {link!r}"
        )
    return found


# -- a method of `compress` -----------------------------------------------------------------------------------------------


def fit_cur(evidence: Evidence) -> Fitted:
    """Rows and columns by DEIM on |W| |x|, those of every lower rank first, and their errors as shares of the layer's output.

    With orthonormal bases Q of C and Z of R^T, W' = Q (Q^T W Z) Z^T, of which every lower rank is the leading block:
    E |(W - W') x|^2 = tr(W G W^T) - 2 tr(B^T Q^T W G Z) + tr(B Z^T G Z B^T), one pair of bases for all ranks.
    """
    w = evidence.layer.matrix.double()
    limit = _limit(evidence.layer)
    importance = w.abs() if evidence.stats is None else w.abs() * evidence.stats.norms.double()
    u, _, vh = torch.linalg.svd(importance, full_matrices=False)
    rows, columns = deim(u[:, :limit]), deim(vh[:limit].T)
    q, z = _orthonormal(w[:, columns]), _orthonormal(w[rows].T)
    held = evidence.held or evidence.stats
    seen = w if held is None else w @ held.gram.double()
    block, crossed, inner = q.T @ w @ z, q.T @ seen @ z, z.T @ (z if held is None else held.gram.double() @ z)
    total = float((seen * w).sum())
    errors = [
        total - 2 * (b * crossed[:r, :r]).sum() + ((b @ inner[:r, :r]) * b).sum()
        for r in _ranks(evidence.layer)
        for b in (block[:r, :r],)
    ]
    shares = torch.stack(errors).clamp_min(0) / max(total, 1e-300) if errors else w.new_zeros(0)
    return {"rows": rows, "columns": columns, "errors": shares}


def cur_choices(layer: Layer, fitted: Fitted) -> Ladder:
    """Every rank below break-even, as three layers."""
    ranks = _ranks(layer)

    def build(i: int) -> Replacement:
        w, p, q = layer.matrix.double(), fitted["rows"][: ranks[i]], fitted["columns"][: ranks[i]]
        return triple(layer, w[:, q], _best_link(w, w[:, q], w[p]), w[p])

    params = np.array([triple_size(layer.shape, int(r)) for r in ranks], dtype=np.int64)
    return with_dense(layer, [f"rank {r}" for r in ranks], params, fitted["errors"].double().cpu().numpy(), build)


def _limit(layer: Layer) -> int:
    return max(break_even(layer.shape), 1)


def _ranks(layer: Layer) -> np.ndarray:
    return ranks_below(_limit(layer), 8 if min(layer.shape) >= 128 else 1)


def _orthonormal(columns: Tensor) -> Tensor:
    """Their basis, the leading k of which span the leading k; a column that others span already adds a zero."""
    q = torch.zeros_like(columns)
    tiny = 10 * max(columns.shape) * torch.finfo(q.dtype).eps
    for j in range(columns.shape[1]):  # a QR decomposition would put a direction of rounding there, and take it out of the others
        left = columns[:, j]
        for _ in range(2):  # twice is enough for full precision
            left = left - q[:, :j] @ (q[:, :j].T @ left)
        if left.norm() > tiny * columns[:, j].norm():
            q[:, j] = left / left.norm()
    return q
