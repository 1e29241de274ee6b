r"""The best matrix of low rank for the data: one projector behind truncated SVD, whitened SVD, LoRD, ROM and AFM.

    min over rank W' <= r of  E |L^T (W - W') x|^2,      E[x x^T] = G,   L L^T = H
    W' = L^-T V V^T L^T W,      V = leading r eigenvectors of  L^T W G W^T L,      minimum = sum of the others' eigenvalues

H = I is the error of the layer's own output, and W' = V V^T W; G = I besides is truncated SVD. No inverse of G is ever taken, so
fewer rows than features are no trouble. H from `sensitivity` is the error at the output of the model.

Source: Kaushal, Vaidhya & Rish 2023 (LoRD), section 3; Chavan, Lele & Gupta 2023 (ROM), eq. 3; Yu & Wu 2023 (AFM), eq. 6.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from termwise.core.pictures import Line, Lines, Picture, Pictured

__all__ = ["Projection", "project"]


@dataclass(frozen=True, eq=False)
class Projection(Pictured):
    """W = left @ right, its k rank-one terms in the order of what they are worth.

    Attributes:
        energies: what each term is worth, E |L^T left_i right_i x|^2, descending, shape (k,).
        left: L^-T V, shape (m, k).
        right: V^T L^T W, shape (k, n).
    """

    energies: Tensor
    left: Tensor
    right: Tensor

    def tail(self) -> Tensor:
        """The error of every rank 0 ... k: the sum of the energies left out, shape (k + 1,)."""
        zero = self.energies.new_zeros(1)
        return torch.cat([self.energies.flip(0).cumsum(0).flip(0), zero])

    def pictures(self, sample: int = 0) -> list[Picture]:
        """What each term is worth, and the error of every rank."""
        k = len(self.energies)
        lines = [
            Line("what a term is worth", list(range(1, k + 1)), self.energies.tolist()),
            Line("error of that rank", list(range(k + 1)), self.tail().tolist(), role="remainder"),
        ]
        return [Lines("Ranks", lines, x="rank", y="energy of the outputs", log_y=True)]

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Of the best matrix of a rank: shapes (m, rank) and (rank, n)."""
        return self.left[:, :rank], self.right[:rank]


def project(weight: Tensor, gram: Tensor | None = None, sensitivity: Tensor | None = None) -> Projection:
    """The projections of a matrix to every rank at once.

    Args:
        weight: W, shape (m, n).
        gram: G, shape (n, n), positive semi-definite, of any rank; the identity when not given.
        sensitivity: H, shape (m, m), positive definite; the identity when not given.

    Returns:
        All min(m, n) terms, in float64.

    Raises:
        ValueError: for shapes that do not fit, or entries that are not finite.

    Cost: one eigenproblem of size min(m, n) and three products; with m > n also the Cholesky factor (or eigenproblem) of G.

    Example:
        >>> w, x = torch.randn(6, 9, dtype=torch.float64), torch.randn(50, 9, dtype=torch.float64)
        >>> p = project(w, x.T @ x / 50)
        >>> left, right = p.factors(2)
        >>> error = ((w - left @ right) @ x.T).square().sum(0).mean()  # of the outputs, over the data
        >>> bool((error - p.tail()[2]).abs() < 1e-9)
        True
    """
    w = weight.detach().double()
    m, n = w.shape
    for name, matrix, size in (("gram", gram, n), ("sensitivity", sensitivity, m)):
        if matrix is not None and matrix.shape != (size, size):
            raise ValueError(f"{name} of a weight of shape ({m}, {n}) has shape ({size}, {size}), got {tuple(matrix.shape)}")
    if not w.isfinite().all() or not all(g is None or g.isfinite().all() for g in (gram, sensitivity)):
        raise ValueError(f"a weight of shape ({m}, {n}), or its statistics, hold NaN or infinity")
    g = None if gram is None else gram.double()
    lower = None if sensitivity is None else torch.linalg.cholesky(sensitivity.double())
    a = w if lower is None else lower.T @ w
    if m <= n:
        values, vectors = torch.linalg.eigh(a @ a.T if g is None else a @ g @ a.T)
        values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    else:
        root = a if g is None else a @ _root(g)
        values, p = torch.linalg.eigh(root.T @ root)
        values, p = values.flip(0).clamp_min(0), p.flip(1)
        vectors = _orthonormal(root @ p)
    right = vectors.T @ a
    left = vectors if lower is None else torch.linalg.solve_triangular(lower.T, vectors, upper=True)
    return Projection(values, left, right)


def _root(g: Tensor) -> Tensor:
    """S with S S^T = G."""
    lower, failed = torch.linalg.cholesky_ex(g)
    if not failed:
        return lower
    values, vectors = torch.linalg.eigh(g)
    return vectors * values.clamp_min(0).sqrt()


def _orthonormal(columns: Tensor) -> Tensor:
    """Columns that are orthogonal already, and shrink towards the last, made of length one in the presence of rounding."""
    q, r = torch.linalg.qr(columns)
    return q * torch.where(r.diagonal() < 0, -1.0, 1.0).to(q)
