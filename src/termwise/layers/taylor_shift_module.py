r"""Multi-head attention by TaylorShift, with a learned temperature for each head and an output that keeps its size.

    head_h = sqrt(n / d) taylor_shift_attention(x W_q, x W_k, x W_v, tau_h),     out = [head_1, ..., head_H] W_o + b_o

A mean over n values with entries of variance 1 and nothing in common has length sqrt(d / n); the factor in front makes that 1.
n is the number of keys that count for a query: S, less where keys are masked, i + 1 where causal.

Source: papers.toml "taylor-shift". The released code multiplies by sqrt(d / N) in its direct form and by sqrt(N / d) in its
efficient one; here it is the latter in both.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .taylor_shift import IMPLEMENTATIONS, taylor_shift_attention
from .taylor_shift_expansion import TaylorShiftExpansion, taylor_shift_expansion

__all__ = ["TaylorShiftAttention"]


class TaylorShiftAttention(nn.Module):
    """Attention to train with: projections of query, key, value and output around `taylor_shift_attention`.

    Args:
        embed_dim: width of the inputs, H d.
        num_heads: H, a divisor of it.
        bias: whether the four projections have one.
        implementation: "auto", "direct" or "efficient", the same numbers by another way.

    Raises:
        ValueError: for widths that do not divide, an implementation that does not exist; in `forward` for shapes that do not fit.

    Cost: that of `taylor_shift_attention`, and four projections. There is no dropout of weights: the efficient form has none.

    Example:
        >>> attend, x = tw.layers.TaylorShiftAttention(32, 4).double(), torch.randn(2, 100, 32, dtype=torch.float64)
        >>> attend.implementation = "direct"
        >>> quadratic = attend(x)
        >>> attend.implementation = "efficient"
        >>> torch.allclose(quadratic, attend(x), rtol=1e-10)
        True

    Source: Nauen et al. 2024.
    """

    def __init__(self, embed_dim: int, num_heads: int, *, bias: bool = True, implementation: str = "auto") -> None:
        super().__init__()
        if embed_dim < 1 or num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f"embed_dim is a multiple of num_heads, both 1 or more; got {embed_dim} and {num_heads}")
        if implementation not in IMPLEMENTATIONS:
            raise ValueError(f"implementation is one of {', '.join(IMPLEMENTATIONS)}; got {implementation!r}")
        self.num_heads, self.implementation = num_heads, implementation
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(embed_dim, embed_dim, bias) for _ in range(4))
        self.temperature = nn.Parameter(torch.ones(num_heads))

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Attend from each position of query to those of key.

        Args:
            query: (batch, L, embed_dim).
            key: (batch, S, embed_dim); query where not given.
            value: likewise; key where not given.
            key_padding_mask: (batch, S), True where a key does not count, as in `nn.MultiheadAttention`.
            is_causal: position i sees 0 ... i.

        Returns:
            (batch, L, embed_dim).
        """
        heads, keep, scale = self._called(query, key, value, key_padding_mask, is_causal)
        found = taylor_shift_attention(
            *heads, self.temperature, implementation=self.implementation, is_causal=is_causal, attn_mask=keep
        )
        out: Tensor = self.out_proj((found * scale).transpose(1, 2).flatten(2))
        return out

    @torch.no_grad()
    def expand(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> TaylorShiftExpansion:
        """What this layer would give with the softmax, as the terms that it computes and what these leave out.

        Args: as `forward`.

        Returns:
            A `TaylorShiftExpansion`: `constant`, `linear`, `quadratic`, and `bias` of the output; whole: with exponentials.
        """
        heads, keep, scale = self._called(query, key, value, key_padding_mask, is_causal)
        e = taylor_shift_expansion(*heads, self.temperature, is_causal=is_causal, attn_mask=keep)

        def out(heads: Tensor, bias: Tensor | None = None) -> Tensor:
            return F.linear((heads * scale).transpose(1, 2).flatten(2), self.out_proj.weight, bias)

        parts = {name: out(part) for name, part in e.parts.items()}
        whole = out(e.whole, self.out_proj.bias)
        if self.out_proj.bias is not None:
            parts["bias"] = self.out_proj.bias.detach().expand_as(whole)
        longest = torch.linalg.matrix_norm(self.out_proj.weight, 2)
        row_bound = (e.row_bound * scale.squeeze(-1)).norm(dim=1) * longest
        return TaylorShiftExpansion(whole, parts, e.weight_error, e.weight_bound, row_bound)

    def extra_repr(self) -> str:
        """Heads, and how they are computed."""
        return f"num_heads={self.num_heads}, implementation={self.implementation!r}"

    def _called(
        self, query: Tensor, key: Tensor | None, value: Tensor | None, padding: Tensor | None, is_causal: bool
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor | None, Tensor]:
        """Heads (batch, H, positions, d), the mask of keys that count (batch, 1, 1, S), and sqrt(n / d), to multiply heads."""
        key = query if key is None else key
        value = key if value is None else value
        width = self.q_proj.in_features
        if not all(x.ndim == 3 and x.shape[-1] == width for x in (query, key, value)):
            shapes = ", ".join(str(tuple(x.shape)) for x in (query, key, value))
            raise ValueError(f"query, key and value are (batch, positions, {width}); got {shapes}")
        if padding is not None and (padding.dtype != torch.bool or padding.shape != key.shape[:2]):
            raise ValueError(
                f"key_padding_mask is boolean and {tuple(key.shape[:2])}, True where a key does not count; "
                f"got {padding.dtype} {tuple(padding.shape)}"
            )
        if is_causal and query.shape[1] != key.shape[1]:
            raise ValueError(f"causal attention has as many keys as queries; got {key.shape[1]} and {query.shape[1]}")
        pairs = ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        q, k, v = (project(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for project, x in pairs)
        counts = torch.ones(1, key.shape[1], device=query.device) if padding is None else (~padding).to(torch.float32)
        n = counts.cumsum(-1) if is_causal else counts.sum(-1, keepdim=True)
        scale = (n / q.shape[-1]).sqrt().to(q.dtype)[:, None, :, None]
        return (q, k, v), None if padding is None else ~padding[:, None, None], scale
