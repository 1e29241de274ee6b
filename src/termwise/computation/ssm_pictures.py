"""What there is to be seen of a diagonal state space model: its kernel by number of modes, what these miss, and its poles."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from termwise.core.pictures import Line, Lines, Picture, Points, Steps

if TYPE_CHECKING:
    from .diagonal_ssm import DiagonalSSM

__all__ = ["pictures"]

TAPS, NUMBERS, POSITIONS, POLES = 128, 2**20, 10, 400
"""Taps in a picture; entries of the table of powers; numbers of modes of the slider; poles in a picture."""


def pictures(ssm: DiagonalSSM) -> list[Picture]:
    """Of the channel with the largest kernel, its modes from the largest on."""
    if not ssm.weights.numel() or not ssm.length:
        return [Lines("The kernel", [Line("taps", [], [])], x="tap", y="kernel", note="There are no modes.")]
    d = int(ssm.whole.double().abs().sum(0).argmax())
    channel = f"Channel {d} of {ssm.weights.shape[1]}, the loudest." if ssm.weights.shape[1] > 1 else ""
    poles = ssm.poles[:, [d if ssm.poles.shape[1] > 1 else 0]]
    ssm = replace(ssm, whole=ssm.whole[:, [d]], parts={}, poles=poles, weights=ssm.weights[:, [d]])
    order = _sizes(ssm).argsort(descending=True)
    step = -(-ssm.length * len(poles) // NUMBERS)
    whole = ssm.whole[:, 0].detach().double()
    few = torch.arange(min(ssm.length, TAPS))
    sums = _sums(ssm, few, order)
    some = torch.arange(0, ssm.length, step)
    left = (whole[some].unsqueeze(1) - _sums(ssm, some, order)).abs().sum(0) / whole[some].abs().sum().clamp_min(1e-300)
    rough = f" Measured on one tap in {step}." if step > 1 else ""
    counts = sorted({round(len(order) ** (i / (POSITIONS - 1))) for i in range(POSITIONS)})
    taps = Line("taps", few.tolist(), whole[few].tolist(), role="whole", markers=True)
    found: list[Picture] = []
    for k in counts:
        made, rest = sums[:, k - 1], whole[few] - sums[:, k - 1]
        lines = [
            taps,
            Line(f"{k} modes" if k > 1 else "1 mode", few.tolist(), made.tolist()),
            Line("remainder", few.tolist(), rest.tolist(), role="remainder"),
        ]
        note = f"They leave {float(left[k - 1]):.2g} of the kernel (l1 norm over all {ssm.length} taps).{rough}"
        found.append(Lines("", lines, x="tap", y="kernel", note=note))
    at = sorted({1 + round(i * (len(order) - 1) / 255) for i in range(256)})
    missed = Line("left over by so many modes", at, left[[k - 1 for k in at]].tolist(), role="remainder")
    return [
        Steps("The kernel by number of modes", "modes", [str(k) for k in counts], found, note=channel),
        Lines("What the modes leave over", [missed], x="modes, the largest first", y="share of the kernel's l1 norm", log_y=True),
        _poles(ssm.poles[:, 0], order),
    ]


def _sizes(ssm: DiagonalSSM) -> Tensor:
    """About the l1 norm of each mode over the taps."""
    radius = ssm.poles[:, 0].abs()
    turns = torch.where(radius < 1, (1 - radius**ssm.length) / (1 - radius).clamp_min(1e-300), float(ssm.length))
    return ssm.weights[:, 0].abs() * turns


def _sums(ssm: DiagonalSSM, taps: Tensor, order: Tensor) -> Tensor:
    """Sums of the first 1, 2, ... modes at these taps, (taps, modes)."""
    return (ssm.powers(taps)[:, :, 0] * ssm.weights[:, 0]).real[:, order].cumsum(1)


def _poles(poles: Tensor, order: Tensor) -> Points:
    shown = poles[order[:POLES]]
    names = [f"mode {int(i) + 1}" for i in order[:POLES]]
    note = "The nearer to the unit circle, the longer a mode is remembered; the angle is its frequency."
    more = f" The {len(shown)} largest of {len(poles)} are shown." if len(shown) < len(poles) else ""
    x, y = shown.real.tolist(), shown.imag.tolist()
    return Points("Poles", names, x, y, "real part", "imaginary part", front=False, note=note + more)
