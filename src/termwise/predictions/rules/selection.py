"""Where in a network a rule goes: the keys of a rule mapping.

A key is an operator (``"linear"``, ``"aten.linear"``, ``torch.ops.aten.linear``), a module class (``nn.Conv2d``), a glob on
module paths (``"encoder.layer.0.*"``), or one of

- ``operators("conv*", "linear")``: operators by glob, several at once;
- ``first("conv*", "linear")``: the first of these in order of execution;
- ``depth(0, 0.5, "conv*")``: those of these in the first half, in order of execution.

In the three, strings are globs on operators, and module classes and operators are taken too.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from termwise.core.program import Program, info, op_name

from .table import RULES

__all__ = ["Position", "depth", "first", "matcher", "nearest", "operators"]

Predicate = Callable[[fx.Node], bool]


@dataclass(frozen=True)
class Position:
    """Nodes that match any of some keys, of which those are meant that lie between two fractions of the way.

    Of n matching nodes in order of execution, number i (from 0) lies at (i + 1/2) / n.
    """

    keys: tuple[Any, ...]
    low: float = 0.0
    high: float = 1.0
    only_first: bool = False

    def nodes(self, program: Program) -> set[str]:
        """Names of the nodes of a program that are meant."""
        among = [_among(program, key) for key in self.keys]
        found = [n.name for n in program.nodes if info(n).role == "activation" and any(fits(n) for fits in among)]
        if self.only_first:
            return set(found[:1])
        return {name for i, name in enumerate(found) if self.low <= (i + 0.5) / len(found) < self.high}

    def __repr__(self) -> str:
        """The call that makes it."""
        shown = [k.__name__ if isinstance(k, type) else str(k) if not isinstance(k, str) else repr(k) for k in self.keys]
        if self.only_first:
            return f"first({', '.join(shown)})"
        if (self.low, self.high) == (0, 1):
            return f"operators({', '.join(shown)})"
        return f"depth({', '.join([f'{self.low:g}', f'{self.high:g}', *shown])})"


def operators(*keys: Any) -> Position:
    """Every operator that one of these globs names.

    Args:
        *keys: globs on operator names ("conv*"), operators, module classes.

    Example:
        >>> operators("conv*", "linear")
        operators('conv*', 'linear')
    """
    return Position(_keys(keys))


def first(*keys: Any) -> Position:
    """The one of these operators that is executed first (not the one whose module was registered first).

    Args:
        *keys: globs on operator names ("conv*"), operators, module classes.
    """
    return Position(_keys(keys), only_first=True)


def depth(low: float, high: float, *keys: Any) -> Position:
    """Those of these operators that lie between two fractions of the way from input to output.

    Of n of them, number i (from 0) lies at (i + 1/2) / n, so that ``depth(0, 0.5, ...)`` and ``depth(0.5, 1, ...)`` share
    them out.

    Args:
        low: from this fraction on.
        high: up to this one, not included.
        *keys: globs on operator names ("conv*"), operators, module classes.

    Raises:
        ValueError: unless 0 <= low < high <= 1.
    """
    if not 0 <= low < high <= 1:
        raise ValueError(f"depth needs fractions 0 <= low < high <= 1, got {low} and {high}")
    return Position(_keys(keys), float(low), float(high))


def _keys(keys: tuple[Any, ...]) -> tuple[Any, ...]:
    if not keys:
        raise ValueError('say which operators: first("conv*", "linear")')
    return keys


def matcher(program: Program, key: Any) -> Predicate:
    """The predicate on nodes that a key of a rule mapping means.

    Raises:
        TypeError: for a key of another kind.
        ValueError: for a string that is no operator and matches no module path.
    """
    if isinstance(key, Position):
        names = key.nodes(program)
        return lambda node: node.name in names
    if not isinstance(key, str):
        return _among(program, key)
    name = key.removeprefix("aten.")
    ops = {op_name(n) for n in program.nodes}
    paths = {info(n).path for n in program.nodes}
    if name in RULES or name in ops:
        return lambda node: op_name(node) == name
    if any(fnmatch.fnmatchcase(path, key) for path in paths):
        return lambda node: fnmatch.fnmatchcase(info(node).path, key)
    raise ValueError(
        f"{key!r} in `rules` is no operator and matches no module of {type(program.model).__name__}"
        f"{nearest(key, [*ops, *paths, *RULES])}"
    )


def _among(program: Program, key: Any) -> Predicate:
    """What does not depend on the position: an operator, a glob on operators, a module class."""
    if isinstance(key, type) and issubclass(key, nn.Module):
        modules = dict(program.model.named_modules()) if isinstance(program.model, nn.Module) else {}
        return lambda node: isinstance(modules.get(info(node).path), key)
    if isinstance(key, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        name = str(key).removeprefix("aten.")
        return lambda node: op_name(node) == name or str(node.target) == str(key)
    if isinstance(key, str):
        return lambda node: fnmatch.fnmatchcase(op_name(node), key.removeprefix("aten."))
    raise TypeError(f"a key of `rules` is an operator, a module class or a glob on module paths, got {key!r}")


def nearest(name: str, known: list[str]) -> str:
    """The end of a message about an unknown name."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f": did you mean {close[0]!r}?" if close else f": known are {', '.join(known[:8])}"
