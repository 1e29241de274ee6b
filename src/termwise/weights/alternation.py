"""The largest error of any layer made as small as the budget allows, where layers have choices of several kinds.

    min over choices  max_l e_l(kind_l, size_l)      subject to   sum_l cost_l(kind_l, size_l) <= B

By alternation from several starts: for given kinds the best sizes, a bisection; then for what each layer has been given to
spend the best kinds. A layer's choice matters to the others through one threshold t alone, so it can be solved at once: every
layer takes the cheapest of all its choices with an error up to t. No alternation ends below that.

Source: Liebenwein, Maalouf, Gal, Feldman & Rus 2021 (ALDS), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch

from .allocation import Allocation, least_worst
from .ladder import Curve, Ladder

__all__ = ["alternate"]

STARTS = (1, 3, 5, 7, 9)
"""Groups of the first starts, brought to the nearest that there is; those after them are random."""


def alternate(
    ladders: Mapping[str, Ladder],
    curves: Mapping[str, Curve],
    budget: float,
    *,
    seeds: int = 15,
    iterations: int = 4,
    generator: torch.Generator | None = None,
) -> Allocation:
    """Ranks for given groups, groups for given sizes, in turn; the best of several starts.

    Args:
        ladders: with families (scheme, k).
        curves: of the same layers.
        budget: in the unit of the costs.
        seeds: starts; 0 solves the problem at once.
        iterations: of each.
        generator: of the random starts; seed 0 when not given.

    Returns:
        An `Allocation`: `error` is the worst layer's, `bound` the least that any choice has.

    Raises:
        ValueError: when even the cheapest choices are above the budget.
    """
    generator = generator or torch.Generator().manual_seed(0)
    costs, errors = [c.costs for c in curves.values()], [c.errors for c in curves.values()]
    kinds = [list(ladders[name].families) or [None] * len(curves[name].costs) for name in curves]
    least = sum(float(c.min()) for c in costs)
    if least > budget * (1 + 1e-12):
        raise ValueError(f"a budget of {budget:.6g} is below the cheapest choices of all layers, {least:.6g}: raise it")

    def worst(chosen: list[int]) -> float:
        return max(float(e[i]) for e, i in zip(errors, chosen, strict=True))

    best = exact = least_worst(costs, errors, budget)
    if seeds:
        starts = (_start(kinds, turn, generator) for turn in range(seeds))
        ends = (_descend(costs, errors, kinds, start, budget, iterations) for start in starts)
        best = min((end for end in ends if end is not None), key=worst, default=exact)
    choice = dict(zip(curves, best, strict=True))
    spent = sum(float(c[i]) for c, i in zip(costs, best, strict=True))
    return Allocation(choice, spent, worst(best), worst(exact), float("nan"))


def _start(kinds: list[list[Hashable]], turn: int, generator: torch.Generator) -> list[Hashable]:
    """A family for every layer."""
    chosen: list[Hashable] = []
    for own in kinds:
        families: list[Any] = [family for family in dict.fromkeys(own) if family is not None]
        if not families:
            chosen.append(None)
        elif turn < len(STARTS):
            first = [family for family in families if family[0] == families[0][0]]
            chosen.append(min(first, key=lambda family: abs(family[1] - STARTS[turn])))
        else:
            chosen.append(families[int(torch.randint(len(families), (1,), generator=generator))])
    return chosen


def _descend(
    costs: list[np.ndarray],
    errors: list[np.ndarray],
    kinds: list[list[Hashable]],
    families: list[Hashable],
    budget: float,
    iterations: int,
) -> list[int] | None:
    """Where the alternation ends, or None where the first families do not fit the budget at all."""

    def ranks() -> list[int] | None:
        members = [
            np.array([i for i, kind in enumerate(own) if kind in (family, None)])
            for own, family in zip(kinds, families, strict=True)
        ]
        some = [c[own] for c, own in zip(costs, members, strict=True)]
        if sum(float(c.min()) for c in some) > budget * (1 + 1e-12):
            return None
        found = least_worst(some, [e[own] for e, own in zip(errors, members, strict=True)], budget)
        return [int(own[i]) for own, i in zip(members, found, strict=True)]

    chosen = ranks()
    for _ in range(iterations if chosen else 0):
        better = [int(np.where(c <= c[i], e, np.inf).argmin()) for c, e, i in zip(costs, errors, chosen or [], strict=True)]
        new = [own[i] if own[i] is not None else family for own, i, family in zip(kinds, better, families, strict=True)]
        if new == families:
            break
        families = new
        chosen = ranks()
    return chosen
