r"""Multi-stage solver of differential equations: stages that solve for what those before them left of the equation.

    F[u] = 0 at points,  conditions B u = b;     u = sum_n eps_n N_n

    stage n + 1 minimises  log( mean (F[u + eps N] / r)^2 + w mean ((B(u + eps N) - b) / eps)^2 )
    r = RMS F[u],    eps = max( r / (2 pi f_r)^m, RMS (B u - b) ),    kappa = 2 pi f_r

with m the order of the equation and f_r the dominant frequency of its residual F[u]: a correction that oscillates at f_r has a
derivative of order m that is (2 pi f_r)^m as large. F[u + eps N] = F[u] + eps F'[u] N + O(eps^2): the later a stage, the more
linear its equation. Derivatives are Taylor jets through the network; the gradient of the loss goes through the jets.

Source: papers.toml "multistage" (Wang & Lai 2023). Deviations: the residual is not linearised, which costs nothing here and keeps
the square term; conditions are weighted against the magnitude of the stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from termwise.core.arguments import seeded
from termwise.core.capture import capture
from termwise.core.program import Program

from .differential import derivatives, partial
from .dominant_frequency import dominant_frequency
from .quasi_newton import minimise
from .stage import Stage, StageRecord
from .staged import Staged, box, factor, points, whole

__all__ = ["Derivatives", "MultiStagePINN"]

Index = int | tuple[int, ...]
Condition = tuple[Any, Index, Any]
Residual = Callable[[Tensor, "Derivatives"], Tensor]


class Derivatives:
    """Partial derivatives of a sum of stages at points, made when they are asked for.

    `u[2]` is u'' in one dimension, `u[1, 0]` is du/dx_0 in two, `u[0]` the values; each is of shape (n,).

    Attributes:
        order: the highest.
    """

    def __init__(self, program: Program | None, x: Tensor, order: int, before: Derivatives | None = None) -> None:
        """Of a recorded stage, on top of those before it; of none, zeros."""
        self.order, self._program, self._x, self._before = order, program, x, before
        self._found: dict[tuple[int, ...], Tensor] = {}

    def __getitem__(self, index: Index) -> Tensor:
        """One derivative, (n,).

        Raises:
            ValueError: for an index of another length, negative, or above the order.
        """
        d = self._x.shape[1]
        alpha = index if isinstance(index, tuple) else (index, *[0] * (d - 1))
        if len(alpha) != d or min(alpha) < 0 or sum(alpha) > self.order or (isinstance(index, int) and index and d > 1):
            raise ValueError(
                f"u[{index!r}]: the equation has {d} variables and order={self.order}: say how often to differentiate by "
                f"each, as u[{', '.join(['1', *['0'] * (d - 1)])}], {self.order} in all at most, or u[0] for the value"
            )
        if alpha not in self._found:
            self._make(alpha)
        own = self._found[alpha]
        return own if self._before is None else own + self._before[alpha]

    def fixed(self) -> Derivatives:
        """The same without gradients: each is made once, and kept."""
        return _Fixed(self._program, self._x, self.order, self._before)

    def _make(self, alpha: tuple[int, ...]) -> None:
        x, moving = self._x, [j for j, a in enumerate(alpha) if a]
        if self._program is None:
            self._found[alpha] = x.new_zeros(len(x))
        elif len(moving) > 1:
            self._found[alpha] = partial(self._program, x, alpha)
        else:  # all derivatives along one axis come from one run
            j = moving[0] if moving else 0
            order = self.order if moving else 0
            line = torch.zeros_like(x)
            line[:, j] = 1.0
            for k, value in enumerate(derivatives(self._program, x, line, order)):
                self._found[tuple(k * (i == j) for i in range(x.shape[1]))] = value


class _Fixed(Derivatives):
    """Derivatives of stages that no longer change."""

    def _make(self, alpha: tuple[int, ...]) -> None:
        with torch.no_grad():
            super()._make(alpha)


class MultiStagePINN(Staged):
    """A solver of F[u] = 0 by stages.

        u(x) = sum_n eps_n N_n(x)

    Args:
        residual: F, called with the points x, (n, d), and `Derivatives` u of the solution there; gives (n,).
        order: of the equation, the highest derivative that F asks for.
        conditions: (points, index, values) each: the derivative u[index] at these points has these values; index 0 is u itself.
        stages: how many at most; `fit` ends earlier where one more would only make things worse.
        hidden: widths of the hidden layers of each.
        iterations: of the optimizer, for each.
        optimizer: "bfgs" or "lbfgs", as in `MultiStage`.
        weight: of the conditions against the equation.

    Attributes:
        fitted: the stages, modules of points (n, d).
        history: a `StageRecord` for each; `left` is the root mean square of the equation's residual after it.

    Raises:
        ValueError: for an order or numbers below 1, no conditions, a weight that is not positive.

    Cost: an iteration is two or three jets of order `order` per axis through one stage, and back.

    Example:
        >>> x = torch.linspace(0, 1, 40, dtype=torch.float64)
        >>> start = torch.zeros(1, dtype=torch.float64)
        >>> solver = tw.functions.MultiStagePINN(
        ...     lambda x, u: u[1] + u[0], 1, [(start, 0, start + 1)], stages=1, hidden=(10,), iterations=60
        ... ).fit(x)
        >>> bool((solver.predict(x) - torch.exp(-x)).abs().max() < 1e-3)
        True

    Source: Wang & Lai 2023.
    """

    def __init__(
        self,
        residual: Residual,
        order: int,
        conditions: Sequence[Condition],
        *,
        stages: int = 3,
        hidden: Sequence[int] = (20, 20),
        iterations: int = 600,
        optimizer: str = "bfgs",
        weight: float = 1.0,
    ) -> None:
        super().__init__(stages, hidden, iterations, optimizer)
        whole(order=order)
        if not conditions:
            raise ValueError("an equation without conditions has many solutions: give [(points, index, values), ...]")
        if not weight > 0:
            raise ValueError(f"weight is positive, got {weight}")
        self.residual, self.order, self.weight = residual, order, weight
        self.conditions = [_condition(*c) for c in conditions]

    def fit(self, X: Any, *, generator: torch.Generator | None = None, progress: bool = True) -> Self:
        """Fit the stages, one after the other.

        Args:
            X: where the equation is asked for, (n,) or (n, d), a float64 tensor or array. Its box must contain the conditions.
            generator: of the first weights; one seeded with 0 by default.
            progress: show a bar on a terminal.

        Returns:
            itself.

        Raises:
            TypeError: for what is not float64.
            ValueError: for shapes that do not fit, conditions outside the box, a residual that is not (n,) or not finite.

        Warns:
            UserWarning: when the points are too few for the frequency of the residual.
        """
        x = points(X, "X")
        corners = box(x)
        for place, _, _ in self.conditions:
            if place.shape[1] != x.shape[1]:
                raise ValueError(f"conditions have points of {place.shape[1]} coordinates, X of {x.shape[1]}")
            if bool(((place < corners[0]) | (place > corners[1])).any()):
                seen = f"{corners[0].tolist()} to {corners[1].tolist()}"
                raise ValueError(f"a condition lies outside the box of X, {seen}: give X points that reach as far")
        generator = seeded(generator)
        self.fitted, self.history = [], []
        inner = Derivatives(None, x, self.order).fixed()
        outer = [Derivatives(None, place, self.order).fixed() for place, _, _ in self.conditions]
        with self._bar(progress) as report:
            for n in range(self.stages):
                gap = torch.cat([values - u[index] for (_, index, values), u in zip(self.conditions, outer, strict=True)])
                left, missed = self._equation(x, inner), gap.square().mean().sqrt().item()
                size = left.square().mean().sqrt().item()
                if n and not size:
                    break
                f_d = dominant_frequency(x, left) if n else x.new_empty(0)
                kappa = factor(x, f_d, n) if n else f_d
                waves = float((kappa / ((corners[1] - corners[0]) / 2)).max()) if n else 1.0
                eps = max(size / waves**self.order, missed) if n else missed or 1.0
                stage = Stage(corners, self.hidden, eps, kappa, generator)
                unit = size or 1.0
                programs = [capture(stage.eval(), place) for place in (x, *(place for place, _, _ in self.conditions))]

                def loss() -> Tensor:
                    u = Derivatives(programs[0], x, self.order, inner)
                    total = (self._equation(x, u) / unit).square().mean()
                    for (place, index, values), program, before in zip(self.conditions, programs[1:], outer, strict=True):
                        there = Derivatives(program, place, self.order, before)[index]
                        total = total + self.weight * ((there - values) / eps).square().mean()
                    return total.log()

                used = minimise(loss, list(stage.parameters()), self.iterations, self.optimizer, report)
                stage.requires_grad_(False)
                if n and not float(loss()) < self._before(left, unit, outer, eps):  # nothing that a stage could mend
                    break
                inner = Derivatives(programs[0], x, self.order, inner).fixed()
                outer = [
                    Derivatives(p, place, self.order, before).fixed()
                    for (place, _, _), p, before in zip(self.conditions, programs[1:], outer, strict=True)
                ]
                after = self._equation(x, inner).square().mean().sqrt().item()
                self.fitted.append(stage)
                self.history.append(StageRecord(eps, tuple(f_d.tolist()), tuple(kappa.tolist()), after, used))
        return self

    def _before(self, left: Tensor, unit: float, outer: Sequence[Derivatives], eps: float) -> float:
        """The loss of a stage that is 0 everywhere."""
        total = (left / unit).square().mean()
        for (_, index, values), u in zip(self.conditions, outer, strict=True):
            total = total + self.weight * ((u[index] - values) / eps).square().mean()
        return float(total.log())

    def derivatives(self, X: Any) -> Derivatives:
        """Partial derivatives of the solution at points, by jets.

        Args:
            X: (n,) or (n, d), a float64 tensor or array.

        Returns:
            `u`, of which u[2], u[1, 0] and so on are derivatives.
        """
        self._parts(X)  # for its errors
        x = points(X, "X")
        u = Derivatives(None, x, self.order).fixed()
        for stage in self.fitted:
            u = Derivatives(capture(stage, x), x, self.order, u).fixed()
        return u

    def _equation(self, x: Tensor, u: Derivatives) -> Tensor:
        """F[u] at the points."""
        found = self.residual(x, u)
        if not isinstance(found, Tensor) or found.shape != x.shape[:1]:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"residual gives ({len(x)},), one value per point; got {shape}. u[...] is ({len(x)},), x[:, 0] too")
        return found


def _condition(place: Any, index: Index, values: Any) -> tuple[Tensor, Index, Tensor]:
    """Checked points, index and values of one condition."""
    where, wanted = points(place, "points of a condition"), points(values, "values of a condition")
    if wanted.shape != (len(where), 1):
        raise ValueError(f"a condition has one value per point: {len(where)} points, values {tuple(wanted.shape)}")
    return where, index, wanted.squeeze(1)
