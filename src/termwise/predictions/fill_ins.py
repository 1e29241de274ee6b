"""What stands in for a feature that was taken away: zeros, the mean, a blur, a mask token, another sample, or nothing.

No fill-in is neutral. A changed input is one the model never saw, and how far it is from what it knows differs between
fill-ins more than between methods: compare curves of one fill-in only, and look at several (`pixel_flipping`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from termwise.core.arguments import seeded

__all__ = ["FILL_INS", "blurred", "filled", "sampled"]

FILL_INS = ("zeros", "mean", "blur", "remove")
"""Those that have a name; a number, a token id and a tensor are others."""


def filled(x: Tensor, baseline: Any) -> Tensor | None:
    """The values that replace those of `x`, broadcasting to one sample or of the shape of `x`; None for "remove".

    Raises:
        ValueError: an unknown name, or a fill-in that these inputs do not have.
    """
    image, ids = x.ndim == 4, not x.is_floating_point()
    if not isinstance(baseline, str):
        value = torch.as_tensor(baseline, dtype=torch.float64 if isinstance(baseline, float) else None)
        if not bool(value.isfinite().all()):
            raise ValueError("baseline has values that are NaN or infinite")
        if ids and value.is_floating_point():
            raise ValueError(f"baseline must be an integer token id or 'remove' for token ids, got {baseline!r}")
        value = value.detach().to(dtype=x.dtype, device=x.device)
        try:
            torch.broadcast_shapes(value.shape, x.shape)
        except RuntimeError:
            raise ValueError(f"baseline has shape {tuple(value.shape)}, which does not fit inputs {tuple(x.shape)}") from None
        return value
    if baseline not in FILL_INS:
        raise ValueError(f"baseline must be a number, a tensor, a token id, or one of {', '.join(FILL_INS)}; got {baseline!r}")
    if baseline == "remove":
        if not ids:
            raise ValueError("baseline='remove' takes tokens out of a sequence: these inputs are no token ids")
        return None
    if baseline == "zeros" and not ids:
        return x.new_zeros(())
    if not image:
        raise ValueError(
            f"baseline={baseline!r} is for images; token ids take the id of a mask token or 'remove', numbers a tensor of means"
        )
    return x.detach().mean((2, 3), keepdim=True).expand_as(x) if baseline == "mean" else blurred(x.detach())


def blurred(images: Tensor, sigma: float = 10.0, window: int | None = None) -> Tensor:
    """Images seen through a Gaussian window, (batch, channels, height, width): what a patch is without its detail.

    Args:
        images: floating.
        sigma: standard deviation, pixels. Borders are continued outwards.
        window: side of the window, an odd number of pixels; 3 sigma to either side when not given.

    Raises:
        ValueError: a sigma that is not positive, or a window without a middle.
    """
    if images.ndim != 4:
        raise ValueError(f"images must be (batch, channels, height, width), got {tuple(images.shape)}")
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    if window is not None and (window < 1 or window % 2 == 0):
        raise ValueError(f"window must be an odd number of pixels, got {window}")
    half = int(3 * sigma) + 1 if window is None else window // 2
    reach = torch.arange(-half, half + 1, dtype=images.dtype, device=images.device)
    weights, channels = torch.exp(-0.5 * (reach / sigma) ** 2), images.shape[1]
    weights = (weights / weights.sum()).expand(channels, 1, 1, -1)
    wide = functional.pad(images, (half, half, half, half), mode="replicate")
    return functional.conv2d(functional.conv2d(wide, weights, groups=channels), weights.mT, groups=channels)


def sampled(inputs: Tensor, data: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """For each sample another one drawn from the data: a fill-in of the shape of `inputs` that is no strange value.

    Args:
        inputs: (batch, ...).
        data: (any number, ...), of the same shape per sample.
        generator: of the drawing; seeded with 0 when not given.

    Raises:
        ValueError: when the data have another shape or dtype.
    """
    if data.shape[1:] != inputs.shape[1:] or data.dtype != inputs.dtype or not len(data):
        raise ValueError(f"data {tuple(data.shape)} {data.dtype} hold no sample like inputs {tuple(inputs.shape)} {inputs.dtype}")
    generator = seeded(generator)
    return data[torch.randint(len(data), (len(inputs),), generator=generator).to(data.device)].to(inputs.device)
