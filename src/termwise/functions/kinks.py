r"""Where an expansion of a piecewise function ends: the first place along the curve at which a unit changes its branch.

    r = min over units of the smallest t > 0 with a(t) = 0,      a(t) = sum_k a_k t^k

For a piecewise linear network along a line this is exact from order 1 on, and within r the expansion is exact too. For others it
is as good as the series of the units.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Kinks"]

STEPS = 64
"""Places at which a curved unit is looked at; two changes between neighbours are not seen."""


class Kinks:
    """What piecewise operations said on the way.

    Attributes:
        radius: r; inf where no unit changes within the horizon.
        where: the operation that changes first.
        start: an operation on whose kink the curve starts; "" for none.
        blind: operations whose changes are not looked for (windows of max-pooling).
    """

    def __init__(self, horizon: float) -> None:
        """Look as far as this; 0 does not look."""
        self.horizon = horizon
        self.radius, self.where, self.start = math.inf, "", ""
        self.blind: list[str] = []

    def started_on_one(self, where: str) -> None:
        """The value is 0 and moves away."""
        self.start = self.start or where

    def unseen(self, where: str) -> None:
        """Changes here are not looked for."""
        if where not in self.blind:
            self.blind.append(where)

    def see(self, rows: Tensor, where: Callable[[], str], other_than: Tensor | None = None) -> None:
        """The branch ends where the series `rows`, (n + 1, *S), is 0."""
        if not self.horizon or len(rows) == 1:
            return
        rows = rows.detach().to(torch.float64)
        if other_than is not None:  # the winner's distance to itself
            rows = rows.scatter(
                -1,
                other_than.expand(len(rows), *other_than.shape),
                1.0
                * (torch.arange(len(rows)) == 0)
                .to(rows)
                .reshape(-1, *[1] * (rows.ndim - 1))
                .expand(len(rows), *other_than.shape),
            )
        found = self._linear(rows) if len(rows) == 2 else self._curved(rows.flatten(1))
        if found < min(self.radius, self.horizon):
            self.radius, self.where = found, where()

    @staticmethod
    def _linear(rows: Tensor) -> float:
        times = -rows[0] / rows[1]
        times = times[times > 0]
        return times.min().item() if times.numel() else math.inf

    def _curved(self, rows: Tensor) -> float:
        """The first change of sign on a grid up to what is known already, then halved until it is found."""
        end = min(self.horizon, self.radius)
        powers = torch.tensor([end**k for k in range(len(rows))], dtype=rows.dtype, device=rows.device)[1:, None]
        rows = rows[:, rows[0].abs() <= (rows[1:].abs() * powers).sum(0)]  # the others cannot get there
        rows = rows[:, rows[0] != 0]
        if not rows.shape[1]:
            return math.inf
        before = 0.0
        for t in torch.linspace(0, end, STEPS + 1)[1:].tolist():
            changed = _at(rows, t) * rows[0] < 0
            if bool(changed.any()):
                rows, low, high = rows[:, changed], before, t
                for _ in range(60):
                    middle = (low + high) / 2
                    low, high = (low, middle) if bool((_at(rows, middle) * rows[0] < 0).any()) else (middle, high)
                return high
            before = t
        return math.inf


def _at(rows: Tensor, t: float) -> Tensor:
    """Horner's rule."""
    value = rows[-1]
    for row in reversed(rows[:-1]):
        value = torch.add(row, value, alpha=t)
    return value
