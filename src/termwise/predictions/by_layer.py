"""What each token or patch carries at each layer, and how much of the whole passes it, as pictures show it.

    carried_l(t) = sum_channels R_l(t)                a token of layer l, where its positions are the input's
    carried_l(p) = sum_(u, channels) A_pu R_l(u)      a patch of the picture; A_pu: the share of entry u's area that lies in p

Sums are kept: of a layer whose entries all have a place in the picture, what the patches carry is what passes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from termwise.core.mosaic import areas
from termwise.core.pictures import Line, Lines

__all__ = ["carried_by_patches", "carried_by_tokens", "passing", "short"]

ACROSS = 14
"""Patches along the longer side of a picture, at most."""

NOTE = (
    "relevance at the output of each block, by position; behind attention a position holds a mixture of what stood at all of "
    "them. What is missing was lost by rules, or went to biases behind the block, or past it."
)


def carried_by_tokens(
    layers: Mapping[str, Tensor], channels: Mapping[str, int], tokens: int, sample: int
) -> dict[str, list[float]]:
    """What every position carries, of layers with one vector per token.

    Args:
        layers: relevance by name, samples first: (batch, tokens, width), or (batch, channels, tokens).
        channels: by name the axis that is summed over, counted from the end; a layer without one is left out.
        tokens: how many there are.
        sample: which sample.
    """
    found = {
        name: value[sample].double().sum(channels[name])
        for name, value in layers.items()
        if value.ndim == 3 and channels.get(name, -3) > -3
    }
    return {name: line.tolist() for name, line in found.items() if len(line) == tokens}


def carried_by_patches(
    layers: Mapping[str, Tensor], channels: Mapping[str, int], size: Sequence[int], sample: int
) -> dict[str, Float[Tensor, "rows columns"]]:
    """What every patch carries, of layers that have maps (two axes beside the channels) or tokens in a grid (one).

    Class tokens have no place in the picture. A layer without places (a single entry, a vector) is left out.

    Args:
        layers: relevance by name, samples first.
        channels: by name the axis that is summed over, counted from the end; a layer without one is left out.
        size: height and width of the picture.
        sample: which sample.
    """
    height, width = size
    rows, columns = (max(1, round(ACROSS * min(1.0, side / max(size), max(size) / ACROSS))) for side in size)
    found = {}
    for name, value in layers.items():
        if name not in channels or value.ndim not in (3, 4):
            continue
        places = value[sample].detach().double().cpu().sum(channels[name])
        grid = places if places.ndim == 2 else _grid(places, height, width)
        if grid is not None and grid.numel() > 1:
            found[name] = areas(grid.shape[0], rows) @ grid @ areas(grid.shape[1], columns).mT
    return found


def passing(layers: Mapping[str, Tensor], whole: Tensor, sample: int) -> Lines:
    """How much of the whole passes each layer, and how much does not."""
    names, all_ = short(list(layers)), float(whole[sample])
    sums = [float(value[sample].double().sum()) for value in layers.values()]
    return Lines(
        "What passes each layer",
        [
            Line("relevance at the output of the layer", names, sums),
            Line("the rest: biases behind it, losses, what goes past it", names, [all_ - s for s in sums], role="remainder"),
            Line("whole", names, [all_] * len(names), role="whole"),
        ],
        y="relevance",
        note="Each layer is a cut of its own: what passes one passes others too, and they do not add up.",
    )


def short(names: Sequence[str]) -> list[str]:
    """Module paths without what they all begin with, but for its last word.

    Example:
        >>> short(["bert.encoder.layer.0", "bert.encoder.layer.1"])
        ['layer.0', 'layer.1']
    """
    split = [name.split(".") for name in names]
    shared = 0
    while all(len(s) > shared + 2 for s in split) and len({tuple(s[: shared + 2]) for s in split}) == 1:
        shared += 1
    return [".".join(s[shared:]) for s in split]


def _grid(line: Float[Tensor, " tokens"], height: int, width: int) -> Tensor | None:
    """Tokens as rows and columns of the picture's proportions; None where they are none. Up to two class tokens lead."""
    for extra in range(3):
        n = len(line) - extra
        rows = round((n * height / width) ** 0.5) if n > 0 else 0
        if rows and n % rows == 0 and rows * width == n // rows * height:
            return line[extra:].view(rows, -1)
    return None
