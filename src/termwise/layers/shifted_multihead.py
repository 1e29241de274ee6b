"""`nn.MultiheadAttention` with its own projections, its arguments and its state, and TaylorShift between them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .shifted_calls import boolean, structure
from .taylor_shift import per_head, taylor_probabilities, taylor_shift_attention, unit

__all__ = ["ShiftedMultihead"]


class ShiftedMultihead(nn.Module):
    """A `nn.MultiheadAttention` whose softmax is TaylorShift, with a learned temperature for each head.

    Same call, same results in the same order, names of parameters kept; `temperature` is new. `need_weights`, on by default in
    torch, asks for all weights, and so for the direct form.

    Args:
        original: whose parameters are taken over, not copied.
        name: for messages.

    Raises:
        ValueError: for keys that are learned or zeros that are appended; in `forward` for dropout of weights in training.
    """

    def __init__(self, original: nn.MultiheadAttention, name: str) -> None:
        super().__init__()
        if original.bias_k is not None or original.add_zero_attn:
            raise ValueError(f"{name}: keys of its own (add_bias_kv, add_zero_attn) are not converted: build it without them")
        self.name, self.embed_dim, self.num_heads = name, original.embed_dim, original.num_heads
        self.dropout, self.batch_first = original.dropout, original.batch_first
        for key in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias"):
            self.register_parameter(key, getattr(original, key))
        self.out_proj = original.out_proj
        self.temperature = nn.Parameter(torch.ones_like(original.out_proj.weight[: self.num_heads, 0]))
        self._qkv_same_embed_dim = False  # read by nn.TransformerEncoderLayer, whose fused kernel would go around this module
        self.train(original.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`, masks with True, or -inf, where a key does not count."""
        if self.training and self.dropout:
            raise ValueError(
                f"{self.name}: dropout of attention weights ({self.dropout:g}) has no form without the weights: set it to 0"
            )
        batched = query.ndim == 3
        inputs = [x if batched else x.unsqueeze(0) for x in (query, key, value)]
        if batched and not self.batch_first:
            inputs = [x.transpose(0, 1) for x in inputs]
        q, k, v = (
            F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, (weight, bias) in zip(inputs, self._projections(), strict=True)
        )
        keep, causal = self._masks(key_padding_mask, attn_mask, q)
        weights = None
        if need_weights:
            scores = (unit(q) * per_head(self.temperature, q)) @ unit(k).mT
            weights = taylor_probabilities(scores, 2, causal, keep)
            found = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            found = taylor_shift_attention(q, k, v, self.temperature, is_causal=causal, attn_mask=keep)
        out = self.out_proj(found.transpose(1, 2).flatten(2))
        return (out if self.batch_first else out.transpose(0, 1)) if batched else out.squeeze(0), weights

    def _projections(self) -> list[tuple[Tensor, Tensor | None]]:
        """Weight and bias of query, key and value."""
        whole = self.in_proj_weight
        weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight) if whole is None else whole.chunk(3)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return list(zip(weights, biases, strict=True))

    def _masks(self, padding: Tensor | None, mask: Tensor | None, q: Tensor) -> tuple[Tensor | None, bool]:
        """The two masks of torch as one of keys that count, and whether it is causal besides.

        `is_causal` is torch's hint that attn_mask is causal; the mask itself is what is read.
        """
        keeps = []
        for m in (padding, mask):
            if m is not None:
                keeps.append(~m if m.dtype == torch.bool else boolean(m, self.name))
        if padding is not None:
            keeps[0] = keeps[0].reshape(-1, 1, 1, keeps[0].shape[-1])
        causal = False
        if mask is not None:
            whole = keeps[-1].unflatten(0, (q.shape[0], self.num_heads)) if mask.ndim == 3 else keeps[-1]
            of_mask, causal = structure(whole, q.shape[-2])
            keeps = keeps[:-1] + ([] if of_mask is None else [of_mask])
        keep = None if not keeps else keeps[0] if len(keeps) == 1 else keeps[0] & keeps[1]
        return keep, causal
