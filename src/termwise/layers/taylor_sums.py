r"""Sums over all keys of a polynomial of degree 2 in their scores, from three moments of the keys: linear in their number.

    sum_j (1 + s_j + s_j^2 / 2) v_j  =  sum_j v_j + q . (sum_j k_j v_j) + (1/2) (q x q) . (sum_j (k_j x k_j) v_j),   s_j = q . k_j

q x q is symmetric: of its d^2 entries one of each pair is kept. Pairs lie in rows, row r holds x_i x_(i+r mod d) for all i, so
that all of them are one product of x with windows of x written twice. Rows 0 ... floor(d/2) have every pair: row 0 the squares,
whose weight is 1/2; row d/2, for an even d, every pair twice.

Source: papers.toml "taylor-shift" (the identity, alpha = d^(1/4), means in place of sums); halving the pairs is ours.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["ROWS", "pairs", "taylor_sums", "taylor_weights"]

ROWS = 128
"""Positions taken at a time: their pairs stay in the cache, and no more than these are held."""

Moments = tuple[Tensor, Tensor, Tensor]


def taylor_sums(query: Tensor, key: Tensor, values: Tensor, *, causal: bool = False) -> Tensor:
    """The sums of the module docstring, each divided by the same positive number.

    Keys and queries are scaled by alpha = d^(1/4), so that squares of unit vectors are of order 1/sqrt(d) and not 1/d, and
    moments are means, kept in float32: neither changes a quotient of two columns, and in half precision nothing overflows.

    Args:
        query: (..., L, d), temperature in it.
        key: (..., S, d).
        values: (..., S, c); a column of ones among them gives the denominators.
        causal: query i takes the keys 0 ... i; then L = S.

    Returns:
        (..., L, c).

    Cost: 2 (L + S) (d^2/2 + 2 d) c products. Memory beside the output O(d^2 (ROWS + c)); with gradients O((L + S) d^2), and where
        causal O(d^2 c) more for every ROWS keys.
    """
    q, k = (x * x.shape[-1] ** 0.25 for x in (query, key))
    return torch.cat(list(_behind(q, k, values) if causal else _over_all(q, k, values)), dim=-2)


def taylor_weights(scores: Tensor, order: int = 2) -> Tensor:
    """1 + s + s^2/2 + ... + s^order/order!, by Horner's rule; positive for every s where the order is even."""
    one = scores.new_ones(())
    weights = one
    for k in range(order, 0, -1):
        weights = torch.addcmul(one, scores, weights, value=1 / k)
    return weights


def pairs(x: Tensor) -> Tensor:
    """Products of two entries, (..., d) to (..., (floor(d/2) + 1) d), every pair at least once."""
    d = x.shape[-1]
    windows = torch.cat([x, x[..., : d // 2]], dim=-1).unfold(-1, d, 1)
    return (x.unsqueeze(-2) * windows).flatten(-2)


def _over_all(q: Tensor, k: Tensor, values: Tensor) -> Iterator[Tensor]:
    moments = None
    for rows, of_them in zip(k.split(ROWS, -2), values.split(ROWS, -2), strict=True):
        moments = _add(moments, rows, of_them)
    assert moments is not None  # split gives one block at least
    means = _means(moments, q, k.shape[-2])
    yield from (_read(rows, means) for rows in q.split(ROWS, -2))


def _behind(q: Tensor, k: Tensor, values: Tensor) -> Iterator[Tensor]:
    """Block by block: the keys before the block from their moments, those within it one by one."""
    moments, seen, d = None, 0, q.shape[-1]
    for asking, rows, of_them in zip(q.split(ROWS, -2), k.split(ROWS, -2), values.split(ROWS, -2), strict=True):
        seen += rows.shape[-2]
        within = taylor_weights(asking @ rows.mT * d**-0.5) * (d / seen)
        found = within.tril() @ of_them
        yield found if moments is None else found + _read(asking, _means(moments, q, seen))
        moments = _add(moments, rows, of_them)


def _add(moments: Moments | None, k: Tensor, values: Tensor) -> Moments:
    """The three moments with those of more keys, in float32 at least."""
    wide, n = torch.promote_types(k.dtype, torch.float32), k.shape[-2]
    shares = values / n  # a sum in half precision may overflow, a mean does not
    new = (shares.sum(-2, keepdim=True), k.mT @ shares, pairs(k).mT @ shares)
    wider = (m.to(wide) * n for m in new)
    return tuple(wider) if moments is None else tuple(a + b for a, b in zip(moments, wider, strict=True))  # type: ignore[return-value]


def _means(moments: Moments, like: Tensor, n: int) -> Moments:
    """The moments with their coefficients in alpha^4 (1 + s + s^2/2), over n."""
    d = like.shape[-1]
    row = torch.ones(d // 2 + 1, dtype=moments[0].dtype, device=like.device)
    row[0] = 0.5
    if d % 2 == 0:
        row[-1] /= 2
    coefficients = (d, d**0.5, row.repeat_interleave(d).unsqueeze(-1))
    return tuple((m * (c / n)).to(like.dtype) for m, c in zip(moments, coefficients, strict=True))  # type: ignore[return-value]


def _read(q: Tensor, means: Moments) -> Tensor:
    constant, linear, quadratic = means
    return constant + q @ linear + pairs(q) @ quadratic
