"""Shapley values over random orders: what each feature takes with it when all go, one after the other.

    R_i = mean over orders o of  f(x without what goes before i in o) - f(the same without i too)
    f(x) = Σ_i R_i + f(all replaced)                                        exactly, however few the orders

Along one order the differences telescope, so that each order is a decomposition and so is any mean of them. Over all orders
it is the Shapley value; a few are an estimate of it without bias. Each random order is followed by its reverse, in which
what went early goes late: where only pairs of features interact, the two together are the Shapley value already.

It asks the model, and no derivative: dearer than `explain`, and for anything that can be called. `occlusion` is the first
step of every order alone, and does not add up.

Cost: orders * (features - 1) + 3 forward passes per sample, in batches; memory: one batch.
Source: Shapley 1953; sampled orders: Castro et al. 2009, doi 10.1016/j.cor.2008.04.004; with their reverses: Mitchell et al.
2022, arXiv 2104.12199.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from termwise.core.arguments import seeded

from .explanation import Explanation
from .groups import Groups
from .occlusion import Replacing

__all__ = ["shapley"]


def shapley(
    model: nn.Module | Callable[..., Any],
    *inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    target: Any = None,
    orders: int = 2,
    baseline: Any = None,
    patch: int = 16,
    feature_mask: Tensor | Groups | None = None,
    keep: Tensor | None = None,
    name: str | None = None,
    generator: torch.Generator | None = None,
    batch_size: int = 32,
    names: Sequence[Any] | None = None,
    classes: Sequence[str] | None = None,
) -> Explanation:
    """Replace all features, one after the other, in random orders and their reverses, and book what each step costs.

    Args:
        model: in eval mode, as `explain` takes it.
        *inputs: one tensor, batch first, or a mapping of keyword inputs.
        kwargs: its keyword arguments, instead.
        target: as of `explain`, one per sample.
        orders: how many, an even number: every second one is the reverse of that before it.
        baseline: what stands in, as for `perturbation_curves`. None: zeros; for token ids "remove", which needs `keep`.
        patch: side of the square of pixels that counts as one feature of an image.
        feature_mask: instead, the number of the group of each position; -1 where nothing is replaced.
        keep: tokens or features never replaced, True.
        name: of several inputs, the one whose features are replaced; the first that can be explained when not given. The
            others stay as they are, and get no part.
        generator: of the orders, the same for every sample; seeded with 0 when not given.
        batch_size: rows of a pass.
        names: the tokens, for pictures.
        classes: names of the classes.

    Returns:
        An `Explanation`: the part of the input, and ``"constant:baseline"``, f with all features replaced.

    Raises:
        ValueError: an odd number of orders; as `occlusion`; tokens removed until none is left.

    Example:
        >>> f = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double().eval()
        >>> list(shapley(f, torch.randn(4, 3, dtype=torch.float64), target=0).check().parts)
        ['input:input', 'constant:baseline']
    """
    if orders < 2 or orders % 2:
        raise ValueError(f"orders must be even and at least 2, an order and its reverse; got {orders}")
    asked = Replacing(
        model, inputs, kwargs, target, baseline=baseline, name=name, batch_size=batch_size,
        patch=patch, feature_mask=feature_mask, keep=keep,
    )  # fmt: skip
    f, features = asked.f, asked.features
    n, batch = features.n, features.batch
    generator = seeded(generator)
    ranks = []
    for _ in range(orders // 2):
        rank = features.random_ranks(generator, alike=True)
        ranks += [rank, torch.where(features.present, features.counts[:, None] - 1 - rank, rank)]
    places = torch.stack(ranks)  # (orders, batch, n): how many features go before this one
    rows = torch.arange(1 + orders * (n - 1)).repeat_interleave(batch)  # all replaced, then every step between
    order, gone = (rows - 1).clamp(min=0) // max(1, n - 1), torch.where(rows > 0, (rows - 1) % max(1, n - 1) + 1, n)
    samples = torch.arange(batch).repeat(1 + orders * (n - 1))

    def replaced(chosen: Tensor) -> Tensor:
        return places[order[chosen], samples[chosen]] < gone[chosen, None]

    found = asked.answers(samples, replaced).view(-1, batch)
    steps = found[1:].view(orders, n - 1, batch)
    ends = f.whole.expand(orders, 1, batch), found[:1].expand(orders, 1, batch)
    costs = -torch.cat([ends[0], steps, ends[1]], 1).diff(dim=1).mT.cpu()  # (orders, batch, n) by place
    effects = costs.gather(2, places).mean(0)
    return f.explanation([asked.shared(effects)], "shapley", constants={"baseline": found[0]}, names=names, classes=classes)
