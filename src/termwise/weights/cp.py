r"""CP: a kernel as a sum of rank-one terms, fitted by alternating least squares; and how nearly such a sum falls apart.

    W[o, i, s] = sum_r c[o, r] b[i, r] a[s, r] + remainder,      W of shape (f, c, kh kw)

With d_1, d_2, d_3 the three sizes and n_1, n_2, n_3 the squared norms of a term's three vectors,

    intensity    lambda_r = sqrt(n_1 n_2 n_3)                                  the size of a term
    sensitivity  ss = sum_r d_3 n_1 n_2 + d_1 n_2 n_3 + d_2 n_1 n_3            E |change of the sum|^2 per unit of noise in them

Terms that grow and cancel (a degenerate fit) have intensities far above |W|, and a sensitivity to match: training from such
factors diverges. Scaling vectors within a term leaves the sum; ss is least where n_k is proportional to d_k, and then is
3 (d_1 d_2 d_3)^(1/3) sum_r lambda_r^(4/3).

Source: Phan et al. 2020, Stable low-rank tensor decomposition for compression of convolutional neural network, eq. 5 (whose
factor 1 / R, a constant, is left out); Carroll & Chang 1970 and Harshman 1970 for the alternation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from termwise.core.arguments import whole_number
from termwise.core.pictures import Line, Lines, Picture

from .factorization import Factorization

__all__ = ["CPDecomposition", "balance", "cp", "khatri_rao", "sensitivity_of", "three_axes", "unfold"]


@dataclass(frozen=True, eq=False, repr=False)
class CPDecomposition(Factorization):
    """A weight as R rank-one terms, its part "rank_one" of shape (f, c, s, R).

    Args:
        whole: W, shape (f, c, s) or (f, c, kh, kw).
        parts: left out: they are made from the factors.
        form: "cp".
        factors: c, shape (f, R), b, shape (c, R), a, shape (s, R).
        history: a number for each sweep of what made it: of `cp` the relative error, of `epc` what it lowers.
    """

    form: str = "cp"
    history: list[float] = field(default_factory=list)

    @property
    def vectors(self) -> list[Tensor]:
        """The factors in the order of the weight's axes."""
        return [self.factors[name] for name in "cba"]

    @property
    def intensities(self) -> Tensor:
        """lambda_r, the Frobenius norm of each term, shape (R,)."""
        return torch.stack([factor.norm(dim=0) for factor in self.vectors]).prod(0)

    @property
    def sensitivity(self) -> float:
        """ss: expected squared change of the sum, per unit variance of independent noise in every entry of the factors."""
        return sensitivity_of(self.vectors)

    def summary(self) -> str:
        """One line: the rank, what it adds up to, and how large its terms are."""
        largest = (self.intensities.max() / self.whole.norm().clamp_min(torch.finfo(self.whole.dtype).tiny)).item()
        return f"{super().summary()}, its largest term {largest:.2g} times the weight"

    def pictures(self, sample: int = 0) -> list[Picture]:
        """As of every factorization, and how the sweeps went."""
        found = super().pictures()
        if len(self.history) > 1:
            line = Line("after the sweep", list(range(1, len(self.history) + 1)), list(self.history))
            found.append(Lines("Sweeps", [line], x="sweep", y="what the sweeps lower", log_y=True))
        return found


def cp(
    weight: Tensor,
    rank: int,
    *,
    init: Literal["svd", "random"] | CPDecomposition = "svd",
    max_sweeps: int = 500,
    tol: float = 1e-5,
    generator: torch.Generator | None = None,
) -> CPDecomposition:
    """Fit R rank-one terms by alternating least squares.

    Args:
        weight: W, shape (f, c, s) or (f, c, kh, kw).
        rank: R; it may exceed all sizes.
        init: "svd", leading singular vectors of the unfolded weight with random ones where there are too few; "random"; or a
            decomposition to go on from.
        max_sweeps: over the three factors, at most.
        tol: it ends when a sweep lowers the error by less than this share.
        generator: of what is random; seed 0 when not given.

    Returns:
        A `CPDecomposition` with balanced terms; `history` has the relative error after each sweep, which never rises.

    Raises:
        ValueError: for a weight that has not three axes (or four), is empty or not finite; a rank below 1; an unknown init.

    Cost: 6 f c s R per sweep, and three eigenproblems of size R. Memory: O(f c s + max(f c, f s, c s) R).

    Example:
        >>> c, b, a = (torch.randn(size, 2, dtype=torch.float64) for size in (4, 5, 6))
        >>> found = cp(torch.einsum("or,ir,sr->ois", c, b, a), rank=2, tol=1e-9)
        >>> found.error() < 1e-3, found.parts["rank_one"].shape
        (True, torch.Size([4, 5, 6, 2]))
    """
    t = three_axes(weight)
    rank = whole_number("rank", rank)
    if isinstance(init, CPDecomposition):
        factors = [factor.double() for factor in init.vectors]
        if [tuple(factor.shape) for factor in factors] != [(size, rank) for size in t.shape]:
            raise ValueError(
                f"init has factors for {[tuple(f.shape) for f in factors]}, wanted is rank {rank} of {tuple(t.shape)}"
            )
    elif init in ("svd", "random"):
        factors = _start(t, rank, init == "svd", generator or torch.Generator().manual_seed(0))
    else:
        raise ValueError(f"init is 'svd', 'random' or a CPDecomposition, got {init!r}")
    size = t.norm().clamp_min(torch.finfo(t.dtype).tiny)
    history: list[float] = []
    for _ in range(max_sweeps):
        for mode in range(3):
            p, q = (factors[other] for other in range(3) if other != mode)
            gram = (p.T @ p) * (q.T @ q)  # of the columns of khatri_rao(p, q); singular where terms are parallel
            factors[mode] = unfold(t, mode) @ khatri_rao(p, q) @ torch.linalg.pinv(gram, hermitian=True)
        factors = balance(factors)
        history.append(float((t - _sum(factors)).norm() / size))
        if len(history) > 1 and history[-2] - history[-1] <= tol * history[-2]:
            break
    return _decomposition(weight, factors, history)


def sensitivity_of(factors: Sequence[Tensor]) -> float:
    """The sensitivity of three factors, each of shape (size, R)."""
    d1, d2, d3 = (len(factor) for factor in factors)
    n1, n2, n3 = (factor.square().sum(0) for factor in factors)
    return float((d3 * n1 * n2 + d1 * n2 * n3 + d2 * n1 * n3).sum())


def balance(factors: Sequence[Tensor]) -> list[Tensor]:
    """The same terms with squared norms proportional to the sizes: those of the least sensitivity."""
    norms = torch.stack([factor.norm(dim=0) for factor in factors])  # (3, R)
    sizes = norms.new_tensor([len(factor) for factor in factors]).sqrt()[:, None]
    wanted = sizes * (norms.prod(0) / sizes.prod()) ** (1 / 3)
    return [factor * torch.where(n > 0, w / n, 0) for factor, n, w in zip(factors, norms, wanted, strict=True)]


def three_axes(weight: Tensor) -> Tensor:
    """(f, c, s) in float64, from that or from (f, c, kh, kw)."""
    if weight.ndim not in (3, 4) or not weight.numel():
        raise ValueError(f"a weight has shape (f, c, s) or (f, c, kh, kw), got {tuple(weight.shape)}")
    if not weight.isfinite().all():
        raise ValueError(f"a weight of shape {tuple(weight.shape)} holds NaN or infinity")
    return weight.detach().double().flatten(2)


def unfold(t: Tensor, mode: int) -> Tensor:
    """One axis against the other two in their order, as `khatri_rao` has them."""
    return t.movedim(mode, 0).flatten(1)


def khatri_rao(p: Tensor, q: Tensor) -> Tensor:
    """Products of the entries of two factors, shape (len(p) len(q), R)."""
    return (p[:, None] * q[None]).flatten(0, 1)


def _sum(factors: Sequence[Tensor]) -> Tensor:
    c, b, a = factors
    return (c @ khatri_rao(b, a).T).reshape(len(c), len(b), len(a))


def _start(t: Tensor, rank: int, svd: bool, generator: torch.Generator) -> list[Tensor]:
    factors = []
    for mode, size in enumerate(t.shape):
        columns = torch.randn(size, rank, generator=generator, dtype=t.dtype).to(t.device)
        if svd:
            unfolded = unfold(t, mode)
            leading = torch.linalg.eigh(unfolded @ unfolded.T)[1].flip(1)[:, :rank]
            columns[:, : leading.shape[1]] = leading
        factors.append(columns)
    return factors


def _decomposition(weight: Tensor, factors: Sequence[Tensor], history: list[float]) -> CPDecomposition:
    own = {name: factor.to(weight) for name, factor in zip("cba", factors, strict=True)}
    return CPDecomposition(weight.detach().clone(), factors=own, history=history)
