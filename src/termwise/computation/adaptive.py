r"""Adaptive: compute when going on without has grown too wrong, as solvers of ODEs choose their steps.

    e_o(u) = kappa_o prod_{k <= o} |u - u_k| reach(u),      compute where the e since the last computed step exceed theta

is the error of a polynomial of order o through u_0, ..., u_o. kappa, the size of the derivative that it lacks, is measured for
every order whenever the model is computed; `reach` is what an error of the prediction does to the picture (`NoiseLevels.reach`).
Forecasts take the order with the least error. Equal errors between computed steps make the least sum for a number of them; theta
is found by walking ahead over the rest of the grid, as if kappa stayed what it is: the least that keeps to the budget of
evaluations, or the largest that keeps to the tolerance. The walk is made anew after every computed step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .schedule import Method, Now, whole

__all__ = ["Adaptive"]

HALVINGS = 30


@dataclass(frozen=True, kw_only=True)
class Adaptive(Method):
    """Compute as few steps as a tolerance allows, or a budget of steps where they matter most.

    Args:
        tolerance: relative L2 change of the final output, as far as it can be estimated; 0 computes every step.
        budget: steps to compute.
        max_skip: forecasts in a row.
        order: the highest.
        form, damping, variable, sites, first_steps, last_steps: see `Method`. An order is used once its error was measured,
            so that three first steps are needed for lines.

    Raises:
        ValueError: unless exactly one of tolerance and budget is given, in its range.

    Source: this library; step-size control as in Hairer, Norsett & Wanner, Solving ODEs I, II.4.
    """

    tolerance: float | None = None
    budget: int | None = None
    max_skip: int = 8
    order: int = 2
    first_steps: int = 3

    chooses_order = True

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
    """theta, found anew after every computed step."""

    def __init__(self, method: Adaptive) -> None:
        self.method, self.theta = method, 0.0

    def __call__(self, now: Now) -> bool:
        method = self.method
        evaluations = None if method.budget is None else method.budget - now.computed
        if evaluations is not None and evaluations <= 0:
            return False
        if now.since == 0:
            self.theta = self.find(now, evaluations)
        return now.since >= method.max_skip or not now.segment + now.error(now.nodes, 0) <= self.theta

    def find(self, now: Now, evaluations: int | None) -> float:
        """By halving between nothing and everything, in logarithms."""
        tolerance = math.inf if self.method.tolerance is None else self.method.tolerance - now.spent

        def allowed(theta: float) -> bool:
            computed, error = self.walk(now, theta)
            return error <= tolerance if evaluations is None else computed > evaluations

        everything = sum(now.error(now.nodes, i) for i in range(len(now.ahead)))
        if not math.isfinite(everything) or everything == 0:
            return 0.0 if evaluations is None or everything else math.inf
        low, high = 1e-9 * everything, everything
        if not allowed(low):
            return 0.0
        for _ in range(HALVINGS):  # allowed at low, and not at high
            middle = math.sqrt(low * high)
            low, high = (middle, high) if allowed(middle) else (low, middle)
        return low if evaluations is None else high

    def walk(self, now: Now, theta: float) -> tuple[int, float]:
        """How many steps would be computed from here on, and the sum of the errors of the others."""
        nodes, computed, total, segment, since = list(now.nodes), 0, 0.0, 0.0, 0
        for i, u in enumerate(now.ahead):
            error = now.error(nodes, i)
            last = len(now.ahead) - i <= self.method.last_steps
            if last or since >= self.method.max_skip or not segment + error <= theta:
                nodes, computed, segment, since = [u, *nodes], computed + 1, 0.0, 0
            else:
                total, segment, since = total + error, segment + error, since + 1
        return computed, total


def polynomial_error(kappa: Sequence[float], nodes: Sequence[float], u: float, *, choose: bool = True) -> tuple[float, int]:
    """The least kappa_o prod_{k <= o} |u - u_k| over the orders o that were measured, and that order; or of the highest."""
    best, order, product = math.inf, 0, 1.0
    for o, size in enumerate(kappa[: len(nodes)]):
        product *= abs(u - nodes[o])
        if size * product < best or not choose:
            best, order = size * product, o
    return best, order
