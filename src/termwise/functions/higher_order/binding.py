"""What holds of any language with binders: free names, substitution without capture, equality up to renaming."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from .terms import Case, Lam, Term, Var, children, rebuilt

__all__ = ["alpha_equal", "free", "fresh", "substitute"]


def free(term: Term) -> frozenset[str]:
    """The names that are not bound in it."""
    if isinstance(term, Var):
        return frozenset({term.name})
    return frozenset().union(*(free(child) - {*bound} for bound, child in children(term)))


def fresh(name: str, taken: frozenset[str]) -> str:
    """This name, or one like it that is not taken."""
    tried, i = name, 0
    while tried in taken:
        tried, i = f"{name}_{i}", i + 1
    return tried


def substitute(term: Term, name: str, value: Term) -> Term:
    """term[value/name]: binders that would capture a free name of `value` are renamed.

    Example:
        >>> from termwise.functions.higher_order import Lam, Op, Real, Var, substitute
        >>> print(substitute(Lam("y", Real(), Op("add", (Var("x"), Var("y")))), "x", Var("y")))
        (fun y_0: real. add(y, y_0))
    """
    match term:
        case Var(found):
            return value if found == name else term
        case Lam(x, type, body):
            x, body = _under(x, body, name, value)
            return Lam(x, type, body)
        case Case(choice, x, left, y, right):
            x, left = _under(x, left, name, value)
            y, right = _under(y, right, name, value)
            return Case(substitute(choice, name, value), x, left, y, right)
        case _:
            return rebuilt(term, [substitute(child, name, value) for _, child in children(term)])


def _under(bound: str, body: Term, name: str, value: Term) -> tuple[str, Term]:
    """Substitution below a binder."""
    if bound == name or name not in free(body):
        return bound, body
    if bound in free(value):
        new = fresh(bound, free(value) | free(body) | {name})
        bound, body = new, substitute(body, bound, Var(new))
    return bound, substitute(body, name, value)


def alpha_equal(a: Term, b: Term) -> bool:
    """Whether they are the same but for the names of what they bind."""
    return _indexed(a, ()) == _indexed(b, ())


def _indexed(term: Term, bound: tuple[str, ...]) -> Any:
    """With how many binders lie between in place of bound names (de Bruijn)."""
    if isinstance(term, Var):
        return bound.index(term.name) if term.name in bound else term.name
    inner = tuple(_indexed(child, (*reversed(names), *bound)) for names, child in children(term))
    own = {f.name: getattr(term, f.name) for f in fields(term)}  # type: ignore[arg-type]
    written = tuple(
        (k, v) for k, v in own.items() if not isinstance(v, Term) and k not in ("args", "items") and not _binder(term, k)
    )
    return type(term).__name__, written, inner


def _binder(term: Term, field: str) -> bool:
    return (isinstance(term, Lam) and field == "name") or field in ("left_name", "right_name")
