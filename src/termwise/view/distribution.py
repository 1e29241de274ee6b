"""How the numbers of a column are spread, as bars: by powers of ten, or in steps of one width."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from termwise.core.pictures import Bars
from termwise.report.reading import number

__all__ = ["distribution"]

STEPS = 10
"""Bars, beside one for what is no number and one at either end; more would not stand side by side."""

WIDE = 3.0
"""Where all values span more than so many times what the middle 99 % do, the outer ones share a bar at each end."""

Counts = list[tuple[str, int]]


def distribution(name: str, values: NDArray[np.float64], *, by_tens: bool = False) -> Bars:
    """Count the values in bars.

    Args:
        name: of the column.
        values: NaN where a cell is empty or holds none.
        by_tens: powers of ten, for what is never below 0.

    Returns:
        Bars, each named by its lower end; none where there are no values.

    Example:
        >>> bars = distribution("error", np.array([0, 2e-3, 3e-3, 5.0, np.nan]), by_tens=True)
        >>> list(zip(bars.names, bars.values["rows"]))
        [('0', 1), ('1e-3', 2), ('1e-2', 0), ('1e-1', 0), ('1e0', 1), ('none', 1)]
    """
    finite = values[np.isfinite(values)]
    counted: Counts = []
    if finite.size:
        counted = _by_tens(finite[finite > 0], int((finite <= 0).sum())) if by_tens else _in_steps(finite)
    if finite.size < values.size:
        counted.append(("none", values.size - finite.size))
    told = (
        f"Half of them are at most {number(float(np.median(finite)))}, all at most {number(float(finite.max()))}."
        if finite.size
        else ""
    )
    return Bars(name, [n for n, _ in counted], {"rows": [c for _, c in counted]}, y="rows", note=told)


def _by_tens(positive: NDArray[np.float64], zeros: int) -> Counts:
    """A bar for every power of ten, or for every few; 0 has its own."""
    found = [("0", zeros)] if zeros else []
    if positive.size:
        tens = np.floor(np.log10(positive)).astype(int)
        low, wide = int(tens.min()), -(-(int(tens.max()) - int(tens.min()) + 1) // STEPS)
        found += [(f"1e{low + wide * i}", int(n)) for i, n in enumerate(np.bincount((tens - low) // wide))]
    return found


def _in_steps(finite: NDArray[np.float64]) -> Counts:
    """Bars of one width; what lies far out on either side is in a bar of its own."""
    low, high = float(finite.min()), float(finite.max())
    if low == high:
        return [(number(low), int(finite.size))]
    inner_low, inner_high = np.percentile(finite, (0.5, 99.5)).tolist()
    outer = high - low > WIDE * (inner_high - inner_low) > 0
    low, high = (inner_low, inner_high) if outer else (low, high)
    step = high / STEPS - low / STEPS
    edges = [low + step * i for i in range(STEPS)]
    above = np.searchsorted(edges, finite, side="right")  # 0 for what lies below the first edge
    counts = np.bincount(np.where(finite > high, STEPS + 1, above), minlength=STEPS + 2).tolist()
    named = [("below", counts[0]), *zip((_name(e, step) for e in edges), counts[1:-1], strict=True), ("above", counts[-1])]
    return named if outer else named[1:-1]


def _name(edge: float, step: float) -> str:
    """With as many digits as tell it from its neighbours."""
    digits = max(0, 1 - math.floor(math.log10(step))) if step else 0
    return f"{edge:z.{digits}f}".replace("-", "\N{MINUS SIGN}") if digits < 6 and abs(edge) < 1e6 else number(edge)
