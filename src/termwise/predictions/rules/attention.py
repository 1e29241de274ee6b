"""Softmax and attention.

Softmax is not homogeneous, and no rule through it conserves. Two are in use:

- AttnLRP (Achtibat et al. 2024): its own derivative, c_x = J^T c, J = diag(s) - s s^T. What it loses,
  sum s c - sum x (J^T c), is measured at the node.
- CP-LRP (Ali et al. 2022): attention weights are held constant. All relevance goes through the values; exact. Of
  log-sum-exp = s x + entropy(s) the same s is held, and the entropy is a constant.

Attention kept whole, o = softmax(q k^T) v: by AttnLRP the product with v gives half to v, and of the other half the
product q k^T gives half each to q and k, so c_q, c_k, c_v are a quarter, a quarter, a half of ONE fused derivative.
"""

from __future__ import annotations

from typing import Any

import torch
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


def logarithmic_constant(at: Any, x: Tensor, dims: Any, *args: Any, **kwargs: Any) -> Tensor:
    """CP-LRP: log sum exp x = s x + entropy(s) with s = softmax(x) constant, and the entropy a constant summand."""
    y = at.op(x, dims, *args, **kwargs)
    with torch.no_grad():
        if at.op.__name__.startswith("logcumsumexp"):  # s of each beginning: one row for each
            rows = (x.movedim(dims, -1).unsqueeze(-2) - y.movedim(dims, -1).unsqueeze(-1)).exp().tril()
            entropy = torch.special.entr(rows).sum(-1).movedim(-1, dims) if x.ndim else torch.zeros_like(y)
        else:
            sums = at.op.__name__.startswith("logsumexp")
            s = (x - torch.logsumexp(x, dims, keepdim=True)).exp()
            entropy = torch.special.entr(s).sum(dims, keepdim=not sums or (args[:1] == (True,)))
            entropy = entropy if sums else -entropy.expand_as(y)
    at.adds(y, entropy.to(y.dtype), at.constant_name(-1))
    return y


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
