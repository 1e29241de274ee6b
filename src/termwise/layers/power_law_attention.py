r"""Power-law graph attention: a learned tensor G between query and key, which is a function of the whole text, or kept from one.

    E = softmax(q G k^T / sqrt(d_k) + mask),     out = [E_1 v_1, ..., E_H v_H] W_o + b_o,     G = G_LM of `metric_network`

G = 1 is scaled dot-product attention. With G of the text itself the layer is not causal, mask or no mask: q^T q sums over all
positions, the last ones too. With G given (`g_cache`) it is.

Cost: that of sdpa, one d_k x d_k product per head and position, and n d_k^2 + O(m l d_k^2 hidden) per head for G where it is
not given.
Source: papers.toml "pldr".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .metric_network import EnergyCurvature, MetricNetwork
from .rotary import rotate

__all__ = ["CURVATURES", "LayerCache", "PowerLawAttention"]

CURVATURES = ("learned", "fixed", "identity")


@dataclass
class LayerCache:
    """Of one layer: keys and values (batch, H, n, d_k) of the text so far, and the G they were read with."""

    keys: Tensor | None = None
    values: Tensor | None = None
    g: Tensor | None = None


class PowerLawAttention(nn.Module):
    """Causal multi-head attention with a tensor G between query and key.

    Args:
        d_model: width, H d_k.
        n_heads: H, a divisor of it.
        curvature: "learned": G by a network, from the queries; "fixed": a buffer, ones on the diagonal until set; "identity":
            none, plain scaled dot-product attention.
        metric_layers: m, residual layers of that network.
        metric_denses: l, gated maps in each.
        metric_hidden: their width, ceil(8 d_k / 3) when not given.
        rotary: turn queries and keys by their positions. d_k is even then.

    Raises:
        ValueError: for sizes that do not fit, a curvature that does not exist; in `forward` for shapes that do not fit.

    Example:
        >>> attend, x = tw.layers.PowerLawAttention(32, 4).double(), torch.randn(2, 9, 32, dtype=torch.float64)
        >>> changed = torch.cat([x[:, :8], torch.randn(2, 1, 32, dtype=torch.float64)], dim=1)  # the last token
        >>> torch.equal(attend(x)[:, 0], attend(changed)[:, 0])  # a token sees itself alone, whatever G is
        True
        >>> torch.allclose(attend(x)[:, 1], attend(changed)[:, 1])  # but the second one knows of the ninth
        False
        >>> g = torch.eye(8, dtype=torch.float64).expand(4, 8, 8)
        >>> torch.equal(attend(x, g_cache=g)[:, :8], attend(changed, g_cache=g)[:, :8])
        True

    Source: Gokden 2025. Padding that does not count in q^T q, and positions that begin at the first token that counts, are ours.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        curvature: str = "learned",
        metric_layers: int = 2,
        metric_denses: int = 2,
        metric_hidden: int | None = None,
        rotary: bool = True,
    ) -> None:
        super().__init__()
        if d_model < 1 or n_heads < 1 or d_model % n_heads:
            raise ValueError(f"d_model is a multiple of n_heads, both 1 or more; got {d_model} and {n_heads}")
        d = d_model // n_heads
        if rotary and d % 2:
            raise ValueError(f"rotary positions turn pairs: d_model / n_heads is even; got {d_model} / {n_heads} = {d}")
        if curvature not in CURVATURES:
            raise ValueError(f"curvature is one of {', '.join(CURVATURES)}; got {curvature!r}")
        if metric_layers < 0 or metric_denses < 1:
            raise ValueError(f"metric_layers is 0 or more, metric_denses 1 or more; got {metric_layers} and {metric_denses}")
        self.n_heads, self.rotary = n_heads, rotary
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model) for _ in range(4))
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.metric: MetricNetwork | None = None
        self.register_buffer("g", None)
        if curvature == "learned":
            self.metric = MetricNetwork(n_heads, d, metric_layers, metric_denses, metric_hidden or -(-8 * d // 3))
        elif curvature == "fixed":
            self.g = torch.eye(d).repeat(n_heads, 1, 1)

    def energy_curvature(self, q: Tensor, keep: Tensor | None = None) -> EnergyCurvature:
        """The deductive outputs of queries.

        Args:
            q: (batch, H, n, d_k), turned by their positions, as `queries` gives them.
            keep: (batch, n), False where a position is padding, which is left out of q^T q.

        Returns:
            A, A_LM, A_P and G_LM, each (batch, H, d_k, d_k).

        Raises:
            ValueError: where G is not computed from queries in this layer, or shapes do not fit.
        """
        if self.metric is None:
            kind = "identity" if self.g is None else "fixed"
            raise ValueError(f'curvature is "{kind}" in this layer: G does not depend on queries')
        d = self.q_proj.out_features // self.n_heads
        if q.ndim != 4 or q.shape[1] != self.n_heads or q.shape[3] != d:
            raise ValueError(f"q is (batch, {self.n_heads}, positions, {d}); got {tuple(q.shape)}")
        _check_keep(keep, (q.shape[0], q.shape[2]))
        found: EnergyCurvature = self.metric(q, keep)
        return found

    def queries(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Queries of x (batch, n, d_model), turned by their positions: (batch, H, n, d_k)."""
        return self._heads(self.q_proj, x, positions(x, keep, 0))

    def forward(
        self, x: Tensor, keep: Tensor | None = None, *, g_cache: Tensor | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        """Attend from each position to itself and those before it.

        Args:
            x: (batch, n, d_model); behind a cache of c positions, those that follow.
            keep: (batch, c + n), False where a position is padding.
            g_cache: G, (H, d_k, d_k) or (batch, H, d_k, d_k), in place of the layer's own.
            cache: keys, values and G of the positions before; x is appended. One that is empty takes G of this call.

        Returns:
            (batch, n, d_model).
        """
        before = 0 if cache is None or cache.keys is None else cache.keys.shape[2]
        if x.ndim != 3 or x.shape[-1] != self.q_proj.in_features:
            raise ValueError(f"x is (batch, positions, {self.q_proj.in_features}); got {tuple(x.shape)}")
        _check_keep(keep, (x.shape[0], before + x.shape[1]))
        where = positions(x, keep, before)
        q, k = (self._heads(project, x, where) for project in (self.q_proj, self.k_proj))
        v = self._heads(self.v_proj, x, None)
        g = self._curvature(q, keep, g_cache, cache, before)
        if cache is not None:
            k = k if cache.keys is None else torch.cat([cache.keys, k], dim=2)
            v = v if cache.values is None else torch.cat([cache.values, v], dim=2)
            cache.keys, cache.values, cache.g = k, v, g
        q = q if g is None else q @ g
        found = F.scaled_dot_product_attention(q, k, v, **_causal(q, k, keep))
        out: Tensor = self.o_proj(found.transpose(1, 2).flatten(2))
        return out

    def _curvature(
        self, q: Tensor, keep: Tensor | None, given: Tensor | None, cache: LayerCache | None, before: int
    ) -> Tensor | None:
        """G of this call: that of the cache, the one given, the layer's own; None for the identity."""
        if given is not None:
            batch, heads, _, d = q.shape
            if given.shape not in ((heads, d, d), (batch, heads, d, d)):
                raise ValueError(f"g_cache is {(heads, d, d)}, or that for each of {batch} samples; got {tuple(given.shape)}")
            if before:
                raise ValueError(f"the cache has {before} positions and the G they were read with: g_cache is for an empty one")
            return given.to(q.dtype)
        if before:
            return cache.g  # type: ignore[union-attr]
        return self.g if self.metric is None else self.energy_curvature(q, keep).G_LM

    def _heads(self, project: nn.Linear, x: Tensor, where: Tensor | None) -> Tensor:
        """(batch, H, n, d_k), turned where there are positions."""
        heads = project(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        return rotate(heads, where) if self.rotary and where is not None else heads

    def extra_repr(self) -> str:
        """Heads, and where G comes from."""
        kind = "learned" if self.metric is not None else "identity" if self.g is None else "fixed"
        return f"n_heads={self.n_heads}, curvature={kind!r}, rotary={self.rotary}"


def positions(x: Tensor, keep: Tensor | None, before: int) -> Tensor:
    """Of the tokens of x, (batch or 1, n), counted from the first that is no padding.

    With a G between them, turned queries and keys no longer see distances alone: a text moved by padding would be another text.
    """
    if keep is None:
        return torch.arange(before, before + x.shape[1], device=x.device)[None]
    return (keep.long().cumsum(1) - 1).clamp(min=0)[:, before:]


def _causal(q: Tensor, k: Tensor, keep: Tensor | None) -> dict[str, Tensor | bool]:
    """The mask as sdpa takes it, none where one token sees all."""
    new, total = q.shape[2], k.shape[2]
    if keep is None and new == total:
        return {"is_causal": True}
    if keep is None and new == 1:
        return {}
    mask = torch.ones(new, total, dtype=torch.bool, device=q.device).tril(total - new)
    # padding in front sees nothing, which sdpa answers with 0
    mask = mask if keep is None else mask & keep[:, None, None, :]
    return {"attn_mask": mask}


def _check_keep(keep: Tensor | None, shape: tuple[int, int]) -> None:
    if keep is not None and (keep.dtype != torch.bool or keep.shape != shape):
        raise ValueError(f"keep is boolean and {shape}, False where a position is padding; got {keep.dtype} {tuple(keep.shape)}")
