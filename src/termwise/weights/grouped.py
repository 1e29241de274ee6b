r"""A layer as k products of low rank side by side: its input channels in k equal groups, each group's weights truncated alike.

    W = [W_1 | ... | W_k],      W_i ~ U_i V_i of rank j,      j (k m + n) numbers

    |W - W'| <= sqrt(sum_i s_i^2) <= sqrt(k) max_i s_i,      s_i = sigma_{j+1}(W_i), norms being the largest singular value

A convolution (f, c, kh, kw) is folded to W in one of four ways, which say what the first of its two convolutions sees:

    scheme 0   f     x  c kh kw     kh x kw, then 1 x 1
    scheme 1   f kh  x  c kw        1 x kw,  then kh x 1
    scheme 2   f kw  x  c kh        kh x 1,  then 1 x kw
    scheme 3   f kh kw  x  c        1 x 1,   then kh x kw

The first has k groups, the second mixes them and has the bias. A linear layer is a convolution of kernel 1.

Source: Liebenwein, Maalouf, Gal, Feldman & Rus 2021 (ALDS), section 2 and appendix B; the tighter bound is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from .evidence import Evidence
from .factorization import Factorization
from .ladder import Fitted, Ladder, Replacement, ranks_below, with_dense
from .layers import Layer
from .low_rank_linear import GroupedLinear
from .products import convolution, linear

__all__ = ["Bound", "divisors", "fit_grouped", "fold", "group_errors", "grouped", "grouped_choices", "grouped_size"]

Bound = Literal["paper", "sharp", "exact"]

FIRST = {0: (True, True), 1: (False, True), 2: (True, False), 3: (False, False)}
"""By scheme: whether the first convolution moves along the height, along the width; the second takes the other axes."""


def fold(kernel: Tensor, scheme: int = 0) -> Tensor:
    """W of a scheme, from a kernel (f, c, kh, kw).

    Raises:
        ValueError: for a scheme that is none of 0 to 3.
    """
    if scheme not in FIRST:
        raise ValueError(f"scheme is 0, 1, 2 or 3, got {scheme!r}")
    f, _, kh, kw = kernel.shape
    tall, wide = FIRST[scheme]
    order = [0, *([] if tall else [2]), *([] if wide else [3]), 1, *([2] if tall else []), *([3] if wide else [])]
    return kernel.permute(order).reshape(f * (1 if tall else kh) * (1 if wide else kw), -1)


def divisors(layer: Layer, scheme: int = 0) -> list[int]:
    """The numbers of groups whose rank 1 stores less than the layer."""
    channels = layer.kernel.shape[1]
    return [k for k in range(1, channels + 1) if channels % k == 0 and grouped_size(layer, 1, k, scheme) < layer.size]


def grouped_size(layer: Layer, rank: int, groups: int = 1, scheme: int = 0) -> int:
    """Numbers in it: j (k m + n), with (m, n) the shape of the folded weight."""
    m, n = fold(layer.kernel, scheme).shape
    return rank * (groups * m + n)


def group_errors(matrix: Tensor, groups: int = 1, bound: Bound = "sharp") -> Tensor:
    """What truncation to each rank leaves, |W - W'| / |W| in the largest singular value, or a bound of it.

    Args:
        matrix: W, shape (m, n).
        groups: k, a divisor of n.
        bound: "paper": sqrt(k) max_i s_i. "sharp": sqrt(sum_i s_i^2). "exact": no bound, the value itself.

    Returns:
        Of ranks 0 ... min(m, n / k), float64, descending to 0.

    Raises:
        ValueError: for an unknown bound, or groups that do not divide n.

    Cost: the singular values of k matrices (m, n / k); "exact" one of (m, m) for every rank besides.

    Example:
        >>> w = torch.randn(6, 8, dtype=torch.float64)
        >>> exact, sharp, paper = (group_errors(w, 4, bound) for bound in ("exact", "sharp", "paper"))
        >>> bool((exact <= sharp + 1e-12).all() and (sharp <= paper + 1e-12).all() and exact[0] - 1 < 1e-12)
        True
    """
    if bound not in ("paper", "sharp", "exact"):
        raise ValueError(f"bound is 'paper', 'sharp' or 'exact', got {bound!r}")
    blocks = _blocks(matrix.double(), groups)
    size = torch.linalg.matrix_norm(matrix.double(), 2).clamp_min(torch.finfo(torch.float64).tiny)
    if bound == "exact":
        u, s, _ = torch.linalg.svd(blocks, full_matrices=False)
        left = torch.zeros(len(matrix), len(matrix), dtype=torch.float64, device=matrix.device)  # (W - W') (W - W')^T
        found = [left.new_zeros(())]
        for j in reversed(range(s.shape[1])):
            column = u[:, :, j] * s[:, j, None]
            left = left + column.T @ column
            found.append(torch.linalg.eigvalsh(left)[-1].clamp_min(0).sqrt())
        return torch.stack(found[::-1]) / size
    s = torch.linalg.svdvals(blocks)
    s = torch.cat([s, s.new_zeros(groups, 1)], 1)  # the full rank leaves nothing
    return (s.amax(0) * math.sqrt(groups) if bound == "paper" else s.square().sum(0).sqrt()) / size


def grouped(layer: Layer, rank: int, groups: int = 1, scheme: int = 0) -> Replacement:
    """The layer as two, the first in groups.

    Args:
        layer: whose place it takes.
        rank: j, of each group.
        groups: k, a divisor of its input channels.
        scheme: 0 to 3, see the module; of a linear layer all are one.

    Returns:
        `nn.Sequential` of two `nn.Conv2d`, or of a `GroupedLinear` (with one group an `nn.Linear`) and an `nn.Linear`; and a
        `Factorization` of the folded weight with a part for each group.

    Raises:
        ValueError: for a rank, groups or a scheme that it cannot have; the message has what it can.
    """
    folded = fold(layer.kernel, scheme)
    blocks = _blocks(folded.double(), groups)
    full = min(blocks.shape[1:])
    if not 1 <= rank <= full:
        raise ValueError(f"the rank of {groups} groups of {layer.name}, {tuple(folded.shape)}, lies in 1..{full}, got {rank}")
    u, s, v = torch.linalg.svd(blocks, full_matrices=False)
    root = s[:, :rank].sqrt()
    left, right = (u[:, :, :rank] * root[:, None]).to(folded), (root[:, :, None] * v[:, :rank]).to(folded)
    wide = left.transpose(0, 1).reshape(len(folded), groups * rank)
    return Replacement(
        _modules(layer, right, wide, scheme), Factorization(folded, form="grouped", factors={"left": left, "right": right})
    )


def _modules(layer: Layer, right: Tensor, wide: Tensor, scheme: int) -> nn.Sequential:
    """From V, shape (k, j, n / k), and [U_1 | ... | U_k], shape (m, k j)."""
    conv, (groups, rank, _) = layer.module, right.shape
    if not isinstance(conv, nn.Conv2d):
        first = linear(right[0], None) if groups == 1 else GroupedLinear(right.contiguous())
        return nn.Sequential(first, linear(wide, layer.bias))
    f, c, kh, kw = conv.weight.shape
    tall, wides = FIRST[scheme]
    v = right.reshape(groups * rank, c // groups, kh if tall else 1, kw if wides else 1)
    u = wide.reshape(f, 1 if tall else kh, 1 if wides else kw, groups * rank).permute(0, 3, 1, 2)
    return nn.Sequential(
        convolution(conv, v, None, axes=(tall, wides), groups=groups),
        convolution(conv, u, layer.bias, axes=(not tall, not wides)),
    )


def _blocks(matrix: Tensor, groups: int) -> Tensor:
    """(k, m, n / k)."""
    m, n = matrix.shape
    if groups < 1 or n % groups:
        raise ValueError(f"the {n} columns of a weight of shape ({m}, {n}) cannot be cut in {groups} equal groups")
    return matrix.reshape(m, groups, n // groups).transpose(0, 1)


# -- as a method -------------------------------------------------------------------------------------------------------


def fit_grouped(evidence: Evidence, *, schemes: Sequence[int] = (0,), bound: Bound = "paper") -> Fitted:
    """Relative errors of all ranks, for every scheme and number of groups."""
    return {f"{s}/{k}": group_errors(fold(evidence.layer.kernel, s), k, bound) for s, k in _families(evidence.layer, schemes)}


def grouped_choices(layer: Layer, fitted: Fitted, *, schemes: Sequence[int] = (0,)) -> Ladder:
    """Every rank of every scheme and number of groups that saves something."""
    rungs: list[tuple[tuple[int, int], int]] = []
    for scheme, k in _families(layer, schemes):
        limit = min(len(fitted[f"{scheme}/{k}"]) - 1, (layer.size - 1) // grouped_size(layer, 1, k, scheme))
        rungs += [((scheme, k), int(j)) for j in ranks_below(limit)]
    errors = {family: fitted["{}/{}".format(*family)].square().numpy() for family, _ in rungs}
    return with_dense(
        layer,
        [f"rank {j}" + (f" in {k} groups" if k > 1 else "") + (f", scheme {s}" if s else "") for (s, k), j in rungs],
        np.array([grouped_size(layer, j, k, s) for (s, k), j in rungs], dtype=np.int64),
        np.array([errors[family][j] for family, j in rungs]),
        lambda i: grouped(layer, rungs[i][1], rungs[i][0][1], rungs[i][0][0]),
        [family for family, _ in rungs],
    )


def _folds(layer: Layer, schemes: Sequence[int]) -> tuple[int, ...]:
    """Schemes that differ: of a kernel of size 1 all are one."""
    one = not isinstance(layer.module, nn.Conv2d) or set(layer.module.kernel_size) == {1}
    return (0,) if one else tuple(dict.fromkeys(schemes))


def _families(layer: Layer, schemes: Sequence[int]) -> list[tuple[int, int]]:
    return [(scheme, k) for scheme in _folds(layer, schemes) for k in divisors(layer, scheme)]
