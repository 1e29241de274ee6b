"""When two functions are the same: a fresh `lambda z: z[:, 1]` is the one that was recorded in the call before.

Equal code with equal plain values around it (defaults, closure, the globals it names) computes the same. A value that is not
plain may change behind our back, a list or an object with attributes: such a function is equal to itself only.
"""

from __future__ import annotations

import types
from collections.abc import Hashable, Iterator
from typing import Any

import torch

__all__ = ["meaning"]

_PLAIN = (int, float, complex, str, bytes, bool, type(None), type(Ellipsis), torch.dtype, torch.device)
_FIXED = (types.ModuleType, types.BuiltinFunctionType, type)


def meaning(function: Any) -> Hashable:
    """A key that two functions share only if they do the same.

    Example:
        >>> def pick(k): return lambda z: z[:, k]
        >>> meaning(pick(1)) == meaning(pick(1)), meaning(pick(1)) == meaning(pick(2))
        (True, False)
    """
    try:
        return _of(function, ())
    except _Unknown:
        return function  # type: ignore[no-any-return]


class _Unknown(Exception):
    """A value that may change."""


def _of(value: Any, within: tuple[Any, ...]) -> Hashable:
    if isinstance(value, _PLAIN):
        return type(value), value  # 1, 1.0 and True are equal, and index differently
    if isinstance(value, _FIXED) or (isinstance(value, types.FunctionType) and value.__module__.partition(".")[0] == "torch"):
        return value
    if isinstance(value, tuple):
        return tuple(_of(v, within) for v in value)
    if not isinstance(value, types.FunctionType) or value.__dict__ or value in within:
        raise _Unknown
    inner = (*within, value)
    try:
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
    except ValueError:  # a name that is not bound yet
        raise _Unknown from None
    named = [(n, value.__globals__[n]) for n in sorted(set(_names(value.__code__))) if n in value.__globals__]
    around = (value.__defaults__ or (), tuple((value.__kwdefaults__ or {}).items()), tuple(cells), tuple(named))
    return value.__code__, _of(around, inner)


def _names(code: types.CodeType) -> Iterator[str]:
    """Names that code reads from outside, code within it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
