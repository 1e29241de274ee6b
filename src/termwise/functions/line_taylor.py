r"""A polynomial of a signal, computed among its spectral lines: a product of signals is a convolution of their spectra.

    |x| = M sum_n binom(1/2, n) u^n,      u = (x/M)^2 - 1,   M = max |x|
    U = X * X / M^2 - delta,              P = b_N delta;   P <- b_n delta + U * P   for n = N-1 ... 0

with * the circular convolution over the bins of the DFT (as sampled signals have it, aliasing included) and b_n = binom(1/2, n).
On [-M, M] the series converges everywhere, most slowly at x = 0, where its error falls like N^(-1/2). Smooth activations take
their own Taylor series at 0 in place of it.

Source: papers.toml "dc-is-all-you-need" (the series of the root); `jet` for smooth activations.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from termwise.core.arguments import integer

from .jet import jet

__all__ = ["convolve", "taylor_lines"]


def taylor_lines(act: Callable[[Tensor], Tensor], signal: Tensor, order: int) -> Tensor:
    """The lines of a Taylor polynomial of an activation, by convolution of the signal's lines.

    Args:
        act: element-wise: piecewise linear with its kink at 0 (ReLU, leaky ReLU, |x|), or smooth at 0.
        signal: (batch, N), real.
        order: N of the series of the root, a polynomial of degree 2 N; for a smooth activation its degree.

    Returns:
        (batch, N), complex: the DFT of the polynomial over N. The signal itself is the sum of lines e^(2 pi i b t / N).

    Raises:
        ValueError: for a bad order, an activation with a kink at 0 that is not piecewise linear around it.

    Cost: O(order * s * N) for s lines of the signal (its square, for the root) above rounding; memory O(N).
    """
    if integer(order) is None or order < 0:
        raise ValueError(f"taylor_order is a number of 0 or more, got {order!r}")
    lines = torch.fft.fft(signal) / signal.shape[-1]
    if not _homogeneous(act, signal):
        return _horner(_coefficients(act, order).to(signal), lines)
    right, left = act(torch.ones_like(signal[:1, :1])), -act(-torch.ones_like(signal[:1, :1]))
    peak = signal.abs().amax(-1, keepdim=True)
    scaled = lines / torch.where(peak > 0, peak, torch.ones_like(peak))
    u = convolve(scaled, scaled)
    u[..., 0] -= 1
    binomials = [1.0]
    for k in range(order):
        binomials.append(binomials[-1] * (0.5 - k) / (k + 1))
    root = _horner(torch.tensor(binomials, dtype=signal.dtype, device=signal.device), u)
    return (right + left) / 2 * lines + (right - left) / 2 * peak * root


def convolve(a: Tensor, b: Tensor) -> Tensor:
    """Circular convolution, (a * b)_k = sum_j b_j a_(k-j), over those j where b is above rounding in some row."""
    size = b.abs().amax(0)
    total = torch.zeros_like(a)
    for j in (size > torch.finfo(a.dtype).eps / 16 * size.max()).nonzero().flatten().tolist():
        total = total.addcmul(a.roll(j, -1), b[..., j : j + 1])
    return total


def _horner(coefficients: Tensor, lines: Tensor) -> Tensor:
    """The lines of sum_k c_k s^k for a signal s of these lines."""
    total = torch.zeros_like(lines)
    total[..., 0] = coefficients[-1]
    for c in coefficients[:-1].flip(0):
        total = convolve(total, lines)
        total[..., 0] += c
    return total


def _homogeneous(act: Callable[[Tensor], Tensor], signal: Tensor) -> bool:
    """Whether f(2x) = 2 f(x): linear on either side of 0."""
    x = torch.cat([signal, -signal, torch.full_like(signal[:, :1], 64.0)], -1)
    return torch.equal(act(2 * x), 2 * act(x))


def _coefficients(act: Callable[[Tensor], Tensor], order: int) -> Tensor:
    """Of the Taylor series at 0, looked at from both sides."""
    zero, sides = torch.zeros(1, dtype=torch.float64), []
    for step in (1.0, -1.0):
        series = [torch.full_like(zero, step if k == 0 else 0.0) for k in range(order)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a kink at 0, which the two sides tell apart
            value, terms = jet(act, [zero], [series])
        sides.append(torch.cat([value, *terms]) * step ** torch.arange(order + 1, dtype=torch.float64))
    if not torch.allclose(sides[0], sides[1], rtol=1e-9, atol=1e-12):
        raise ValueError(
            "this activation has a kink at 0 and bends beside it, so that no Taylor series stands for it: leave taylor_order out"
        )
    return sides[0]
