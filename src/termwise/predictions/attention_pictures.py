"""Attention as pictures: the index of tokens that a method makes of it, and the maps of the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from termwise.core.pictures import Bars, Matrix, Picture, Pixels, Steps, Words

__all__ = ["index_of_tokens", "layer_maps"]

TOKENS, LAYERS = 48, 24
"""Maps of more tokens cannot be read, nor a slider of more layers: they are left out, and said to be."""


def index_of_tokens(title: str, values: Tensor, names: Sequence[str] | None, heat: Tensor | None) -> Picture:
    """The index of one sample: over its image, on its words, or bars where it has no names."""
    note = "An index: it says which tokens count, and adds up to nothing."
    if heat is not None:
        return Pixels(title, heat.detach().double().cpu().numpy(), note=note)
    numbers = values.detach().double().tolist()
    if names is not None and len(names) == len(numbers):
        return Words(title, names, numbers, note=note)
    return Bars(title, [str(i) for i in range(len(numbers))], {"index": numbers}, y="index", signed=True, note=note)


def layer_maps(
    title: str, maps: Mapping[str, Float[Tensor, "batch ... queries keys"]], names: Sequence[str] | None, sample: int
) -> list[Picture]:
    """What each attention of one sample looks at, the mean of its heads: a slider over the layers."""
    small = {path: value[sample].detach().double() for path, value in maps.items() if max(value.shape[-2:]) <= TOKENS}
    shown = dict(list(small.items())[-LAYERS:])
    if not shown:
        return []
    pictures = []
    for value in shown.values():
        mean = value.flatten(0, -3).mean(0) if value.ndim > 2 else value
        rows, columns = (_named(names, n) for n in mean.shape)
        pictures.append(Matrix("", mean.tolist(), rows, columns, value="attention", x="looked at", y="looking"))
    left = len(maps) - len(shown)
    note = f"{left} more attentions, of more tokens or of earlier layers, are not shown." if left else ""
    return [Steps(title, "layer", list(shown), pictures, note=note)]


def _named(names: Sequence[str] | None, n: int) -> list[str]:
    """Tokens by place, and by name where they have names."""
    known = names if names is not None and len(names) == n else [""] * n
    return [f"{i} {token}".strip() for i, token in enumerate(known)]
