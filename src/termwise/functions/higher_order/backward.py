r"""Reverse mode twice: as a structure-preserving map of programs, and as a tape.

    D*(real) = real x (real -> real^n)      D*(op)(x_1, x_1*), ... = (op(x), fun v. sum_i x_i*(v d_i op(x)))

A real carries the linear map that takes a cotangent back to the n inputs. It is the same map as `differentiate` with another
reading of `real`, so that its result can be differentiated in its turn; but a value used twice is walked back twice, which
doubles at every level of sharing. The tape does each step once, after the cotangents of all uses have been added.

Source: papers.toml "higher-order-ad" (backpropagators as a reading of `real`: ours); Griewank & Walther ch. 3 (the tape).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .checking import typecheck
from .evaluation import Numbers, each_real, first_tensor, given, meaning
from .forward import Reading, translate
from .operations import OPERATIONS
from .terms import App, Const, Lam, Op, Proj, Term, Tuple, Var, let
from .types import Arrow, Prod, Real, Type, first_order, map_real, reals

__all__ = ["Gradient", "Tape", "gradient", "reverse", "reverse_type"]


def reverse_type(type: Type, inputs: int) -> Type:
    """D*(type): a real beside what takes its cotangent back to so many inputs."""
    return map_real(type, _pair(inputs))


def reverse(term: Term) -> Term:
    """The program real^n -> real x real^n that has the value and the gradient.

    Args:
        term: closed, of type real^n -> real.

    Returns:
        A term of the calculus. It can be differentiated again: forwards over it gives second derivatives.

    Raises:
        TypeError: for a program of another type.

    Cost: exponential in how deeply values are shared; `gradient` is the fast one.

    Example:
        >>> from termwise.functions.higher_order import Lam, Op, Proj, Var, evaluate, reals, reverse
        >>> product = Lam("x", reals(2), Op("mul", (Proj(Var("x"), 0), Proj(Var("x"), 1))))
        >>> value, slopes = evaluate(reverse(product), (torch.tensor(3.0), torch.tensor(5.0)))
        >>> [s.item() for s in slopes]
        [5.0, 3.0]

    Source: papers.toml "higher-order-ad".
    """
    found = typecheck(term)
    if (
        not isinstance(found, Arrow)
        or not isinstance(found.source, Prod)
        or found != Arrow(reals(len(found.source.items)), Real())
    ):
        raise TypeError(f"the reverse twin is of programs real^n -> real; this one is of type {found}")
    n = len(found.source.items)
    twin = translate(
        term,
        Reading(
            _pair(n),
            lambda value: Tuple((Const(value), Lam("v", Real(), Tuple((Const(0),) * n)))),
            lambda name: _operation(name, n),
        ),
    )
    seeds = Tuple(tuple(Tuple((Proj(Var("x"), i), Lam("v", Real(), _unit(i, n)))) for i in range(n)))
    both = Tuple((Proj(Var("out"), 0), App(Proj(Var("out"), 1), Const(1))))
    return Lam("x", reals(n), let("out", _pair(n), App(twin, seeds), both))


def _pair(n: int) -> Prod:
    return Prod((Real(), Arrow(Real(), reals(n))))


def _unit(i: int, n: int) -> Term:
    return Tuple(tuple(Var("v") if j == i else Const(0) for j in range(n)))


@functools.cache
def _operation(name: str, n: int) -> Term:
    """D*(op), closed."""
    op = OPERATIONS[name]
    args = tuple(Proj(Proj(Var("p"), i), 0) for i in range(op.arity))
    back = [
        App(Proj(Proj(Var("p"), i), 1), Op("mul", (Var("v"), partial))) for i, partial in enumerate(op.partials(*args, Var("c")))
    ]
    body: Term = Var("b0")
    if op.arity == 2:
        body = Tuple(tuple(Op("add", (Proj(Var("b0"), j), Proj(Var("b1"), j))) for j in range(n)))
    for i, term in reversed(list(enumerate(back))):
        body = let(f"b{i}", reals(n), term, body)
    pair = Tuple((Var("c"), Lam("v", Real(), body)))
    return Lam("p", Prod((_pair(n),) * op.arity), let("c", Real(), Op(name, args), pair))


# -- the tape ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Taped:
    """A real on the tape: its value, and the place where it was made (None for a constant)."""

    value: Tensor
    place: int | None


@dataclass
class Tape:
    """Reals that write down how they were made.

    Attributes:
        numbers: does, and counts, the operations, forwards and backwards.
        steps: for each real its parents, as places, with the partial derivative by each.
    """

    numbers: Numbers
    steps: list[list[tuple[int, Tensor]]] = field(default_factory=list)

    def new(self, value: Tensor, parents: list[tuple[int, Tensor]]) -> Taped:
        """Write one down."""
        self.steps.append(parents)
        return Taped(value, len(self.steps) - 1)

    def constant(self, value: float) -> Taped:
        """A number: nothing flows back to it."""
        return Taped(self.numbers.constant(value), None)

    def positive(self, value: Taped) -> bool:
        """Decided by the value."""
        return self.numbers.positive(value.value)

    def apply(self, op: str, args: list[Taped]) -> Taped:
        """One operation, with its partial derivatives."""
        out = self.numbers.apply(op, [a.value for a in args])
        if all(a.place is None for a in args):
            return Taped(out, None)
        names = {**{f"x{i}": a.value for i, a in enumerate(args)}, "out": out}
        partials = OPERATIONS[op].partials(*(Var(f"x{i}") for i in range(len(args))), Var("out"))
        slopes = [
            (a.place, meaning(d, self.numbers, names=names)) for a, d in zip(args, partials, strict=True) if a.place is not None
        ]
        return self.new(out, slopes)

    def back(self, out: Taped) -> list[Tensor | None]:
        """Cotangents of everything on the tape, from a cotangent 1 of `out`."""
        found: list[Tensor | None] = [None] * len(self.steps)
        if out.place is None:
            return found
        found[out.place] = torch.ones_like(out.value)
        for place in range(out.place, -1, -1):
            cotangent = found[place]
            if cotangent is None:
                continue
            for parent, slope in self.steps[place]:
                term, before = self.numbers.apply("mul", [cotangent, slope]), found[parent]
                found[parent] = term if before is None else self.numbers.apply("add", [before, term])
        return found


@dataclass(frozen=True)
class Gradient:
    """Value and gradient of a program.

    Attributes:
        value: of the program.
        gradient: of the structure of its argument.
        count: operations done, forwards and backwards together.
    """

    value: Tensor
    gradient: Any
    count: int


def gradient(term: Term, x: Any) -> Gradient:
    """Value and gradient of a program by a tape: one run forwards, one backwards over what it did.

    Args:
        term: closed, from a type without functions to `real`; what happens between may use any.
        x: its argument.

    Returns:
        The value, the gradient in the structure of x, and the number of operations.

    Raises:
        TypeError: for a program of another type.

    Cost: at most 5 times the operations of the program, however many inputs there are: each once, its partial derivatives in two
        or none, a product and a sum for each argument. Memory one entry per operation.

    Example:
        >>> from termwise.functions.higher_order import Lam, Op, Proj, Var, gradient, reals
        >>> product = Lam("x", reals(2), Op("mul", (Proj(Var("x"), 0), Proj(Var("x"), 1))))
        >>> [s.item() for s in gradient(product, (torch.tensor(3.0), torch.tensor(5.0))).gradient]
        [5.0, 3.0]
    """
    found = typecheck(term)
    if not isinstance(found, Arrow) or found.target != Real() or not first_order(found.source):
        raise TypeError(f"gradients are of programs from values to a real; this one is of type {found}")
    x = given(x)
    tape = Tape(Numbers(first_tensor(x)))
    inputs = each_real(x, lambda value: tape.new(value, []))
    out = meaning(term, tape, inputs)
    cotangents = tape.back(out)

    def of(real: Taped) -> Tensor:
        flowed = cotangents[real.place]  # type: ignore[index]  (inputs have a place)
        return torch.zeros_like(real.value) if flowed is None else flowed

    return Gradient(out.value, each_real(inputs, of), tape.numbers.count)
