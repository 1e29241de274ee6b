r"""Softmax attention in powers of its scores: what TaylorShift keeps, term by term, and what it leaves out.

    sum_j e^(s_ij) v_j / Z_e  =  (sum_j v_j + sum_j s_ij v_j + sum_j (s_ij^2 / 2) v_j) / Z_T  +  remainder

with |s| <= tau, since queries and keys have length 1. So each unnormalised weight is off by at most eps = tau^3 e^tau / 6, and

    |remainder_i|  =  |sum_j (e^(s_ij) - T(s_ij)) (v_j - y_i)| / Z_e  <=  eps sum_j |v_j - y_i| / Z_e,     y: of TaylorShift.

Source: papers.toml "taylor-shift" (the polynomial); the bound is Taylor's theorem, and its way through the quotient ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from termwise.core.decomposition import Decomposition
from termwise.core.pictures import Line, Lines, Picture
from termwise.core.series import series

from .taylor_shift import check_call, counted, per_head, unit, without_masked

__all__ = ["TaylorShiftExpansion", "taylor_shift_expansion"]


@dataclass(frozen=True, eq=False, repr=False)
class TaylorShiftExpansion(Decomposition):
    """Softmax attention as `constant` + `linear` + `quadratic` + remainder; the first three together are TaylorShift.

    Attributes:
        weight_error: the largest |e^s - T(s)| among keys that count, shape of the leading axes.
        weight_bound: tau^3 e^tau / 6, which it cannot exceed, same shape.
        row_bound: what |remainder| cannot exceed, for each row (a Euclidean norm over the last axis of `whole`).
    """

    weight_error: Tensor
    weight_bound: Tensor
    row_bound: Tensor

    def bound(self) -> Tensor:
        """Of the remainder's norm over the last axis, shape of `whole` without it."""
        return self.row_bound

    @property
    def by_sample(self) -> bool:
        """False for one head alone, (L, c): its first axis counts rows."""
        return self.whole.ndim > 2

    def pictures(self, sample: int = 0) -> list[Picture]:
        """The three terms and what they leave over; and what is left of every row, beside its bound.

        Raises:
            ValueError: when there is no such sample.
        """
        worst = (
            f"The largest weight is off by {float(self.weight_error.max()):.2g}, at most {float(self.weight_bound.max()):.2g}."
        )
        terms = series(self, sample, title="Terms by order of the score", x="term", places=list(self.parts), note=worst)
        left, bound = ((v[sample] if self.by_sample else v) for v in (self.remainder.norm(dim=-1), self.row_bound))
        left, bound = (v.reshape(-1, v.shape[-1]).amax(0).tolist() for v in (left, bound))
        rows = list(range(len(left)))
        lines = [Line("remainder", rows, left, role="remainder"), Line("what it cannot exceed", rows, bound, role="chance")]
        note = "Of the worst head." if self.whole.ndim > 3 else ""
        return [terms, Lines("What is left of every row", lines, x="row (query)", y="Euclidean norm", log_y=True, note=note)]


@torch.no_grad()
def taylor_shift_expansion(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    temperature: float | Tensor = 1.0,
    *,
    is_causal: bool = False,
    attn_mask: Tensor | None = None,
) -> TaylorShiftExpansion:
    """Write softmax attention over unit queries and keys as the three terms of TaylorShift and what these leave out.

        whole_i = sum_j e^(s_ij) v_j / Z_e,     part k = sum_j (s_ij^k / k!) v_j / Z_T,     s_ij = tau q_i . k_j / (|q_i| |k_j|)

    Args:
        query: (..., L, d).
        key: (..., S, d).
        value: (..., S, c).
        temperature: as `taylor_shift_attention` takes it.
        is_causal: likewise.
        attn_mask: likewise.

    Returns:
        A `TaylorShiftExpansion` of shape (..., L, c).

    Raises:
        ValueError, TypeError: as `taylor_shift_attention`.

    Cost: three products with scores, O(L S (d + c)); memory O(L S).

    Example:
        >>> q, k, v = torch.randn(3, 2, 50, 8, dtype=torch.float64)
        >>> e = tw.layers.taylor_shift_expansion(q, k, v)
        >>> torch.allclose(e.total(), tw.layers.taylor_shift_attention(q, k, v), rtol=1e-12)
        True
        >>> bool((e.remainder.norm(dim=-1) <= e.bound()).all())
        True

    Source: Nauen et al. 2024 (T); Taylor's theorem.
    """
    keep = check_call(query, key, value, 2, attn_mask)
    key, value = without_masked(keep, key, value)
    tau = per_head(temperature, query)
    scores = (unit(query) * tau) @ unit(key).mT
    mask = counted(keep, is_causal, *scores.shape[-2:], scores.device)
    ones = torch.ones_like(scores)
    terms = {"constant": ones, "linear": scores, "quadratic": scores.square() / 2}
    exact, off = scores.exp(), (scores.exp() - (1 + scores + scores.square() / 2)).abs()
    if mask is not None:
        exact, off, *kept = (w.masked_fill(~mask, 0) for w in (exact, off, *terms.values()))
        terms = dict(zip(terms, kept, strict=True))
    total, exact_total = (_or_one(w.sum(-1, keepdim=True)) for w in (sum(terms.values()), exact))
    parts = {name: (weights / total) @ value for name, weights in terms.items()}
    size = torch.as_tensor(tau, dtype=scores.dtype, device=scores.device).abs()
    bound = (size**3 * size.exp() / 6).expand(*scores.shape[:-2], 1, 1)
    given = sum(parts.values(), torch.zeros_like(parts["constant"]))
    apart = torch.cdist(given, value.expand(*given.shape[:-2], *value.shape[-2:]))
    apart = apart if mask is None else apart.masked_fill(~mask, 0)
    row_bound = (bound * apart.sum(-1, keepdim=True) / exact_total).squeeze(-1)
    return TaylorShiftExpansion(
        (exact / exact_total) @ value, parts, off.amax((-2, -1)), bound[..., 0, 0].contiguous(), row_bound
    )


def _or_one(total: Tensor) -> Tensor:
    return total.masked_fill(total == 0, 1)
