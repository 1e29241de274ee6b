r"""EPC: of all sums of R rank-one terms that are as near to a weight, one whose terms do not fight.

    min  ss(A, B, C)      subject to   |W - [[A, B, C]]| <= delta

one factor at a time, in closed form. With the weights w_r^2 = K |b_r|^2 + J |c_r|^2 (I, J, K being the sizes of A, B, C),
X = A diag(w) and Z = khatri_rao(B, C) diag(1 / w) = P S Q^T,

    X = W_(1) P diag(s / (s^2 + x)) Q^T,      sum_r |g_r|^2 (x / (s_r^2 + x))^2 = delta^2 - |W_(1) - W_(1) P P^T|^2,   g = W_(1) P

where x >= 0 is the root of an increasing function. Each step keeps the error and never raises ss, and balancing the terms
afterwards lowers it further. At the error of a converged fit there is no room, and nothing moves: a slack is what it lives on.

Source: Phan et al. 2020, Stable low-rank tensor decomposition for compression of convolutional neural network, section 3;
Phan, Tichavsky & Cichocki 2019, Error preserving correction (objective "norm": the sum of squared intensities).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from .cp import CPDecomposition, _decomposition, balance, cp, khatri_rao, sensitivity_of, three_axes, unfold

__all__ = ["epc", "stable_cp"]

Objective = Literal["sensitivity", "norm"]


def epc(
    found: CPDecomposition,
    *,
    error: float | None = None,
    slack: float = 0.02,
    objective: Objective = "sensitivity",
    sweeps: int = 200,
    tol: float = 1e-6,
) -> CPDecomposition:
    """Lower the sensitivity of a sum of terms at a given error.

    Args:
        found: of `cp`.
        error: the relative error to keep, |W - W'| / |W|, at least that of `found`.
        slack: when no error is given, (1 + slack) times that of `found`.
        objective: "sensitivity", or "norm", the sum of squared intensities.
        sweeps: over the three factors, at most.
        tol: it ends when a sweep lowers the objective by less than this share.

    Returns:
        A `CPDecomposition`; `history` has the objective before the first sweep and after each, which never rises.

    Raises:
        ValueError: for an error below that of `found`, or not below 1 (no terms at all would do).

    Cost: per sweep three singular value decompositions of shapes (c s, R), (f s, R), (f c, R).

    Example:
        >>> w = torch.randn(4, 5, 6, dtype=torch.float64)
        >>> found = cp(w, rank=5)
        >>> stable = epc(found, slack=0.1)
        >>> abs(stable.error() / found.error() - 1.1) < 1e-9, stable.sensitivity < found.sensitivity
        (True, True)
    """
    if objective not in ("sensitivity", "norm"):
        raise ValueError(f"objective is 'sensitivity' or 'norm', got {objective!r}")
    t, now = three_axes(found.whole), found.error()
    wanted = (1 + slack) * now if error is None else error
    if not now * (1 - 1e-9) <= wanted < 1:
        raise ValueError(f"the error to keep is between that of the terms, {now:.4g}, and 1, got {wanted:.4g}")
    delta = wanted * float(t.norm())
    factors = balance([factor.double() for factor in found.vectors])
    history = [_objective(factors, objective)]
    for _ in range(sweeps):
        for mode in range(3):
            factors[mode] = _step(t, factors, mode, delta, objective)
        factors = balance(factors)
        history.append(_objective(factors, objective))
        if history[-2] - history[-1] <= tol * history[-2]:
            break
    return _decomposition(found.whole, factors, history)


def stable_cp(
    weight: Tensor,
    rank: int,
    *,
    slack: float = 0.02,
    rounds: int = 5,
    max_sweeps: int = 200,
    corrections: int = 200,
    tol: float = 1e-5,
    generator: torch.Generator | None = None,
) -> CPDecomposition:
    """CPD-EPC: fit, correct, fit a little from there, and so on; the last is a correction.

    Args:
        weight: W, shape (f, c, s) or (f, c, kh, kw).
        rank: R.
        slack: of the error, that each correction may use.
        rounds: at most; it ends when a round changes the sum of squared intensities by less than 1e-4 of it.
        max_sweeps: of the first fit.
        corrections: sweeps of each correction.
        tol: of both, as of `cp`.
        generator: of what is random; seed 0 when not given.

    Returns:
        A `CPDecomposition`. Its error is (1 + slack) times that of the last fit.

    Raises:
        ValueError: as of `cp` and `epc`.
    """
    found = cp(weight, rank, max_sweeps=max_sweeps, tol=tol, generator=generator)
    before = math.inf
    for turn in range(max(rounds, 1)):
        if turn:
            found = cp(weight, rank, init=found, max_sweeps=5, tol=tol)
        if found.error() * (1 + slack) >= 1:  # so few terms that nothing can be given away
            return found
        found = epc(found, slack=slack, sweeps=corrections, tol=tol)
        size = float(found.intensities.double().square().sum())
        if abs(before - size) <= 1e-4 * size:
            break
        before = size
    return found


def _objective(factors: list[Tensor], objective: Objective) -> float:
    if objective == "sensitivity":
        return sensitivity_of(factors)
    return float(torch.stack([factor.square().sum(0) for factor in factors]).prod(0).sum())


def _step(t: Tensor, factors: list[Tensor], mode: int, delta: float, objective: Objective) -> Tensor:
    """The best of one factor, the others given."""
    p, q = (factors[other] for other in range(3) if other != mode)
    n_p, n_q = p.square().sum(0), q.square().sum(0)
    squared = len(q) * n_p + len(p) * n_q if objective == "sensitivity" else n_p * n_q
    w = squared.sqrt().clamp_min(torch.finfo(t.dtype).tiny ** 0.5)  # of a term that is gone
    left, s, right = torch.linalg.svd(khatri_rao(p, q) / w, full_matrices=False)
    unfolded = unfold(t, mode)
    g = unfolded @ left
    outside = float((unfolded - g @ left.T).square().sum())
    x = _root(g.square().sum(0).tolist(), s.square().tolist(), delta**2 - outside)
    below = s.square() + x
    return (g * torch.where(below > 0, s / below, 0)) @ right / w


def _root(energies: list[float], squares: list[float], room: float) -> float:
    """The x >= 0 with sum_r energies_r (x / (squares_r + x))^2 = room, from below; 0 where there is no room."""
    total = sum(energies)
    if room <= 0 or not total:
        return 0.0
    share = math.sqrt(min(room / total, 1 - 1e-15))
    high = max(squares) * share / (1 - share)  # were all squares the largest, or the least
    low = max(min(squares) * share / (1 - share), high * 1e-30)
    for _ in range(200):
        x = math.sqrt(low) * math.sqrt(high)
        if not low < x < high:
            break
        if sum(e * (x / (square + x)) ** 2 for e, square in zip(energies, squares, strict=True)) > room:
            high = x
        else:
            low = x
    return low
