"""Parts summed over groups of entries: words, patches, superpixels.

    R_G = sum_(i in G) R_i

A mask of integers says which group each entry of an input belongs to, as captum's `feature_mask` does. Nothing is averaged:
the groups add up to what the entries did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from .labels import token_rows

if TYPE_CHECKING:
    from .explanation import Explanation

__all__ = ["Groups", "fitted", "grouped", "patches", "words"]


@dataclass(frozen=True, eq=False)
class Groups:
    """A mask whose groups have names.

    Attributes:
        mask: the group of every entry, counted from 0; (batch, tokens).
        names: for each sample the name of every group.
    """

    mask: Tensor
    names: list[list[str]]


Mask = Tensor | Groups | Mapping[str, Tensor | Groups]


def patches(height: int, width: int, size: int) -> Int[Tensor, "height width"]:
    """A feature mask of square patches, counted row by row; those at the right and lower edge may be smaller.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        size: side of a patch, in pixels.

    Raises:
        ValueError: when one of them is below 1.

    Example:
        >>> patches(2, 4, 2).tolist()
        [[0, 0, 1, 1], [0, 0, 1, 1]]
    """
    if min(height, width, size) < 1:
        raise ValueError(f"patches of {size} pixels in an image of {height} x {width}: all must be at least 1")
    row, column = torch.arange(height) // size, torch.arange(width) // size
    return row[:, None] * -(-width // size) + column


def words(names: Sequence[str] | Sequence[Sequence[str]]) -> Groups:
    """A feature mask of words: the sub-words of a tokenizer merged as they are in pictures, marks like [CLS] apart.

    Args:
        names: the tokens, one list per sample, or one list for one sample. Shorter samples are filled up with tokens
            of the padding kind by the tokenizer, and have their names too.

    Returns:
        Groups: the mask, and the words as names.

    Raises:
        ValueError: when the samples have different numbers of tokens.

    Example:
        >>> groups = words(["un", "##believ", "##able", "!"])
        >>> groups.mask.tolist(), groups.names
        ([[0, 0, 0, 1]], [['unbelievable', '!']])
    """
    from termwise.report.tokens import merge

    rows = token_rows(names)
    if not rows:
        raise TypeError(f"names must be a list of tokens, or one for each sample; got {names!r}")
    if len({len(row) for row in rows}) != 1:
        raise ValueError(f"the samples have {', '.join(str(len(row)) for row in rows)} tokens: pad them to one length")
    merged = [merge(row, [0.0] * len(row)) for row in rows]
    mask = [[i for i, word in enumerate(sentence) for _ in word.pieces] for sentence in merged]
    return Groups(torch.tensor(mask), [[word.text for word in sentence] for sentence in merged])


def grouped(why: Explanation, mask: Mask) -> Explanation:
    """An explanation with the entries of its inputs summed by group; see `Explanation.grouped`."""
    masks = dict(mask) if isinstance(mask, Mapping) else {_only(why, mask): mask}
    parts, names = dict(why.parts), why.names
    for name, given in masks.items():
        full = name if ":" in name else f"input:{name}"
        if full not in parts:
            raise ValueError(
                f"feature_mask names {name!r}; there are {', '.join(n for n in parts if n.startswith(('input:', 'at:')))}"
            )
        ids = given.mask if isinstance(given, Groups) else given
        part = parts[full]
        tokens = part.ndim == why.whole.ndim + 1
        parts[full] = _sums(part, fitted(ids, part, why.whole.ndim, full), why.whole.ndim)
        if tokens and why.names is not None:
            names = given.names if isinstance(given, Groups) else None
            names = names * len(why) if names is not None and len(names) == 1 else names
    return replace(why, parts=parts, names=names)


def _only(why: Explanation, mask: Tensor | Groups) -> str:
    """The input that a mask without a name is for: the one it fits."""
    ids = mask.mask if isinstance(mask, Groups) else mask
    if not isinstance(ids, Tensor):
        raise TypeError(f"feature_mask must be a tensor of integers, or of each input one by name; got {type(ids).__name__}")
    inputs = {n: p for n, p in why.parts.items() if n.startswith(("input:", "at:"))}
    fits = [n for n, p in inputs.items() if _shape_of(ids, p, why.whole.ndim) is not None]
    if len(fits) == 1:
        return fits[0]
    shapes = ", ".join(f"{n} {tuple(p.shape)}" for n, p in inputs.items())
    if not fits:
        raise ValueError(
            f"feature_mask has shape {tuple(ids.shape)}, which fits no input: {shapes or 'there is none'}. Give it the shape of "
            "the input, with the batch or without; axes that all share may be 1 or left out in front, as (height, width)"
        )
    raise ValueError(f"feature_mask fits {', '.join(fits)}: say which, {{'name of the argument': mask}}")


def _shape_of(ids: Tensor, part: Tensor, lead: int) -> tuple[int, ...] | None:
    """A shape in which the mask broadcasts against (batch, *own axes); None where it cannot."""
    wanted = (part.shape[0], *part.shape[lead:])
    shape = (1,) * (len(wanted) - ids.ndim) + tuple(ids.shape)
    # its last axis counts entries: 1 there would put all of a row into one group by oversight
    fits = ids.ndim >= 1 and len(shape) == len(wanted) and all(m in (1, n) for m, n in zip(shape, wanted, strict=True))
    return shape if fits and shape[-1] == wanted[-1] else None


def fitted(ids: Tensor, part: Tensor, lead: int, name: str) -> Int[Tensor, "batch entries"]:
    """The group of every entry, one row per sample.

    Raises:
        TypeError: when it is not of integers.
        ValueError: for a wrong shape, a negative group, or a number beyond that of all entries.
    """
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"feature_mask holds the number of a group for every entry, integers; it is {ids.dtype}")
    shape = _shape_of(ids, part, lead)
    own = (part.shape[0], *part.shape[lead:])
    if shape is None:
        raise ValueError(
            f"feature_mask has shape {tuple(ids.shape)}, {name} has {own}: give it that shape, or one that broadcasts to it"
        )
    if ids.numel() and ids.min() < 0:
        raise ValueError(f"feature_mask has group {int(ids.min())}: groups are counted from 0")
    if ids.numel() and ids.max() >= part.numel():
        raise ValueError(
            f"feature_mask has group {int(ids.max())}, and there are {part.numel()} entries: count groups from 0, as "
            "mask.unique(return_inverse=True)[1] does"
        )
    return ids.to(part.device, torch.long).reshape(shape).expand(own).reshape(own[0], -1)


def _sums(part: Tensor, ids: Tensor, lead: int) -> Tensor:
    """The part summed by group, (*whole's shape, groups)."""
    flat = part.reshape(*part.shape[:lead], -1)
    n = int(ids.max()) + 1 if ids.numel() else 0
    where = ids.reshape(len(ids), *[1] * (lead - 1), -1).expand_as(flat)
    return flat.new_zeros(*flat.shape[:-1], n).scatter_add_(-1, where, flat)
