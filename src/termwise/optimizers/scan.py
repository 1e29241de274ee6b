"""Sums along a residual path from its end, all of them at once: one cumulative sum, or an associative scan of log n steps."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["reverse_scan", "reverse_sum"]


def reverse_sum(terms: Tensor) -> Tensor:
    """d_l = sum_(m >= l) terms_m, for terms (n, *S). Rounding grows as n eps."""
    return terms.flip(0).cumsum(0).flip(0)


def reverse_scan(gates: Tensor, terms: Tensor) -> Tensor:
    """d_n = terms_n,  d_l = terms_l + gates_l d_(l+1).

    An associative scan: after j steps d_l has taken in what lies up to 2^j behind it, and gates_l is the product up to there.

    Args:
        gates: (n, *S).
        terms: (n + 1, *S).

    Returns:
        d, (n + 1, *S). Cost: O(n log n) products in ceil(log2(n + 1)) steps.
    """
    found, step = terms, 1
    gates = torch.cat([gates, torch.ones_like(terms[:1])])  # of the last term, which nothing lies behind: never used
    while step < len(terms):
        found = torch.cat([found[:-step] + gates[:-step] * found[step:], found[-step:]])
        gates = torch.cat([gates[:-step] * gates[step:], gates[-step:]])
        step *= 2
    return found
