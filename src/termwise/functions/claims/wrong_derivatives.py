"""Wrong derivatives, each with one known mistake: what the claims of higher-order AD have to tell from the right one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..higher_order import App, Case, Const, Lam, Prod, Proj, Sum, Term, Tuple, Type, Var, free, let, typecheck
from ..higher_order.blocks import block_type
from ..higher_order.terms import children, rebuilt

__all__ = ["Dual", "capturing", "exp", "functions_as_constants", "shifted", "slope_of"]


def functions_as_constants(term: Term) -> Term:
    """D(term), but a function's free names lose their tangents: D(A -> B) as if functions did not move."""
    block = block_type(1, 1)

    def still(type: Type, value: Term) -> Term:
        match type:
            case Prod() if type == block:
                return Tuple((Proj(value, 0), Const(0)))
            case Prod(items):
                return Tuple(tuple(still(item, Proj(value, i)) for i, item in enumerate(items)))
        return value

    def over(term: Term, names: dict[str, Type]) -> Term:
        match term:
            case App(Lam(x, type, body), value):  # a let, and no function that anything is done with
                return let(x, type, over(value, names), over(body, {**names, x: type}))
            case Lam(x, type, body):
                moved = over(body, {**names, x: type})
                for y in sorted(free(term)):
                    moved = let(y, names[y], still(names[y], Var(y)), moved)
                return Lam(x, type, moved)
            case Case(choice, x, left, y, right):
                found = typecheck(choice, names)
                assert isinstance(found, Sum)
                first, second = over(left, {**names, x: found.left}), over(right, {**names, y: found.right})
                return Case(over(choice, names), x, first, y, second)
        return rebuilt(term, [over(child, names) for _, child in children(term)])

    return over(term, {})


def capturing(term: Term, name: str, value: Term) -> Term:
    """Substitution by someone who has not heard of capture."""
    if isinstance(term, Var):
        return value if term.name == name else term
    return rebuilt(term, [c if name in bound else capturing(c, name, value) for bound, c in children(term)])


@dataclass(frozen=True)
class Dual:
    """A value and a tangent that does not know whose it is."""

    value: float
    tangent: float = 0.0

    def __add__(self, other: Any) -> Dual:
        other = other if isinstance(other, Dual) else Dual(other)
        return Dual(self.value + other.value, self.tangent + other.tangent)

    def __mul__(self, other: Any) -> Dual:
        other = other if isinstance(other, Dual) else Dual(other)
        return Dual(self.value * other.value, self.value * other.tangent + self.tangent * other.value)


def exp(x: Any) -> Any:
    return Dual(math.exp(x.value), math.exp(x.value) * x.tangent) if isinstance(x, Dual) else math.exp(x)


def slope_of(f: Callable[[Any], Any]) -> Callable[[Any], float]:
    def of(x: Any) -> float:
        out = f(Dual(x, 1.0))
        return out.tangent if isinstance(out, Dual) else 0.0

    return of


def shifted(f: Callable[[Any], Any]) -> Callable[[Any], float]:
    """The derivative of x -> (y -> f(x + y)) at 0, the tangents taken when y is given."""

    def of(y: Any) -> float:
        out = f(Dual(0.0, 1.0) + y)
        return out.tangent if isinstance(out, Dual) else 0.0

    return of
