"""Softmax and attention.

Softmax is not homogeneous, and no rule through it conserves. Two are in use:

- AttnLRP (Achtibat et al. 2024): its own derivative, c_x = J^T c, J = diag(s) - s s^T. What it loses,
  sum s c - sum x (J^T c), is measured at the node.
- CP-LRP (Ali et al. 2022): attention weights are held constant. All relevance goes through the values; exact.

Attention kept whole, o = softmax(q k^T) v: by AttnLRP the product with v gives half to v, and of the other half the
product q k^T gives half each to q and k, so c_q, c_k, c_v are a quarter, a quarter, a half of ONE fused derivative.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .table import active, hold, holding, lossy, rule, share

SOFTMAX = ("softmax", "_softmax", "special_softmax", "_safe_softmax", "_masked_softmax")
LOGARITHMIC = ("log_softmax", "_log_softmax", "special_log_softmax", "logsumexp", "logcumsumexp")
FUSED = ("scaled_dot_product_attention",)


@rule(*SOFTMAX)
@lossy
def softmax_derivative(at: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """AttnLRP, eq. 13-14: own derivative."""
    return at.op(x, *args, **kwargs)


@rule(*LOGARITHMIC)
@lossy
def logarithmic(at: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Own derivative; log-sum-exp loses c * entropy(softmax(x)), exactly."""
    return at.op(x, *args, **kwargs)


@holding
def softmax_constant(at: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """CP-LRP: the weights are constants, nothing goes to the scores."""
    return at.op(x.detach(), *args, **kwargs)


@rule(*FUSED)
@lossy
def attention_derivative(at: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any = None, *args: Any, **kwargs: Any) -> Tensor:
    """AttnLRP on fused attention: a half to the values, the rest to queries and keys in halves."""
    through_scores = active(q, k, mask) > 0
    if through_scores and active(q, k) == 2:
        q, k = (share(x.view_as(x), 1 / 2) for x in (q, k))
    y = at.op(q, k, v, mask, *args, **kwargs)
    return share(y, 1 / 2) if through_scores and active(v) else y


def attention_constant(at: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any = None, *args: Any, **kwargs: Any) -> Tensor:
    """CP-LRP on fused attention: o = A v with A constant."""
    q, k, mask = hold(q, k, mask)
    return at.op(q, k, v, mask, *args, **kwargs)
