"""A small convolutional network on scikit-learn's handwritten digits, trained here in seconds: where kernels are taken apart.

Deterministic for a seed, in eval mode, kept for the process; the global random state is left as it was.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from .trained import Trained, _digits, _epochs, _seeded, _train

__all__ = ["digits_cnn", "digits_split"]


@cache
def digits_cnn(seed: int = 0, *, epochs: int = 15) -> Trained:
    """Three convolutions (1, 16, 32, 48 channels) and two linear layers with ReLU, about 97 % right; a fifth is held out.

    Args:
        seed: of weights, split and batches.
        epochs: over the training digits.

    Raises:
        ImportError: without scikit-learn.
    """
    (pictures, labels), (held, truth) = digits_split(seed)
    steps = _epochs(torch.arange(len(pictures)), 64, epochs, torch.Generator().manual_seed(seed))
    model = _seeded(
        seed,
        lambda: nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(32, 48, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 10),
        ),
    )  # fmt: skip
    batches = ((pictures[i], labels[i]) for i in steps)
    _train(model, batches, epochs * -(-len(pictures) // 64), functional.cross_entropy, rate=3e-3)
    with torch.no_grad():
        accuracy = (model(held).argmax(1) == truth).float().mean().item()
    return Trained(model, held, truth, None, None, accuracy)


def digits_split(seed: int = 0) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Pictures (n, 1, 8, 8) and labels that `digits_cnn` learned from, and those held out."""
    pictures, labels = _digits()
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))
    held, kept = order[: len(order) // 5], order[len(order) // 5 :]
    return (pictures[kept], labels[kept]), (pictures[held], labels[held])
