"""Segmentation tests: does a map cover the object, pixel by pixel?

    map to [0, 1] by its minimum and maximum;      foreground = map > its own mean

    pixel accuracy   share of the pixels on the right side
    mIoU             intersections and unions of background and foreground summed over the data, then the mean of the two ratios
    mAP              per image, average precision of (1 - map, map) against (background, foreground); mean over images
    F1               of the foreground, per image

Maps smaller than the masks (patches of a transformer) are enlarged bilinearly. A map of the predicted class is meant.
Source: Chefer et al. 2021, arXiv 2012.09838, section 4 (ImageNet-segmentation).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from termwise.core.pictures import Picture, Pictured

from .metric import Metric, table

__all__ = ["Segmentation", "average_precision", "segmentation"]


@dataclass(frozen=True, eq=False)
class Segmentation(Pictured):
    """The four tests; `miou` is a statistic of the data set and no mean over images."""

    pixel_accuracy: Metric
    miou: Metric
    map: Metric
    f1: Metric

    def pictures(self, sample: int = 0) -> list[Picture]:
        """The four numbers with their intervals."""
        return [table("Maps against masks", [self.pixel_accuracy, self.miou, self.map, self.f1])]


def segmentation(relevance: Float[Tensor, "batch ..."], masks: Bool[Tensor, "batch height width"]) -> Segmentation:
    """Compare maps with the masks of objects.

    Args:
        relevance: (batch, h, w), or (batch, channels, h, w) to be summed over channels.
        masks: True on the object.

    Raises:
        ValueError: shapes that do not match, an image without object or without background.

    Example:
        >>> mask = torch.tensor([[[True, False], [False, False]]])
        >>> segmentation(mask.float(), mask).miou.mean
        1.0
    """
    values = relevance.detach().double()
    values = values.sum(1) if values.ndim == 4 else values
    if not bool(values.isfinite().all()):
        raise ValueError("relevance has values that are NaN or infinite: no segment follows")
    if values.ndim != 3 or masks.ndim != 3 or len(values) != len(masks):
        raise ValueError(f"relevance {tuple(relevance.shape)} and masks {tuple(masks.shape)} must be maps of the same images")
    truth = masks.bool().flatten(1)
    if bool((truth.all(1) | ~truth.any(1)).any()):
        raise ValueError("every image needs object and background: a mask that is all one says nothing")
    if values.shape != masks.shape:
        values = functional.interpolate(values[:, None], masks.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    flat = values.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    flat = (flat - low) / torch.where(high == low, torch.ones_like(high), high - low)
    found = flat > flat.mean(1, keepdim=True)
    hit, miss, invented, left = (
        (a & b).double().sum(1) for a, b in ((found, truth), (~found, truth), (found, ~truth), (~found, ~truth))
    )
    counts = torch.stack([left, left + miss + invented, hit, hit + miss + invented], 1)
    precision = torch.stack(
        [average_precision(torch.cat([1 - m, m]), torch.cat([~t, t])) for m, t in zip(flat, truth, strict=True)]
    )
    return Segmentation(
        Metric("pixel accuracy", (hit + left) / truth.shape[1]),
        Metric("mIoU", counts, of_means=lambda m: (m[..., 0] / m[..., 1] + m[..., 2] / m[..., 3]) / 2),
        Metric("mAP", precision),
        Metric("F1", 2 * hit / (2 * hit + miss + invented)),
    )


def average_precision(scores: Float[Tensor, " n"], truth: Bool[Tensor, " n"]) -> Float[Tensor, ""]:
    """Σ (recall_i - recall_{i-1}) precision_i over the distinct scores, from the largest; equal ones count as one step."""
    order = scores.argsort(descending=True)
    sorted_, right = scores[order], truth[order].to(scores)
    hits = right.cumsum(0)
    last = torch.cat([sorted_[1:] != sorted_[:-1], torch.ones(1, dtype=torch.bool, device=scores.device)])
    precision = hits[last] / (last.nonzero()[:, 0] + 1)
    recall = hits[last] / hits[-1]
    return (recall.diff(prepend=recall.new_zeros(1)) * precision).sum()
