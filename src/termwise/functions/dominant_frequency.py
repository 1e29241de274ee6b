r"""The frequency at which values on points oscillate most, axis by axis.

    evenly spaced in 1-D:   the peak of |FFT(e)|, f = k / (n dx), k >= 1
    anywhere else:          the peak of |sum_i e_i exp(-2 pi i f . x_i)| over f in (k_1 / L_1, ..., k_d / L_d) but 0

in periods per unit of length, of values e less their mean, L the length of the box of the points. FFT costs O(n log n), the
lattice O(n^2) at most, and memory O(n sqrt n) in 1-D.

Source: Wang & Lai 2023 (FFT). The lattice is ours: they count zero crossings in 1-D, to which noise adds, and give networks of
several inputs kappa by hand.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["dominant_frequency", "resolved"]

AXES = 3
LATTICE = 48  # frequencies of either sign per axis, at most
LINE = 4096  # of them on a single axis


def dominant_frequency(x: Tensor, values: Tensor) -> Tensor:
    """Periods per unit of length at which values oscillate most.

    Args:
        x: points, (n,) or (n, d), d up to 3, in any order.
        values: (n,).

    Returns:
        (d,), one frequency per axis, 0 where they do not vary along it.

    Raises:
        ValueError: for other shapes, fewer than 4 points, more than three axes, points that all lie at one place, anything not
            finite.

    Example:
        >>> x = torch.linspace(0, 2, 201, dtype=torch.float64)[:-1]
        >>> tw.functions.dominant_frequency(x, torch.sin(2 * torch.pi * 5 * x) + 0.1 * torch.cos(40 * x)).tolist()
        [5.0]

    Source: Wang & Lai 2023.
    """
    x = x.unsqueeze(1) if x.ndim == 1 else x
    if x.ndim != 2 or values.shape != x.shape[:1]:
        raise ValueError(f"x is (n,) or (n, d) and values (n,): got {tuple(x.shape)} and {tuple(values.shape)}")
    if len(x) < 4:
        raise ValueError(f"a frequency needs 4 points or more, got {len(x)}")
    if x.shape[1] > AXES:
        raise ValueError(f"x has {x.shape[1]} axes: the lattice of frequencies is searched in {AXES} at most")
    for name, given in (("x", x), ("values", values)):
        if not bool(given.isfinite().all()):
            raise ValueError(f"{name} are not finite: there is NaN or infinity among them")
    length = x.amax(0) - x.amin(0)
    if not bool((length > 0).all()):
        raise ValueError(f"x has no extent along axis {int(length.argmin())}: its points all lie at one place there")
    rounding = 8 * torch.finfo(values.dtype).eps * values.abs().max()
    values = values - values.mean()
    if bool(values.abs().max() <= rounding):
        return torch.zeros_like(length)
    if x.shape[1] > 1:
        return _lattice(x, values)
    order = x[:, 0].argsort()
    line, values = x[order, 0], values[order]
    steps = line.diff()
    if bool(steps.max() - steps.min() >= 1e-6 * length):
        return _line(line - line[0], values)
    sizes = torch.fft.rfft(values).abs()
    return (sizes[1:].argmax() + 1) / (len(line) * steps.mean()).reshape(1)


def resolved(x: Tensor) -> Tensor:
    """Points per unit of length and axis of (n, d): n^(1/d) / L."""
    return len(x) ** (1 / x.shape[1]) / (x.amax(0) - x.amin(0))


def _line(x: Tensor, values: Tensor) -> Tensor:
    """The peak of the transform at scattered points from 0 to L, up to half a period per point."""
    most = min(len(x) // 2, LINE)
    side = math.isqrt(most) + 1
    k = torch.arange(side, dtype=x.dtype, device=x.device).unsqueeze(1)
    turns = -2j * math.pi * x / x[-1]
    sizes = ((k * turns).exp() * values @ (side * k * turns).exp().T).abs().T.flatten()  # at k_1 + side k_2
    return (sizes[1 : most + 1].argmax() + 1) / x[-1].reshape(1)


def _lattice(x: Tensor, values: Tensor) -> Tensor:
    """The peak of the transform at scattered points, up to half a period per point and axis."""
    n, d = x.shape
    length = x.amax(0) - x.amin(0)
    most = max(1, min(int(n ** (1 / d) / 2), LATTICE))
    signed = torch.arange(-most, most + 1, dtype=x.dtype, device=x.device)
    axes = [signed[most:] if j == 0 else signed for j in range(d)]  # e is real: f and -f are the same
    waves = [torch.exp(-2j * math.pi * k * ((x[:, j : j + 1] - x[:, j].min()) / length[j])) for j, k in enumerate(axes)]
    total = waves[0] * values.unsqueeze(1)
    for wave in waves[1:-1]:
        total = (total.unsqueeze(2) * wave.unsqueeze(1)).flatten(1)
    sizes = (total.T @ waves[-1]).abs().reshape([len(k) for k in axes])
    sizes[(0, *[most] * (d - 1))] = 0.0
    place = torch.unravel_index(sizes.argmax(), sizes.shape)
    return torch.stack([k[i] for k, i in zip(axes, place, strict=True)]).abs() / length
