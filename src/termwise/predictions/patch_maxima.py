"""ABPC as DynamicLRP's paper measures it: patches ranked by their largest pixel, accuracy, and an axis of its own.

    score of a patch = max over its pixels of the relevance summed over channels
    published ABPC = 4 (AUC(LeRF) - AUC(MoRF)),       y = accuracy, patches replaced by a blurred picture
                                                                         (Gaussian, sigma 20 pixels, window of 51)

Pictures of 224 x 224 have 196 patches of 16 x 16, four of which go at each of 49 steps. The published axis counts patches and
is divided by the number of steps, so that areas are four times those on an axis of fractions, and ABPC lies in [-4, 4]: 1.77
means that accuracies differ by 0.44 on average.

Source: papers.toml "dynamiclrp", section 5 and its code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from .fill_ins import blurred
from .metric import Metric
from .perturbation_curves import perturbation_curves

__all__ = ["patch_maxima", "published_abpc"]

AXIS = 4
"""Patches a step: what the published axis is longer by."""

SIGMA, WINDOW = 20.0, 51
"""Of the published blur, in pixels."""


def published_abpc(
    model: nn.Module | Callable[..., Any],
    images: Float[Tensor, "batch channels height width"],
    relevance: Tensor,
    target: Any = None,
    *,
    patch: int = 16,
    steps: int = 49,
    baseline: Any = None,
    batch_size: int = 32,
) -> Metric:
    """ABPC by the paper's protocol, per sample, in [-4, 4].

    Args:
        model: in eval mode, gives logits (batch, classes).
        images: what is explained.
        relevance: of the images' shape, or (batch, height, width).
        target: class index, or one per sample; the predicted class when not given.
        patch: side of a patch, in pixels.
        steps: equal steps from nothing to everything replaced.
        baseline: what stands in for a patch. None: the published blur, `blurred(images, 20, 51)`.
        batch_size: inputs per forward pass.

    Raises:
        ValueError: as `perturbation_curves`; pictures that are no whole number of patches.
    """
    ranked = patch_maxima(relevance, patch)
    fill = blurred(images, SIGMA, WINDOW) if baseline is None else baseline
    curves = perturbation_curves(
        model, images, ranked, target, baseline=fill, score="accuracy", steps=steps, patch=patch, batch_size=batch_size
    )
    return replace(curves.abpc, name="ABPC, published axis", values=AXIS * curves.abpc.values)


def patch_maxima(relevance: Tensor, patch: int) -> Float[Tensor, "batch height width"]:
    """The map in which each patch keeps its largest pixel, summed over channels first, and nothing else.

    Raises:
        ValueError: for a map that is no whole number of patches.

    Example:
        >>> patch_maxima(torch.tensor([[[3.0, -9.0], [1.0, 0.0]]]), 2).sum().item()     # the sum of the patch is -5
        3.0
    """
    values = relevance.sum(1) if relevance.ndim == 4 else relevance
    if values.ndim != 3 or values.shape[1] % patch or values.shape[2] % patch:
        raise ValueError(f"relevance {tuple(relevance.shape)} is no whole number of patches of {patch} x {patch} pixels")
    largest = functional.max_pool2d(values[:, None], patch)[:, 0]
    wide = values.new_zeros(values.shape)
    wide[:, ::patch, ::patch] = largest  # at one pixel: what belongs to a patch is summed
    return wide
