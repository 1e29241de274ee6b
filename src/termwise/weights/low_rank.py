r"""Matrices of low rank for a layer, from the data-blind to the one that knows what the model makes of its errors.

    svd     min |W - W'|                                            plain truncation
    asvd    min |(W - W') diag(mean |x|)^(1/2)|                     columns scaled by how large their inputs are
    aware   min E |(W - W') x|^2                                    the layer's own output
    auto    min E |f(x; W) - f(x; W')|^2 to second order            the output of the model; stored by pivots

Source: Yuan et al. 2023 (ASVD), eq. 6; `projection` for the others; Zhao, Zhang & Cai 2025 (PIFA) for storing by pivots.
"""

from __future__ import annotations

import numpy as np
import torch

from .evidence import Evidence
from .ladder import Ladder, Replacement, ranks_below, with_dense
from .products import pair, pair_size, pivoted, pivoted_size
from .projection import Projection, project

__all__ = ["asvd", "aware", "end_aware", "svd"]


def svd(evidence: Evidence) -> Ladder:
    """Truncated singular value decompositions; errors are shares of |W|^2."""
    return _ladder(Evidence(evidence.layer), project(evidence.layer.matrix))


def asvd(evidence: Evidence) -> Ladder:
    """Truncations of W diag(s), s = mean |x|^(1/2) by input, scaled back; errors are shares of the layer's output."""
    if evidence.stats is None:
        return svd(evidence)
    scale = evidence.stats.abs_mean.sqrt().clamp_min(1e-6 * float(evidence.stats.abs_mean.max().sqrt()) + 1e-30)
    found = project(evidence.layer.matrix.double() * scale)
    return _ladder(evidence, Projection(found.energies, found.left, found.right / scale))


def aware(evidence: Evidence) -> Ladder:
    """The best for the layer's own output; errors are shares of it."""
    return _ladder(evidence, Evidence(evidence.layer, evidence.stats, shrinkage=evidence.shrinkage).project())


def end_aware(evidence: Evidence) -> Ladder:
    """The best for the output of the model; errors are in its unit, and add up over layers."""
    return _ladder(evidence, evidence.project(), pivots=True, relative=evidence.sensitivity is None)


def _ladder(evidence: Evidence, found: Projection, *, pivots: bool = False, relative: bool = True) -> Ladder:
    """All ranks of a projection that save something."""
    layer, k = evidence.layer, len(found.energies)
    size = pivoted_size if pivots else pair_size
    m, n = layer.shape
    ranks = ranks_below(min(k, m - 1, n) if pivots else min(k, (m * n - 1) // (m + n)), 8 if min(m, n) >= 128 else 1)
    local = Evidence(layer, evidence.stats, evidence.held) if relative else evidence
    errors = local.errors(found)[torch.as_tensor(ranks)].numpy() / (max(local.total(), 1e-300) if relative else 1.0)
    left, right = found.left.to(layer.matrix.dtype), found.right.to(layer.matrix.dtype)  # half the memory until they are used

    def build(i: int) -> Replacement:
        r = int(ranks[i])
        first, second = left[:, :r].double(), right[:r].double()
        return (pivoted if pivots else pair)(layer, first, second, evidence.shift(first, second))

    params = np.array([size(layer.shape, int(r)) for r in ranks], dtype=np.int64)
    return with_dense(layer, [f"rank {r}" for r in ranks], params, errors, build)
