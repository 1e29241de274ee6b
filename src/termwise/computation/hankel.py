r"""A few damped oscillations for many taps: poles from the column space of a Hankel matrix (ESPRIT), weights by least squares.

    H[i, j] = t_(i+j) = sum_k b_k z_k^i z_k^j,      U = leading left singular vectors of H,      z = eig(U[:-1]^+ U[1:])

Rows of H shifted by one span what the others span, turned by the poles. Poles outside of the unit circle are drawn onto it, so
that no recurrence grows; where that costs much, poles come from taps that are `continued`. Products with H are correlations, by
FFT; H itself is never made.

Source: Kung 1978; Roy & Kailath 1989 (ESPRIT).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .diagonal_ssm import powers

__all__ = ["column_space", "continued", "fit"]

SPARE = 8
"""Columns beyond those asked for."""

TURNS = 3
"""Of subspace iteration."""


def column_space(taps: Tensor, columns: int) -> Tensor:
    """Leading left singular vectors of the Hankel matrix of each channel, (d, n - n // 2 + 1, columns).

    Args:
        taps: (n, d), float64.
        columns: at most n // 2.

    Cost: O(n columns (log n + columns)) per channel.
    """
    n = len(taps)
    c = n // 2
    rows, spectrum = n - c + 1, torch.fft.rfft(taps.T, n)[:, :, None]

    def times(v: Tensor, size: int) -> Tensor:
        """sum_j t_(i+j) v_j for i < size; H and its transpose alike."""
        return torch.fft.irfft(spectrum * torch.fft.rfft(v, n, dim=1).conj(), n, dim=1)[:, :size]

    generator = torch.Generator().manual_seed(0)
    start = torch.randn(c, min(columns + SPARE, c), generator=generator, dtype=taps.dtype).to(taps.device)
    q = torch.linalg.qr(times(start.expand(taps.shape[1], -1, -1), rows))[0]
    for _ in range(TURNS):
        z = torch.linalg.qr(times(q, c))[0]
        q = torch.linalg.qr(times(z, rows))[0]
    inner = torch.linalg.svd(times(q, c).mT, full_matrices=False)[0]
    return (q @ inner)[..., :columns]


def continued(taps: Tensor) -> Tensor:
    """Taps that go on straight beyond the last and die out over n more, (2 n, d): their oscillations do not grow.

    What a kernel does beyond its end is nobody's business, and poles that grow in it are of no use.
    """
    n = len(taps)
    j = torch.arange(1, n + 1, dtype=taps.dtype, device=taps.device)[:, None]
    return torch.cat([taps, (taps[-1:] + (taps[-1:] - taps[-2:-1]) * j) * (math.pi / 2 * j / (n + 1)).cos().square()])


def fit(taps: Tensor, *bases: Tensor) -> tuple[Tensor, Tensor]:
    """Poles and weights of a kernel, as `DiagonalSSM` has them: for every channel those of the basis that misses least.

    Args:
        taps: (n, d), float64.
        bases: U, (d, rows, P), each a `column_space` of the taps, or of what continues them.

    Returns:
        Poles and weights, each (k, d), P / 2 <= k <= P: one of each conjugate pair, and zeros where a channel has fewer.

    Cost: O(n P^2) per channel and basis.
    """
    found = [_modes(taps, basis) for basis in bases]
    most = max(len(poles) for poles, _, _ in found)
    poles, weights = (torch.stack([F.pad(f[i], (0, 0, 0, most - len(f[i]))) for f in found]) for i in (0, 1))
    best = torch.stack([missed for _, _, missed in found]).argmin(0)
    chosen = best.expand(1, most, -1)
    return poles.gather(0, chosen)[0], weights.gather(0, chosen)[0]


def _modes(taps: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Poles and weights from one basis, (k, d), and the l1 norm that they miss, (d,)."""
    turned = torch.linalg.lstsq(basis[:, :-1], basis[:, 1:]).solution
    poles = torch.linalg.eigvals(turned)
    poles = poles / poles.abs().clamp_min(1)
    kept = poles.imag >= 0
    first = (~kept).int().argsort(stable=True, dim=1)[:, : int(kept.sum(1).max())]
    kept = kept.gather(1, first)
    poles = torch.where(kept, poles.gather(1, first), 0)
    rows = powers(poles, torch.arange(len(taps))).transpose(0, 1)  # (d, n, k)
    rows = torch.where(kept[:, None], rows, 0)
    columns, wanted = torch.cat([rows.real, -rows.imag], -1), taps.T[..., None]
    # gelsd: poles may nearly meet, and a real pole's second column is 0
    found = torch.linalg.lstsq(columns, wanted, driver="gelsd").solution
    missed = (columns @ found - wanted).abs().sum((1, 2))
    return poles.T, torch.complex(*found[..., 0].chunk(2, -1)).T, missed
