"""Terms of the calculus.

    t ::= x | c | op(t, ..., t) | (t, ..., t) | t.i | inl t | inr t | case t of x. t | y. t | fun x. t | t t
        | [] | t :: t | fold t from t over t | positive t

There is no recursion but `fold`, a loop over a list, so every program ends; and no comparison of reals but `positive`, which is
undefined at 0, so every program without it is smooth.

Source: papers.toml "higher-order-ad".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from .types import Type

__all__ = [
    "App", "Case", "Cons", "Const", "Fold", "Inl", "Inr", "Lam", "Nil", "Op", "Positive", "Proj", "Term", "Tuple", "Var",
    "children", "let", "lets", "rebuilt",
]  # fmt: skip


class Term:
    """One of the term formers below. They are frozen, and equal when written the same."""


@dataclass(frozen=True)
class Var(Term):
    """A name."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Const(Term):
    """A real number."""

    value: float

    def __str__(self) -> str:
        return f"{self.value:g}"


@dataclass(frozen=True)
class Op(Term):
    """A primitive operation real^n -> real, by its name in `OPERATIONS`."""

    name: str
    args: tuple[Term, ...]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.args))})"


@dataclass(frozen=True)
class Tuple(Term):
    """A tuple."""

    items: tuple[Term, ...] = ()

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.items))})"


@dataclass(frozen=True)
class Proj(Term):
    """One item of a tuple, counted from 0."""

    whole: Term
    index: int

    def __str__(self) -> str:
        return f"{self.whole}.{self.index}"


@dataclass(frozen=True)
class Inl(Term):
    """The left one of a sum whose right type is `right`."""

    value: Term
    right: Type

    def __str__(self) -> str:
        return f"inl {self.value}"


@dataclass(frozen=True)
class Inr(Term):
    """The right one of a sum whose left type is `left`."""

    value: Term
    left: Type

    def __str__(self) -> str:
        return f"inr {self.value}"


@dataclass(frozen=True)
class Case(Term):
    """By which one of a sum it is. `left` and `right` bind its content to a name of their own."""

    choice: Term
    left_name: str
    left: Term
    right_name: str
    right: Term

    def __str__(self) -> str:
        return f"(case {self.choice} of {self.left_name}. {self.left} | {self.right_name}. {self.right})"


@dataclass(frozen=True)
class Lam(Term):
    """A function of one argument, of this type."""

    name: str
    type: Type
    body: Term

    def __str__(self) -> str:
        return f"(fun {self.name}: {self.type}. {self.body})"


@dataclass(frozen=True)
class App(Term):
    """A function applied."""

    function: Term
    argument: Term

    def __str__(self) -> str:
        if isinstance(self.function, Lam):
            bound, body = lets(self)
            return " ".join([*(f"let {name} = {value} in" for name, _, value in bound), str(body)])
        return f"({self.function} {self.argument})"


@dataclass(frozen=True)
class Nil(Term):
    """The empty list of such items."""

    item: Type

    def __str__(self) -> str:
        return "[]"


@dataclass(frozen=True)
class Cons(Term):
    """An item before a list."""

    head: Term
    tail: Term

    def __str__(self) -> str:
        return f"({self.head} :: {self.tail})"


@dataclass(frozen=True)
class Fold(Term):
    """A loop over a list, first to last: state = step x state. The only recursion; a fold from the right is one of functions."""

    step: Term
    start: Term
    items: Term

    def __str__(self) -> str:
        return f"(fold {self.step} from {self.start} over {self.items})"


@dataclass(frozen=True)
class Positive(Term):
    """inl () above 0, inr () below, undefined at 0. The only way by which a real decides anything."""

    value: Term

    def __str__(self) -> str:
        return f"positive({self.value})"


def let(name: str, type: Type, value: Term, body: Term) -> Term:
    """Let name = value in body."""
    return App(Lam(name, type, body), value)


def lets(term: Term) -> tuple[list[tuple[str, Type, Term]], Term]:
    """The lets that a term begins with, and what is below them: long programs are walked in a loop, and nest nothing."""
    found = []
    while isinstance(term, App) and isinstance(term.function, Lam):
        found.append((term.function.name, term.function.type, term.argument))
        term = term.function.body
    return found, term


def children(term: Term) -> Iterator[tuple[tuple[str, ...], Term]]:
    """The subterms, each with the names that are bound in it."""
    match term:
        case Lam(name, _, body):
            yield (name,), body
        case Case(choice, x, left, y, right):
            yield from (((), choice), ((x,), left), ((y,), right))
        case _:
            for f in fields(term):  # type: ignore[arg-type]
                value: Any = getattr(term, f.name)
                if isinstance(value, Term):
                    yield (), value
                elif isinstance(value, tuple):
                    yield from (((), item) for item in value if isinstance(item, Term))


def rebuilt(term: Term, new: list[Term]) -> Term:
    """The same former over other subterms, in the order of `children`."""
    match term:
        case Lam(name, type, _):
            return Lam(name, type, new[0])
        case Case(_, x, _, y, _):
            return Case(new[0], x, new[1], y, new[2])
        case Op(name, _):
            return Op(name, tuple(new))
        case Tuple():
            return Tuple(tuple(new))
        case _:
            names = [f.name for f in fields(term) if isinstance(getattr(term, f.name), Term)]  # type: ignore[arg-type]
            return replace(term, **dict(zip(names, new, strict=True)))  # type: ignore[type-var]
