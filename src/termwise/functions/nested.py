"""The way without a rule: derivatives of one operation by nested forward differentiation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .jet_rules import Jet

__all__ = ["nested"]

WRONG = ("layer_norm", "native_layer_norm", "instance_norm", "batch_norm", "native_batch_norm", "linalg_det", "linalg_slogdet",
         "linalg_solve", "cholesky_inverse", "cholesky_solve", "cumprod")  # fmt: skip
"""Operators through which nested `torch.func.jvp` is silently wrong from order 2 on (torch 2.13)."""


def nested(at: Any, *args: Any, **kwargs: Any) -> Jet:
    """One operation of curves, differentiated as often as the order asks: exponential in it.

    Raises:
        ValueError: for an operator through which nested forward differentiation is wrong.
    """
    name = at.op.__name__.partition(".")[0]
    if name in WRONG:
        raise ValueError(f"{at.where}: nested torch.func.jvp gives wrong derivatives from order 2 on here: add a jet rule for it")

    def along(t: Tensor) -> Tensor:
        values = [_at(a.rows, t) if isinstance(a, Jet) else a for a in args]
        out: Tensor = at.op(*values, **kwargs)
        return out

    derivative, zero = along, next(a.rows for a in args if isinstance(a, Jet)).new_zeros(())
    found = []
    for k in range(at.series.order + 1):
        found.append(derivative(zero) / math.factorial(k))
        derivative = _slope(derivative, zero)
    return Jet(torch.stack(found))


def _slope(f: Any, like: Tensor) -> Any:
    return lambda t: torch.func.jvp(f, (t,), (torch.ones_like(like),))[1]


def _at(rows: Tensor, t: Tensor) -> Tensor:
    value = rows[-1]
    for row in rows[:-1].flip(0):
        value = value * t + row
    return value
