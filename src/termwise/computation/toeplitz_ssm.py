r"""ETSC: a causal Toeplitz mixer, or any long convolution, as a diagonal state space model, in closed form.

    t_n = - sum_(j<n) t_j,   m = n + 1,      b_k = (1/m) sum_(j<m) t_j e^(2 pi i j k / m),      Lambda_k = gamma e^(-2 pi i k / m)
    sum_k b_k Lambda_k^j = t_j gamma^j      for j < n,   k = 1 ... n

The tap that is appended makes the coefficient of frequency 0 vanish, so that n modes are enough. It is a Vandermonde system with
roots of unity as its nodes: unitary up to sqrt(m), condition number 1, solved by one FFT. For real taps modes come in conjugate
pairs, and one of each is kept: (n + 1) // 2 modes. Fewer modes than that are no longer exact: see `hankel`.

Source: Qin & Zhong 2023, Accelerating Toeplitz Neural Network with Constant-time Inference Complexity.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from termwise.core.arguments import integer

from .diagonal_ssm import DiagonalSSM
from .hankel import column_space, continued, fit

__all__ = ["toeplitz_to_ssm"]


def toeplitz_to_ssm(
    taps: Tensor,
    order: int | None = None,
    *,
    error: float | None = None,
    decay: float = 1.0,
    beyond: float | Literal["exact"] = 0.0,
) -> DiagonalSSM:
    """Convert the kernel of a causal convolution to a recurrence.

        y_i = sum_(j <= i) t_(i-j) gamma^(i-j) x_j      =      Re sum_k u_i[k],      u_i = Lambda u_(i-1) + b x_i

    Args:
        taps: t_j before their decay, (n, d), j = 0 is the present; float32 or float64.
        order: real numbers of state per channel, 1 to n // 2; exact, with n of them, when neither this nor `error` is given.
        error: instead of `order`: the l1 norm that may be missed, as a share of the kernel's, in every channel; the order is
            searched by doubling and halving.
        decay: gamma, 0 < gamma <= 1.
        beyond: after n tokens the recurrence goes on where the convolution ends. "exact" ends it too, and keeps n inputs; a
            number is how large, as a share of the kernel's l1 norm, the difference may be; where it is larger tokens are refused.

    Returns:
        A `DiagonalSSM`: `step`, `scan`, `kernel`, `wrap_error_bound`, and the decomposition of the kernel. It carries no gradient
        to the taps.

    Raises:
        ValueError: for taps that are not (n, d), in half precision or not finite; for both of `order` and `error`, or one out of
            range; where no order up to n / 2 comes within `error` (noise does not compress); for another decay or `beyond`.

    Cost: exact O(d n log n), and memory for n d complex numbers. Compressed O(d n P^2) for order P; `error` takes a few.

    Example:
        >>> t, x = torch.randn(32, 3, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
        >>> ssm = tw.toeplitz_to_ssm(t, decay=0.99).check()
        >>> y, state = ssm.scan(x)
        >>> kernel = t * 0.99 ** torch.arange(32).double()[:, None]
        >>> bool(((kernel[:20].flip(0) * x).sum(0) - y[-1]).abs().max() < 1e-10)  # the last token, by definition
        True
        >>> len(ssm.parts), ssm.order
        (16, 32)

    Source: Qin & Zhong 2023, section 3.3; the decay as there, conjugate pairs and all that lies beyond n are ours.
    """
    _check(taps, order, error, decay, beyond)
    n = len(taps)
    t = taps.detach().double()
    kernel = t * decay ** torch.arange(n, device=t.device, dtype=t.dtype)[:, None]
    if order is not None:
        poles, weights = fit(kernel, *(column_space(t, order) for t in (kernel, continued(kernel))))
        period = 0
    elif error is not None:
        poles, weights = _search(kernel, error)
        period = 0
    else:
        poles, weights = _exact(t, decay)
        period = n + 1
    whole = kernel.to(taps.dtype)
    return DiagonalSSM(whole, poles=poles, weights=weights, length=n, period=period, decay=decay, beyond=beyond)


def _exact(t: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """The closed form; poles (k, 1), weights (k, d)."""
    m = len(t) + 1
    pairs = torch.arange(1, m // 2 + 1, device=t.device, dtype=t.dtype)
    roots = torch.polar(torch.ones_like(pairs), -2 * math.pi * pairs / m)[:, None]
    # the mean and the tap that is appended by their own terms: in the FFT their size would cost the others digits
    mean = t.mean(0)
    b = 2 * (torch.fft.ifft(t - mean, m, dim=0)[1 : m // 2 + 1] - mean * roots)
    poles = decay * roots
    if m % 2 == 0:  # the last is real, and its own partner
        b[-1] /= 2
        poles[-1] = -decay
    return poles, b


def _search(kernel: Tensor, error: float) -> tuple[Tensor, Tensor]:
    """The modes of the least order found to miss no more than `error` of each channel's l1 norm."""
    size, most = kernel.abs().sum(0), len(kernel) // 2
    tried: dict[int, float] = {}
    bases: list[Tensor] = []

    def modes(order: int) -> tuple[Tensor, Tensor]:
        return fit(kernel, *(basis[..., :order] for basis in bases))

    def miss(order: int) -> float:
        poles, weights = modes(order)
        missed = DiagonalSSM(kernel, poles=poles, weights=weights, length=len(kernel)).remainder.abs().sum(0)
        tried[order] = float((missed / torch.where(size == 0, 1.0, size)).max())
        return tried[order]

    high = 1
    while True:
        bases = [column_space(taps, high) for taps in (kernel, continued(kernel))]
        if miss(high) <= error:
            break
        if high >= most:
            best = min(tried, key=tried.__getitem__)
            raise ValueError(
                f"no order up to {most} comes within {error:g} of these {len(kernel)} taps: the nearest was {tried[best]:.2g} at "
                f"order {best}. Allow more, or leave out error= and order= for the exact form of order {len(kernel)}"
            )
        high = min(2 * high, most)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if miss(middle) <= error else (middle, high)
    return modes(high)


def _check(taps: Tensor, order: int | None, error: float | None, decay: float, beyond: float | str) -> None:
    if not isinstance(taps, Tensor) or taps.ndim != 2 or not taps.numel():
        got = tuple(taps.shape) if isinstance(taps, Tensor) else type(taps).__name__
        raise ValueError(f"taps are a tensor (n, channels), one row for each lag from 0 on; got {got}")
    if taps.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"taps are float32 or float64, got {taps.dtype}: in half precision modes do not add up; use .float()")
    if not bool(taps.isfinite().all()):
        raise ValueError(f"taps of shape {tuple(taps.shape)} hold NaN or infinity")
    if order is not None and error is not None:
        raise ValueError("give order= or error=, not both: the error decides the order")
    if order is not None and (integer(order) is None or not 1 <= order <= len(taps) // 2):
        raise ValueError(f"order lies in 1 ... {len(taps) // 2} for {len(taps)} taps (None is the exact form), got {order!r}")
    if error is not None and (not 0 < error < 1 or len(taps) < 2):
        raise ValueError(
            f"error is a share of the kernel's l1 norm, between 0 and 1, of 2 taps or more; got {error!r} of {len(taps)}"
        )
    if not 0 < decay <= 1:
        raise ValueError(f"decay lies in (0, 1], got {decay!r}")
    if beyond != "exact" and (isinstance(beyond, str) or not beyond >= 0):
        raise ValueError(f"beyond is 'exact' or a share of the kernel's l1 norm, 0 or more; got {beyond!r}")
