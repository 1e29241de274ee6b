"""The thousand class names of ImageNet-1k, and the picture preparation that most of its models share."""

from __future__ import annotations

import json

from .assets import fetch
from .pictures import PicturePreparation

__all__ = ["class_names", "preparation"]

preparation = PicturePreparation(resize=256, crop=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""Mean and standard deviation of the training set; bilinear."""


def class_names() -> list[str]:
    """One name per class, in label order, all different.

    Returns:
        The first of the WordNet lemmas ("tench" for "tench, Tinca tinca"). Two names occur twice: the second crane (the
        machine) becomes "crane (517)", the second maillot "maillot, tank suit".

    Raises:
        AssetMissing, AssetCorrupt: as `assets.fetch`.
    """
    lemmas: dict[str, str] = json.loads(fetch("imagenet-names").read_text(encoding="utf-8"))
    names: dict[str, None] = {}
    for label in range(1000):
        full = lemmas[str(label)]
        short = full.split(", ")[0]
        candidates = (short, full, f"{short} ({label})")
        names[next(name for name in candidates if name not in names)] = None
    return list(names)
