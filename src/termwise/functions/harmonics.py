r"""What an activation makes of a pure tone: the amplitudes of its harmonics.

    f(A cos t) = c_0 + sum_(k >= 1) c_k cos(k t),      c_k = (2/pi) int_0^pi f(A cos t) cos(k t) dt,   c_0 half of that

c_k is the k-th Chebyshev coefficient of f on [-A, A]. For ReLU, in closed form:

    relu(A cos t) = A/pi + (A/2) cos t + (2A/pi) sum_(m >= 1) (-1)^(m+1) cos(2 m t) / (4 m^2 - 1)

Source: papers.toml "dc-is-all-you-need"; Chebyshev projection for activations at large.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from termwise.core.arguments import integer

__all__ = ["harmonics", "relu_harmonics"]

POINTS = 2**16
"""On the circle. What lies beyond is folded back: of ReLU's coefficients, which fall like 1/k^2, some 2e-10 of the amplitude."""


def harmonics(act: Callable[[Tensor], Tensor], amplitude: float | Tensor, n: int = 8) -> Tensor:
    """The amplitudes that an activation gives to the harmonics of A cos t, from 0 (the DC) to n.

        c_k = (2/pi) int_0^pi f(A cos t) cos(k t) dt,      c_0 half of that

    Args:
        act: element-wise, from a tensor to one of its shape.
        amplitude: A, a number or a tensor (*S).
        n: the highest harmonic.

    Returns:
        (*S, n + 1), float64 for a number, float32 for half precision: the DC, the fundamental, the second harmonic, ...

    Raises:
        ValueError: for n out of range, an amplitude that is not finite, an activation that is not, or that changes the shape.

    Cost: the activation at 65536 points per amplitude, and one FFT (the points are symmetric: it is a DCT). Exact to rounding for
        smooth activations, to 3e-10 of the amplitude for those with kinks, to 1e-5 for those that jump.

    Example:
        >>> dc, first, second = tw.functions.harmonics(torch.square, 3.0, n=2)       # 9 cos^2 t = 4.5 + 4.5 cos 2t
        >>> round(dc.item(), 12), round(first.item(), 12) + 0, round(second.item(), 12)
        (4.5, 0.0, 4.5)

    Source: Chebyshev projection; for ReLU see `relu_harmonics`.
    """
    a, n = _checked(amplitude, n)
    turns = torch.arange(POINTS, dtype=a.dtype, device=a.device) * (2 * math.pi / POINTS)
    tone = a.unsqueeze(-1) * turns.cos()
    out = act(tone)
    if out.shape != tone.shape:
        raise ValueError(f"an activation keeps the shape: this one made {tuple(out.shape)} of {tuple(tone.shape)}")
    if not bool(out.isfinite().all()):
        raise ValueError(
            f"the activation is not finite on all of [-A, A], A = {a.abs().max().item():g}: choose a smaller amplitude"
        )
    found = torch.fft.rfft(out)[..., : n + 1].real * (2 / POINTS)
    return torch.cat([found[..., :1] / 2, found[..., 1:]], -1)


def relu_harmonics(amplitude: float | Tensor, n: int = 8) -> Tensor:
    """`harmonics` of ReLU in closed form: |A|/pi, A/2, and 2|A|/pi (-1)^(m+1) / (4 m^2 - 1) at k = 2 m, 0 at odd k > 1.

    Args:
        amplitude: A, a number or a tensor (*S).
        n: the highest harmonic.

    Returns:
        (*S, n + 1).

    Raises:
        ValueError: for n out of range, or an amplitude that is not finite.

    Cost: O(n).

    Example:
        >>> a = tw.functions.relu_harmonics(2.0, n=4)
        >>> bool((a - tw.functions.harmonics(torch.relu, 2.0, n=4)).abs().max() < 1e-9)
        True

    Source: papers.toml "dc-is-all-you-need".
    """
    a, n = _checked(amplitude, n)
    k = torch.arange(n + 1, dtype=a.dtype, device=a.device)
    even = torch.zeros_like(k)
    even[2::4], even[4::4] = 1, -1  # (-1)^(m+1)
    even[2:] *= 2 / math.pi / (k[2:].square() - 1)
    even[0] = 1 / math.pi
    return a.abs().unsqueeze(-1) * even + 0.5 * a.unsqueeze(-1) * (k == 1)


def _checked(amplitude: float | Tensor, n: int) -> tuple[Tensor, int]:
    """The amplitude as a tensor, floating, and the highest harmonic."""
    highest = integer(n)
    if highest is None or not 0 <= highest < POINTS // 2:
        raise ValueError(f"n is the highest harmonic, a number from 0 to {POINTS // 2 - 1}; got {n!r}")
    try:
        a = amplitude if isinstance(amplitude, Tensor) else torch.as_tensor(amplitude, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"amplitude is a finite number, or a floating tensor of them; got {amplitude!r}") from None
    if not a.is_floating_point() or not bool(a.isfinite().all()):
        raise ValueError(f"amplitude is a finite number, or a floating tensor of them; got {amplitude!r}")
    return a if a.dtype in (torch.float32, torch.float64) else a.float(), highest  # torch has no FFT of the others
