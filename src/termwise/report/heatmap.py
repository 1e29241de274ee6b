"""Relevance over an image: the map itself, and the map laid over the grey picture.

The map shows every pixel. The overlay shows sums over a small neighbourhood (a Gaussian window): single pixels of
opposite sign cancel there as they do in the sum, and what is left is what a patch as a whole contributes.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .colour import blended, robust_scale

__all__ = ["overlay", "png", "relevance_map", "smoothed"]

Image = NDArray[np.uint8]


def relevance_map(relevance: Any, percentile: float = 99.0) -> Image:
    """The map in colours on white, (height, width, 3): warm raises the output, cool lowers it.

    Args:
        relevance: (height, width), a tensor or an array.
        percentile: of |relevance|, what is coloured fully.
    """
    values = _plane(relevance)
    return blended(values, robust_scale(values, percentile))


def overlay(picture: Any, relevance: Any, percentile: float = 99.5, sigma: float = 3.0) -> Image:
    """The smoothed map over the picture in grey, (height, width, 3).

    Args:
        picture: (height, width, 3), 0 to 255.
        relevance: (height, width).
        percentile: of the smoothed |relevance|, what is coloured fully.
        sigma: width of the window in pixels; 0 for none.

    Raises:
        ValueError: when the sizes differ.
    """
    values, picture = smoothed(relevance, sigma), np.asarray(picture)
    if picture.ndim != 3 or picture.shape[:2] != values.shape:
        raise ValueError(f"picture {picture.shape} and relevance {values.shape} must have the same height and width")
    grey = picture[..., :3].astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    # towards white, so that colours read as colours; the picture stays recognisable
    return blended(values, robust_scale(values, percentile), under=(90 + 0.62 * grey)[..., None].clip(0, 255))


def smoothed(relevance: Any, sigma: float = 3.0) -> NDArray[np.float64]:
    """Relevance summed in a Gaussian window of weight 1: the total stays what it was, up to the borders."""
    values = _plane(relevance)
    if sigma <= 0:
        return values
    reach = np.arange(-int(3 * sigma + 1), int(3 * sigma + 1) + 1)
    window = np.exp(-0.5 * (reach / sigma) ** 2)
    window /= window.sum()
    for axis in (0, 1):
        values = np.apply_along_axis(lambda line: np.convolve(line, window)[len(reach) // 2 :][: len(line)], axis, values)
    return values


def png(pixels: Any) -> bytes:
    """A PNG file of (height, width, 3 or 4) pixels, 0 to 255, the same bytes every time."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, np.ascontiguousarray(pixels, dtype=np.uint8), format="png", metadata={"Software": None})  # type: ignore[dict-item]  # None: no version in the file
    return buffer.getvalue()


def _plane(relevance: Any) -> NDArray[np.float64]:
    """Relevance as a (height, width) array."""
    if hasattr(relevance, "detach"):
        relevance = relevance.detach().double().cpu().numpy()
    values = np.asarray(relevance, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(
            f"relevance of an image must have shape (height, width), got {values.shape}: sum over the channels first"
        )
    return values
