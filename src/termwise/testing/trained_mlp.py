"""Perceptrons on scikit-learn's handwritten digits, trained here in a second or two: what compression is measured on.

- `digits_mlp`: 64 pixels, hidden layers of given widths, ten classes;
- `digits_residual_mlp`: blocks z + down(gelu(up(norm(z)))) between a stem and a head.

Deterministic for a seed, in eval mode, kept for the process; the global random state is left as it was.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from .trained import Trained, _digits, _seeded, _train

__all__ = ["ResidualMLP", "digits_mlp", "digits_residual_mlp"]


class ResidualBlock(nn.Module):
    """z + down(gelu(up(norm(z))))."""

    def __init__(self, width: int) -> None:
        """Two linear layers, twice as wide in between."""
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, z: Tensor) -> Tensor:
        """(batch, width) to the same."""
        out: Tensor = z + self.down(functional.gelu(self.up(self.norm(z))))
        return out


class ResidualMLP(nn.Module):
    """64 pixels to ten logits through a stream with blocks."""

    def __init__(self, depth: int, width: int) -> None:
        """`depth` blocks on a stream of `width`."""
        super().__init__()
        self.stem, self.head = nn.Linear(64, width), nn.Linear(width, 10)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 64) to logits."""
        z = self.stem(x)
        for block in self.blocks:
            z = block(z)
        out: Tensor = self.head(z)
        return out


@cache
def digits_mlp(seed: int = 0, *, widths: tuple[int, ...] = (256, 128, 64), steps: int = 400) -> Trained:
    """A perceptron with ReLU, about 97 % right; a fifth of the 1,797 digits is held out.

    Args:
        seed: of weights, split and batches.
        widths: of its hidden layers.
        steps: of Adam, 128 digits each.

    Raises:
        ImportError: without scikit-learn.
    """
    sizes = (64, *widths)

    def make() -> nn.Module:
        hidden = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(*hidden, nn.Linear(sizes[-1], 10))

    return _trained(make, seed, steps)


@cache
def digits_residual_mlp(seed: int = 0, *, depth: int = 8, width: int = 64, steps: int = 200) -> Trained:
    """A residual perceptron, about 97 % right; a fifth of the 1,797 digits is held out.

    Args:
        seed: of weights, split and batches.
        depth: blocks.
        width: of the stream.
        steps: of Adam, 128 digits each.

    Raises:
        ImportError: without scikit-learn.
    """
    return _trained(lambda: ResidualMLP(depth, width), seed, steps)


def _trained(make: Callable[[], nn.Module], seed: int, steps: int) -> Trained:
    images, labels = _digits()
    pixels, generator = images.flatten(1), torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pixels), generator=generator)
    held, kept = order[: len(order) // 5], order[len(order) // 5 :]
    model = _seeded(seed, make)
    drawn = (kept[torch.randint(len(kept), (128,), generator=generator)] for _ in range(steps))
    _train(model, ((pixels[i], labels[i]) for i in drawn), steps, functional.cross_entropy, rate=3e-3)
    with torch.no_grad():
        accuracy = (model(pixels[held]).argmax(1) == labels[held]).float().mean().item()
    return Trained(model, pixels[held], labels[held], None, None, accuracy, pixels[kept])
