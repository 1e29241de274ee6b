r"""A Toeplitz neural network for language: tokens are mixed by learned relative positions alone, in O(n log n).

    y_i = sum_(j <= i) t_(i-j) gamma^(i-j) x_j,      t_j = RPE(j),  one number per channel from a small network of the position

A block gates what it mixes, z + W_o (act(W_u h) * Toeplitz(act(W_v h))), and has a feed-forward part. `to_recurrent` turns a
trained one into a recurrence.

Source: Qin et al. 2023, Toeplitz Neural Network for Sequence Modeling (the mixer, its decay and the gate).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from termwise.core.arguments import whole_number

__all__ = ["TNN", "ToeplitzMixer"]


class ToeplitzMixer(nn.Module):
    """A causal Toeplitz matrix per channel, of n taps from a network of the position, with exponential decay.

    Args:
        channels: d.
        length: n, how far back it looks; longer inputs are convolved with these n taps.
        decay: gamma.
        hidden: width of the network of the position, of two hidden layers.
    """

    def __init__(self, channels: int, length: int, *, decay: float = 0.999, hidden: int = 32) -> None:
        super().__init__()
        channels, length = whole_number("channels", channels), whole_number("length", length)
        self.length, self.decay = length, decay
        self.rpe = nn.Sequential(
            nn.Linear(1, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.LayerNorm(hidden),
            nn.GELU(),
            nn.Linear(hidden, channels),
        )

    def taps(self) -> Tensor:
        """t_j before their decay, (n, d). Positions enter as log(1 + j), so that near ones differ most."""
        place = next(self.parameters())
        positions = torch.arange(self.length, dtype=place.dtype, device=place.device)
        found: Tensor = self.rpe(positions.log1p()[:, None])
        return found / self.length**0.5

    def forward(self, x: Tensor) -> Tensor:
        """(..., L, d) to the same, by FFT."""
        taps = self.taps()
        kernel = taps * self.decay ** torch.arange(self.length, dtype=taps.dtype, device=taps.device)[:, None]
        size = x.shape[-2] + self.length
        product = torch.fft.rfft(x, size, dim=-2) * torch.fft.rfft(kernel, size, dim=0)
        return torch.fft.irfft(product, size, dim=-2)[..., : x.shape[-2], :]


class _Block(nn.Module):
    """Gated Toeplitz mixing, and a feed-forward part, each behind a norm and added to its input."""

    def __init__(self, width: int, length: int, decay: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.gate, self.value, self.out = (nn.Linear(width, width) for _ in range(3))
        self.mixer = ToeplitzMixer(width, length, decay=decay)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, z: Tensor) -> Tensor:
        h = self.norm1(z)
        z = z + self.out(F.silu(self.gate(h)) * self.mixer(F.silu(self.value(h))))
        out: Tensor = z + self.down(F.gelu(self.up(self.norm2(z))))
        return out


class TNN(nn.Module):
    """A causal language model of Toeplitz blocks, without other positions.

    Args:
        vocabulary: tokens.
        width: of the stream.
        depth: blocks.
        length: taps of every mixer.
        decay: gamma of every mixer.
    """

    def __init__(self, vocabulary: int, *, width: int = 64, depth: int = 2, length: int = 256, decay: float = 0.999) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(_Block(width, length, decay) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, L) to logits (batch, L, vocabulary)."""
        if tokens.ndim != 2 or tokens.is_floating_point() or not tokens.numel():
            raise ValueError(f"tokens must be integers (batch, L), got {tuple(tokens.shape)} of {tokens.dtype}")
        if int(tokens.min()) < 0 or int(tokens.max()) >= self.embedding.num_embeddings:
            raise ValueError(
                f"tokens must lie in 0..{self.embedding.num_embeddings - 1}, got {int(tokens.min())} to {int(tokens.max())}"
            )
        z = self.embedding(tokens)
        for block in self.blocks:
            z = block(z)
        logits: Tensor = self.head(self.norm(z))
        return logits
