"""Integrated gradients: the gradient gathered along the straight line from a baseline b to the input.

    R_i = (x_i - b_i) ∫_0^1 ∂f/∂x_i (b + α (x - b)) dα,      f(x) = f(b) + Σ_i R_i      (completeness)

The integral is a sum over `steps` points, by Gauss-Legendre (exact for polynomials of degree 2 steps - 1) or at midpoints.
f(b) is a part of its own, measured, so that the remainder is the completeness gap: the error of the quadrature, and nothing else.

Cost: `steps` input-gradient passes, `batch_size` rows at a time; memory: one such batch.
Source: Sundararajan et al. 2017, arXiv 1703.01365, equations 1-3 and proposition 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from termwise.core.arguments import whole_number

from .explanation import Explanation
from .gradients import Differentiated

__all__ = ["integrated_gradients"]


def integrated_gradients(
    model: nn.Module | Callable[..., Any],
    *inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    target: Any = None,
    baseline: Any = None,
    steps: int = 50,
    rule: str = "gauss-legendre",
    batch_size: int = 64,
    names: Sequence[Any] | None = None,
    classes: Sequence[str] | None = None,
) -> Explanation:
    """Take f(x) apart into f(baseline) and what each input adds on the way.

    Args:
        model: in eval mode, as `explain` takes it.
        *inputs: its arguments, batch first.
        kwargs: its keyword arguments.
        target: as of `explain`, one per sample.
        baseline: where the way begins: None (zeros; for tokens zero vectors), a number, a tensor that broadcasts to the
            input, "mean" or "blur" of an image; for token ids the id of a token, whose embedding stands in every place.
        steps: points on the way.
        rule: "gauss-legendre" or "midpoint".
        batch_size: rows of a pass.
        names: the tokens, for pictures.
        classes: names of the classes.

    Returns:
        An `Explanation` with a part for each input, and ``"constant:baseline"``, which is f(baseline).

    Raises:
        ValueError: as `explain`; an unknown rule, no steps, a baseline that does not fit.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double().eval()
        >>> x = torch.randn(3, 4, dtype=torch.float64)
        >>> integrated_gradients(model, x, target=0, steps=100).error() < 1e-6
        True
    """
    steps = whole_number("steps", steps)
    places, weights = _points(rule, steps)
    f = Differentiated(model, inputs, kwargs, target, rows=batch_size)
    start = f.baseline(baseline)
    ways = [leaf.value - b for leaf, b in zip(f.leaves, start, strict=True)]
    sums = [torch.zeros_like(way) for way in ways]
    for chosen in torch.arange(steps).split(f.chunk):
        points = [torch.cat([b + way * places[i].item() for i in chosen.tolist()]) for b, way in zip(start, ways, strict=True)]
        for total, gradient in zip(sums, f.gradients(points), strict=True):
            each = gradient.view(len(chosen), *total.shape)
            total += torch.tensordot(weights[chosen].to(each), each, 1)
    relevance = [way * total for way, total in zip(ways, sums, strict=True)]
    begun = f.values(start)
    return f.explanation(relevance, "integrated gradients", constants={"baseline": begun}, names=names, classes=classes)


def _points(rule: str, steps: int) -> tuple[Tensor, Tensor]:
    """Places in 0..1 and their weights, which sum to 1; float64."""
    if rule == "midpoint":
        return (torch.arange(steps, dtype=torch.float64) + 0.5) / steps, torch.full((steps,), 1 / steps, dtype=torch.float64)
    if rule == "gauss-legendre":
        x, w = np.polynomial.legendre.leggauss(steps)  # on -1..1
        return torch.from_numpy((x + 1) / 2), torch.from_numpy(w / 2)
    raise ValueError(f"rule must be 'gauss-legendre' or 'midpoint', got {rule!r}")
