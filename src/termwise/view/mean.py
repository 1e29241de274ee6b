"""The mean of many decompositions is a decomposition too: the mean whole is the sum of the mean parts and the mean remainder.

    m_n = m_(n-1) + (v - m_(n-1)) / n,      s_n = s_(n-1) + (v - m_(n-1)) (v - m_n)

One number after the other, so that no digits are lost where numbers are alike. Source: Welford 1962.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from termwise.core.decomposition import Decomposition
from termwise.core.pictures import Table

__all__ = ["mean"]

NAMED = 4
"""Explained classes that are named one by one."""


def mean(rows: Iterable[Decomposition]) -> tuple[Decomposition, Table]:
    """The mean of decompositions of one number each; one after the other is in memory.

    Args:
        rows: at least one. A part that some do not have is 0 there. Rows of which a number is not finite are left out.

    Returns:
        The mean whole and parts, NaN where no row is left; and for each part its mean with an interval (95 %, normal; none
        for a single row), with a note that says how many rows were left out and what was explained where it is not the same.

    Example:
        >>> ones = torch.ones(1)
        >>> rows = [Decomposition(v * ones, {"a": ones, "b": (v - 1) * ones}) for v in (2, 6)]
        >>> {name: part.item() for name, part in mean(rows)[0].check().parts.items()}
        {'a': 1.0, 'b': 3.0}
    """
    count, lost, explained = 0, 0, dict[str, int]()
    means, squares = dict[str, float](), dict[str, float]()
    for row in rows:
        values = {"whole": float(row.whole), **{f"/{name}": float(part) for name, part in row.contributions().items()}}
        if not all(map(math.isfinite, values.values())):
            lost += 1
            continue
        count += 1
        what = _explained(row)
        explained[what] = explained.get(what, 0) + 1
        for name in {**means, **values}:
            value, before = values.get(name, 0.0), means.get(name, 0.0)
            means[name] = before + (value - before) / count
            squares[name] = squares.get(name, 0.0) + (value - before) * (value - means[name])
    means, cells = means or {"whole": math.nan}, []
    for name, m in means.items():
        half = 1.96 * math.sqrt(squares[name] / (count - 1) / count) if count > 1 else math.nan
        cells.append([name.removeprefix("/"), m, m - half, m + half])
    whole = torch.tensor([means.pop("whole")], dtype=torch.float64)
    parts = {name[1:]: torch.tensor([m], dtype=torch.float64) for name, m in means.items()}
    heads = ["part", "mean", "low", "high"]
    return Decomposition(whole, parts), Table("Means with intervals", heads, cells, note=_note(lost, explained))


def _explained(row: Any) -> str:
    """What a row explains, where it says so: an explanation has a label."""
    return str(row.label()) if hasattr(row, "label") else ""


def _note(lost: int, explained: dict[str, int]) -> str:
    said = []
    if lost:
        rows, hold = ("One row", "holds") if lost == 1 else (f"{lost:,} rows", "hold")
        said.append(f"{rows} {hold} a number that is not finite, and {'is' if lost == 1 else 'are'} left out.")
    if len(explained) > 1:
        most = sorted(explained.items(), key=lambda item: -item[1])
        names = [f"{name or 'unnamed'} ({n:,})" for name, n in most[:NAMED]]
        more = [f"{len(most) - NAMED:,} more"] if len(most) > NAMED else []
        said.append(f"Rows explain different things, and their parts are averaged together: {', '.join([*names, *more])}.")
    return " ".join(said)
