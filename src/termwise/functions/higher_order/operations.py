"""Primitive operations real^n -> real: the only place where anything is said about derivatives.

Each has its function on tensors, the recurrence by which Taylor blocks go through it (forwards), and its partial derivatives as
terms of its arguments and its value (backwards). Forwards and backwards are said twice, and tested against each other.

Source: Griewank & Walther ch. 13 (recurrences).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .blocks import Block, Recurrences, times
from .terms import Const, Op, Term

__all__ = ["OPERATIONS", "Operation"]


@dataclass(frozen=True)
class Operation:
    """A smooth function of reals.

    Attributes:
        arity: how many.
        function: on tensors.
        series: the block of the result, from those of the arguments.
        partials: by each argument, from the arguments and the result.
    """

    arity: int
    function: Callable[..., Tensor]
    series: Callable[..., Block]
    partials: Callable[..., tuple[Term, ...]]


def _by_entry(op: str) -> Callable[..., Block]:
    """The same operation on every coefficient: what is linear."""
    return lambda write, *blocks: {alpha: Op(op, tuple(b[alpha] for b in blocks)) for alpha in write.indices}


def _log(write: Recurrences, a: Block) -> Block:
    slope = write.reciprocal(a)
    return write.integral(a, "log", lambda _, gamma: slope[gamma])


def _tanh(write: Recurrences, a: Block) -> Block:
    def slope(c: Block, gamma: tuple[int, ...]) -> Term:
        square = write.squared(c, gamma)
        return Op("neg", (square,)) if any(gamma) else Op("sub", (Const(1), square))

    return write.integral(a, "tanh", slope)


def _sigmoid(write: Recurrences, a: Block) -> Block:
    return write.integral(a, "sigmoid", lambda c, gamma: Op("sub", (c[gamma], write.squared(c, gamma))))


def _one_minus(x: Term) -> Term:
    return Op("sub", (Const(1), x))


OPERATIONS: dict[str, Operation] = {
    "add": Operation(2, torch.add, _by_entry("add"), lambda a, b, c: (Const(1), Const(1))),
    "sub": Operation(2, torch.sub, _by_entry("sub"), lambda a, b, c: (Const(1), Const(-1))),
    "neg": Operation(1, torch.neg, _by_entry("neg"), lambda a, c: (Const(-1),)),
    "mul": Operation(2, torch.mul, Recurrences.product, lambda a, b, c: (b, a)),
    "reciprocal": Operation(1, torch.reciprocal, Recurrences.reciprocal, lambda a, c: (Op("neg", (times(c, c),)),)),
    "sqrt": Operation(1, torch.sqrt, Recurrences.sqrt, lambda a, c: (times(Const(0.5), Op("reciprocal", (c,))),)),
    "exp": Operation(1, torch.exp, lambda w, a: w.integral(a, "exp", lambda c, gamma: c[gamma]), lambda a, c: (c,)),
    "log": Operation(1, torch.log, _log, lambda a, c: (Op("reciprocal", (a,)),)),
    "sin": Operation(1, torch.sin, lambda w, a: w.sin_cos(a)[0], lambda a, c: (Op("cos", (a,)),)),
    "cos": Operation(1, torch.cos, lambda w, a: w.sin_cos(a)[1], lambda a, c: (Op("neg", (Op("sin", (a,)),)),)),
    "tanh": Operation(1, torch.tanh, _tanh, lambda a, c: (_one_minus(times(c, c)),)),
    "sigmoid": Operation(1, torch.sigmoid, _sigmoid, lambda a, c: (times(c, _one_minus(c)),)),
}
"""Name -> operation."""
