r"""Which steps to compute, when it is known what all of them would have given.

    min over anchors a_0 = 0 < a_1 < ... < a_{b-1} of      sum_{j no anchor} e_j,      e_j = |F_j - F^_j| reach_j / |x_j|

One run with every step computed says by how much a line through any two steps misses any later one. The best anchors are found
by dynamic programming over the pair of the last two: exactly, for every budget at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from termwise.core.pictures import Line, Lines, Picture, Pictured

__all__ = ["Plan", "plan"]


@dataclass(frozen=True)
class Plan(Pictured):
    """Steps to compute, and the errors of the others.

    Attributes:
        anchors: steps that are computed.
        errors: of every step, 0 where it is computed; their sum is what was minimised.
    """

    anchors: tuple[int, ...]
    errors: tuple[float, ...]

    @property
    def total(self) -> float:
        """Sum of the errors."""
        return math.fsum(self.errors)

    def pictures(self, sample: int = 0) -> list[Picture]:
        """The error of every step that is forecast, and the steps that are computed."""
        lines = [
            Line("forecast", list(range(len(self.errors))), list(self.errors), role="remainder", stems=True),
            Line("computed", list(self.anchors), [0.0] * len(self.anchors), markers=True),
        ]
        note = f"{len(self.anchors)} of {len(self.errors)} are computed; the errors of the others add up to {self.total:.3g}."
        return [Lines("The plan", lines, x="step", y="relative error that it adds", note=note)]


def plan(
    outputs: Tensor, nodes: list[float], weights: Tensor, *, first_steps: int = 2, last_steps: int = 0, max_skip: int = 8
) -> dict[int, Plan]:
    """The best anchors for every number of them.

    Args:
        outputs: of every step, (n, batch, ...).
        nodes: their times, in which forecasts are lines; steps at one time are left out of each other's lines.
        weights: what a unit of error of each step and sample does to the result, (n, batch).
        first_steps: computed in any case, at least 2.
        last_steps: computed in any case.
        max_skip: forecasts in a row.

    Returns:
        For each number of computed steps that is possible, the plan.

    Raises:
        ValueError: when numbers do not fit.

    Cost: O(n max_skip^2) forecasts of the outputs' size, and as many steps of the programme for each budget.

    Source: this library; Bellman's principle.
    """
    n, first = len(nodes), max(first_steps, 2)
    if len(outputs) != n or weights.shape != outputs.shape[:2] or n < first + last_steps:
        raise ValueError(
            f"{len(outputs)} outputs at {n} times with weights {tuple(weights.shape)}, and {first} + {last_steps} steps that are "
            "computed in any case: give (n, batch, ...) outputs, n times and (n, batch) weights"
        )
    flat = outputs.detach().flatten(2).double()
    forced = n - last_steps  # from here on every step is computed

    def misses(before: int, anchor: int) -> list[float]:
        """Errors of the steps after `anchor`, as far as they may be skipped."""
        ahead = range(anchor + 1, min(anchor + max_skip + 1, forced))
        if nodes[before] == nodes[anchor]:
            return [math.inf] * len(ahead)
        slope = [(nodes[j] - nodes[anchor]) / (nodes[anchor] - nodes[before]) for j in ahead]
        step = flat[anchor] - flat[before]
        return [
            ((flat[anchor] + s * step - flat[j]).norm(dim=1) * weights[j]).mean().item()
            for s, j in zip(slope, ahead, strict=True)
        ]

    table = {(b, a): misses(b, a) for a in range(first - 1, n) for b in range(max(first - 2, a - max_skip - 1), a)}
    # best[(b, a)] = (sum of errors so far, the anchors), both computed, for the present number of anchors
    best: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {(first - 2, first - 1): (0.0, tuple(range(first)))}
    plans: dict[int, Plan] = {}
    for computed in range(first, n + 1):
        ends = []
        longer: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {}
        for (b, a), (error, anchors) in best.items():
            sums = [0.0]
            for miss in table[b, a]:
                sums.append(sums[-1] + miss)
            for skipped, more in enumerate(sums):
                following = a + skipped + 1
                if following == n:
                    ends.append((error + more, anchors))
                elif (a, following) not in longer or error + more < longer[a, following][0]:
                    longer[a, following] = (error + more, (*anchors, following))
        if ends:
            anchors = min(ends)[1]
            errors = [0.0] * n
            for b, a, end in zip(anchors[first - 2 :], anchors[first - 1 :], [*anchors[first:], n], strict=False):
                errors[a + 1 : end] = table[b, a][: end - a - 1]
            plans[computed] = Plan(anchors, tuple(errors))
        best = longer
    return plans
