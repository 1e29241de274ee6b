"""Python functions as programs: run once on symbols, what they do is written down as a term.

Closures, tuples, and functions of functions are Python's own; a Python loop or `functools.reduce` over a Python list runs, and is
written out. What is to stay a `fold`, a `case` or a function in the program is said by `fold`, `case` and a symbol of that type.
What is computed gets a name (a `let`) where it is computed, so that using it twice does not compute it twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import reduce
from typing import Any

from .checking import typecheck
from .terms import (
    App,
    Case,
    Cons,
    Const,
    Fold,
    Inl,
    Inr,
    Lam,
    Nil,
    Op,
    Positive,
    Proj,
    Term,
    Tuple,
    Var,
    children,
    let,
    lets,
    rebuilt,
)
from .types import Arrow, ListT, Prod, Real, Sum, Type

__all__ = ["Symbol", "apply", "case", "differentiable", "each", "embed", "fold", "if_positive", "left", "right"]

_counter = itertools.count()
_lets: ContextVar[list[tuple[str, Type, Term]] | None] = ContextVar("lets", default=None)


@dataclass(frozen=True, eq=False)
class Symbol:
    """A value that stands for a term: arithmetic, calls, items and iteration over tuples write terms.

    Attributes:
        term: what it stands for.
        type: of the term.
    """

    term: Term
    type: Type

    def __add__(self, other: Any) -> Symbol:
        return apply("add", self, other)

    def __radd__(self, other: Any) -> Symbol:
        return apply("add", other, self)

    def __sub__(self, other: Any) -> Symbol:
        return apply("sub", self, other)

    def __rsub__(self, other: Any) -> Symbol:
        return apply("sub", other, self)

    def __mul__(self, other: Any) -> Symbol:
        return apply("mul", self, other)

    def __rmul__(self, other: Any) -> Symbol:
        return apply("mul", other, self)

    def __truediv__(self, other: Any) -> Symbol:
        return apply("mul", self, apply("reciprocal", other))

    def __rtruediv__(self, other: Any) -> Symbol:
        return apply("mul", other, apply("reciprocal", self))

    def __neg__(self) -> Symbol:
        return apply("neg", self)

    def __call__(self, argument: Any) -> Any:
        if not isinstance(self.type, Arrow):
            raise TypeError(f"a symbol of type {self.type} is no function")
        return _kept(App(self.term, _term(argument, self.type.source)), self.type.target)

    def __getitem__(self, index: int) -> Any:
        if not isinstance(self.type, Prod):
            raise TypeError(f"a symbol of type {self.type} has no items{_FOLD if isinstance(self.type, ListT) else ''}")
        return Symbol(Proj(self.term, range(len(self.type.items))[index]), self.type.items[index])

    def __iter__(self) -> Iterator[Any]:
        if not isinstance(self.type, Prod):
            raise TypeError(f"a symbol of type {self.type} is not iterated over{_FOLD if isinstance(self.type, ListT) else ''}")
        yield from (self[i] for i in range(len(self.type.items)))

    def __len__(self) -> int:
        if not isinstance(self.type, Prod):
            raise TypeError(f"the length of a symbol of type {self.type} is not known before it runs")
        return len(self.type.items)

    def __bool__(self) -> bool:
        raise TypeError("a program branches by `case` and `if_positive`: the truth of a symbol is not known before it runs")


_FOLD = ": its length is not known before it runs; use fold(step, start, items)"


def differentiable(*types: Type) -> Callable[[Callable[..., Any]], Term]:
    """Make a Python function of arguments of these types into a program: fun x. fun y. ...

    Args:
        *types: one per argument.

    Returns:
        A decorator; what it returns is a closed term.

    Raises:
        TypeError: for what the calculus has not (with what to use), or a result that is not of it.

    Example:
        >>> from functools import reduce
        >>> from termwise.functions.higher_order import Real, apply, differentiable, differentiate, evaluate
        >>> @differentiable(Real())
        ... def network(x):
        ...     layers = [lambda h, w=w: apply("tanh", w * h) for w in (1.0, 2.0)]
        ...     return reduce(lambda h, layer: layer(h), layers, x)
        >>> print(network)
        (fun x0: real. let x1 = mul(1, x0) in let x2 = tanh(x1) in let x3 = mul(2, x2) in let x4 = tanh(x3) in x4)
    """

    def traced(function: Callable[..., Any]) -> Term:
        names = [_name() for _ in types]
        _, term = _body(lambda: function(*(Symbol(Var(n), t) for n, t in zip(names, types, strict=True))))
        for name, type in reversed(list(zip(names, types, strict=True))):
            term = Lam(name, type, term)
        typecheck(term)  # a symbol that has left the function it was made in is bound nowhere
        return _renamed(term, {}, 0)

    return traced


def apply(op: str, *args: Any) -> Symbol:
    """An operation of the table `OPERATIONS` on symbols and numbers."""
    return _kept(Op(op, tuple(_term(arg, Real()) for arg in args)), Real())


def fold(step: Callable[[Any, Any], Any], start: Any, items: Symbol) -> Symbol:
    """functools.reduce over a list of any length: step(... step(step(start, x_1), x_2) ...)."""
    if not isinstance(items, Symbol) or not isinstance(items.type, ListT):
        raise TypeError("fold takes a symbol of a list; over a Python list functools.reduce does it")
    state, item = _type(start), items.type.item
    x, s = _name(), _name()
    _, once = _body(lambda: step(Symbol(Var(s), state), Symbol(Var(x), item)), state)
    return _kept(Fold(Lam(x, item, Lam(s, state, once)), _term(start, state), items.term), state)


def each(function: Callable[[Any], Any], items: Symbol) -> Symbol:
    """The list of function(x_1), function(x_2), ...: two folds, as each turns the list round."""
    if not isinstance(items, Symbol) or not isinstance(items.type, ListT):
        raise TypeError("each takes a symbol of a list; over a Python list Python's own loops do it")
    x, out = _name(), _name()
    made, once = _body(lambda: function(Symbol(Var(x), items.type.item)))
    list_of = ListT(made)
    first = Fold(Lam(x, items.type.item, Lam(out, list_of, Cons(once, Var(out)))), Nil(made), items.term)
    return _kept(Fold(Lam(x, made, Lam(out, list_of, Cons(Var(x), Var(out)))), Nil(made), first), list_of)


def case(choice: Symbol, on_left: Callable[[Any], Any], on_right: Callable[[Any], Any]) -> Symbol:
    """By which one of a sum it is: only the branch taken runs."""
    if not isinstance(choice, Symbol) or not isinstance(choice.type, Sum):
        raise TypeError("case takes a symbol of a sum")
    x, y = _name(), _name()
    type, first = _body(lambda: on_left(Symbol(Var(x), choice.type.left)))
    _, second = _body(lambda: on_right(Symbol(Var(y), choice.type.right)), type)
    return _kept(Case(choice.term, x, first, y, second), type)


def if_positive(value: Any, then: Callable[[], Any], otherwise: Callable[[], Any]) -> Symbol:
    """`then()` above 0, `otherwise()` below; undefined at 0, where the program has a kink."""
    unit = Sum(Prod(), Prod())
    return case(Symbol(Positive(_term(value, Real())), unit), lambda _: then(), lambda _: otherwise())


def embed(program: Term) -> Symbol:
    """A program inside another one, as a value: call it, or hand it on."""
    return Symbol(program, typecheck(program))


def left(value: Any, right: Type) -> Symbol:
    """The left one of a sum whose right type is this."""
    type = _type(value)
    return Symbol(Inl(_term(value, type), right), Sum(type, right))


def right(value: Any, left: Type) -> Symbol:
    """The right one of a sum whose left type is this."""
    type = _type(value)
    return Symbol(Inr(_term(value, type), left), Sum(left, type))


def _name() -> str:
    return f"v{next(_counter)}"  # unlike any other, until `_renamed`


def _kept(term: Term, type: Type) -> Symbol:
    """A symbol by name, the term written down where it is now."""
    lets = _lets.get()
    if lets is None:
        raise TypeError(f"{term} is computed outside of the function being made into a program")
    lets.append((name := _name(), type, term))
    return Symbol(Var(name), type)


def _body(run: Callable[[], Any], wanted: Type | None = None) -> tuple[Type, Term]:
    """What a piece of Python returns, below everything that it has computed on the way."""
    token = _lets.set([])
    try:
        out = run()
        wanted = _type(out) if wanted is None else wanted
        term = _term(out, wanted)
        for name, type, value in reversed(_lets.get() or []):
            term = let(name, type, value, term)
    finally:
        _lets.reset(token)
    return wanted, term


def _renamed(term: Term, names: Mapping[str, str], level: int) -> Term:
    """Bound names by how many binders are around them: x0, x1, ..."""

    def under(bound: str, body: Term) -> Term:
        return _renamed(body, {**names, bound: f"x{level}"}, level + 1)

    bound, body = lets(term)
    if bound:
        new = []
        for name, type, value in bound:
            new.append((f"x{level}", type, _renamed(value, names, level)))
            names, level = {**names, name: f"x{level}"}, level + 1
        return reduce(lambda inner, one: let(*one, inner), reversed(new), _renamed(body, names, level))
    match term:
        case Var(name):
            return Var(names.get(name, name))
        case Lam(x, type, body):
            return Lam(f"x{level}", type, under(x, body))
        case Case(choice, x, left, y, right):
            return Case(_renamed(choice, names, level), f"x{level}", under(x, left), f"x{level}", under(y, right))
    return rebuilt(term, [_renamed(child, names, level) for _, child in children(term)])


def _type(value: Any) -> Type:
    """Of a symbol, a number or a tuple of them; a Python function alone has none."""
    match value:
        case Symbol():
            return value.type
        case bool():
            pass
        case int() | float():
            return Real()
        case tuple():
            return Prod(tuple(map(_type, value)))
        case list() if value:
            return ListT(_type(value[0]))
        case Term():
            return typecheck(value)
    if callable(value):
        raise TypeError(f"the type of {value!r} is not known: a program that returns a function takes one argument more instead")
    raise TypeError(f"{value!r} is no value of the calculus: give symbols, numbers, tuples, or lists that are not empty")


def _term(value: Any, wanted: Type) -> Term:
    """The term of a value where this type is wanted."""
    if isinstance(value, Symbol):
        if value.type != wanted:
            raise TypeError(f"a symbol of type {value.type} stands where {wanted} is wanted")
        return value.term
    if isinstance(value, Term):
        found = typecheck(value)
        if found != wanted:
            raise TypeError(f"a program of type {found} stands where {wanted} is wanted")
        return value
    match wanted:
        case Real() if isinstance(value, (int, float)) and not isinstance(value, bool):
            return Const(float(value))
        case Prod(items) if isinstance(value, tuple) and len(value) == len(items):
            return Tuple(tuple(_term(v, t) for v, t in zip(value, items, strict=True)))
        case ListT(item) if isinstance(value, (list, tuple)):
            term: Term = Nil(item)
            for v in reversed(value):
                term = Cons(_term(v, item), term)
            return term
        case Arrow(source, target) if callable(value):
            name = _name()
            return Lam(name, source, _body(lambda: value(Symbol(Var(name), source)), target)[1])
    raise TypeError(f"{value!r} stands where {wanted} is wanted")
