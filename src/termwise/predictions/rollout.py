"""Rollout: how much of every input token is in the tokens that the head reads, followed through the attention layers.

    C = prod_b (I + M^(b)),     later layers on the left,     tokens(row) = row C

M^(b) (queries, keys) is what a method makes of one layer's attention. Streams of tokens (encoder, decoder) are one set of
tokens together: a cross-attention is a block of I + M off the diagonal, so that decoder rows reach encoder columns. Only
the rows that the head reads are wanted, so a row vector travels from the last layer to the first, O(s^2) a layer.

Source: Abnar & Zuidema 2020, arXiv 2005.00928; Chefer et al. 2021, arXiv 2012.09838, eq. 13-14 (papers.toml "chefer"). Theirs
is for one stream; for several this is the same product on the joint set.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from termwise.core.arguments import integer

from .attention_maps import Attention

__all__ = ["NoRollout", "last_layer", "patches", "read_rows", "rollout"]

Tokens = dict[str, Tensor]


class NoRollout(ValueError):
    """The maps of layers cannot be multiplied: their tokens are not the same ones."""


def read_rows(found: Sequence[Attention], gradients: Sequence[Tensor]) -> Tokens:
    """The tokens that the head reads, by stream, (batch, tokens): 1 at a class token, 1/n at each of n pooled ones.

    A token is read when the output depends on its row of the last attention from which the output is reached directly.
    """
    rows: Tokens = {}
    for attention, gradient in zip(found, gradients, strict=True):
        if attention.read:  # later ones replace earlier ones
            touched = (gradient != 0).any(-1).any(1).to(gradient.dtype)
            rows[name(attention.queries)] = touched / touched.sum(1, keepdim=True).clamp_min(1)
    return rows


def rollout(
    found: Sequence[Attention], maps: Sequence[Tensor], rows: Tokens, *, start_layer: int = 0, normalize_rows: bool = False
) -> Tokens:
    """Row of I + M multiplied through, from `rows` back to the input tokens.

    Args:
        found: the attentions, in order of execution.
        maps: M of each, (batch, queries, keys).
        rows: where to start, as `read_rows` gives it.
        start_layer: attentions of each stream before this one, counted from 0, are left out.
        normalize_rows: divide each row of I + M by its sum.

    Returns:
        (batch, tokens) for every stream that is reached.

    Raises:
        NoRollout: where the number of tokens of a stream changes between layers.
        ValueError: where no layer is left.
    """
    counted: dict[str, int] = {}
    numbers = []
    for attention in found:
        numbers.append(counted.get(name(attention.queries), 0))
        counted[name(attention.queries)] = numbers[-1] + 1
    first = integer(start_layer)
    if first is None or not 0 <= first < max(counted.values()):
        raise ValueError(
            f"start_layer must lie in 0..{max(counted.values()) - 1}, as many attentions follow each other; got {start_layer}"
        )
    reached = dict(rows)
    for attention, number, m in reversed(list(zip(found, numbers, maps, strict=True))):
        asks, answers = name(attention.queries), name(attention.keys)
        if number < first or asks not in reached:
            continue
        v = _fitting(reached[asks], m.shape[1], attention)
        if normalize_rows:
            v = v / (1 + m.sum(-1))
        moved = torch.einsum("bq,bqk->bk", v, m)
        reached[asks] = v
        before = reached.get(answers)
        reached[answers] = moved if before is None else _fitting(before, m.shape[2], attention) + moved
    return reached


def last_layer(found: Sequence[Attention], maps: Sequence[Tensor], rows: Tokens) -> Tokens:
    """The read rows of the last attention of each stream, without following further: the keys it points at."""
    last = {(name(a.queries), name(a.keys)): m for a, m in zip(found, maps, strict=True) if a.read}
    return {keys: torch.einsum("bq,bqk->bk", rows[queries], m) for (queries, keys), m in last.items()}


def name(stream: Sequence[str]) -> str:
    """A stream's name: the inputs it is made of."""
    return "+".join(stream) or "constant"


def _fitting(v: Tensor, n: int, attention: Attention) -> Tensor:
    if v.shape[1] != n:
        raise NoRollout(
            f"{attention.path} attends among {n} tokens, the attention after it among {v.shape[1]}: tokens were merged or split "
            "between, and no product of their maps says which became which. Raise start_layer beyond it, or use termwise.explain"
        )
    return v


def patches(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens of a picture as a map of its size, (batch, height, width), bilinear between patches.

    Leading tokens that are no patches (class tokens) are dropped: as few as leave a grid of the picture's proportions.

    Raises:
        ValueError: when no number of leading tokens leaves such a grid.
    """
    n = tokens.shape[1]
    for extra in range(n):
        rows = round(((n - extra) * height / width) ** 0.5)
        if rows and (n - extra) % rows == 0 and rows * width == (n - extra) // rows * height:
            grid = tokens[:, extra:].reshape(len(tokens), 1, rows, -1)
            return functional.interpolate(grid, (height, width), mode="bilinear", align_corners=False)[:, 0]
    raise ValueError(f"{n} tokens are no grid of a picture of {height} x {width}, whatever leading ones are dropped")
