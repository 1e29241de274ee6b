"""The table of jet rules, and what every rule works on: jets, their rows, and values that may or may not move."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "JET_RULES", "Jet", "axes_of", "channels", "choose", "jet_rule", "leveled", "like", "moves", "padded", "rows_of", "smooth",
    "values",
]  # fmt: skip

Rule = Callable[..., Any]

JET_RULES: dict[str, Rule] = {}
"""Operator name (`linear` for aten.linear in every overload) -> its rule."""


@dataclass(frozen=True, eq=False)
class Jet:
    """A value along the curve: its coefficients, as rows of one tensor."""

    rows: Tensor

    @property
    def value(self) -> Tensor:
        """At t = 0."""
        return self.rows[0]

    @property
    def ndim(self) -> int:
        """Axes of the value."""
        return self.rows.ndim - 1


def jet_rule(*ops: str) -> Callable[[Rule], Rule]:
    """Enter a function into the table as the rule of these operators.

    Raises:
        ValueError: when an operator has a rule already.
    """

    def enter(function: Rule) -> Rule:
        for op in ops:
            if op in JET_RULES:
                raise ValueError(f"{op} already has a jet rule, {JET_RULES[op].__name__}")
            JET_RULES[op] = function
        return function

    return enter


def smooth(*ops: str) -> Callable[[Rule], Rule]:
    """Enter the rule of a function of numbers, ``rule(at, x, ...)``.

    Where many directions travel together it is expanded once, at the value, and the chain rule does the rest.
    """

    def enter(function: Rule) -> Rule:
        @functools.wraps(function)
        def rule(at: Any, x: Jet, *args: Any, **kwargs: Any) -> Jet:
            return Jet(at.series.through(lambda series, a: function(at.over(series), Jet(a), *args, **kwargs).rows, x.rows))

        jet_rule(*ops)(rule)
        return rule

    return enter


def moves(value: Any) -> bool:
    """Whether there is a jet in it (looking into lists)."""
    return isinstance(value, Jet) or (isinstance(value, (tuple, list)) and any(map(moves, value)))


def rows_of(at: Any, value: Any) -> Tensor:
    """Rows of a jet, a tensor or a number."""
    if isinstance(value, Jet):
        return value.rows
    return at.series.constant(value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64))


def like(value: Any, jet: Jet) -> Tensor:
    """Rows of a value beside a jet: a number has its dtype, and axes enough."""
    if isinstance(value, Jet):
        return value.rows
    rows = (value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)).unsqueeze(0)
    return rows if rows.ndim > 1 else rows.to(jet.rows.dtype).reshape(-1, *[1] * jet.ndim)


def padded(rows: Tensor, n: int) -> Tensor:
    """As many rows, the last ones zero."""
    return rows if len(rows) == n else torch.cat([rows, rows.new_zeros(n - len(rows), *rows.shape[1:])])


def leveled(several: Iterable[Tensor]) -> list[Tensor]:
    """All with as many rows as the longest."""
    several = list(several)
    most = max(rows.shape[0] for rows in several)
    return [padded(rows, most) for rows in several]


def axes_of(x: Jet, axes: Any) -> list[int]:
    """Axes of a value, counted from its end, where rows do not matter: None or none named are all."""
    axes = range(x.ndim) if axes is None or axes == [] else [axes] if isinstance(axes, int) else axes
    return [a % x.ndim - x.ndim for a in axes]


def channels(value: Any, trailing: int) -> Any:
    """A vector over channels, with axes of size 1 behind."""
    if value is None:
        return None
    if isinstance(value, Jet):
        return Jet(value.rows.reshape(*value.rows.shape, *[1] * trailing))
    return value.reshape(*value.shape, *[1] * trailing)


def values(args: Any) -> Any:
    """Arguments at t = 0 (looking into lists)."""
    return [a.value if isinstance(a, Jet) else values(a) if isinstance(a, (tuple, list)) else a for a in args]


def choose(where: Tensor, a: Tensor, b: Tensor) -> Jet:
    """The rows of one branch or the other, entry by entry; all three are broadcast as values, behind the rows."""
    axes = max(a.ndim - 1, b.ndim - 1, where.ndim)
    a, b = leveled(r.reshape(r.shape[0], *[1] * (axes + 1 - r.ndim), *r.shape[1:]) for r in (a, b))
    return Jet(torch.where(where, a, b))
