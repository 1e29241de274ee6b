r"""An activation in the frequency domain: where the lines of its output lie, and which of the input's tones made them.

    f(x) = a (x - mean x)  +  mean f(x)  +  sum_k harmonic_k  +  intermodulation,      relu(x) = x/2 + |x|/2:  a = 1/2

An element-wise function of tones at w_1, w_2, ... has lines at their integer combinations and nowhere else: at 0 (the DC), at
k w_i (harmonics), at sums and differences (intermodulation). a is the gain of the odd part of f, (f(x) - f(-x))/2, along x.
ReLU's even part |x|/2 is positive, so that any signal but 0 comes out of it with a positive DC, if its mean was 0.

Source: papers.toml "dc-is-all-you-need" (Kechris, Dan, Miranda & Atienza 2024). Deviation: any activation; the Taylor series of
the root is one way to the lines (`taylor_order`), a Fourier transform the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from termwise.core.arguments import integer
from termwise.core.decomposition import Decomposition
from termwise.core.pictures import Line, Lines, Picture
from termwise.core.waterfall import check_sample

from .line_taylor import taylor_lines

__all__ = ["Spectrum", "activation_spectrum", "relu_spectrum"]

LINES = 200
"""Of a part in a picture, at most."""

TONES = 8
"""With more lines than these a signal has no harmonics worth a name."""

NOWHERE, DC, INTERMODULATION = -1, 0, 1  # kinds of a bin; from 2 on the number of the harmonic


@dataclass(frozen=True, repr=False, eq=False)
class Spectrum(Decomposition):
    """An activation's output over time by where its lines lie: `whole` (batch, N) = f(x), each part of the same shape.

    Parts: `linear`, `dc`, `harmonic_2` ... `harmonic_n`, `higher_harmonics`, `intermodulation`, those that there are.

    Attributes:
        fs: samples per second.
        gain: (batch,), of the linear part.
        tones: for every signal the frequencies of its tones in Hz; none where there are more than 8.
        taylor_order: of the series, -1 where the lines were taken of f(x) itself.
    """

    fs: float
    gain: Tensor
    tones: list[list[float]]
    taylor_order: int = -1

    @property
    def frequencies(self) -> Tensor:
        """(N // 2 + 1,) in Hz."""
        return torch.fft.rfftfreq(self.whole.shape[-1], 1 / self.fs, dtype=self.whole.dtype, device=self.whole.device)

    def amplitudes(self, name: str | None = None) -> Tensor:
        """(batch, N // 2 + 1): the amplitude of the line at each of `frequencies`, of a part or of the whole."""
        size = self.whole.shape[-1]
        found = torch.fft.rfft(self.whole if name is None else self.contribution(name)).abs() * (2 / size)
        found[..., 0] /= 2
        if size % 2 == 0:
            found[..., -1] /= 2
        return found

    def summary(self) -> str:
        """One line: gain, DC, what the energy is made of, and what the parts leave."""
        total = self.whole.square().sum()
        energy = {name: (part.square().sum() / total).item() for name, part in self.contributions().items()} if total else {}
        shares = ", ".join(f"{name} {share:.1%}" for name, share in energy.items() if share >= 5e-4)
        series = f" by a series of order {self.taylor_order}" if self.taylor_order >= 0 else ""
        return f"gain {self.gain.mean():.4g}; energy{series}: {shares or 'none'}; adds up to {self.error():.1e}"

    def pictures(self, sample: int = 0) -> list[Picture]:
        """The lines of one signal's output by the part that they belong to, the parts over time, and their sizes.

        Raises:
            ValueError: when there is no such sample.
        """
        check_sample(self, sample)
        one = self[sample]
        shown = self._loudest(one)
        highest = max(one.amplitudes().max().item(), 1e-300)
        found = []
        for name, values in shown.items():
            heights = Spectrum(values.unsqueeze(0), {}, one.fs, one.gain, one.tones).amplitudes()[0]
            seen = (heights > 1e-6 * highest).nonzero().flatten()
            seen = seen[heights[seen].argsort(descending=True)[:LINES]].sort().values
            if len(seen):
                x, y = one.frequencies[seen].tolist(), heights[seen].tolist()
                found.append(Line(name, x, y, role="remainder" if name == "remainder" else "term", stems=True))
        found.sort(key=lambda line: line.role != "remainder")  # which the others are drawn on
        note = f"The {LINES} largest lines of each, above a millionth of the highest." if found else "The output is 0."
        lines = Lines("Lines of the output", found, x="frequency (Hz)", y="amplitude", log_y=True, note=note)
        return [lines, self._in_time(one, shown), *super().pictures(sample)]

    @staticmethod
    def _loudest(one: Spectrum) -> dict[str, Tensor]:
        """The parts with the most energy, the others together, and the remainder, (N,)."""
        parts = {n: v[0].detach() for n, v in one.contributions().items()}
        loud = sorted(parts, key=lambda n: -float(parts[n].square().sum()))[:5]
        shown = {n.replace("_", " "): parts[n] for n in parts if n in loud}
        if rest := [v for n, v in parts.items() if n not in loud]:
            shown["all others"] = torch.stack(rest).sum(0)
        return {**shown, "remainder": one.remainder[0].detach()}

    def _in_time(self, one: Spectrum, shown: dict[str, Tensor]) -> Lines:
        """The beginning of the output and of its parts: three periods of the slowest tone."""
        tones = one.tones[0] if one.tones else []
        count = min(one.whole.shape[-1], max(64, min(512, int(3 * self.fs / min(tones)) if tones else 256)))
        t = (torch.arange(count) / self.fs).tolist()
        roles = {"output": "whole", "remainder": "remainder"}
        every = {"output": one.whole[0].detach(), **shown}
        curves = [Line(n, t, v[:count].tolist(), role=roles.get(n, "term")) for n, v in every.items()]
        note = "The beginning of the signal; the parts make the output."
        return Lines("Over time", curves, x="time (s)", y="output", note=note)


def activation_spectrum(
    act: Callable[[Tensor], Tensor], signal: Tensor, fs: float, taylor_order: int | None = None, *, n: int = 8
) -> Spectrum:
    """Take an activation's answer to a signal apart by frequency.

        f(x) = linear + dc + harmonic_2 + ... + intermodulation + remainder

    A line that several combinations of tones fall on goes to the lowest harmonic, else to intermodulation. For clean lines give
    a whole number of periods of every tone, and a rate well above n times the highest: what lies above half the rate folds back
    onto other lines. A tone below sqrt(eps) of the loudest, 1.5e-8 in float64 and 3.5e-4 in float32, is taken for rounding, and
    goes to the remainder with its lines.

    Args:
        act: element-wise, from a tensor to one of its shape.
        signal: (N,) or (batch, N), real, sampled evenly; half precision is taken in float32.
        fs: samples per second, so that frequencies are in Hz.
        taylor_order: None takes the lines of f(x) itself: exact, the remainder is what lies off the lattice of the tones. A
            number takes a polynomial by convolution of the signal's lines: of degree 2 taylor_order for ReLU, leaky ReLU and |x|
            (the series of sqrt(x^2) at 1), of degree taylor_order for smooth activations (their series at 0). The remainder is
            its error.
        n: the highest harmonic that gets a name; those above are `higher_harmonics`.

    Returns:
        A `Spectrum` over time, batch first, with `amplitudes` by frequency, `tones`, `gain` and `plot`.

    Raises:
        TypeError: for a signal that is complex or of integers.
        ValueError: for a signal that is empty, not finite or of another shape; a rate that is not positive; a bad order or n; an
            activation that changes the shape, or has no series at 0 where one is asked for.

    Cost: one FFT per part, O(N log N); with a series O(taylor_order s N) for s lines of the signal; memory O(parts N).

    Example:
        >>> t = torch.arange(1024, dtype=torch.float64) / 1024
        >>> s = tw.functions.activation_spectrum(torch.square, 3 * torch.cos(2 * torch.pi * 16 * t), fs=1024)
        >>> s.check(1e-12).tones, round(s.parts["dc"][0, 0].item(), 12)                # 9 cos^2 = 4.5 + 4.5 cos 2wt
        ([[16.0]], 4.5)
        >>> bool((s.amplitudes("harmonic_2")[0, 32] - 4.5).abs() < 1e-12)
        True

    Source: Kechris et al. 2024 for ReLU.
    """
    x = _checked(signal, fs, n)
    if not callable(act):
        raise TypeError(f"act must be a function of a tensor, as torch.tanh; got {act!r}")
    whole = act(x.clone())  # which an activation in place would overwrite
    if whole.shape != x.shape:
        raise ValueError(f"an activation keeps the shape: this one made {tuple(whole.shape)} of {tuple(x.shape)}")
    if not bool(whole.isfinite().all()):
        raise ValueError("the activation is not finite on this signal: scale the signal, or choose another activation")
    size = x.shape[-1]
    centred = x - x.mean(-1, keepdim=True)
    power = centred.square().sum(-1)
    along = ((whole - act(-x)) / 2 * centred).sum(-1)
    gain = torch.where(power > 0, along / torch.where(power > 0, power, torch.ones_like(power)), torch.zeros_like(power))
    linear = gain.unsqueeze(-1) * centred
    lines = torch.fft.fft(whole) / size if taylor_order is None else taylor_lines(act, x, taylor_order)
    lines = lines - torch.fft.fft(linear) / size
    tones = [_tones(row) for row in x]
    kinds = torch.stack([_kinds(row, size, n) for row in tones]).to(x.device)
    parts = {"linear": linear}
    names = {DC: "dc"} | {k: f"harmonic_{k}" for k in range(2, n + 1)}
    names |= {n + 1: "higher_harmonics", INTERMODULATION: "intermodulation"}
    for kind, name in names.items():
        chosen = kinds == kind
        if bool(chosen.any()):
            parts[name] = torch.fft.ifft(lines * chosen).real * size
    found = [[b * fs / size for b in row] if len(row) <= TONES else [] for row in tones]
    return Spectrum(whole, parts, float(fs), gain, found, -1 if taylor_order is None else taylor_order)


def relu_spectrum(signal: Tensor, fs: float, taylor_order: int | None = None, *, n: int = 8) -> Spectrum:
    """Take ReLU's answer to a signal apart by frequency: half the signal, a DC, even harmonics, sums and differences of tones.

        relu(x) = x/2 + |x|/2,      |x| = M sqrt(1 + u) = M sum_k binom(1/2, k) u^k,   u = (x/M)^2 - 1

    Args:
        signal: (N,) or (batch, N), real, sampled evenly.
        fs: samples per second.
        taylor_order: None for the lines of relu(x) itself, a number for the paper's series to that order, by convolutions.
        n: the highest harmonic that gets a name.

    Returns:
        A `Spectrum`; see `activation_spectrum`.

    Raises:
        TypeError, ValueError: as `activation_spectrum`.

    Cost: as `activation_spectrum`.

    Example:
        >>> t = torch.arange(4096, dtype=torch.float64) / 4096
        >>> s = tw.relu_spectrum(torch.cos(2 * torch.pi * 16 * t), fs=4096).check(1e-12)
        >>> bool((s.parts["dc"] - 1 / torch.pi).abs().max() < 1e-4), s.gain.round(decimals=12).tolist()
        (True, [0.5])

    Source: papers.toml "dc-is-all-you-need" (Kechris, Dan, Miranda & Atienza 2024).
    """
    return activation_spectrum(torch.relu, signal, fs, taylor_order, n=n)


def _checked(signal: Tensor, fs: float, n: int) -> Tensor:
    """The signal with a batch axis."""
    if not isinstance(signal, Tensor) or not signal.is_floating_point():
        kind = signal.dtype if isinstance(signal, Tensor) else type(signal).__name__
        raise TypeError(f"signal is a real floating tensor of shape (N,) or (batch, N), got {kind}")
    if signal.ndim not in (1, 2) or not signal.numel():
        raise ValueError(f"signal has shape (N,) or (batch, N) and is not empty, got {tuple(signal.shape)}")
    if not bool(signal.isfinite().all()):
        raise ValueError("signal is not finite: it has NaN or infinite samples")
    if not (isinstance(fs, Real) and 0 < fs < math.inf):
        raise ValueError(f"fs is the number of samples per second, positive and finite; got {fs!r}")
    if integer(n) is None or n < 1:
        raise ValueError(f"n is the highest harmonic to name, 1 or more; got {n!r}")
    signal = signal.detach().reshape(-1, signal.shape[-1])
    return signal if signal.dtype in (torch.float32, torch.float64) else signal.float()  # torch has no FFT of the others


def _tones(row: Tensor) -> list[int]:
    """The bins above 0 where a signal has lines, those of rounding left out."""
    size = torch.fft.rfft(row)[1:].abs()
    around = torch.finfo(row.dtype).eps * row.abs().amax() * len(row)  # a constant has no tones but rounding
    loud = (size > torch.finfo(row.dtype).eps ** 0.5 * size.amax()) & (size > around) if size.numel() else size > 0
    return (loud.nonzero().flatten() + 1).tolist()


def _kinds(tones: list[int], size: int, n: int) -> Tensor:
    """For each of the bins of a DFT, what a line there is: (size,), from the integer combinations of the tones."""
    kinds = torch.full((size,), INTERMODULATION if len(tones) > TONES else NOWHERE)
    if tones and len(tones) <= TONES:
        alone = len(tones) == 1  # then every line is a harmonic, or the alias of one
        kinds[:: math.gcd(*tones, size)] = n + 1 if alone else INTERMODULATION
        for b in [] if alone else tones:
            kinds[(n + 1) * b : size // 2 + 1 : b] = n + 1
        for k in range(n, 1, -1):
            kinds[[min(k * b % size, -k * b % size) for b in tones]] = k
        kinds[size // 2 + 1 :] = kinds[1 : (size + 1) // 2].flip(0)
    kinds[0] = DC
    return kinds
