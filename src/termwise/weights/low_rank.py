r"""Matrices of low rank for a layer, from the data-blind to the one that knows what the model makes of its errors.

    svd     min |W - W'|                                            plain truncation
    asvd    min |(W - W') diag(mean |x|)^(1/2)|                     columns scaled by how large their inputs are
    aware   min E |(W - W') x|^2                                    the layer's own output
    auto    min E |f(x; W) - f(x; W')|^2 to second order            the output of the model; stored by pivots

Source: Yuan et al. 2023 (ASVD), eq. 6; `projection` for the others; Zhao, Zhang & Cai 2025 (PIFA) for storing by pivots.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from .evidence import Evidence
from .first_order import first_order
from .ladder import Fitted, Ladder, Replacement, ranks_below, with_dense
from .layers import Layer
from .products import pair, pair_size, pivoted, pivoted_size
from .projection import Projection, project
from .task import Task

__all__ = ["at_rank", "errors_at_output", "fit_asvd", "fit_aware", "fit_end", "fit_svd", "pairs", "pivots", "shift"]

Make = Callable[[Layer, Tensor, Tensor, Tensor | None], Replacement]
"""A module from left and right factors, and what is added to the bias."""


def fit_svd(evidence: Evidence) -> Fitted:
    """Terms of the singular value decomposition; errors are shares of |W|^2."""
    return _fitted(Evidence(evidence.layer), project(evidence.layer.matrix))


def fit_asvd(evidence: Evidence) -> Fitted:
    """Terms of W diag(s), s = mean |x|^(1/2) by input, scaled back; errors are shares of the layer's output."""
    if evidence.stats is None:
        return fit_svd(evidence)
    scale = evidence.stats.abs_mean.sqrt()
    scale = scale.clamp_min(1e-6 * float(scale.max()) + 1e-30)  # an input that is always 0
    found = project(evidence.layer.matrix.double() * scale)
    return _fitted(evidence, Projection(found.energies, found.left, found.right / scale))


def fit_aware(evidence: Evidence) -> Fitted:
    """The best terms for the layer's own output; errors are shares of it."""
    return _fitted(evidence, evidence.own().project())


def fit_end(evidence: Evidence) -> Fitted:
    """The best terms for the output of the model, errors in its unit: of independent rows, until `errors_at_output`."""
    if evidence.sensitivity is None:  # the output does not depend on the layer, which then stays as it is
        return fit_aware(evidence)
    return {**_fitted(evidence, evidence.project(), relative=False), "felt": torch.ones(1)}


def errors_at_output(task: Task, ladders: Mapping[str, Ladder], fitted: Mapping[str, Fitted]) -> dict[str, Ladder]:
    """The same with what each rank does to the output of the model, sample by sample, on the data to select on."""
    layers = {name: ladder.layer for name, ladder in ladders.items() if "felt" in fitted[name]}
    errors = first_order(
        task.model, task.stepping(task.batches.select), layers, fitted, metric=task.metric, judged=task.judged,
        draws=task.draws, generator=torch.Generator().manual_seed(task.seed),
    )  # fmt: skip
    known = {name: ChainMap({"errors": e}, fitted[name]) for name, e in errors.items()}  # type: ignore[arg-type]
    return {name: pivots(layers[name], terms) for name, terms in known.items()}


def _fitted(evidence: Evidence, found: Projection, *, relative: bool = True) -> Fitted:
    """Terms in the precision of the weights, and their errors on data held out."""
    judge = evidence.own() if relative else evidence
    errors = judge.errors(found) / (max(judge.total(), 1e-300) if relative else 1.0)
    dtype = evidence.layer.matrix.dtype
    fitted = {"left": found.left.to(dtype), "right": found.right.to(dtype), "errors": errors}
    return fitted if evidence.stats is None else {**fitted, "mean": evidence.stats.mean}


def pairs(layer: Layer, fitted: Fitted, *, new_bias: bool = False) -> Ladder:
    """Every rank that saves something as two layers: r (m + n) numbers; with a bias where there was none, if it may be new."""
    m, n = layer.shape
    return _ladder(layer, fitted, pair, pair_size, min(m, n, (m * n - 1) // (m + n)), new_bias=new_bias)


def pivots(layer: Layer, fitted: Fitted) -> Ladder:
    """Every rank below both sizes as some of the layer's outputs and what mixes the others: r (m + n - r) numbers."""
    m, n = layer.shape
    return _ladder(layer, fitted, pivoted, pivoted_size, min(m - 1, n))


def _ladder(  # type: ignore[no-untyped-def]
    layer: Layer, fitted: Fitted, make: Make, size, limit: int, *, new_bias: bool = False
) -> Ladder:
    ranks = ranks_below(limit, 8 if min(layer.shape) >= 128 else 1)

    def build(i: int) -> Replacement:
        return at_rank(layer, fitted, ranks[i], make, new_bias=new_bias)

    params = np.array([size(layer.shape, int(r)) for r in ranks], dtype=np.int64)
    errors = fitted["errors"][torch.as_tensor(ranks, dtype=torch.int64)].double().numpy()
    return with_dense(layer, [f"rank {r}" for r in ranks], params, errors, build)


def at_rank(layer: Layer, fitted: Fitted, rank: int, make: Make = pair, *, new_bias: bool = False) -> Replacement:
    """The layer of its first terms; its bias, or a new one, takes the mean of what the others put out."""
    left, right = fitted["left"][:, :rank].double(), fitted["right"][:rank].double()
    mean = fitted.get("mean") if new_bias or layer.bias is not None else None
    return make(layer, left, right, shift(layer, left, right, mean))


def shift(layer: Layer, left: Tensor, right: Tensor, mean: Tensor | None) -> Tensor | None:
    """(W - W') E[x], which the bias takes."""
    return None if mean is None else layer.matrix.to(mean) @ mean - left @ (right @ mean)
