"""What a term means: tensors, tuples, lists, functions.

The evaluator asks for the arithmetic of reals (`Numbers`; `Tape` of `backward` is another), and knows nothing of derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from .operations import OPERATIONS
from .terms import App, Case, Cons, Const, Fold, Inl, Inr, Lam, Nil, Op, Positive, Proj, Term, Tuple, Var, lets

__all__ = ["Left", "Numbers", "Right", "each_real", "evaluate", "first_tensor", "given", "meaning"]


@dataclass(frozen=True)
class Left:
    """The left one of a sum."""

    value: Any


@dataclass(frozen=True)
class Right:
    """The right one of a sum."""

    value: Any


class Reals(Protocol):
    """An arithmetic of reals."""

    def constant(self, value: float) -> Any: ...
    def apply(self, op: str, args: list[Any]) -> Any: ...
    def positive(self, value: Any) -> bool: ...


@dataclass
class Numbers:
    """Tensors as reals, entry by entry.

    Attributes:
        like: constants get its dtype and device.
        count: operations done so far.
    """

    like: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    count: int = 0

    def constant(self, value: float) -> Tensor:
        """A number."""
        return torch.tensor(value, dtype=self.like.dtype, device=self.like.device)

    def apply(self, op: str, args: list[Tensor]) -> Tensor:
        """One operation."""
        self.count += 1
        return OPERATIONS[op].function(*args)

    def positive(self, value: Tensor) -> bool:
        """Whether it is above 0; all entries have to agree."""
        return sign_of(value)


def sign_of(value: Tensor) -> bool:
    """Whether all entries are above 0, or all below."""
    if bool((value > 0).all()):
        return True
    if bool((value < 0).all()):
        return False
    at = "at 0, where it is undefined: the program has a kink there" if bool((value == 0).any()) else "over entries of both signs"
    raise ValueError(f"`positive` was asked {at}")


def evaluate(term: Term, *args: Any) -> Any:
    """The value of a closed term, applied to these values one after the other.

    Args:
        term: closed.
        *args: values of the types of its arguments: tensors (or numbers) for reals, tuples for products, lists, `Left` and
            `Right`, and Python functions of one argument for functions.

    Returns:
        A value of its type.

    Raises:
        TypeError: for a name that is bound nowhere, integers in place of reals.
        ValueError: where `positive` is asked at 0.

    Cost: every operation of the program once; of a `case` the branch taken alone.

    Example:
        >>> from termwise.functions.higher_order import Lam, Op, Real, Var, evaluate
        >>> square = Lam("x", Real(), Op("mul", (Var("x"), Var("x"))))
        >>> evaluate(square, torch.tensor(3.0)).item()
        9.0
    """
    values = given(args)
    return meaning(term, Numbers(first_tensor(values)), *values)


def each_real(value: Any, f: Callable[[Any], Any]) -> Any:
    """The same structure, with f of its reals (and of functions)."""
    match value:
        case tuple():
            return tuple(each_real(v, f) for v in value)
        case list():
            return [each_real(v, f) for v in value]
        case Left() | Right():
            return type(value)(each_real(value.value, f))
    return f(value)


def given(value: Any) -> Any:
    """What a user gives, with tensors for numbers.

    Raises:
        TypeError: for tensors of integers, which nothing can be differentiated by.
    """

    def real(value: Any) -> Any:
        if isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex()):
            raise TypeError(f"reals are floating tensors, this one is of {value.dtype}: convert it with .double()")
        return torch.tensor(float(value), dtype=torch.float64) if isinstance(value, (int, float)) else value

    return each_real(value, real)


def first_tensor(value: Any) -> Tensor:
    """The first tensor in it, which says what constants are made of; double precision when there is none."""
    found: list[Tensor] = []
    each_real(value, lambda real: found.append(real) if isinstance(real, Tensor) else None)
    return found[0] if found else torch.zeros((), dtype=torch.float64)


def meaning(term: Term, over: Reals, *args: Any, names: Mapping[str, Any] | None = None) -> Any:
    """`evaluate` over another arithmetic of reals, and with values for free names."""
    value = _value(term, over, names or {})
    for arg in args:
        value = value(arg)
    return value


def _value(term: Term, over: Reals, names: Mapping[str, Any]) -> Any:
    if isinstance(term, App) and isinstance(term.function, Lam):
        bound, term = lets(term)
        for name, _, value in bound:
            names = {**names, name: _value(value, over, names)}  # a copy: functions made on the way keep the names they saw
    match term:
        case Var(name):
            if name not in names:
                raise TypeError(f"{name} is bound nowhere: known here are {', '.join(names) or 'no names'}")
            return names[name]
        case Const(value):
            return over.constant(value)
        case Op(name, args):
            return over.apply(name, [_value(arg, over, names) for arg in args])
        case Tuple(items):
            return tuple(_value(item, over, names) for item in items)
        case Proj(whole, index):
            return _value(whole, over, names)[index]
        case Inl(value, _):
            return Left(_value(value, over, names))
        case Inr(value, _):
            return Right(_value(value, over, names))
        case Case(choice, x, left, y, right):
            chosen = _value(choice, over, names)
            name, branch = (x, left) if isinstance(chosen, Left) else (y, right)
            return _value(branch, over, {**names, name: chosen.value})
        case Lam(name, _, body):
            return _closure(name, body, over, names)
        case App(function, argument):
            return _value(function, over, names)(_value(argument, over, names))
        case Nil():
            return []
        case Cons(head, tail):
            return [_value(head, over, names), *_value(tail, over, names)]
        case Fold(step, start, items):
            by, state = _value(step, over, names), _value(start, over, names)
            for item in _value(items, over, names):
                state = by(item)(state)
            return state
        case Positive(value):
            return Left(()) if over.positive(_value(value, over, names)) else Right(())
    raise TypeError(f"{term!r} is no term of the calculus")


def _closure(name: str, body: Term, over: Reals, names: Mapping[str, Any]) -> Callable[[Any], Any]:
    return lambda argument: _value(body, over, {**names, name: argument})
