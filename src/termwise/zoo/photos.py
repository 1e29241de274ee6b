"""Photographs to try things on, out of scikit-learn (CC-BY) and scikit-image (free of rights)."""

from __future__ import annotations

from PIL.Image import Image

from .assets import ASSETS, fetch
from .errors import unknown
from .pictures import read

__all__ = ["photo", "photos"]

photos: tuple[str, ...] = tuple(key.removeprefix("photo-") for key in ASSETS if key.startswith("photo-"))
"""The names that `photo` knows."""


def photo(name: str) -> Image:
    """A photograph, by name.

    Args:
        name: one of `photos`: "china" (a palace), "flower", "coffee", "cat", "rocket", "astronaut".

    Returns:
        An RGB image.

    Raises:
        ValueError: unknown name.
        AssetMissing, AssetCorrupt: as `assets.fetch`.
    """
    if name not in photos:
        raise unknown("photo", name, photos)
    return read(fetch(f"photo-{name}"))
