"""Sensitivity-max: how far a map jumps when its input hardly moves.

    max_{|x' - x|_∞ ≤ r}  ‖Φ(x') - Φ(x)‖ / ‖Φ(x)‖          (Euclidean norms over a sample; a denominator of 0 counts as 1)

The maximum is over random x', so it is a lower bound, which rises with `samples`. Low is good, but a constant map is
perfect: it says that a map is stable, not that it is right.
Cost: samples + 1 explanations of the batch.
Source: Yeh et al. 2019, arXiv 1901.09392, definition 2.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from termwise.core.arguments import seeded

from .metric import Metric

__all__ = ["relevance_of", "sensitivity_max"]


def sensitivity_max(
    explain: Callable[[Tensor], Any],
    inputs: Float[Tensor, "batch ..."],
    *,
    radius: float = 0.02,
    samples: int = 10,
    generator: torch.Generator | None = None,
) -> Metric:
    """The largest relative change of a map within a small box around its input, per sample.

    Args:
        explain: from inputs to their map: a tensor, first axis the sample, or an `Explanation`. Fix its target, or a change
            of the answer counts as a change of the map.
        inputs: floating, first axis the sample.
        radius: half the side of the box.
        samples: how many points of it.
        generator: of these points; seeded with 0 when not given.

    Raises:
        ValueError: a radius or number of samples that makes no sense.

    Example:
        >>> sensitivity_max(lambda x: torch.ones_like(x), torch.randn(4, 3)).mean        # a constant map
        0.0
    """
    if not radius > 0 or samples < 1:
        raise ValueError(f"radius must be positive and samples at least 1, got {radius} and {samples}")
    generator = seeded(generator)
    x = inputs.detach()
    before = relevance_of(explain(x)).flatten(1)
    size = before.norm(dim=1)
    size = torch.where(size == 0, torch.ones_like(size), size)
    worst = torch.zeros_like(size)
    for _ in range(samples):
        step = torch.rand(x.shape, generator=generator, dtype=torch.float64).mul(2).sub(1).mul(radius).to(x)
        after = relevance_of(explain(x + step)).flatten(1)
        worst = torch.maximum(worst, (after - before).norm(dim=1) / size)
    return Metric("sensitivity-max", worst, higher_is_better=False)


def relevance_of(found: Any) -> Tensor:
    """The map in what a method gives: a tensor itself, or the first input of an `Explanation`."""
    if isinstance(found, Tensor):
        return found.detach()
    inputs = getattr(found, "inputs", None)
    if not inputs:
        raise TypeError(f"a method must give a tensor or an Explanation, it gave {type(found).__name__}")
    first: Tensor = next(iter(inputs.values()))
    return first.detach()
