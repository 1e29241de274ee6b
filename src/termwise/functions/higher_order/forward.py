r"""Differentiation as a map of programs: D keeps every type and term former, and changes reals and operations alone.

    D(real) = real^C(R + k, k)          D(op) = fun p. (recurrence of op over the blocks p.0, p.1, ...)
    D(A x B) = D(A) x D(B)      D(A + B) = D(A) + D(B)      D(A -> B) = D(A) -> D(B)      D(list A) = list D(A)
    D(x) = x      D(fun x: A. t) = fun x: D(A). D(t)      D(t s) = D(t) D(s)      D(fold ...) = fold of D ...      and so on

For a closed program real^n -> real^m, whatever functions of functions it goes through, D(t) is (f, Df) and, at order R, all
partial derivatives along k directions. It is a map from closed terms to closed terms, so that it can be applied to what it
returns; there are no tags that could be confused. D(op) is closed, so that nothing of the program is ever captured.

Source: papers.toml "higher-order-ad".
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..expansion import Expansion
from .blocks import Recurrences, block_type, multi_indices
from .checking import typecheck
from .evaluation import Left, evaluate, given
from .operations import OPERATIONS
from .terms import App, Const, Inl, Inr, Lam, Nil, Op, Positive, Proj, Term, Tuple, Var, children, let, lets, rebuilt
from .types import Arrow, ListT, Prod, Real, Sum, Type, first_order, map_real

__all__ = ["Reading", "coefficient", "derivative_type", "differentiate", "expansion", "lift", "translate"]


@dataclass(frozen=True)
class Reading:
    """What a structure-preserving map takes reals to.

    Attributes:
        real: the type in place of `real`; a product whose first item is the value.
        constant: a number in it.
        operation: an operation, as a closed function of the tuple of its arguments.
    """

    real: Type
    constant: Callable[[float], Term]
    operation: Callable[[str], Term]


def translate(term: Term, reading: Reading) -> Term:
    """The map that keeps every former, and reads reals and operations in another way."""

    def type_of(old: Type) -> Type:
        return map_real(old, reading.real)

    def over(term: Term) -> Term:
        bound, body = lets(term)
        if bound:
            moved = [(name, type_of(old), over(value)) for name, old, value in bound]
            return functools.reduce(lambda inner, one: let(*one, inner), reversed(moved), over(body))
        match term:
            case Const(value):
                return reading.constant(value)
            case Op(name, args):
                return App(reading.operation(name), Tuple(tuple(map(over, args))))
            case Positive(value):
                return Positive(Proj(over(value), 0))
            case Lam(name, type, body):
                return Lam(name, type_of(type), over(body))
            case Inl(value, right):
                return Inl(over(value), type_of(right))
            case Inr(value, left):
                return Inr(over(value), type_of(left))
            case Nil(item):
                return Nil(type_of(item))
        return rebuilt(term, [over(child) for _, child in children(term)])

    return over(term)


def differentiate(term: Term, directions: int = 1, order: int = 1) -> Term:
    """D(term): the same program over Taylor blocks.

    Args:
        term: of the calculus; free names stay, and stand for what has the derivative of their type.
        directions: k, how many tangents travel together.
        order: R, the highest order of derivatives.

    Returns:
        A term of the calculus, of type `derivative_type` of its own.

    Raises:
        ValueError: for no direction or a negative order.
        TypeError: for what is no term.

    Cost: per operation O(C(R + k, k)^2), written once and shared by all its places.

    Example:
        >>> from termwise.functions.higher_order import Lam, Op, Real, Var, differentiate, evaluate
        >>> square = Lam("x", Real(), Op("mul", (Var("x"), Var("x"))))
        >>> x, one = torch.tensor(3.0), torch.tensor(1.0)
        >>> [v.item() for v in evaluate(differentiate(square), (x, one))]
        [9.0, 6.0]

    Source: papers.toml "higher-order-ad"; coefficients are derivatives divided by alpha!.
    """
    zeros = (Const(0),) * (len(multi_indices(directions, order)) - 1)
    return translate(
        term,
        Reading(
            block_type(directions, order),
            lambda value: Tuple((Const(value), *zeros)),
            lambda name: _operation(name, directions, order),
        ),
    )


@functools.cache
def _operation(name: str, directions: int, order: int) -> Term:
    """D(op), closed."""
    op, write = OPERATIONS[name], Recurrences(directions, order)
    blocks = [write.block(Proj(Var("p"), i)) for i in range(op.arity)]
    return Lam("p", Prod((block_type(directions, order),) * op.arity), write.closed(op.series(write, *blocks)))


def derivative_type(type: Type, directions: int = 1, order: int = 1) -> Type:
    """D(type): a Taylor block in place of every real.

    Example:
        >>> from termwise.functions.higher_order import Arrow, Real, derivative_type
        >>> print(derivative_type(Arrow(Real(), Real())))
        ((real x real) -> (real x real))
    """
    return map_real(type, block_type(directions, order))


# -- in and out of blocks ---------------------------------------------------------------------------------------------


def lift(of: Type, value: Any, *tangents: Any, order: int = 1) -> Any:
    """The value of D(of) that moves in straight lines: value + sum_i t_i tangent_i.

    Args:
        of: the type of the value, without functions in it.
        value: of this type.
        *tangents: one per direction, each of the same structure; without any it stands still, in one direction.
        order: R.

    Raises:
        ValueError: for a function in the type (its derivative is a program: `differentiate` it); for lists of different
            lengths, or different sides of a sum.
    """
    indices = multi_indices(max(1, len(tangents)), order)

    def over(of: Type, value: Any, tangents: Sequence[Any]) -> Any:
        match of:
            case Real():
                moves = {alpha: tangents[alpha.index(1)] for alpha in indices if sum(alpha) == 1 and tangents}
                return (value, *(moves.get(alpha, torch.zeros_like(value)) for alpha in indices[1:]))
            case Prod(items):
                _same_length(items, value, *tangents)
                return tuple(over(item, value[i], [v[i] for v in tangents]) for i, item in enumerate(items))
            case ListT(item):
                _same_length(value, *tangents)
                return [over(item, x, [v[i] for v in tangents]) for i, x in enumerate(value)]
            case Sum(left, right):
                side = type(value)
                if any(type(v) is not side for v in tangents):
                    raise ValueError("a value and its tangents are on different sides of a sum")
                return side(over(left if side is Left else right, value.value, [v.value for v in tangents]))
        raise ValueError(f"{of} is a function, and moves as a program does: differentiate its term instead of lifting a value")

    return over(of, given(value), [given(v) for v in tangents])


def coefficient(of: Type, dual: Any, alpha: Sequence[int], order: int = 1) -> Any:
    """What a value of D(of) has at the multi-index alpha: at (0, ...) its value, at a unit its derivative.

    Args:
        of: the type, without functions in it.
        dual: a value of D(of).
        alpha: one number per direction.
        order: R of the blocks.

    Raises:
        ValueError: for a function in the type, or an alpha beyond the order.
    """
    indices = multi_indices(len(alpha), order)
    if tuple(alpha) not in indices:
        raise ValueError(f"blocks of order {order} in {len(alpha)} directions have no coefficient {tuple(alpha)}")
    return _read(of, dual, lambda block: block[indices.index(tuple(alpha))])


def _read(of: Type, dual: Any, read: Callable[[tuple[Tensor, ...]], Tensor]) -> Any:
    match of:
        case Real():
            return read(dual)
        case Prod(items):
            return tuple(_read(item, dual[i], read) for i, item in enumerate(items))
        case ListT(item):
            return [_read(item, x, read) for x in dual]
        case Sum(left, right):
            return type(dual)(_read(left if isinstance(dual, Left) else right, dual.value, read))
    raise ValueError(f"{of} is a function: apply it first")


def _same_length(*values: Any) -> None:
    lengths = [len(v) for v in values]
    if len(set(lengths)) > 1:
        raise ValueError(f"a value and its tangents differ in length: {lengths}")


def expansion(term: Term, x: Any, direction: Any, order: int = 4, at: float = 1.0) -> Expansion:
    """A program around a point, as `tw.expand` has it for networks: f(x + at h) = sum_(k <= order) f_k at^k + remainder.

    Args:
        term: closed, from a type without functions to `real`.
        x: its argument.
        direction: h, of the same structure.
        order: K.
        at: where along the direction.

    Returns:
        An `Expansion`, with parts order_0 ... order_K.

    Raises:
        ValueError: for a negative order, at = 0, a program of another type.

    Example:
        >>> from termwise.functions.higher_order import Lam, Op, Real, Var, expansion
        >>> x = torch.tensor(0.0, dtype=torch.float64)
        >>> expansion(Lam("x", Real(), Op("exp", (Var("x"),))), x, x + 1, order=12).error() < 1e-9
        True
    """
    if order < 0 or at == 0:
        raise ValueError(f"order is 0 or more and at is not 0, got {order} and {at}")
    found = typecheck(term)
    if not isinstance(found, Arrow) or found.target != Real() or not first_order(found.source):
        raise ValueError(f"expand a program from values to a real; this one is of type {found}")
    line = lift(found.source, x, direction, order=order + 1)
    with torch.no_grad():
        rows = evaluate(differentiate(term, 1, order + 1), line)
        whole = evaluate(term, _read(found.source, line, lambda block: block[0] + at * block[1]))
    series = torch.stack([row.expand_as(whole) for row in rows], -1)
    parts = {f"order_{k}": series[..., k] * at**k for k in range(order + 1)}
    return Expansion(whole, parts, series, float(at))
