"""One diverging colour scale for every picture: warm raises the output, cool lowers it, nothing is nothing.

    t = clip(r / scale, -1, 1),      scale = a percentile of |r|,      opacity |t|^gamma of the warm or the cool colour

The scale is symmetric about zero, so that colour strength can be compared between signs; it is a percentile and not the
maximum, so that one bright pixel does not darken the rest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ACCENT", "COOL", "INK", "NEUTRAL", "REMAINDER", "SERIES", "SOFT", "WARM", "blended", "css", "opacity", "robust_scale"]

WARM = (224, 72, 60)
COOL = (44, 114, 210)
NEUTRAL = (138, 143, 152)
INK, SOFT, ACCENT, REMAINDER = (27, 31, 36), (93, 102, 113), (31, 122, 109), (154, 52, 140)
SERIES = ((0, 114, 178), (213, 94, 0), (0, 135, 100), (204, 121, 167), (171, 116, 0), (86, 180, 233))
"""Curves in order: the colours of Okabe & Ito (2008), which all kinds of eyes tell apart; two are darker, to be read on white."""


def robust_scale(values: Any, percentile: float = 99.5) -> float:
    """The percentile of |values|; their maximum where that is 0; 1 where all are 0 or there are none.

    Raises:
        ValueError: for a percentile outside 0..100, or values that are not finite.
    """
    size = np.abs(np.asarray(values, dtype=np.float64)).ravel()
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile must lie in 0..100, got {percentile}")
    if not np.isfinite(size).all():
        raise ValueError(f"{int((~np.isfinite(size)).sum())} of {size.size} values are NaN or infinite: they have no colour")
    if not size.size:
        return 1.0
    return float(np.percentile(size, percentile)) or float(size.max()) or 1.0


def opacity(value: float, scale: float, gamma: float = 0.8) -> float:
    """How strongly to colour one value, 0 to 1."""
    return float(min(abs(value) / scale, 1.0) ** gamma)


def css(value: float, scale: float, most: float = 0.82) -> str:
    """A translucent CSS colour, for a page of any background."""
    r, g, b = WARM if value > 0 else COOL
    return f"rgba({r},{g},{b},{most * opacity(value, scale):.3f})"


def blended(
    values: Any, scale: float, under: Any = 255.0, gamma: float = 0.8, warm: tuple[int, int, int] = WARM
) -> NDArray[np.uint8]:
    """The colours of an array laid over `under`: (...,) -> (..., 3), 0 to 255.

    Args:
        values: relevance, of any shape.
        scale: what is coloured fully.
        under: grey level or colours below, broadcasting to the result.
        gamma: below 1 makes small values easier to see.
        warm: the colour of what is above 0.
    """
    t = np.clip(np.asarray(values, dtype=np.float64) / scale, -1, 1)[..., None]
    strength = np.abs(t) ** gamma
    colour = np.where(t > 0, np.array(warm, dtype=np.float64), np.array(COOL, dtype=np.float64))
    mixed = strength * colour + (1 - strength) * np.asarray(under, dtype=np.float64)
    return np.rint(mixed).clip(0, 255).astype(np.uint8)
