r"""A diagonal state space model: a causal kernel as a sum of damped oscillations, and the convolution with it as a recurrence.

    u_i = Lambda u_(i-1) + b x_i,      y_i = Re sum_k u_i[k],      kernel_j = Re sum_k b_k Lambda_k^j

Time and memory per token are those of the state, whatever came before. The kernel of a recurrence does not end: beyond the n taps
it was made of it goes on, and the convolution does not. Feeding back what leaves the window ends it, for the memory of n inputs,

    u_i = Lambda u_(i-1) + b x_i - b Lambda^n x_(i-n).

Powers are built by radius and angle, and state is kept in double precision: in single, |u| is off by 1e-3 after 20,000 tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from termwise.core.decomposition import Decomposition
from termwise.core.pictures import Picture

__all__ = ["DiagonalSSM", "State", "powers"]

CHUNK = 256
"""Tokens that `scan` takes at once, at most."""

BLOCK = 128
"""Modes that are summed at once."""

NUMBERS = 2**22
"""In a table of powers, at most."""


class _Modes(Mapping[str, Tensor]):
    """mode_k -> Re b_k Lambda_k^j for j < n, (n, d), made when asked for."""

    def __init__(self, ssm: DiagonalSSM) -> None:
        self.ssm, self.names = ssm, {f"mode_{k + 1}": k for k in range(len(ssm.poles))}

    def __getitem__(self, name: str) -> Tensor:
        ssm, k = self.ssm, self.names[name]
        found: Tensor = (ssm.powers(torch.arange(ssm.length), slice(k, k + 1))[:, 0] * ssm.weights[k]).real.to(ssm.whole.dtype)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, eq=False)
class State:
    """What a recurrence carries from token to token.

    Attributes:
        modes: u, (..., k, d), complex128.
        position: tokens taken so far.
        past: the last n inputs, (..., n, d), a ring that `step` writes to in place (copy it to go two ways); None where nothing
            is fed back.
    """

    modes: Tensor
    position: int
    past: Tensor | None


@dataclass(frozen=True, eq=False, repr=False)
class DiagonalSSM(Decomposition):
    """A causal kernel in modes, each a damped oscillation, and the recurrence that they are; see `toeplitz_to_ssm`.

    `whole` is the kernel, (n, d); part `mode_k` is Re b_k Lambda_k^j (a conjugate pair, or one real pole); `remainder` is what
    the modes miss of the n taps. For outputs, max |y - y'| <= `bound()` max |x|.

    Attributes:
        poles: Lambda, (k, 1) where channels share them, or (k, d); complex128, |Lambda| <= 1.
        weights: b, (k, d), complex128; twice that of one pole for a pair.
        length: n, taps it was made of.
        period: m = n + 1 of the exact form, whose Lambda_k is decay e^(-2 pi i k / m), so that kernel_(j + m) = decay^m kernel_j;
            0 otherwise.
        decay: gamma of the exact form.
        beyond: what may happen after n tokens: "exact" (the kernel ends, n inputs are kept), or how far, as a share of the
            kernel's l1 norm, the kernel that goes on may be from one that ends.
    """

    parts: Mapping[str, Tensor] = field(default_factory=dict)
    poles: Tensor = field(default_factory=lambda: torch.zeros(0, 1, dtype=torch.complex128))
    weights: Tensor = field(default_factory=lambda: torch.zeros(0, 1, dtype=torch.complex128))
    length: int = 0
    period: int = 0
    decay: float = 1.0
    beyond: float | Literal["exact"] = 0.0

    def __post_init__(self) -> None:
        if self.parts and not isinstance(self.parts, _Modes):  # a slice
            super().__post_init__()
        else:
            object.__setattr__(self, "parts", _Modes(self))

    # -- the kernel ---------------------------------------------------------------------------------------------------

    def powers(self, exponents: Tensor, modes: slice = slice(None)) -> Tensor:
        """Lambda^j for every j (integers), (len(j), k, 1) or (len(j), k, d); roots of unity by their exact angle."""
        j = exponents.to(self.poles.device)[:, None, None]
        if not self.period:
            return powers(self.poles[modes], exponents)
        numerators = torch.arange(1, len(self.poles) + 1, device=j.device)[modes, None]
        # quarters of a turn first, in integers: the angle that is left is small, and rounds little
        places = 4 * (j * numerators % self.period)
        quarters = (places + self.period // 2) // self.period
        left = (places - quarters * self.period).double() / self.period
        root = torch.polar((self.decay ** j.double()).expand_as(left), -math.pi / 2 * left)
        return root * torch.tensor([1, -1j, -1, 1j], dtype=root.dtype, device=root.device)[quarters % 4]

    def kernel(self, length: int) -> Tensor:
        """What the recurrence convolves with, (length, d); beyond n it is the recurrence's own.

        Cost: O(min(length, m) k d), m the period where there is one.
        """
        return self._kernel(length).to(self.whole.dtype)

    def _kernel(self, length: int) -> Tensor:
        """In float64."""
        if 0 < self.period < length:
            once = self._kernel(self.period)
            turns = torch.arange(-(-length // self.period), dtype=once.dtype, device=once.device)
            return (once * (self.decay**self.period) ** turns[:, None, None]).flatten(0, 1)[:length]
        rows = torch.arange(length).split(max(1, NUMBERS // self.poles.numel()))
        found = [self._sum(self.powers(row)) for row in rows]
        return torch.cat(found) if found else self.weights.real.new_zeros(0, self.weights.shape[1])

    def _sum(self, powers: Tensor) -> Tensor:
        """Re sum_k b_k powers_k, in blocks: modes that cancel add up to much in the lanes of one long product."""
        blocks = zip(powers.split(BLOCK, 1), self.weights.split(BLOCK), strict=True)
        return torch.stack([torch.einsum("ckd,kd->cd", p, b).real for p, b in blocks]).sum(0)

    def total(self) -> Tensor:
        """The modes together, without making them one by one."""
        return self.kernel(self.length) if isinstance(self.parts, _Modes) else super().total()

    def error(self) -> float:
        """Of the worst channel: l1 norm of the remainder over that of the kernel; the former itself, where the kernel is 0."""
        missed, size = self.remainder.double().abs().sum(0), self.whole.double().abs().sum(0)
        return (missed / torch.where(size == 0, torch.ones_like(size), size)).max().item()

    def bound(self) -> float:
        """How far outputs may be off over the first n tokens, over max |x|: the worst channel's l1 norm of the remainder."""
        return self.remainder.double().abs().sum(0).max().item()

    def wrap_error_bound(self, length: float = math.inf) -> float:
        """How far outputs may be off by going on for `length` tokens, over max |x|: the l1 norm of the kernel from n to there.

        Args:
            length: of the sequence; any when not given.

        Returns:
            Of the worst channel; infinite where nothing decays. For compressed modes an upper bound from 16 n on.
        """
        return self._tail(length).max().item()

    def _tail(self, length: float) -> Tensor:
        """l1 norm of the recurrence's kernel from n to `length`, (d,)."""
        n, radius = self.length, self.poles.abs()
        if self.period and length == math.inf:
            once = self._kernel(n + self.period)[n:].abs().sum(0)
            return torch.where(once == 0, once, once / (1 - self.decay**self.period))
        far = int(length if self.period else min(length, 16 * n))
        tail = self._kernel(far)[n:].abs().sum(0)
        if length > far:
            rest = self.weights.abs() * radius**far * (1 - radius ** (length - far)) / (1 - radius)
            steady = self.weights.abs() * (length - far)
            tail = tail + torch.where(self.weights == 0, 0.0, torch.where(radius < 1, rest, steady)).sum(0)
        return tail

    @cached_property
    def _reach(self) -> float:
        """Tokens that may be taken."""
        if self.beyond in ("exact", math.inf):
            return math.inf
        size = self._kernel(self.length).abs().sum(0)
        return math.inf if bool((self._tail(math.inf) <= float(self.beyond) * size).all()) else self.length

    @property
    def order(self) -> int:
        """Real numbers in the state of a channel: two for a pair of poles, one for a real pole."""
        return int(((self.poles != 0).int() + (self.poles.imag != 0).int()).sum(0).max())

    # -- the recurrence -----------------------------------------------------------------------------------------------

    @cached_property
    def _leaving(self) -> Tensor:
        """Weights of what leaves the window, b Lambda^n."""
        return self.weights * self.powers(torch.tensor([self.length]))[0]

    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """One token.

        Args:
            x: (..., d), float32 or float64.
            state: after the last token; a new one, of zeros, when not given.

        Returns:
            y, of the shape and dtype of x, and the state after it.

        Raises:
            ValueError: for a token beyond the n-th that `beyond` does not allow; for x of another width, or in half precision.

        Cost: k d complex products, whatever the position; with `beyond="exact"` twice that, and memory for n d inputs.
        """
        state = self._take(x, state, 1, x.shape[:-1])
        drive, past = self.weights * x.unsqueeze(-2), state.past
        if past is not None:
            slot = state.position % self.length
            drive = drive - self._leaving * past[..., slot, None, :]
            past[..., slot, :] = x
        modes = self.poles * state.modes + drive
        return modes.real.sum(-2).to(x.dtype), State(modes, state.position + 1, past)

    def scan(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Many tokens, in chunks of up to 256: each a convolution (by FFT), and what the state before it adds.

        Args:
            x: (..., L, d), float32 or float64.
            state: after the last token; a new one when not given.

        Returns:
            y, of the shape and dtype of x, and the state after the last: as L times `step`.

        Raises:
            ValueError: as `step` does.

        Cost: O(L d (k + log c)) in L / c turns, chunks of c; memory for the powers of a chunk, at most 64 MiB, and its inputs.
        """
        if x.ndim < 2:
            raise ValueError(f"scan takes inputs (..., tokens, channels), got shape {tuple(x.shape)}")
        state = self._take(x, state, x.shape[-2], x.shape[:-2])
        n, after, modes, wide = self.length, state.position + x.shape[-2], state.modes, x.double()
        c = max(1, min(CHUNK, x.shape[-2], NUMBERS // self.poles.numel()))
        powers = self.powers(torch.arange(c + 1))
        sources, past = [(wide, self.weights, self._kernel(c))], None
        if state.past is not None:
            # the oldest first; what leaves the window is an input of its own, with the kernel from n on
            known = torch.cat([state.past.double().roll(-(state.position % n), -2), wide], -2)
            sources.append((-known[..., : x.shape[-2], :], self._leaving, self._kernel(n + c)[n:]))
            past = known[..., -n:, :].roll(after % n, -2).to(x.dtype)
        found = []
        for start in range(0, x.shape[-2], c):
            size = min(c, x.shape[-2] - start)
            y = torch.einsum("...kd,ckd->...cd", modes, powers[1 : size + 1]).real
            modes = powers[size] * modes
            for source, weights, kernel in sources:
                piece = source[..., start : start + size, :]
                y = y + _convolve(piece, kernel[:size])
                modes = modes + weights * torch.einsum("...cd,ckd->...kd", piece.to(modes.dtype), powers[:size].flip(0))
            found.append(y)
        y = torch.cat(found, -2) if found else wide
        return y.to(x.dtype), State(modes, after, past if past is not None else state.past)

    def _take(self, x: Tensor, state: State | None, tokens: int, batch: torch.Size) -> State:
        """The state to begin with, once x and the position are known to be allowed."""
        width = self.weights.shape[1]
        if not x.ndim or x.shape[-1] != width:
            raise ValueError(f"the kernel has {width} channels, last axis of the input; got shape {tuple(x.shape)}")
        if x.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"inputs are float32 or float64 (a recurrence in half precision forgets what it holds), got {x.dtype}"
            )
        if state is None:
            past = x.new_zeros(*batch, self.length, width) if self.beyond == "exact" else None
            state = State(self.weights.new_zeros(*batch, *self.weights.shape), 0, past)
        elif state.modes.shape != (*batch, *self.weights.shape):
            raise ValueError(
                f"this input goes with a state of shape {(*batch, *self.weights.shape)}, got {tuple(state.modes.shape)}: "
                "begin with state=None"
            )
        if state.position + tokens > max(self._reach if state.position + tokens > self.length else 0, self.length):
            raise ValueError(
                f"token {max(state.position, self.length) + 1} lies beyond the {self.length} taps, where the convolution ends "
                f"and the recurrence goes on: outputs may be off by {self.wrap_error_bound():.2g} max |x|, {self.beyond:.2g} of "
                f"the kernel's l1 norm is allowed. Convert with beyond='exact' (it keeps {self.length} inputs) or a larger number"
            )
        return state

    # -- as every decomposition ---------------------------------------------------------------------------------------

    @property
    def by_sample(self) -> bool:
        """False: the first axis counts taps."""
        return False

    def pictures(self, sample: int = 0) -> list[Picture]:
        """The kernel and what so many modes make of it, the error by their number, the poles: of the loudest channel.

        Cost: O(n k) of one channel, or less: of a long kernel some taps are looked at.
        """
        from .ssm_pictures import pictures

        return pictures(self)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """The kernel and its parts moved; modes move to its device, and stay complex128."""
        whole = self.whole.to(*args, **kwargs)
        parts = {} if isinstance(self.parts, _Modes) else {name: part.to(*args, **kwargs) for name, part in self.parts.items()}
        return replace(self, whole=whole, parts=parts, poles=self.poles.to(whole.device), weights=self.weights.to(whole.device))

    def save(self, path: str | Path) -> Path:
        """As `Decomposition.save`; poles and weights are written, and not the parts that they make."""
        if not isinstance(self.parts, _Modes):
            return super().save(path)
        bare = replace(self)
        object.__setattr__(bare, "parts", {})
        return Decomposition.save(bare, path)

    def summary(self) -> str:
        """One line: how many modes, what they miss, and what happens beyond n."""
        after = "the kernel ends" if self.beyond == "exact" else f"off by {self.wrap_error_bound():.2g} max |x| at most"
        text = f"{self.length} taps in {len(self.parts)} modes (order {self.order}), adds up to {self.error():.1e}"
        return f"{text}; after {self.length} tokens {after}"


def powers(poles: Tensor, exponents: Tensor) -> Tensor:
    """z^j for every j, (len(j), *poles.shape), by radius and angle."""
    j = exponents.to(poles.device).double().reshape(-1, *[1] * poles.ndim)
    return torch.polar(poles.abs() ** j, poles.angle() * j)


def _convolve(x: Tensor, kernel: Tensor) -> Tensor:
    """Causal convolution of (..., L, d) with (L, d)."""
    size = 2 * x.shape[-2]
    product = torch.fft.rfft(x, size, dim=-2) * torch.fft.rfft(kernel, size, dim=0)
    return torch.fft.irfft(product, size, dim=-2)[..., : x.shape[-2], :]
