"""A matrix of any size as a picture of at most 64 by 64 fields: each is the mean of a block, or its root mean square.

Means add up as the numbers do, and the blocks of a product L R are the means of L's rows times the means of R's columns.
What has no sign, or whose signs cancel within a block, as a remainder's do, is shown by its root mean square.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .pictures import Matrix

__all__ = ["areas", "averaged", "blocks", "mosaic"]

MOST = 64
"""Fields of a picture along an axis."""


def blocks(size: int, most: int = MOST) -> list[tuple[int, int]]:
    """At most so many neighbouring ranges (first, end) of nearly one size, which are all of `size` together.

    Example:
        >>> blocks(5, 2)
        [(0, 2), (2, 5)]
    """
    count = min(size, most)
    return [(i * size // count, (i + 1) * size // count) for i in range(count)]


def averaged(values: Tensor, dim: int, most: int = MOST) -> Tensor:
    """Means over the blocks of one axis, in float64."""
    return torch.stack(
        [v.double().mean(dim) for v in values.split([b - a for a, b in blocks(values.shape[dim], most)], dim)], dim
    )


def areas(old: int, new: int) -> Tensor:
    """The share of each of `old` equal stretches that lies in each of `new` ones, (new, old); columns sum to 1.

    Example:
        >>> areas(4, 2).tolist()
        [[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]
    """
    edges = [torch.arange(n + 1, dtype=torch.float64) / n for n in (new, old)]
    low = torch.maximum(edges[0][:-1, None], edges[1][None, :-1])
    high = torch.minimum(edges[0][1:, None], edges[1][None, 1:])
    return (high - low).clamp_min(0) * old


def mosaic(
    title: str,
    values: Tensor,
    *,
    most: int = MOST,
    squares: bool = False,
    value: str = "",
    x: str = "",
    y: str = "",
    note: str = "",
    top: float = 0.0,
    signed: bool = True,
) -> Matrix:
    """A matrix as a picture; where it is larger than that, the note says what a field is.

    Args:
        title: of the picture.
        values: (rows, columns), real.
        most: fields along an axis.
        squares: root mean squares in place of means, which have no sign.
        value: what a number is.
        x: what columns are.
        y: what rows are.
        note: how to read it.
        top: the number in full colour; the largest of the fields when 0.
        signed: whether there are numbers on both sides of 0.

    Example:
        >>> m = mosaic("", torch.arange(4.0).reshape(2, 2), most=1)
        >>> m.values, m.rows, m.note
        ([[1.5]], ['0–1'], 'Each field is the mean of 2 by 2 numbers.')
    """
    values = values.detach()
    fields = averaged(averaged(values.double().square() if squares else values, 0, most), 1, most)
    fields = fields.sqrt() if squares else fields
    rows, columns = ([str(a) if b == a + 1 else f"{a}–{b - 1}" for a, b in blocks(size, most)] for size in values.shape)
    if max(values.shape) > most:
        high, wide = (max(b - a for a, b in blocks(size, most)) for size in values.shape)
        kind = "root mean square" if squares else "mean"
        note = f"{note} Each field is the {kind} of {high} by {wide} numbers.".strip()
    signed = signed and not squares
    return Matrix(title, fields.cpu().tolist(), rows, columns, value=value, x=x, y=y, top=top, signed=signed, note=note)
