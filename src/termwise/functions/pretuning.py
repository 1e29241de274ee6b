r"""A classifier for new classes, made before the network moves: linear probing, then alignment on Gaussians.

Probing trains the rows of the new classes on features of w_0. Alignment then trains all rows, old and new, on features that are
drawn from one Gaussian per class, N(mean_c, cov_c): all that is kept of a class whose data are gone.

Source: papers.toml "second-order-composition"; Zhang et al. 2023 (SLCA) for the alignment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ClassGaussian", "align", "probe"]

RATE = 0.01
"""The published rate of both."""


@dataclass(frozen=True)
class ClassGaussian:
    """Features of one class: their mean (d,) and a factor (d, d) of their covariance."""

    mean: Tensor
    factor: Tensor

    @staticmethod
    def of(features: Tensor) -> ClassGaussian:
        """Of (n, d); a single sample is a point."""
        mean = features.mean(0)
        values, vectors = torch.linalg.eigh((features - mean).T @ (features - mean) / max(len(features) - 1, 1))
        return ClassGaussian(mean, vectors * values.clamp_min(0).sqrt())  # not Cholesky: there may be fewer samples than axes

    def draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        """(n, d)."""
        noise = torch.randn(n, len(self.mean), generator=generator, dtype=self.mean.dtype).to(self.mean.device)
        return self.mean + noise @ self.factor.T


def probe(
    head: nn.Linear, features: Tensor, targets: Tensor, rows: slice, *, epochs: int, generator: torch.Generator | None
) -> None:
    """Train some rows of a classifier, in place, on features (n, d) and targets (n,) among those rows.

    Args:
        head: (classes, d).
        features: (n, d).
        targets: (n,), counted from the first of the rows.
        rows: those of the new classes; the others neither move nor compete.
        epochs: over the features.
        generator: of the batches.
    """
    batches = (i for _ in range(epochs) for i in torch.randperm(len(features), generator=generator).split(128))
    _fit(head, ((features[i], targets[i]) for i in batches), rows)


def align(
    head: nn.Linear, gaussians: list[ClassGaussian], *, samples: int, epochs: int, generator: torch.Generator | None
) -> None:
    """Train all rows of a classifier, in place, on features drawn from each class's Gaussian, new ones in each epoch."""

    def drawn() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(epochs):
            x = torch.cat([g.draw(samples, generator) for g in gaussians])
            y = torch.arange(len(gaussians), device=x.device).repeat_interleave(samples)
            for i in torch.randperm(len(x), generator=generator).split(128):
                yield x[i], y[i]

    _fit(head, drawn(), slice(None))


def _fit(head: nn.Linear, batches: Iterable[tuple[Tensor, Tensor]], rows: slice) -> None:
    weight, bias = (p.detach()[rows].clone().requires_grad_() for p in (head.weight, head.bias))
    optimizer = torch.optim.AdamW([weight, bias], lr=RATE, weight_decay=0.0)
    with torch.enable_grad():
        for x, y in batches:
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(F.linear(x, weight, bias), y).backward()
            optimizer.step()
    with torch.no_grad():
        head.weight[rows], head.bias[rows] = weight, bias
