"""A module of plain layers as JSON and back: which classes, in which shape. Reading it runs nothing but their constructors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .low_rank_linear import GroupedLinear, LowRankEmbedding, LowRankLinear, Pivoted

__all__ = ["construct", "describe"]

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)}

TABLE = ("num_embeddings", "embedding_dim", "padding_idx", "scale_grad_by_freq", "sparse")


def describe(module: nn.Module) -> dict[str, Any]:
    """What `construct` needs to make an empty one like it.

    Raises:
        TypeError: for a class that is none of those that compressed models are made of.
    """
    kind = type(module).__name__
    if isinstance(module, nn.Sequential):
        return {"class": kind, "of": [describe(child) for child in module]}
    if isinstance(module, Pivoted):
        return {"class": kind, "of": [describe(module.first), describe(module.mix)]}
    if isinstance(module, LowRankEmbedding):
        return {"class": kind, "of": [describe(module.table), describe(module.mix)]}
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        names = TABLE if isinstance(module, nn.Embedding) else (*TABLE, "mode", "include_last_offset")
        return {"class": kind, **{name: getattr(module, name) for name in names}, "dtype": _dtype(module.weight)}
    if isinstance(module, GroupedLinear):
        return {"class": kind, "shape": list(module.blocks.shape), "dtype": str(module.blocks.dtype).removeprefix("torch.")}
    if isinstance(module, nn.Linear):
        own = {"in_features": module.in_features, "out_features": module.out_features}
    elif isinstance(module, nn.Conv2d):
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
        own = {name: getattr(module, name) for name in names}
    else:
        raise TypeError(f"{kind} is no module that a compressed model is made of: {', '.join(MAKERS)}")
    return {"class": kind, **own, "bias": module.bias is not None, "dtype": _dtype(module.weight)}


def _dtype(weight: Tensor) -> str:
    return str(weight.dtype).removeprefix("torch.")


def construct(recipe: Any) -> nn.Module:
    """A module of a recipe without values, on the meta device: a recipe that claims too much takes no memory.

    Raises:
        ValueError: when it is not what `describe` writes.
    """
    if not isinstance(recipe, dict) or not isinstance(recipe.get("class"), str) or recipe["class"] not in MAKERS:
        found = recipe.get("class") if isinstance(recipe, dict) else recipe
        raise ValueError(f"a recipe is of {', '.join(MAKERS)}, got {found!r}")
    try:
        return MAKERS[recipe["class"]]({k: v for k, v in recipe.items() if k != "class"})
    except (TypeError, KeyError, IndexError, OverflowError, RuntimeError, AttributeError) as problem:
        said = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise ValueError(f"the recipe of a {recipe['class']} cannot be read: {said}") from problem


def _plain(make: Callable[..., nn.Module], own: dict[str, Any]) -> nn.Module:
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in own.items()}
    return nn.utils.skip_init(make, **{**given, "dtype": DTYPES[own["dtype"]], "device": "meta"})


def _pivoted(own: dict[str, Any]) -> Pivoted:
    first, mix = (construct(part) for part in own["of"])
    outputs = sum(m.out_features if isinstance(m, nn.Linear) else m.out_channels for m in (first, mix))  # type: ignore[misc]
    return Pivoted(first, mix, torch.empty(outputs, dtype=torch.int64, device="meta"))  # type: ignore[call-overload]


MAKERS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "Linear": lambda own: _plain(nn.Linear, own),
    "Conv2d": lambda own: _plain(nn.Conv2d, own),
    "Embedding": lambda own: _plain(nn.Embedding, own),
    "EmbeddingBag": lambda own: _plain(nn.EmbeddingBag, own),
    "LowRankEmbedding": lambda own: LowRankEmbedding(*(construct(part) for part in own["of"])),  # type: ignore[arg-type]
    "Sequential": lambda own: nn.Sequential(*(construct(part) for part in own["of"])),
    "GroupedLinear": lambda own: GroupedLinear(torch.empty(own["shape"], dtype=DTYPES[own["dtype"]], device="meta")),
    "LowRankLinear": lambda own: LowRankLinear(*(construct(part) for part in own["of"])),
    "Pivoted": _pivoted,
}
"""By class: how one is made."""
