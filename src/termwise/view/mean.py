"""The mean of many decompositions is a decomposition too: the mean whole is the sum of the mean parts and the mean remainder."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from termwise.core.decomposition import Decomposition
from termwise.core.pictures import Table

__all__ = ["mean"]


def mean(rows: Iterable[Decomposition]) -> tuple[Decomposition, Table]:
    """The mean of decompositions of one number each; one after the other is in memory.

    Args:
        rows: at least one. A part that some do not have is 0 there.

    Returns:
        The mean whole and parts; and for each part its mean with an interval (95 %, normal; none for a single row).

    Example:
        >>> ones = torch.ones(1)
        >>> rows = [Decomposition(v * ones, {"a": ones, "b": (v - 1) * ones}) for v in (2, 6)]
        >>> {name: part.item() for name, part in mean(rows)[0].check().parts.items()}
        {'a': 1.0, 'b': 3.0}
    """
    count, sums, squares = 0, dict[str, float](), dict[str, float]()
    for row in rows:
        count += 1
        for name, value in {"whole": row.whole, **{f"/{n}": v for n, v in row.contributions().items()}}.items():
            number = float(value)
            sums[name] = sums.get(name, 0.0) + number
            squares[name] = squares.get(name, 0.0) + number**2
    means = {name: total / count for name, total in sums.items()}
    cells = []
    for name, m in means.items():
        half = 1.96 * math.sqrt(max(0.0, squares[name] / count - m**2) / (count - 1)) if count > 1 else math.nan
        cells.append([name.removeprefix("/"), m, m - half, m + half])
    whole = torch.tensor([means.pop("whole")], dtype=torch.float64)
    parts = {name[1:]: torch.tensor([m], dtype=torch.float64) for name, m in means.items()}
    return Decomposition(whole, parts), Table("Means with intervals", ["part", "mean", "low", "high"], cells)
