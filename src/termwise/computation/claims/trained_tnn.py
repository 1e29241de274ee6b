"""A small Toeplitz network, trained here in seconds on the topics of Python's own help, byte by byte."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from ..tnn import TNN

__all__ = ["help_text", "perplexity", "trained_tnn"]


@cache
def help_text() -> Tensor:
    """Bytes of the topics, (N,), the last tenth to be held out."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    return torch.tensor(list(text.encode("ascii", "replace")))


@cache
def trained_tnn(seed: int = 0, *, length: int = 128, decay: float = 0.999, steps: int = 150) -> TNN:
    """Two blocks of width 32, in eval mode.

    Args:
        seed: of weights and batches.
        length: taps, and bytes of a window.
        decay: gamma.
        steps: of Adam, 8 windows each.
    """
    text, generator = help_text(), torch.Generator().manual_seed(seed)
    seen = text[: len(text) * 9 // 10]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TNN(128, width=32, length=length, decay=decay)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    for _ in range(steps):
        starts = torch.randint(len(seen) - length - 1, (8, 1), generator=generator)
        window = seen[starts + torch.arange(length + 1)]
        loss = F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


def perplexity(logits: Tensor, targets: Tensor) -> float:
    """Per byte."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten()).exp().item()
