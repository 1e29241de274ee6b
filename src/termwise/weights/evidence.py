"""What is known of one layer from data: what it reads, what its errors do, and both once more on data held out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .calibration import LayerStats, shrink
from .layers import Layer
from .projection import Projection, project

__all__ = ["Evidence"]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Statistics of a layer.

    Attributes:
        layer: of which.
        stats: of the rows it reads; None where data never reached it.
        held: of other data.
        sensitivity: H, shape (m, m), where it was asked for.
        held_sensitivity: of other data.
        shrinkage: how much of the identity is mixed into G and H: 0 trusts the data, 1 ignores it.
        new_bias: a layer without a bias may be given one.
    """

    layer: Layer
    stats: LayerStats | None = None
    held: LayerStats | None = None
    sensitivity: Tensor | None = None
    held_sensitivity: Tensor | None = None
    shrinkage: float = 0.1
    new_bias: bool = False

    @property
    def gram(self) -> Tensor | None:
        """What errors of this layer are weighed with: C where a bias can take the mean, else G; shrunk."""
        return None if self.stats is None else shrink(self.second_moment(self.stats), self.shrinkage)

    def second_moment(self, stats: LayerStats) -> Tensor:
        """C where the layer has a bias or may be given one, else G."""
        return stats.covariance if self.new_bias or self.layer.bias is not None else stats.gram

    def held_moment(self, held: LayerStats) -> Tensor:
        """The same of data held out, about the mean that the bias takes, which is that of the fit."""
        if self.stats is None or not (self.new_bias or self.layer.bias is not None):
            return self.second_moment(held)
        d = held.mean - self.stats.mean
        return held.covariance + torch.outer(d, d)

    def own(self) -> Evidence:
        """The same of the layer's own output: nothing is known of what its errors do."""
        return replace(self, sensitivity=None, held_sensitivity=None)

    def project(self) -> Projection:
        """The best terms for this evidence."""
        h = self.sensitivity
        if h is not None:  # definite, so that it has an inverse; where nothing matters to the output, all errors are alike
            h = shrink(h, max(self.shrinkage, 1e-6)) if h.any() else None
        return project(self.layer.matrix, self.gram, h)

    def errors(self, found: Projection) -> Tensor:
        """What each rank spoils of data held out, shape (k + 1,); squared, in the unit of H, or of the layer's own output.

        With E the terms left out, tr(E^T H E G) = sum over pairs of terms of (left_i^T H left_j)(right_i G right_j): a cumulative
        sum over both axes gives all ranks at once.
        """
        held = self.held or self.stats
        h = self.held_sensitivity if self.held_sensitivity is not None else self.sensitivity
        g = None if held is None else self.held_moment(held)
        outer = found.left.T @ (found.left if h is None else h.double() @ found.left)
        inner = (found.right if g is None else found.right @ g.double()) @ found.right.T
        pairs = (outer * inner).flip(0, 1).cumsum(0).cumsum(1).diagonal().flip(0)
        return torch.cat([pairs, pairs.new_zeros(1)]).clamp_min(0)

    def total(self) -> float:
        """What leaving the layer out altogether spoils: the whole that errors of its own output are shares of."""
        held = self.held or self.stats
        w = self.layer.matrix.double()
        return float(w.square().sum() if held is None else (w @ self.held_moment(held).double()).mul(w).sum())
