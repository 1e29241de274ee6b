"""Smooth curves, and how fast an error falls with a distance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["oscillations", "slope"]


def oscillations(seed: int) -> Callable[[float], Tensor]:
    """A curve of a number u, (8,) in float64, each a sum of ten sines of random rates in [0.5, 2]."""
    rng = np.random.default_rng(seed)
    rate, phase, size = rng.uniform(0.5, 2, (8, 10)), rng.uniform(0, 2 * math.pi, (8, 10)), rng.normal(size=(8, 10))
    return lambda u: torch.from_numpy((size * np.sin(rate * u + phase)).sum(1))


def slope(distances: Sequence[float], errors: Sequence[float]) -> float:
    """Of log error against log distance."""
    return float(np.polyfit(np.log(distances), np.log(errors), 1)[0])
