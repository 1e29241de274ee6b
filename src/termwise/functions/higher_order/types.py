"""Types of the calculus: reals, products, sums, functions, lists.

    tau ::= real | tau x ... x tau | tau + tau | tau -> tau | list(tau)

Values: a real is a tensor (entry by entry, any shape), a product a tuple, a function a Python function of one argument, a list a
Python list, and a sum a `Left` or a `Right`.

Source: papers.toml "higher-order-ad" (variants as binary sums, inductive types as lists).
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Arrow", "ListT", "Prod", "Real", "Sum", "Type", "first_order", "map_real", "reals"]


@dataclass(frozen=True)
class Real:
    """Real numbers."""

    def __str__(self) -> str:
        return "real"


@dataclass(frozen=True)
class Prod:
    """Tuples; of no items, the unit."""

    items: tuple[Type, ...] = ()

    def __str__(self) -> str:
        return f"({' x '.join(map(str, self.items))})" if self.items else "1"


@dataclass(frozen=True)
class Sum:
    """One of two."""

    left: Type
    right: Type

    def __str__(self) -> str:
        return f"({self.left} + {self.right})"


@dataclass(frozen=True)
class Arrow:
    """Functions."""

    source: Type
    target: Type

    def __str__(self) -> str:
        return f"({self.source} -> {self.target})"


@dataclass(frozen=True)
class ListT:
    """Lists of any length."""

    item: Type

    def __str__(self) -> str:
        return f"list({self.item})"


Type = Real | Prod | Sum | Arrow | ListT


def reals(n: int) -> Prod:
    """real^n."""
    return Prod((Real(),) * n)


def first_order(type: Type) -> bool:
    """Whether no function is in it."""
    match type:
        case Real():
            return True
        case Prod(items):
            return all(map(first_order, items))
        case Sum(left, right):
            return first_order(left) and first_order(right)
        case ListT(item):
            return first_order(item)
    return False


def map_real(type: Type, real: Type) -> Type:
    """The same type with another one in place of `real`: what a structure-preserving map does to types."""
    match type:
        case Real():
            return real
        case Prod(items):
            return Prod(tuple(map_real(item, real) for item in items))
        case Sum(left, right):
            return Sum(map_real(left, real), map_real(right, real))
        case Arrow(source, target):
            return Arrow(map_real(source, real), map_real(target, real))
        case ListT(item):
            return ListT(map_real(item, real))
    raise TypeError(f"{type!r} is no type of the calculus: use Real, Prod, Sum, Arrow, ListT")
