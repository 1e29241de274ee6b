"""Rules for affine operations that treat positive and negative contributions differently.

With z = W x + b and A = |W| |x| + |b| (the same operation on absolute values) the positive contributions to an output
sum to P = (z + A) / 2 and the negative ones to N = (z - A) / 2; the bias is one contribution among the others. So any rule
is a pair of weights, p on z and q on A, at the cost of one more forward and two vector-Jacobian products (`maps`).

Batch norm behind a convolution is folded into it first (`termwise.predictions.fold`): signs do not commute with it.

`stabilizer` is added to every denominator, away from zero. Nothing here needs it; with it relevance is lost (and booked).
It is for comparing with other implementations, which have one of 1e-6.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .maps import Shares, Weights, affine_map, bias_place, nonnegative, one_activation, shared
from .table import AFFINE_ONLY, SPLITTING, Rule, lossy, plain, sized

__all__ = ["alpha_beta", "gamma", "zplus"]


@sized
def gamma(size: float = 0.25, *, stabilizer: float = 0.0) -> Rule:
    """Generalised LRP-gamma: contributions of the output's own sign t weigh 1 + gamma.

    R_i = sum_j [(1 + g/2) x_i w_ij + t_j (g/2) |x_i w_ij|] R_j / den_j,  den = (1 + g/2) z + t (g/2) A.
    Conserves: |den| >= |z|. Where den is 0, c passes as through LRP-0.

    Args:
        size: gamma; 0 is LRP-0, infinity z+ for positive outputs.
        stabilizer: added to |den|; anything but 0 loses.
    """
    half = 1.0 if math.isinf(size) else size / 2
    one = half if math.isinf(size) else 1 + half

    def weights(z: Tensor, total: Tensor, whole: Tensor) -> tuple[Tensor | None, Tensor | None]:
        # over g/2: |z| / den is never above 1, so nothing needs a stabiliser
        if half == 0:
            p = whole / (z + stabilizer * torch.where(z < 0, -1.0, 1.0) if stabilizer else z)
            return p.nan_to_num_(nan=1.0, posinf=0.0, neginf=0.0), None
        den = torch.add(total, z.abs(), alpha=one / half)
        if stabilizer:
            den += stabilizer / half
        q = (whole / den).nan_to_num_(nan=half / one, posinf=0.0, neginf=0.0)
        return (q.abs() if whole is z else torch.where(z < 0, -q, q)).mul_(one / half), q

    return _splitting(weights, conserves=stabilizer == 0)


@sized
def zplus(*, stabilizer: float = 0.0) -> Rule:
    """z+ (alpha 1, beta 0): only positive contributions receive. R_i = sum_j (x_i w_ij)^+ R_j / (P_j + b_j^+).

    Where an output has no positive contribution its relevance is lost, and booked.

    Args:
        stabilizer: added to P.
    """

    def weights(z: Tensor, total: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
        half, _ = _shares(z, total, whole, stabilizer)
        return half, half

    general = _splitting(weights, conserves=False)

    @lossy
    def positive(at: Any, *args: Any, **kwargs: Any) -> Any:
        if not one_activation(at, args) or at.biases == "distribute" or not nonnegative(affine_map(at, args, kwargs).x):
            return general(at, *args, **kwargs)
        return _of_nonnegative(at, args, kwargs, stabilizer)

    SPLITTING.add(positive)
    AFFINE_ONLY.add(positive)
    return positive


def _of_nonnegative(at: Any, args: Any, kwargs: Any, stabilizer: float) -> Tensor:
    """z+ of x >= 0, as behind a ReLU: P = W^+ x + b^+ itself, and one vector-Jacobian product."""
    x, weight, bias, apply = affine_map(at, args, kwargs)
    vector = bias is not None and bias.ndim == 1
    kept = None if bias is None or (vector and at.biases == "zero") else bias.clamp_min(0)
    total = apply(x, weight.clamp_min(0), kept)
    at.adds(total, kept, *bias_place(at, bias, total))
    with torch.no_grad():
        y = at.op(*args, **kwargs)
        share = (y / (total + stabilizer if stabilizer else total)).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    out: Tensor = Shares.apply(y, total, share, None, None)
    return out


@sized
def alpha_beta(alpha: float = 2, beta: float = 1, *, stabilizer: float = 0.0) -> Rule:
    """LRP-alpha-beta: positive contributions receive alpha R, negative ones -beta R, each in proportion.

    R_i = sum_j [alpha (x_i w_ij)^+ / (P_j + b_j^+) - beta (x_i w_ij)^- / (N_j + b_j^-)] R_j
    Where an output has no contributions of one sign, what these would have received is lost, and booked.

    Args:
        alpha: at least 1.
        beta: alpha - 1.
        stabilizer: added to P and to |N|.

    Raises:
        ValueError: unless alpha - beta = 1, beta >= 0: only then P + N = z gives the whole relevance.
    """
    if abs(alpha - beta - 1) > 1e-9 or beta < 0:
        raise ValueError(f"alpha_beta needs alpha - beta = 1 and beta >= 0, got alpha={alpha}, beta={beta}")

    def weights(z: Tensor, total: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
        positive, others = _shares(z, total, whole, stabilizer)
        positive.mul_(alpha)
        if beta == 0:
            return positive, positive
        negative = others().mul_(beta)  # -beta whole / N
        return positive + negative, positive.sub_(negative)

    return _splitting(weights, conserves=False)


def _shares(z: Tensor, total: Tensor, whole: Tensor, stabilizer: float) -> tuple[Tensor, Callable[[], Tensor]]:
    """Whole / 2 P, and -whole / 2 N when it is asked for; 0 where there are no such contributions.

    2 P = A (1 + z / A): in these units what is no more than the rounding of two equal sums is a fixed number. (A comparison
    of two tensors, and a mask from it, cost more than the convolution before them.)
    """
    part = (z / total).nan_to_num_(nan=0.0)  # in [-1, 1]
    share = part if whole is z else (whole / total).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)

    def over(twice: Tensor) -> Tensor:
        torch.threshold_(twice, 8 * torch.finfo(z.dtype).eps, math.inf)
        return share / (twice.add_(2 * stabilizer / total) if stabilizer else twice)

    return over(part + 1), lambda: over(1 - part)


def _splitting(weights: Weights, *, conserves: bool) -> Rule:
    """The rule whose p and q are `weights(z, A, whole)`."""

    def split(at: Any, *args: Any, **kwargs: Any) -> Any:
        if not one_activation(at, args):
            return plain(at)(at, *args, **kwargs)
        return shared(at, args, kwargs, weights, absolute=True)

    SPLITTING.add(split)
    AFFINE_ONLY.add(split)
    return split if conserves else lossy(split)
