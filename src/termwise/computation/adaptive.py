r"""Adaptive: compute when going on without has grown too wrong, as solvers of ODEs choose their steps.

    e_i = rho |F^_m - F^_{m-1}| reach_i / |x_i|       compute step i when the e since the last computed one exceed theta

The estimate is free: the forecast's last term; rho, by which errors differ from it, is known from the computed steps; `reach` is
what an error of the prediction does to the picture (`NoiseLevels.reach`). Equal errors between computed steps make the least sum
for a number of them. Which theta? At every computed step the errors E(k) of the next k forecasts are foreseen. With n
steps left, a budget of b more evaluations means k = n / b - 1 of them in a row, a tolerance the largest k for which n / (k + 1)
such rows keep to what is left of it; theta is the mean of E(k) over the steps computed so far.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .schedule import Method, Now, whole

__all__ = ["Adaptive"]


@dataclass(frozen=True, kw_only=True)
class Adaptive(Method):
    """Compute as few steps as a tolerance allows, or a budget of steps where they matter most.

    Args:
        tolerance: relative L2 change of the final output, as far as it can be estimated; 0 computes every step.
        budget: steps to compute, exactly.
        max_skip: forecasts in a row.
        order, form, damping, variable, sites, first_steps, last_steps: see `Method`.

    Raises:
        ValueError: unless exactly one of tolerance and budget is given, in its range.

    Source: this library; step-size control as in Hairer, Norsett & Wanner, Solving ODEs I, II.4.
    """

    tolerance: float | None = None
    budget: int | None = None
    max_skip: int = 8
    first_steps: int = 2

    def __post_init__(self) -> None:
        """Refuse what drives nothing."""
        super().__post_init__()
        if (self.tolerance is None) == (self.budget is None):
            raise ValueError(
                "Adaptive needs a tolerance (relative change of the output) or a budget (steps to compute): give one of them"
            )
        if self.tolerance is not None and not (0 <= self.tolerance < math.inf):
            raise ValueError(f"tolerance is a relative change of the output, at least 0, got {self.tolerance}")
        if self.budget is not None:
            whole("budget", self.budget)
            if self.budget < self.first_steps + self.last_steps:
                raise ValueError(
                    f"a budget of {self.budget} evaluations is less than the {self.first_steps} first and {self.last_steps} last "
                    "steps that are always computed"
                )
        whole("max_skip", self.max_skip)

    def begin(self) -> Callable[[Now], bool]:
        """The control of one run."""
        return _Control(self)


class _Control:
    """theta, from what was foreseen at the steps computed so far."""

    def __init__(self, method: Adaptive) -> None:
        self.method = method
        self.foreseen: list[list[float]] = []  # E(1), E(2), ... of every computed step

    def __call__(self, now: Now) -> bool:
        method = self.method
        assert now.left is not None
        if now.since == 0:
            self.foreseen.append(np.cumsum([now.estimate(k) for k in range(min(method.max_skip, now.left))]).tolist())
        if now.since >= method.max_skip:
            return True
        here = now.estimate(0)
        if method.budget is not None:
            evaluations = method.budget - now.computed - method.last_steps
            if evaluations <= 0 or evaluations >= now.left - method.last_steps:
                return evaluations > 0
            theta = self.mean((now.left + now.since) / (evaluations + 1) - 1)
            return not now.segment + here <= theta
        left = method.tolerance - now.spent  # type: ignore[operator]
        rows = [k for k in range(1, method.max_skip + 1) if now.left / (k + 1) * self.mean(k) <= left + now.segment]
        theta = min(self.mean(max(rows)) if rows else self.mean(1), left + now.segment)
        return not (now.segment + here <= theta and here <= left)

    def mean(self, k: float) -> float:
        """E(k), averaged; between whole numbers as a straight line."""
        below, share = int(k), k - int(k)

        def at(n: int) -> float:
            known = [curve[n - 1] for curve in self.foreseen if len(curve) >= n]
            return 0.0 if n == 0 else float(np.mean(known)) if known else math.inf

        return at(below) if not share else (1 - share) * at(below) + share * at(below + 1)
