r"""Truncated series and their products: what coefficients do under +, *, exp, 1/x, x^r, sin and cos.

    x(t) = sum_k x_k t^k,      x_k = x^(k)(0) / k!                  (normalised: no binomials anywhere, nothing overflows)

The coefficients of a value of shape S are the rows of one tensor (n + 1, *S), so that a linear operation runs once for all of
them. Rows beyond the last one are zero: a constant has one row, a straight line two, and nothing is spent on the others.

Recurrences are written forwards: as soon as c_j is known, everything it does to later coefficients is added at once, in one
operation on the rows behind it. So order K costs 3 K kernels per function instead of K^2 / 2, of the same O(K^2) arithmetic.

Source: Griewank & Walther, Evaluating Derivatives, ch. 13 (the recurrences).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Taylor", "aligned"]


class Taylor:
    """Series in one variable, truncated after `order`.

    Every method takes and gives rows of coefficients, (n + 1, *S) with n <= order, and is made of plain torch operations:
    autograd goes through it, and so does `torch.compile`.
    """

    def __init__(self, order: int) -> None:
        """Truncate after this order."""
        self.order = order

    # -- rows ---------------------------------------------------------------------------------------------------------

    def constant(self, value: Tensor) -> Tensor:
        """Rows of what does not move."""
        return value.unsqueeze(0)

    def added(self, a: Tensor, b: Tensor, scale: float = 1) -> Tensor:
        """A + scale b, row by row."""
        a, b = aligned(a, b)
        if a.shape[0] == b.shape[0]:
            return torch.add(a, b, alpha=scale)
        n = min(a.shape[0], b.shape[0])
        head = torch.add(a[:n], b[:n], alpha=scale)
        tail = a[n:] if a.shape[0] > n else b[n:] * scale
        return torch.cat([head, tail.expand(-1, *head.shape[1:])])

    def shifted(self, a: Tensor, constant: Tensor | float) -> Tensor:
        """A + constant: it touches the first row only."""
        if isinstance(constant, Tensor):
            return self.added(a, self.constant(constant))
        return torch.cat([a[:1] + constant, a[1:]])

    def shifted_(self, fresh: Tensor, constant: Tensor) -> Tensor:
        """The same in place, of rows that nobody else holds; the constant has no more axes than they have."""
        fresh[0].add_(constant)
        return fresh

    def with_value(self, a: Tensor, value: Tensor) -> Tensor:
        """The same series with another value at t = 0: for f known there better than by its recurrence."""
        return torch.cat([value.unsqueeze(0), a[1:]])

    # -- products -----------------------------------------------------------------------------------------------------

    def product(self, a: Tensor, b: Tensor, times: Callable[[Tensor, Tensor], Tensor] = torch.mul) -> Tensor:
        """c_k = sum_i a_i b_(k-i) (Cauchy), of any product that is linear in both."""
        if times is torch.mul:
            a, b = aligned(a, b)
            a, b = (b, a) if a.shape[0] < b.shape[0] else (a, b)
        elif a.shape[0] == 1:
            return times(a[0], b)
        first = times(a, b[0])
        if b.shape[0] == 1:
            return first
        n = min(self.order + 1, a.shape[0] + b.shape[0] - 1)
        c = torch.cat([first, first.new_zeros(n - a.shape[0], *first.shape[1:])]) if n > a.shape[0] else first
        for i in range(1, min(b.shape[0], n)):
            rows = min(a.shape[0], n - i)
            if times is torch.mul:
                c[i : i + rows].addcmul_(a[:rows], b[i])
            else:
                c[i : i + rows].add_(times(a[:rows], b[i]))
        return c

    def square(self, a: Tensor) -> Tensor:
        """A a: each pair of rows once."""
        n = min(self.order + 1, 2 * a.shape[0] - 1)
        c = a.new_zeros(n, *a.shape[1:])
        for i in range(a.shape[0]):
            if 2 * i < n:
                c[2 * i].add_(a[i] * a[i])
                rows = min(a.shape[0], n - i) - i - 1
                if rows > 0:
                    c[2 * i + 1 : 2 * i + 1 + rows].add_(a[i + 1 : i + 1 + rows] * a[i], alpha=2)
        return c

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """c_k = sum_i a_i @ b_(k-i), each k one product of blocks laid side by side: [a_0 ... a_k] [b_k; ...; b_0].

        Args:
            a: (n + 1, ..., rows, inner).
            b: (m + 1, ..., inner, columns), with as many axes.
        """
        if a.shape[0] == 1 or b.shape[0] == 1:
            return torch.matmul(a, b)
        inner, last = a.shape[-1], b.shape[0] - 1
        left = a.movedim(0, -2).flatten(-2)  # (..., rows, (n + 1) inner)
        right = b.flip(0).movedim(0, -3).flatten(-3, -2)  # (..., (m + 1) inner, columns), latest first
        found = []
        for k in range(min(self.order, a.shape[0] - 1 + last) + 1):
            low, high = max(0, k - last), min(k, a.shape[0] - 1)
            start = last - (k - low)
            found.append(
                left[..., low * inner : (high + 1) * inner] @ right[..., start * inner : (start + high - low + 1) * inner, :]
            )
        return torch.stack(found)

    def through(self, function: Callable[[Taylor, Tensor], Tensor], a: Tensor) -> Tensor:
        """A function of numbers, given by what it does to the rows of a series in one variable."""
        return function(self, a)

    # -- functions ----------------------------------------------------------------------------------------------------

    def slopes(self, a: Tensor) -> Tensor:
        """J a_j: rows 1 ... n of t x'(t)."""
        return a[1:] * _numbers(1, a.shape[0], a)

    def integrated(self, a: Tensor, slope: Tensor, value: Tensor) -> Tensor:
        """F(a) where f' = slope is known along a:  c_k = (1/k) sum_j j a_j slope_(k-j),  c_0 = f(a_0)."""
        if a.shape[0] == 1:
            return value.unsqueeze(0)
        tail = Taylor(self.order - 1).product(self.slopes(a), slope[: self.order])
        return torch.cat([value.unsqueeze(0), tail / _numbers(1, tail.shape[0] + 1, a)])

    def exp(self, a: Tensor) -> Tensor:
        """c_k = (1/k) sum_j j a_j c_(k-j)."""
        c = [a[0].exp()]
        if a.shape[0] == 1:
            return torch.stack(c)
        slopes = self.slopes(a)
        ahead = _ahead(a, self.order)
        for k in range(1, self.order + 1):
            _push(ahead, k, slopes, c[-1])
            c.append(ahead[k - 1] / k)
        return torch.stack(c)

    def reciprocal(self, a: Tensor) -> Tensor:
        """c_k = -(1/a_0) sum_j a_j c_(k-j)."""
        c = [a[0].reciprocal()]
        if a.shape[0] == 1:
            return torch.stack(c)
        rest = a[1:] * -c[0]
        ahead = _ahead(a, self.order)
        for k in range(1, self.order + 1):
            _push(ahead, k, rest, c[-1])
            c.append(ahead[k - 1].clone())  # the sums behind it go on, and autograd keeps what it multiplies
        return torch.stack(c)

    def log(self, a: Tensor) -> Tensor:
        """The integral of a'/a."""
        return self.integrated(a, self.reciprocal(a), a[0].log())

    def power(self, a: Tensor, r: float) -> Tensor:
        """a^r: a whole power by repeated products, another by c_k = (1/(k a_0)) sum_j (r j - (k - j)) a_j c_(k-j)."""
        if r == int(r) and 0 <= r <= 64:
            return self._whole_power(a, int(r))
        c = [a[0].pow(r)]
        if a.shape[0] == 1:
            return torch.stack(c)
        rest = a[1:] * a[0].reciprocal()
        slopes = rest * (_numbers(1, a.shape[0], a) * r)
        ahead = _ahead(a, self.order)
        for k in range(1, self.order + 1):
            _push(ahead, k, slopes if k == 1 else torch.add(slopes, rest, alpha=1 - k), c[-1])
            c.append(ahead[k - 1] / k)
        return torch.stack(c)

    def _whole_power(self, a: Tensor, r: int) -> Tensor:
        if r < 2:
            return a if r else torch.ones_like(a[:1])
        even = self.square(self._whole_power(a, r // 2))
        return self.product(even, a) if r % 2 else even

    def sin_cos(self, a: Tensor, sign: float = -1) -> tuple[Tensor, Tensor]:
        """s_k = (1/k) sum_j j a_j c_(k-j), c_k = sign (1/k) sum_j j a_j s_(k-j); with sign +1 sinh and cosh."""
        s, c = ([a[0].sin()], [a[0].cos()]) if sign < 0 else ([a[0].sinh()], [a[0].cosh()])
        if a.shape[0] == 1:
            return torch.stack(s), torch.stack(c)
        slopes = self.slopes(a)
        ahead_s, ahead_c = _ahead(a, self.order), _ahead(a, self.order)
        for k in range(1, self.order + 1):
            _push(ahead_s, k, slopes, c[-1])
            _push(ahead_c, k, slopes, s[-1])
            s.append(ahead_s[k - 1] / k)
            c.append(ahead_c[k - 1] * (sign / k))
        return torch.stack(s), torch.stack(c)


def aligned(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both with as many axes, ones put in behind the rows: torch broadcasts from the right, and the rows are on the left."""
    if a.ndim < b.ndim:
        return a.reshape(a.shape[0], *[1] * (b.ndim - a.ndim), *a.shape[1:]), b
    return a, b.reshape(b.shape[0], *[1] * (a.ndim - b.ndim), *b.shape[1:]) if b.ndim < a.ndim else b


def _numbers(low: int, high: int, like: Tensor) -> Tensor:
    """Low, ..., high - 1 as rows that broadcast over `like`'s axes."""
    return torch.arange(low, high, dtype=like.real.dtype, device=like.device).reshape(-1, *[1] * (like.ndim - 1))


def _ahead(a: Tensor, order: int) -> Tensor:
    """Sums for the coefficients 1 ... order, to be added to."""
    return a.new_zeros(order, *a.shape[1:])


def _push(ahead: Tensor, k: int, weights: Tensor, known: Tensor) -> None:
    """Add what c_(k-1) does to c_k and those behind it."""
    rows = min(weights.shape[0], ahead.shape[0] - k + 1)
    ahead[k - 1 : k - 1 + rows].addcmul_(weights[:rows], known)
