"""The table of rules: a plain mapping from operator to function, filled by a decorator.

A rule is a function of a place and the operator's arguments. It returns the operator's value and leaves behind it the
local derivative that carries the ratio c = R / y backwards:

    @rule("square")
    def square(at, x):
        "y = x x is of degree 2 in x: its own derivative, halved."
        return share(at.op(x), 1 / 2)

Whether an argument is an activation is asked of the argument (`requires_grad`): weights and constants never do.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "AFFINE_ONLY", "HOLDING", "LOSSY", "RULES", "SPLITTING", "Rule", "active", "hold", "holding", "lossy", "plain", "rule",
    "share", "sized",
]  # fmt: skip

Rule = Callable[..., Any]

RULES: dict[str, Rule] = {}
"""Operator name (`linear` for aten.linear in every overload) -> its rule."""

LOSSY: set[Rule] = set()
"""Rules that do not conserve: what they lose is measured wherever they run."""


HOLDING: set[Rule] = set()
"""Rules whose value is a constant weight: in a product the other operand takes all, in a sum it is a constant summand."""

SPLITTING: set[Rule] = set()
"""Rules before which batch norm is folded into the affine operation it follows: they do not commute with it."""

AFFINE_ONLY: set[Rule] = set()
"""Rules that mean nothing elsewhere: where a key names a module, its other operations keep their own."""


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Enter a function into the table as the rule of these operators.

    Raises:
        ValueError: when an operator has a rule already.
    """

    def enter(function: Rule) -> Rule:
        for op in ops:
            if op in RULES:
                raise ValueError(f"{op} already has the rule {RULES[op].__name__}; override it in a rule set instead")
            RULES[op] = function
        return function

    return enter


def lossy(function: Rule) -> Rule:
    """Mark a rule as one that loses relevance."""
    LOSSY.add(function)
    return function


def holding(function: Rule) -> Rule:
    """Mark a rule as one whose value is held constant."""
    HOLDING.add(function)
    return function


class Sized:
    """A rule that a factory made, printed as the call that makes it."""

    def __init__(self, function: Rule, text: str) -> None:
        self.function, self.__name__ = function, text
        self.__doc__ = function.__doc__
        for kind in (LOSSY, SPLITTING, AFFINE_ONLY):
            if function in kind:
                kind.add(self)

    def __call__(self, at: Any, *args: Any, **kwargs: Any) -> Any:
        return self.function(at, *args, **kwargs)

    def __repr__(self) -> str:
        return self.__name__


def sized(factory: Callable[..., Rule]) -> Callable[..., Rule]:
    """A factory of rules with sizes: equal sizes give the same rule (so that passes are kept), printed as its call."""
    made: dict[tuple[Any, ...], Rule] = {}
    signature = inspect.signature(factory)

    @functools.wraps(factory)
    def make(*args: Any, **kwargs: Any) -> Rule:
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        key = tuple(call.arguments.items())
        if key not in made:
            sizes = [(n, v) for n, v in key if signature.parameters[n].kind is not inspect.Parameter.KEYWORD_ONLY]
            extra = [f"{n}={v!r}" for n, v in key if (n, v) not in sizes and v != signature.parameters[n].default]
            text = f"{factory.__name__.strip('_')}({', '.join([*(repr(v) for _, v in sizes), *extra])})"
            made[key] = Sized(factory(*call.args, **call.kwargs), text)
        return made[key]

    return make


def plain(at: Any) -> Rule:
    """The table's own rule for the operator at this place."""
    return RULES[at.op.__name__.partition(".")[0]]


def active(*values: Any) -> int:
    """How many of these are activations (looking into lists)."""
    return sum(active(*v) if isinstance(v, (tuple, list)) else isinstance(v, Tensor) and v.requires_grad for v in values)


def share(y: Tensor, fraction: float | Tensor) -> Tensor:
    """The same value, through which only a fraction of the ratio passes (of each entry its own, where that is a tensor)."""
    if y.requires_grad and (isinstance(fraction, Tensor) or fraction != 1):
        y.register_hook(lambda c: c * fraction)
    return y


def hold(*values: Any) -> list[Any]:
    """The same values, held constant: no relevance goes to them."""
    return [v.detach() if isinstance(v, torch.Tensor) else v for v in values]
