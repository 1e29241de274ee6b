r"""One allocator: which choice for which layer, so that the budget is kept and as little as possible is spoiled.

    min over choices  sum_l e_l(c_l)    (or max_l e_l(c_l))      subject to   sum_l cost_l(c_l) <= B

By dynamic programming over layers and spent budget (exact for the costs it is given), or by a price on cost:
c_l = argmin e_l(c) + price * cost_l(c), which is optimal where the curves are convex and gives a lower bound everywhere.

Source: Shoham & Gersho 1988, Efficient bit allocation for an arbitrary set of quantizers (the price); Xu et al. 2023, Efficient
joint optimization of layer-adaptive weight pruning, section 3.3 (the programme over layers).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from termwise.core.pictures import MANY, Bars, Picture, Pictured

from .ladder import Curve

__all__ = ["Allocation", "allocate", "least_worst"]

BUCKETS = 4096
"""Parts that the budget is counted in, for each 64 layers."""

Method = Literal["dp", "lagrange", "uniform"]


@dataclass(frozen=True)
class Allocation(Pictured):
    """What was chosen.

    Attributes:
        choice: index of the choice, by layer.
        cost: of all of them together; not above the budget.
        error: expected, the sum over layers (or their largest).
        bound: no choice within the budget has an error below this.
        price: error per cost at the bound: what a little more budget would save.
    """

    choice: dict[str, int]
    cost: float
    error: float
    bound: float
    price: float

    @property
    def gap(self) -> float:
        """`error - bound`: how far from optimal it can be at most."""
        return max(self.error - self.bound, 0.0)

    def pictures(self, sample: int = 0) -> list[Picture]:
        """What was chosen for every layer, and how far from the best that can be."""
        note = (
            f"Cost {self.cost:.4g}, expected error {self.error:.4g}; no choice within the budget is below {self.bound:.4g}. "
            f"A unit more of cost would save about {self.price:.3g}."
        )
        names = list(self.choice)[:MANY]
        more = f" {len(names)} of {len(self.choice)} layers are shown." if len(names) < len(self.choice) else ""
        chosen = {"choice": [self.choice[n] for n in names]}
        return [Bars("Choices", names, chosen, y="number of the choice, from cheap to dense", note=note + more)]


def allocate(
    curves: Mapping[str, Curve],
    budget: float,
    *,
    objective: Literal["sum", "max"] = "sum",
    method: Method = "dp",
    groups: Sequence[Sequence[str]] = (),
    bounds: Mapping[str, tuple[float, float]] | None = None,
) -> Allocation:
    """Choose for every layer.

    Args:
        curves: costs and errors of each layer's choices.
        budget: B, in the unit of the costs.
        objective: "sum" of the errors, or their "max" (then found by bisection, whatever the method).
        method: "dp", "lagrange", or "uniform": every layer the dearest choice within the same share of its own dearest one.
        groups: layers whose choices are tied: the same index for all.
        bounds: least and greatest cost of some layers.

    Returns:
        An `Allocation`. With "dp" the better of the programme and the price.

    Raises:
        ValueError: when even the cheapest choices are above the budget (the message has their cost); for unknown names, a group
            of curves of different length, or bounds that leave no choice.

    Cost: "dp" O(layers * choices * buckets), "lagrange" O(layers * choices) per bisection.

    Example:
        >>> curve = Curve(np.array([1.0, 2.0, 4.0]), np.array([9.0, 1.0, 0.0]))
        >>> allocate({"a": curve, "b": curve}, budget=4).choice
        {'a': 1, 'b': 1}
    """
    if objective not in ("sum", "max") or method not in ("dp", "lagrange", "uniform"):
        raise ValueError(
            f"objective is 'sum' or 'max' and method 'dp', 'lagrange' or 'uniform', got {objective!r} and {method!r}"
        )
    if not curves:
        raise ValueError("curves is empty: give one for each layer")
    if not budget > 0 or budget == float("inf"):
        raise ValueError(f"a budget is a positive number, got {budget!r}")
    tied = _tie(curves, groups)
    table = {members: _within(curves, members, bounds or {}) for members in tied}
    least = sum(costs.min() for costs, _, _ in table.values())
    if least > budget * (1 + 1e-12):
        raise ValueError(f"a budget of {budget:.6g} is below the cheapest choices of all layers, {least:.6g}: raise it")
    costs = [c for c, _, _ in table.values()]
    errors = [e for _, e, _ in table.values()]
    priced, price, bound = _by_price(costs, errors, budget)
    if objective == "max":
        found = least_worst(costs, errors, budget)
        worst = max(float(e[i]) for e, i in zip(errors, found, strict=True))
        return _allocation(table, found, costs, worst, worst, price)
    found = priced
    if method == "uniform":
        found = _uniform(costs, errors, budget)
    elif method == "dp":
        exact = _by_programme(costs, errors, budget)
        found = min((exact, priced), key=lambda chosen: sum(float(e[i]) for e, i in zip(errors, chosen, strict=True)))
    return _allocation(table, found, costs, sum(float(e[i]) for e, i in zip(errors, found, strict=True)), bound, price)


def _tie(curves: Mapping[str, Curve], groups: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Every layer in exactly one group."""
    seen: set[str] = set()
    for group in groups:
        unknown = [name for name in group if name not in curves]
        if unknown or seen & set(group):
            raise ValueError(f"groups are disjoint lists of layers; {unknown or sorted(seen & set(group))} is unknown or in two")
        if len({len(curves[name].costs) for name in group}) > 1:
            raise ValueError(f"layers {list(group)} have ladders of different length and cannot be tied")
        seen |= set(group)
    return [*(tuple(group) for group in groups if group), *((name,) for name in curves if name not in seen)]


def _within(
    curves: Mapping[str, Curve], members: tuple[str, ...], bounds: Mapping[str, tuple[float, float]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Costs, errors and indices of a group's choices within their bounds."""
    costs, errors = (sum(getattr(curves[name], what) for name in members) for what in ("costs", "errors"))
    allowed = np.ones(len(costs), dtype=bool)
    for name in members:
        low, high = bounds.get(name, (0.0, np.inf))
        allowed &= (curves[name].costs >= low) & (curves[name].costs <= high)
    if not allowed.any():
        raise ValueError(f"no choice of {members[0]} lies within its bounds {bounds[members[0]]}")
    return costs[allowed], errors[allowed], np.flatnonzero(allowed)


def _by_price(costs: list[np.ndarray], errors: list[np.ndarray], budget: float) -> tuple[list[int], float, float]:
    """Choices, price and lower bound, by bisection on the logarithm of the price."""

    def at(price: float) -> tuple[list[int], float, float]:
        chosen = [int(np.lexsort((c, e + price * c))[0]) for c, e in zip(costs, errors, strict=True)]
        spent = sum(float(c[i]) for c, i in zip(costs, chosen, strict=True))
        dual = sum(float((e + price * c).min()) for c, e in zip(costs, errors, strict=True)) - price * budget
        return chosen, spent, dual

    chosen, spent, bound = at(0.0)
    if spent <= budget:
        return chosen, 0.0, bound
    size = max(max(e.max() for e in errors), 1e-300) / max(min(c[c > 0].min(initial=1.0) for c in costs), 1e-300)
    low, high = np.log(size) - 80.0, np.log(size) + 5.0
    best = [int(c.argmin()) for c in costs]
    for _ in range(100):
        middle = (low + high) / 2
        chosen, spent, dual = at(float(np.exp(middle)))
        bound = max(bound, dual)
        if spent > budget:
            low = middle
        else:
            high, best = middle, chosen
    return _spend_the_rest(costs, errors, best, budget), float(np.exp(high)), bound


def _spend_the_rest(costs: list[np.ndarray], errors: list[np.ndarray], chosen: list[int], budget: float) -> list[int]:
    """Take single steps that still fit, the most useful per cost first, until none does."""
    chosen = list(chosen)
    left = budget - sum(float(c[i]) for c, i in zip(costs, chosen, strict=True))
    while True:
        best, gain = None, 0.0
        for k, (c, e) in enumerate(zip(costs, errors, strict=True)):
            extra, saved = c - c[chosen[k]], e[chosen[k]] - e
            fits = (extra <= left) & (saved > 0)
            if fits.any():
                rate = np.where(fits, saved / np.maximum(extra, 1e-300), 0.0)
                i = int(rate.argmax())
                if rate[i] > gain:
                    best, gain = (k, i), float(rate[i])
        if best is None:
            return chosen
        k, i = best
        left -= float(costs[k][i] - costs[k][chosen[k]])
        chosen[k] = i


def _by_programme(costs: list[np.ndarray], errors: list[np.ndarray], budget: float) -> list[int]:
    """Exact over costs counted in buckets, rounded up, so that the budget is never exceeded."""
    integers = all((c == c.round()).all() for c in costs)
    divisor = float(np.gcd.reduce([int(x) for c in costs for x in c])) if integers else 0.0
    count = BUCKETS * (1 + len(costs) // 64)
    unit = divisor if divisor and budget / divisor <= count else budget / count
    slots = int(budget / unit + 1e-9)
    best = np.zeros(slots + 1)
    taken = np.zeros((len(costs), slots + 1), dtype=np.int32)
    for k, (c, e) in enumerate(zip(costs, errors, strict=True)):
        steps = np.ceil(c / unit - 1e-9).astype(int)
        new = np.full(slots + 1, np.inf)
        for i, (step, error) in enumerate(zip(steps, e, strict=True)):
            if step <= slots:
                trial = best[: slots + 1 - step] + error
                better = trial < new[step:]
                new[step:][better] = trial[better]
                taken[k, step:][better] = i
        best = new
    if not np.isfinite(best[slots]):  # rounding up left no room
        return [int(c.argmin()) for c in costs]
    chosen, slot = [], slots
    for k in reversed(range(len(costs))):
        i = int(taken[k, slot])
        chosen.append(i)
        slot -= int(np.ceil(costs[k][i] / unit - 1e-9))
    return _spend_the_rest(costs, errors, chosen[::-1], budget)


def least_worst(costs: list[np.ndarray], errors: list[np.ndarray], budget: float) -> list[int]:
    """The cheapest choices with errors up to t, for the least t with which they keep the budget (some choices do)."""

    def at(t: float) -> list[int]:
        return [int(np.where(e <= t, c, np.inf).argmin()) for c, e in zip(costs, errors, strict=True)]

    levels = np.unique(np.concatenate(errors))
    levels = levels[levels >= max(e.min() for e in errors)]
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        spent = sum(float(c[i]) for c, i in zip(costs, at(levels[middle]), strict=True))
        low, high = (low, middle) if spent <= budget else (middle + 1, high)
    return at(levels[low])


def _uniform(costs: list[np.ndarray], errors: list[np.ndarray], budget: float) -> list[int]:
    """Every layer the dearest choice within one share of its dearest."""

    def at(share: float) -> list[int]:
        limits = [max(share * c.max(), c.min()) for c in costs]
        return [
            int(np.where(c <= limit * (1 + 1e-12), e, np.inf).argmin()) for c, e, limit in zip(costs, errors, limits, strict=True)
        ]

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        spent = sum(float(c[i]) for c, i in zip(costs, at(middle), strict=True))
        low, high = (middle, high) if spent <= budget else (low, middle)
    return at(low)


def _allocation(
    table: Mapping[tuple[str, ...], tuple[np.ndarray, np.ndarray, np.ndarray]],
    found: list[int],
    costs: list[np.ndarray],
    error: float,
    bound: float,
    price: float,
) -> Allocation:
    choice = {name: int(index[i]) for (members, (_, _, index)), i in zip(table.items(), found, strict=True) for name in members}
    return Allocation(choice, sum(float(c[i]) for c, i in zip(costs, found, strict=True)), error, bound, price)
