"""Terms that follow one another: how large each is, and what is left of the whole after it.

    |part_k|        and        |whole - part_0 - ... - part_k|

The second curve ends at the remainder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .pictures import Line, Lines
from .waterfall import check_sample

if TYPE_CHECKING:
    from .decomposition import Decomposition

__all__ = ["series"]


def series(
    decomposition: Decomposition,
    sample: int = 0,
    *,
    title: str,
    x: str,
    places: Sequence[float] | Sequence[str] = (),
    note: str = "",
) -> Lines:
    """The sizes of the parts in order, and of what is left after each, on a logarithmic axis.

    Args:
        decomposition: whose parts have an order.
        sample: which sample, where there are several.
        title: of the picture.
        x: what the parts are numbered by.
        places: of the parts on that axis; 0, 1, 2, ... when not given.
        note: how to read it.

    Raises:
        ValueError: when there is no such sample.

    Example:
        >>> d = tw.Decomposition(torch.tensor([1.75]), {"a": torch.tensor([1.0]), "b": torch.tensor([0.5])})
        >>> [line.y for line in series(d, title="halves", x="order").lines]
        [[1.0, 0.5], [0.75, 0.25]]
    """
    check_sample(decomposition, sample)
    left = decomposition.whole[sample] if decomposition.by_sample else decomposition.whole
    sizes, rest = [], []
    for name in decomposition.parts:
        part = decomposition.contribution(name)
        part = (part[sample] if decomposition.by_sample else part).detach()
        left = left.detach() - part
        sizes.append(float(part.abs().double().norm()))
        rest.append(float(left.abs().double().norm()))
    at = places or list(range(len(sizes)))
    unit = "absolute value" if left.numel() == 1 else "Euclidean norm"
    lines = [Line("size of the term", at, sizes), Line("left over after it", at, rest, role="remainder")]
    return Lines(title, lines, x=x, y=unit, log_y=True, note=note)
