"""Random well-typed programs: what laws of the calculus are tested on.

A term of a wanted type is either made (a tuple for a product, a function for an arrow, ...), found (a name that has it) or used
(a function applied, a list folded, a sum taken apart, an item of a tuple), down to a depth. What a program goes through on its
way from reals to a real is then of any type: functions of functions, lists of functions, sums of tuples.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from .terms import App, Case, Cons, Const, Fold, Inl, Inr, Lam, Nil, Op, Proj, Term, Tuple, Var, children
from .types import Arrow, ListT, Prod, Real, Sum, Type, reals

__all__ = ["higher_order", "random_program", "random_term"]

UNARY = ("sin", "cos", "tanh", "sigmoid", "neg")
BINARY = ("add", "sub", "mul")
# entire functions of something bounded away from where they end
GUARDED: dict[str, Callable[[Term], Term]] = {
    "exp": lambda t: Op("sin", (t,)),
    "log": lambda t: Op("add", (Const(1.5), Op("sin", (t,)))),
    "sqrt": lambda t: Op("add", (Const(1.5), Op("cos", (t,)))),
    "reciprocal": lambda t: Op("add", (Const(2), Op("sin", (t,)))),
}
NAMES = ("x", "y", "f", "p", "c0")  # few, so that names are taken again; the last two are those that D binds
SMALL: tuple[Type, ...] = (Real(), Real(), reals(2), Sum(Real(), reals(2)), Arrow(Real(), Real()), ListT(Real()))
ARGUMENTS: tuple[Type, ...] = (
    *SMALL, ListT(Arrow(Real(), Real())), Arrow(Arrow(Real(), Real()), Real()), Arrow(reals(2), Arrow(Real(), Real())),
    Prod((Real(), Arrow(Real(), Real()))), Sum(Arrow(Real(), Real()), Prod()),
)  # fmt: skip


def random_program(rng: random.Random, inputs: int = 2, depth: int = 5) -> Term:
    """A closed program real^n -> real.

    Args:
        rng: decides; a seed gives a program.
        inputs: n.
        depth: how deep terms may be nested.

    Example:
        >>> import random
        >>> from termwise.functions.higher_order import random_program, typecheck
        >>> print(typecheck(random_program(random.Random(0))))
        ((real x real) -> real)
    """
    return Lam("in", reals(inputs), random_term(rng, Real(), {"in": reals(inputs)}, depth))


def random_term(rng: random.Random, wanted: Type, names: Mapping[str, Type], depth: int) -> Term:
    """A term of the wanted type, over these names."""

    def smaller() -> int:
        return depth - 1 if rng.random() < 0.8 else rng.randint(0, depth - 1)

    def some(type: Type, also: Mapping[str, Type] | None = None) -> Term:
        return random_term(rng, type, {**names, **(also or {})}, smaller())

    found = _found(wanted, names)
    if depth <= 0:
        return rng.choice(found) if found and rng.random() < 0.9 else _made(rng, wanted, names, 0)
    way = rng.random()
    if way < 0.05 and found:
        return rng.choice(found)
    if way < 0.5:
        return _made(rng, wanted, names, depth)
    x, y = rng.choice(NAMES), rng.choice(NAMES)
    if way < 0.7:
        argument = rng.choice(ARGUMENTS)
        return App(Lam(x, argument, some(wanted, {x: argument})), some(argument))
    if way < 0.78:
        functions = [(name, type) for name, type in names.items() if isinstance(type, Arrow) and type.target == wanted]
        if functions:
            name, type = rng.choice(functions)
            return App(Var(name), some(type.source))
    if way < 0.86:
        left, right = rng.choice(SMALL), rng.choice(ARGUMENTS)
        return Case(some(Sum(left, right)), x, some(wanted, {x: left}), y, some(wanted, {y: right}))
    if way < 0.96:
        item = rng.choice(SMALL)
        y = y if y != x else x + "s"
        step = Lam(x, item, Lam(y, wanted, some(wanted, {x: item, y: wanted})))
        return Fold(step, some(wanted), some(ListT(item)))
    items = [wanted, rng.choice(SMALL)]
    rng.shuffle(items)
    return Proj(some(Prod(tuple(items))), items.index(wanted))


def _found(wanted: Type, names: Mapping[str, Type]) -> list[Term]:
    """Names of this type, and items of those that are tuples."""
    found: list[Term] = []
    for name, type in names.items():
        if type == wanted:
            found.append(Var(name))
        if isinstance(type, Prod):
            found += [Proj(Var(name), i) for i, item in enumerate(type.items) if item == wanted]
    return found


def _made(rng: random.Random, wanted: Type, names: Mapping[str, Type], depth: int) -> Term:
    """By the former of its type."""

    def some(type: Type, also: Mapping[str, Type] | None = None) -> Term:
        return random_term(rng, type, {**names, **(also or {})}, depth - 1)

    match wanted:
        case Real():
            if depth <= 0:
                found = _found(wanted, names)
                return rng.choice(found) if found and rng.random() < 0.8 else Const(round(rng.uniform(-1.5, 1.5), 2))
            kind = rng.random()
            if kind < 0.45:
                return Op(rng.choice(BINARY), (some(Real()), some(Real())))
            if kind < 0.8:
                return Op(rng.choice(UNARY), (some(Real()),))
            name = rng.choice(list(GUARDED))
            return Op(name, (GUARDED[name](some(Real())),))
        case Prod(items):
            return Tuple(tuple(map(some, items)))
        case Sum(left, right):
            return Inl(some(left), right) if rng.random() < 0.5 else Inr(some(right), left)
        case Arrow(source, target):
            x = rng.choice(NAMES)
            return Lam(x, source, some(target, {x: source}))
        case ListT(item):
            made: Term = Nil(item)
            for _ in range(rng.randint(0, 3)):
                made = Cons(some(item), made)
            return made
    raise TypeError(f"{wanted!r} is no type of the calculus")


def higher_order(term: Term) -> bool:
    """Whether a function is handed to a function, a sum is taken apart, or a list is folded."""
    match term:
        case Case() | Fold() | App(Lam(_, Arrow(), _), _):
            return True
    return any(higher_order(child) for _, child in children(term))
