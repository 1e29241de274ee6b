r"""ROM: layers made low-rank one after the other, each for what it reads once those before it have been replaced.

    target "compressed"    min E |W x~ - W' x~|^2        W' = V V^T W,   V = leading eigenvectors of  W G~ W^T       (the paper)
    target "original"      min E |W x  - W' x~|^2        W' = V V^T B,   B = W E[x x~^T] G~^-1,   V of  B G~ B^T     (regression)

x is what the layer reads in the model, x~ what it reads behind replaced layers, G~ = E[x~ x~^T]; about their means where there is
a bias. The second corrects errors of earlier layers: the linear map nearest to what the layer once put out, of low rank.

The last blocks are made smaller, all layers in them by the same share, and the first stay as they are. How many: the paper has 8,
12 and 24 of 32 blocks for 90, 80 and 50 % of the parameters, and here shares of blocks in between are interpolated.

Source: Chavan, Lele & Gupta 2023 (ROM), sections 2 and 3; regression of reduced rank: Izenman 1975.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from .allocation import Allocation, allocate
from .calibration import LayerStats, kept_tokens, rows_read, shrink
from .ladder import Curve, Ladder, Replacement
from .layers import Layer, put, sharing_copy
from .low_rank_linear import LowRankLinear
from .products import pair
from .projection import project
from .sequential import Stream, route
from .task import Task

if TYPE_CHECKING:
    from .compressed import Compressed

__all__ = ["Target", "last_blocks", "one_after_another", "rom"]

Target = Literal["compressed", "original"]

KEPT, BLOCKS = (0.0, 0.5, 0.8, 0.9, 1.0), (1.0, 24 / 32, 12 / 32, 8 / 32, 0.0)
"""Parameters kept, and the share of blocks that are made smaller for it."""

RIDGE = 1e-6
"""Least share of the identity in what is inverted."""


def rom(
    model: nn.Module,
    budget: float,
    *,
    data: Any,
    blocks: Literal["last"] | Sequence[str] = "last",
    module_budget: float | None = None,
    target: Target = "compressed",
    keep: Sequence[str] = (),
    shrinkage: float = 0.1,
) -> Compressed:
    """Make the last blocks of a model smaller, layer after layer.

    Args:
        model: it is not changed; what stays is shared with the result.
        budget: share of the parameters to keep, see `compress`.
        data: some unlabelled inputs, see `compress`.
        blocks: "last", or patterns of the paths of blocks (or of layers outside of blocks) that may be made smaller.
        module_budget: share that is kept of each layer that is made smaller; as many of the last blocks then are as the budget
            asks for. When not given the number of blocks is the paper's, and the share follows.
        target: what a layer is fitted to, see the top of this file.
        keep: patterns of paths left alone.
        shrinkage: see `compress`.

    Returns:
        A `Compressed`. Its rows' `error` is blind to data, what truncation would lose of the weight: ranks are chosen by size.

    Raises:
        ValueError: for patterns that fit no block, a module budget outside (0, 1), an unknown target, a budget that the blocks
            cannot keep, or as `compress`.

    Cost: one run of the model over the data for each group of layers in a block that read the same tensor, and one to move on
    (two with "original"); an eigenproblem per layer. Memory: the inputs of one block for all batches.

    Example:
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(16, 16) for _ in range(4)))
        >>> [row.choice for row in rom(model, 0.8, data=torch.randn(200, 16)).layers]
        ['dense', 'dense', 'rank 4', 'rank 4']
    """
    from .compress import compress
    from .low_rank import fit_svd, pairs
    from .methods import Method

    if target not in ("compressed", "original"):
        raise ValueError(f"target is 'compressed' or 'original', got {target!r}")
    if module_budget is not None and not 0 < module_budget < 1:
        raise ValueError(f"module_budget is the share kept of each layer, between 0 and 1, got {module_budget!r}")
    policy = partial(last_blocks, blocks=blocks, module_budget=module_budget)
    build = partial(one_after_another, target=target)
    method = Method(fit_svd, pairs, policy, data=False, name="rom", build=build)
    return compress(model, budget, data=data, method=method, keep=keep, shrinkage=shrinkage, progress=False)


def last_blocks(
    ladders: Mapping[str, Ladder],
    curves: Mapping[str, Curve],
    budget: float,
    *,
    blocks: Literal["last"] | Sequence[str] = "last",
    module_budget: float | None = None,
) -> Allocation:
    """The same share of each layer in the last blocks, and the rest as it is."""
    of = {name: _block(name) for name in ladders}
    order = list(dict.fromkeys(block for block in of.values() if block is not None))
    dense = {name: float(curve.costs[-1]) for name, curve in curves.items()}
    if not isinstance(blocks, str):
        chosen = {name for name in of if any(fnmatch.fnmatch(of[name] or name, pattern) for pattern in blocks)}
        if not chosen:
            raise ValueError(f"blocks={list(blocks)} fit none of {', '.join(order) or ', '.join(ladders)}")
        return _alike(curves, chosen, budget, module_budget)
    if blocks != "last":
        raise ValueError(f"blocks is 'last' or patterns of paths, ['model.layers.2*'], got {blocks!r}")
    share = float(np.interp(budget / sum(dense.values()), KEPT, BLOCKS))
    first = 1 if module_budget is not None else round(share * len(order))
    for count in range(first, len(order) + 1):
        chosen = {name for name in of if of[name] in order[len(order) - count :]}
        least = {name: module_budget * dense[name] if module_budget else float(curves[name].costs.min()) for name in chosen}
        if sum(least.get(name, cost) for name, cost in dense.items()) <= budget:
            return _alike(curves, chosen, budget, module_budget)
    return _alike(curves, set(ladders), budget, None)


def _block(layer: str) -> str | None:
    """The path up to its first number."""
    found = re.match(r"(?:.*?\.)?\d+(?=\.|$)", layer)
    return found and found[0]


def _alike(curves: Mapping[str, Curve], chosen: set[str], budget: float, share: float | None) -> Allocation:
    """One share for those that were chosen; the last choice for the others."""
    free = {n: c if n in chosen else Curve(c.costs[-1:], c.errors[-1:]) for n, c in curves.items()}
    limit = sum(float(c.costs[-1]) * (share if share and n in chosen else 1.0) for n, c in free.items())
    found = allocate(free, min(budget, limit), method="uniform")
    choice = {n: i if n in chosen else len(curves[n].costs) - 1 for n, i in found.choice.items()}
    return Allocation(choice, found.cost, found.error, found.bound, found.price)


def one_after_another(
    task: Task, ladders: Mapping[str, Ladder], choice: Mapping[str, int], *, target: Target = "compressed"
) -> dict[str, Replacement]:
    """Replacements at chosen ranks, each fitted to what its layer reads behind those before it."""
    small = sharing_copy(task.model)
    along = route(task.model, task.layers, task.batches.fit[0])
    streams = [Stream(m, task.batches.fit, along) for m in ((small, task.model) if target == "original" else (small,))]
    built = {name: ladder.build(len(ladder) - 1) for name, ladder in ladders.items()}
    for group in along.groups:
        smaller = [name for name in group if choice[name] < len(ladders[name]) - 1]
        if not smaller:
            continue
        stats = _statistics(task, task.layers[group[0]], group[0], streams)
        for name in smaller:
            layer = task.layers[name]
            rank = int(ladders[name].params[choice[name]]) // sum(layer.shape)
            built[name] = _fitted(layer, stats, rank, task.shrinkage)
            put(small, name, _running(built[name].module))
            task.step(f"replaced {name}")
    return built


def _statistics(task: Task, layer: Layer, name: str, streams: list[Stream]) -> LayerStats:
    """Of rows x~, or of rows (x~, x) side by side."""
    draws = [torch.Generator().manual_seed(task.seed) for _ in streams]
    total: LayerStats | None = None
    for batch, *seen in zip(task.batches.fit, *(stream.inputs(name) for stream in streams), strict=True):
        keep = kept_tokens(batch)
        for tensors in zip(*seen, strict=True):
            rows = torch.cat([rows_read(layer, x, keep, g) for x, g in zip(tensors, draws, strict=True)], 1)
            if len(rows):
                new = LayerStats.of(rows)
                total = new if total is None else total.merge(new)
    if total is None:
        raise ValueError(f"{name} was reached by no row of the data: give more, or name it in keep=")
    return total


def _fitted(layer: Layer, stats: LayerStats, rank: int, shrinkage: float) -> Replacement:
    """The map of a rank from x~ to what the layer makes of x~, or of x where the rows hold both."""
    w, n = layer.matrix.double(), layer.shape[1]
    moment = stats.gram if layer.bias is None else stats.covariance
    if len(moment) == n:
        left, right = project(w, shrink(moment, shrinkage)).factors(rank)
        wanted = stats.mean
    else:
        gram, cross = moment[:n, :n], moment[n:, :n]
        share, size = max(shrinkage, RIDGE), gram.diagonal().mean()
        prior = share * size * torch.eye(n, dtype=w.dtype, device=w.device)  # of rows where x~ is x
        gram, cross = (1 - share) * gram + prior, (1 - share) * cross + prior
        best = torch.linalg.solve(gram, cross.T @ w.T).T
        left, right = project(best, gram).factors(rank)
        wanted = stats.mean[n:]
    shift = None if layer.bias is None else w @ wanted - left @ (right @ stats.mean[:n])
    return pair(layer, left, right, shift)


def _running(module: nn.Module) -> nn.Module:
    """In a form that models which read attributes of a linear layer run."""
    linear = isinstance(module, nn.Sequential) and all(isinstance(m, nn.Linear) for m in module)
    return LowRankLinear(*module) if linear else module
