"""NanoGuard: a small transformer that tells prompt injections from harmless requests, read from its checkpoint.

Four layers over a running mix with the normalised embedding e; N is RMSNorm without parameters:

    x <- a_i x + b_i e;     x <- x + Attention(N x);     x <- x + W_2 relu(W_1 N x)^2
    logits = head(LayerNorm(mean of N x over the tokens under the mask))

Attention is bidirectional, its queries and keys are rotated and then normalised; the rotary tables are bfloat16, and
b_i is 50 to 180: the embedding dominates. The mask acts in the mean alone, so padding is attended to: pad nothing.
The attributes are named as in the checkpoint's keys, so that it loads strictly.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from .assets import fetch
from .bytepair import read_pickle
from .texts import TextPreparation

__all__ = ["NanoGuard", "nanoguard", "preparation"]

BEGIN, PAD = 8188, 8189


def _norm(x: Float[Tensor, "*axes d"]) -> Float[Tensor, "*axes d"]:
    return F.rms_norm(x, x.shape[-1:])


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_q, self.c_k, self.c_v, self.c_proj = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Float[Tensor, "b t d"], table: Float[Tensor, "2 t half"]) -> Float[Tensor, "b t d"]:
        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q, k = (_norm(_rotate(split(f(x)), table)) for f in (self.c_q, self.c_k))
        y = F.scaled_dot_product_attention(q, k, split(self.c_v(x)))
        return self.c_proj(y.transpose(1, 2).flatten(2))


def _rotate(x: Float[Tensor, "b heads t dh"], table: Float[Tensor, "2 t half"]) -> Float[Tensor, "b heads t dh"]:
    """Turn the pairs (x_i, x_{i + dh/2}) by the angle of their position, clockwise."""
    cos, sin = table
    u, v = x.chunk(2, dim=-1)
    return torch.cat([u * cos + v * sin, v * cos - u * sin], dim=-1)


class _MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width, bias=False)
        self.c_proj = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        return self.c_proj(F.relu(self.c_fc(x)).square())


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn, self.mlp = _Attention(width, heads), _MLP(width)

    def forward(self, x: Float[Tensor, "b t d"], table: Float[Tensor, "2 t half"]) -> Float[Tensor, "b t d"]:
        x = x + self.attn(_norm(x), table)
        return x + self.mlp(_norm(x))


class NanoGuard(nn.Module):
    """The network: 16,779,274 parameters as published.

    Args:
        vocabulary, width, layers, heads: sizes.
        longest: most tokens it takes.

    Example:
        >>> NanoGuard(vocabulary=11, width=8, layers=1, heads=2)(torch.tensor([[1, 5, 3]])).shape
        torch.Size([1, 2])
    """

    rotary: Float[Tensor, "2 longest half"]

    def __init__(self, vocabulary: int = 8192, width: int = 512, layers: int = 4, heads: int = 4, longest: int = 512) -> None:
        super().__init__()
        blocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(vocabulary, width), "h": blocks})
        self.resid_lambdas, self.x0_lambdas = nn.Parameter(torch.ones(layers)), nn.Parameter(torch.zeros(layers))
        self.cls_norm, self.cls_head = nn.LayerNorm(width), nn.Linear(width, 2)
        dims = width // heads
        frequencies = 1 / 10000 ** (torch.arange(0, dims, 2) / dims)
        angles = torch.arange(longest)[:, None] * frequencies
        # in bfloat16, as in training: the model was fitted to these rounded tables
        self.register_buffer("rotary", torch.stack([angles.cos(), angles.sin()]).bfloat16(), persistent=False)

    def forward(self, input_ids: Int[Tensor, "b t"], attention_mask: Int[Tensor, "b t"] | None = None) -> Float[Tensor, "b 2"]:
        """Logits of (safe, injection). The mask says which tokens are averaged; all of them are attended to."""
        table = self.rotary[:, : input_ids.shape[1]]
        x = embedding = _norm(self.transformer["wte"](input_ids))
        for i, block in enumerate(self.transformer["h"].children()):
            x = block(self.resid_lambdas[i] * x + self.x0_lambdas[i] * embedding, table)
        x = _norm(x)
        if attention_mask is None:
            pooled = x.mean(1)
        else:
            mask = attention_mask.to(x.dtype)[..., None]
            pooled = (x * mask).sum(1) / mask.sum(1)
        return self.cls_head(self.cls_norm(pooled))


def nanoguard() -> NanoGuard:
    """The network with its published weights, in evaluation mode, float32.

    Raises:
        AssetMissing, AssetCorrupt: as `assets.fetch`.
    """
    model = NanoGuard()
    checkpoint = torch.load(fetch("nanoguard"), map_location="cpu", weights_only=True)
    model.load_state_dict(checkpoint["model_state_dict"], strict=True)  # its embedding is bfloat16: widened on copying
    return model.eval()


def preparation() -> TextPreparation:
    """Its tokenizer: byte pairs after a token of beginning, at most 512; padding stands in for deleted tokens."""
    return TextPreparation(read_pickle(fetch("nanoguard-tokenizer")), limit=512, prefix=(BEGIN,), baseline=PAD)
