"""Rules for the first layer that ask where the input is, not how large: w^2, flat and z-box.

They give relevance to an entry that is 0, which no finite ratio R / x can carry. So something else stands in for x, a
constant of the same shape with relevance of its own, which is booked as that of the input:

    w^2     ones,        R_i = sum_j w_ij^2 / (sum_i w_ij^2 + b_j^2) R_j
    flat    ones,        R_i = sum_j R_j / (number of inputs of j)
    z-box   x, l and h,  R_i = sum_j (x_i w_ij - l_i w_ij^+ - h_i w_ij^-) R_j / (the same, summed over i)

They are for the layer that sees the input. Deeper in a network R must become R / x again: what falls on zeros is lost, and
a warning says so.

Source: Montavon et al. 2017 (deep Taylor: w^2 for unbounded inputs, z-box for pixels); Lapuschkin et al. 2019 (flat).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .maps import AffineMap, Shares, affine_map, bias_axis, bias_place, one_activation
from .table import AFFINE_ONLY, SPLITTING, Rule, lossy, plain, sized

__all__ = ["flat", "wsquare", "zbox"]

Level = float | Sequence[float] | Tensor


@sized
def wsquare(*, stabilizer: float = 0.0) -> Rule:
    """w^2: relevance in proportion to squared weights, whatever the input. The bias gets b^2's share.

    Args:
        stabilizer: added to the sum of squares.
    """

    def denominator(at: Any, m: AffineMap, z: Tensor) -> Tensor:
        squared = None if m.bias is None or at.biases in ("zero", "distribute") else m.bias.square()
        ones = at.stand_in(m.x, torch.ones((), dtype=z.dtype, device=z.device))
        den = m.apply(ones, m.weight.square(), squared)
        at.adds(den, squared, *bias_place(at, m.bias, z))
        return den

    return _region(denominator, stabilizer)


@sized
def flat(*, stabilizer: float = 0.0) -> Rule:
    """Flat: every input of an output gets the same, whatever its value and weight. Padding is no input.

    Args:
        stabilizer: added to the number of inputs.
    """

    def denominator(at: Any, m: AffineMap, z: Tensor) -> Tensor:
        return m.apply(at.stand_in(m.x, torch.ones((), dtype=z.dtype, device=z.device)), torch.ones_like(m.weight), None)

    return _region(denominator, stabilizer)


def zbox(low: Level, high: Level, *, stabilizer: float = 0.0) -> Rule:
    """z-box: relevance in proportion to how far an entry is from the end of its range that would have said less.

    The bias cancels: all relevance goes to the input. Every share is non-negative while x lies in the box.

    Args:
        low: smallest value of an input: a number, or one per channel (of a linear layer: per feature). After a
            normalisation (v - mean) / std it is -mean / std; a subject of the zoo knows its box:
            ``zbox(*subject.preparation.box)``.
        high: largest value, likewise.
        stabilizer: added to the denominator.

    Raises:
        ValueError: when some low is not below its high.
    """
    low, high = _levels(low), _levels(high)
    if not bool((torch.tensor(low) < torch.tensor(high)).all()):
        raise ValueError(f"zbox needs low < high, got {low} and {high}")
    rule: Rule = _zbox(low, high, stabilizer=stabilizer)
    return rule


@sized
def _zbox(low: Any, high: Any, *, stabilizer: float = 0.0) -> Rule:
    def denominator(at: Any, m: AffineMap, z: Tensor) -> Tensor:
        lowest, highest = (_end(at, m.x, level) for level in (low, high))
        z0 = m.apply(m.x, m.weight, None)
        down = m.apply(at.stand_in(m.x, lowest), m.weight.clamp_min(0), None)
        up = m.apply(at.stand_in(m.x, highest), m.weight.clamp_max(0), None)
        den = z0 - down - up
        # a sum of terms of one sign, found as a difference: what is left of its rounding is no relevance
        noise = 8 * torch.finfo(z.dtype).eps * (z0.detach().abs() + down.detach().abs() + up.detach().abs())
        return den * (den.detach().abs() > noise)

    return _region(denominator, stabilizer)


def _region(denominator: Callable[[Any, AffineMap, Tensor], Tensor], stabilizer: float) -> Rule:
    """The rule that shares y in proportion to the terms of a denominator."""

    @lossy
    def region(at: Any, *args: Any, **kwargs: Any) -> Any:
        if not one_activation(at, args):
            return plain(at)(at, *args, **kwargs)
        with torch.no_grad():
            y = at.op(*args, **kwargs)
        den = denominator(at, affine_map(at, args, kwargs), y)
        with torch.no_grad():
            signs = torch.where(den < 0, -stabilizer, stabilizer)
            share = (y / (den + signs)).masked_fill_(den == 0, 0)
        return Shares.apply(y, den, share, None, None)

    SPLITTING.add(region)
    AFFINE_ONLY.add(region)
    return region


def _levels(level: Level) -> Any:
    """A number, or a tuple of one per channel."""
    if isinstance(level, Tensor):
        if level.numel() > 1 and level.numel() != max(level.shape):
            raise ValueError(f"zbox takes a number or one per channel, got a tensor of shape {tuple(level.shape)}")
        level = level.flatten().tolist() if level.numel() > 1 else level.item()
    return tuple(float(v) for v in level) if isinstance(level, Sequence) else float(level)


def _end(at: Any, x: Tensor, level: Any) -> Tensor:
    """One end of the box, laid along the channels of x."""
    ends = torch.tensor(level, dtype=x.dtype, device=x.device)
    if ends.ndim == 0:
        return ends
    axis = bias_axis(at, x) % x.ndim
    if len(ends) != x.shape[axis]:
        raise ValueError(
            f"{at.site.name} has inputs of shape {tuple(x.shape)}, with {x.shape[axis]} channels: the box has {len(ends)}"
        )
    return ends.reshape(-1, *[1] * (x.ndim - 1 - axis))
