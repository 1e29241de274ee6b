r"""TaylorShift: attention with the Taylor polynomial of the exponential in its place, quadratic or linear in the sequence.

    y_i = sum_j T(s_ij) v_j / sum_j T(s_ij),     T(s) = 1 + s + s^2 / 2 > 0,     s_ij = tau q_i . k_j / (|q_i| |k_j|)

Directly that is N^2 scores; through the moments of the keys (`taylor_sums`) it is O(N d^3) and the same numbers. Which is less
work is known beforehand: `crossover`.

Source: papers.toml "taylor-shift".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from termwise.core.arguments import integer
from termwise.core.pictures import Line, Lines, Picture, Pictured

from .taylor_sums import taylor_sums, taylor_weights

__all__ = ["Crossover", "crossover", "taylor_shift_attention"]

IMPLEMENTATIONS = ("auto", "direct", "efficient")


@dataclass(frozen=True)
class Crossover(Pictured):
    """Sequence lengths from which on the efficient form is less work (`time`) and holds less (`memory`), for heads of `d`."""

    time: float
    memory: float
    d: int

    def __iter__(self) -> Iterator[float]:
        """The two lengths."""
        return iter((self.time, self.memory))

    def pictures(self, sample: int = 0) -> list[Picture]:
        """Operations and entries held of both forms, by the length of the sequence."""
        d, far = self.d, math.log2(8 * max(self))
        n = [2 ** (far * i / 48) for i in range(49)]
        work = [(4 * d + 6) * k**2 for k in n], [(4 * d**3 + 10 * d**2 + 9 * d + 4) * k for k in n]
        held = [2 * k**2 + d * k for k in n], [(d**2 + 3 * d + 1) * k + d**2 * (d + 1) for k in n]
        return [
            _counts("Work", "operations", n, work, self.time),
            _counts("Memory", "entries held at once", n, held, self.memory),
        ]


def _counts(title: str, unit: str, n: list[float], counts: tuple[list[float], list[float]], meet: float) -> Lines:
    lines = [Line(form, n, values) for form, values in zip(("direct", "efficient"), counts, strict=True)]
    note = f"They meet at {meet:.0f} tokens; in longer sequences the efficient form has less."
    return Lines(title, lines, x="length of the sequence", y=unit, log_x=True, log_y=True, note=note)


def crossover(d: int) -> Crossover:
    """Where the efficient form overtakes the direct one, counted for a head of dimension d.

        N_0 = (4 d^3 + 10 d^2 + 9 d + 4) / (4 d + 6),     N_1 = (d^2 + 2 d + 1 + sqrt(d^4 + 12 d^3 + 14 d^2 + 4 d + 1)) / 4

    N_0 makes the operations equal, (4 d + 6) N^2 and (4 d^3 + 10 d^2 + 9 d + 4) N; N_1 the entries held at once, 2 N^2 + d N and
    (d^2 + 3 d + 1) N + d^2 (d + 1). These are the paper's counts, of all d^2 pairs; our efficient form has half of them and holds
    128 rows of them at a time, and seconds are no counts.

    Args:
        d: of one head.

    Raises:
        ValueError: for a dimension below 1.

    Example:
        >>> [round(n) for n in tw.layers.crossover(32)]
        [1057, 574]

    Source: Nauen et al. 2024, the analysis of efficiency.
    """
    if integer(d) is None or d < 1:
        raise ValueError(f"d is the dimension of one head, a whole number of 1 or more; got {d!r}")
    d = int(d)  # in a narrow integer its powers would overflow
    time = (4 * d**3 + 10 * d**2 + 9 * d + 4) / (4 * d + 6)
    return Crossover(time, (d**2 + 2 * d + 1 + (d**4 + 12 * d**3 + 14 * d**2 + 4 * d + 1) ** 0.5) / 4, d)


def taylor_shift_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    temperature: float | Tensor = 1.0,
    *,
    implementation: str = "auto",
    order: int = 2,
    is_causal: bool = False,
    attn_mask: Tensor | None = None,
) -> Tensor:
    """Attention by the Taylor softmax, called as `torch.nn.functional.scaled_dot_product_attention` is.

        y_i = sum_j T(s_ij) v_j / sum_j T(s_ij),     T(s) = sum_(k <= order) s^k / k!,     s_ij = tau q_i . k_j / (|q_i| |k_j|)

    Args:
        query: (..., L, d).
        key: (..., S, d); leading axes broadcast.
        value: (..., S, c).
        temperature: tau: a number, or a tensor that broadcasts to the leading axes, such as (heads,).
        implementation: "direct", by L S scores; "efficient", by moments of the keys; "auto": efficient where the harmonic mean of
            L and S is above `crossover(d).time` and the call has an efficient form, direct elsewhere.
        order: of the polynomial, even: odd ones have weights below 0. Only order 2 has an efficient form here.
        is_causal: query i takes the keys 0 ... i.
        attn_mask: boolean, True where a key counts, broadcast to (..., L, S). What does not count is left out wholly, with
            its constant term. A mask of keys, (..., 1, S) or (S,), has an efficient form, and what lies under it is never read.
            A query without keys gets 0.

    Returns:
        (..., L, c), of value's dtype.

    Raises:
        ValueError: for shapes that do not fit, no keys, an odd order, an implementation that does not exist or has no such form.
        TypeError: for a mask that is not boolean, or tensors of different or non-floating dtypes.

    Cost: direct 2 L S (d + c) operations and O(L S) memory; efficient (L + S) d^2 c and O(ROWS d^2 + d^2 c) beside the output,
        O((L + S) d^2) with gradients; see `taylor_sums`.

    Example:
        >>> q, k, v = torch.randn(3, 4, 100, 8, dtype=torch.float64)  # four heads
        >>> attend = tw.layers.taylor_shift_attention
        >>> torch.allclose(attend(q, k, v, implementation="direct"), attend(q, k, v, implementation="efficient"), rtol=1e-12)
        True

    Source: Nauen et al. 2024. Heads without keys, masks and the causal form are ours.
    """
    keep = check_call(query, key, value, order, attn_mask)
    length, keys, d = query.shape[-2], *key.shape[-2:]
    refused = _no_efficient_form(order, keep, is_causal and length != keys)
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation is one of {', '.join(IMPLEMENTATIONS)}; got {implementation!r}")
    if implementation == "efficient" and refused:
        raise ValueError(f'there is no efficient form {refused}: use "auto" or "direct"')
    if implementation == "auto":
        work = 2 * length * keys / (length + keys)
        implementation = "efficient" if not refused and work > crossover(d).time else "direct"
    key, value = without_masked(keep, key, value)
    q, k = unit(query) * per_head(temperature, query), unit(key)
    if implementation == "direct":
        return taylor_probabilities(q @ k.mT, order, is_causal, keep) @ value
    ones = torch.ones_like(value[..., :1]) if keep is None else keep.mT.to(value.dtype).expand(*value.shape[:-1], 1)
    return quotient(taylor_sums(q, k, torch.cat([value, ones], dim=-1), causal=is_causal))


def unit(x: Tensor) -> Tensor:
    """Rows of length 1; 0 stays 0, in half precision too."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1).to(x.dtype)


def per_head(temperature: float | Tensor, query: Tensor) -> float | Tensor:
    """The temperature, shaped to multiply queries (..., L, d)."""
    if not isinstance(temperature, Tensor):
        return temperature
    try:
        fits = torch.broadcast_shapes(temperature.shape, query.shape[:-2]) == query.shape[:-2]
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"temperature {tuple(temperature.shape)} does not broadcast to the leading axes {tuple(query.shape[:-2])} of query: "
            "give a number, or one for each head"
        )
    return temperature.to(query.dtype)[..., None, None]


def without_masked(keep: Tensor | None, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Key and value with zeros where no query counts them: what stands there is not read, NaN least of all."""
    if keep is None or keep.shape[-2] != 1:
        return key, value
    return key.masked_fill(~keep.mT, 0), value.masked_fill(~keep.mT, 0)


def counted(keep: Tensor | None, is_causal: bool, length: int, keys: int, device: torch.device) -> Tensor | None:
    """One mask of both, None where every key counts."""
    if not is_causal:
        return keep
    behind = torch.ones(length, keys, dtype=torch.bool, device=device).tril()
    return behind if keep is None else behind & keep


def taylor_probabilities(scores: Tensor, order: int, is_causal: bool, keep: Tensor | None) -> Tensor:
    """T(s) over its sum, (..., L, S); rows without keys are 0."""
    weights = taylor_weights(scores, order)
    mask = counted(keep, is_causal, *scores.shape[-2:], scores.device)
    weights = weights if mask is None else weights.masked_fill(~mask, 0)
    total = weights.sum(-1, keepdim=True, dtype=torch.promote_types(weights.dtype, torch.float32))
    return (weights / total.masked_fill(total == 0, 1)).to(scores.dtype)


def quotient(sums: Tensor) -> Tensor:
    """All columns but the last over the last; 0 where that is 0."""
    total = sums[..., -1:]
    return sums[..., :-1] / total.masked_fill(total == 0, 1)


def _no_efficient_form(order: int, keep: Tensor | None, uneven: bool) -> str:
    """Why not, or nothing."""
    if order != 2:
        return f"of order {order}"
    if keep is not None and keep.shape[-2] != 1:
        return f"for a mask that differs between queries, {tuple(keep.shape)}"
    return "of causal attention with other keys than queries" if uneven else ""


def check_call(query: Tensor, key: Tensor, value: Tensor, order: int, mask: Tensor | None) -> Tensor | None:
    """The mask with both of its axes, after everything was looked at."""
    if not all(isinstance(x, Tensor) for x in (query, key, value)):
        kinds = ", ".join(type(x).__name__ for x in (query, key, value))
        raise TypeError(f"query, key and value must be tensors; got {kinds}")
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if not (query.dtype == key.dtype == value.dtype and query.is_floating_point()):
        raise TypeError(f"query, key and value are of one floating dtype; got {query.dtype}, {key.dtype}, {value.dtype}")
    if min(x.ndim for x in (query, key, value)) < 2 or query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        raise ValueError(f"query is (..., L, d), key (..., S, d), value (..., S, c); got {shapes}")
    if 0 in (key.shape[-2], key.shape[-1]):
        raise ValueError(f"there is no key to attend to, or no entry in it: {shapes}")
    try:
        leading = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    except RuntimeError:
        raise ValueError(f"leading axes do not broadcast: {shapes}") from None
    if integer(order) is None or order < 2 or order % 2:
        raise ValueError(f"order is even and 2 or more (odd ones have weights below 0); got {order!r}")
    if mask is None:
        return None
    if mask.dtype != torch.bool:
        raise TypeError(f"attn_mask is boolean, True where a key counts; got {mask.dtype}")
    mask = mask.unsqueeze(0) if mask.ndim == 1 else mask
    target = (*leading, query.shape[-2], key.shape[-2])
    try:
        fits = torch.broadcast_shapes(mask.shape, target) == target and mask.shape[-1] == key.shape[-2]
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"attn_mask {tuple(mask.shape)} does not broadcast to the scores {target}")
    return mask
