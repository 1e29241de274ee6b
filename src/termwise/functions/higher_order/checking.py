"""The type of a term, or where it has none.

Source: papers.toml "higher-order-ad".
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from .operations import OPERATIONS
from .terms import App, Case, Cons, Const, Fold, Inl, Inr, Lam, Nil, Op, Positive, Proj, Term, Tuple, Var, lets
from .types import Arrow, ListT, Prod, Real, Sum, Type

__all__ = ["typecheck"]


def typecheck(term: Term, context: Mapping[str, Type] | None = None) -> Type:
    """The type of a term.

    Args:
        term: of the calculus.
        context: types of its free names; none for a closed term.

    Returns:
        Its type, the only one.

    Raises:
        TypeError: with the subterm that does not fit, what it is and what was wanted there.
        ValueError: for an operation that is not in the table.

    Example:
        >>> from termwise.functions.higher_order import App, Lam, Op, Real, Var, typecheck
        >>> print(typecheck(Lam("x", Real(), Op("sin", (Var("x"),)))))
        (real -> real)
    """
    return _type(term, dict(context or {}))


def _type(term: Term, names: dict[str, Type]) -> Type:
    bound, body = lets(term)
    for name, type, value in bound:
        _want(value, type, names, App(Lam(name, type, Var("...")), value))
        names = {**names, name: type}
    match body:
        case Var(name):
            if name not in names:
                raise TypeError(f"{name} is bound nowhere: known here are {', '.join(names) or 'no names'}")
            return names[name]
        case Const():
            return Real()
        case Op(name, args):
            _known(name, len(args), body)
            for arg in args:
                _want(arg, Real(), names, body)
            return Real()
        case Tuple(items):
            return Prod(tuple(_type(item, names) for item in items))
        case Proj(inner, index):
            found = _type(inner, names)
            if not isinstance(found, Prod) or not 0 <= index < len(found.items):
                raise TypeError(f"{_short(body)} takes item {index} of {_short(inner)}, which is of type {found}")
            return found.items[index]
        case Inl(value, right):
            return Sum(_type(value, names), right)
        case Inr(value, left):
            return Sum(left, _type(value, names))
        case Case(choice, x, left, y, right):
            found = _type(choice, names)
            if not isinstance(found, Sum):
                raise TypeError(f"{_short(body)} is by cases of {_short(choice)}, which is of type {found} and no sum")
            first = _type(left, {**names, x: found.left})
            _want(right, first, {**names, y: found.right}, body)
            return first
        case Lam(name, type, inner):
            return Arrow(type, _type(inner, {**names, name: type}))
        case App(function, argument):
            found = _type(function, names)
            if not isinstance(found, Arrow):
                raise TypeError(f"{_short(body)} applies {_short(function)}, which is of type {found} and no function")
            _want(argument, found.source, names, body)
            return found.target
        case Nil(item):
            return ListT(item)
        case Cons(head, tail):
            found = ListT(_type(head, names))
            _want(tail, found, names, body)
            return found
        case Fold(step, start, items):
            found, state = _type(items, names), _type(start, names)
            if not isinstance(found, ListT):
                raise TypeError(f"{_short(body)} folds {_short(items)}, which is of type {found} and no list")
            _want(step, Arrow(found.item, Arrow(state, state)), names, body)
            return state
        case Positive(value):
            _want(value, Real(), names, body)
            return Sum(Prod(), Prod())
    raise TypeError(f"{body!r} is no term of the calculus")


def _want(term: Term, wanted: Type, names: dict[str, Type], inside: Term) -> None:
    found = _type(term, names)
    if found != wanted:
        raise TypeError(f"in {_short(inside)}: {_short(term)} is of type {found}, wanted is {wanted}")


def _known(name: str, count: int, term: Term) -> None:
    if name not in OPERATIONS:
        near = difflib.get_close_matches(name, OPERATIONS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(OPERATIONS)}"
        raise ValueError(f"no operation {name!r}: {hint}")
    arity = OPERATIONS[name].arity
    if count != arity:
        raise TypeError(f"{_short(term)}: {name} takes {arity} arguments, got {count}")


def _short(term: Term, length: int = 120) -> str:
    text = str(term)
    return text if len(text) <= length else text[: length - 4] + " ..."
