"""What Qin and Zhong (2023) claim of ETSC, measured on random kernels and on small Toeplitz networks trained here on bytes."""

from __future__ import annotations

import math
import time
from statistics import median

import torch
from torch import Tensor

from termwise.core.claims import claim

from ..recurrent_model import to_recurrent
from ..toeplitz_ssm import toeplitz_to_ssm
from .trained_tnn import help_text, perplexity, trained_tnn

SEEDS = range(5)


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _uniform(n: int, channels: int, seed: int) -> Tensor:
    """Taps in [0, 10], the paper's."""
    return 10 * torch.rand(n, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _direct(kernel: Tensor, x: Tensor) -> Tensor:
    """The convolution of (L, d) by its definition, tap by tap."""
    y = torch.zeros_like(x)
    for j in range(min(len(kernel), len(x))):
        y[j:] += kernel[j] * x[: len(x) - j]
    return y


def _off(found: Tensor, truth: Tensor) -> float:
    return ((found - truth).abs().max() / truth.abs().max()).item()


@claim(
    "etsc",
    statement="n modes, roots of unity with weights from one inverse DFT, make all n taps of a kernel exactly",
    published="exact conversion by a closed form that is numerically stable",
    exact=True,
    note="taps uniform in [0, 10], n = 64, 512, 4096, 5 seeds, float64, relative to the largest tap, one mode of each conjugate "
    "pair; control: the DFT of the other sign",
)
def modes_make_the_taps() -> tuple[str, bool]:
    worst, control = {}, math.inf
    for n in (64, 512, 4096):
        errors = []
        for seed in SEEDS:
            t = _uniform(n, 2, seed)
            ssm = toeplitz_to_ssm(t)
            errors.append(float(ssm.remainder.abs().max() / t.max()))
            if n < 4096:
                turned = torch.einsum("jkd,kd->jd", ssm.powers(torch.arange(n)), ssm.weights.conj()).real
                control = min(control, _off(turned, t))
        worst[n] = max(errors)
    measured = ", ".join(f"n = {n}: {e:.1e}" for n, e in worst.items())
    return f"off by at most {measured}; control {control:.2g} at least", max(worst.values()) < 1e-12 < 1e-2 < control


@claim(
    "etsc",
    statement="the recurrence, token by token and in chunks, is the convolution: to 1e-10 in float64, to 1e-6 in float32",
    published="errors of 1e-6 to 1e-5 in single precision, whatever the length of the kernel",
    exact=True,
    note="n = 64, 512, uniform taps, decay 1 and 0.99, normal inputs of n tokens, 5 seeds, relative to the largest output; "
    "truth: the definition; control: without the last pair of modes",
)
def the_recurrence_is_the_convolution() -> tuple[str, bool]:
    errors: dict[str, float] = {"step": 0.0, "scan": 0.0, "float32": 0.0}
    control = math.inf
    for seed in SEEDS:
        for n in (64, 512):
            for decay in (1.0, 0.99):
                t, x = _uniform(n, 2, seed), _normal(n, 2, seed=seed)
                truth = _direct(t * decay ** torch.arange(n, dtype=t.dtype)[:, None], x)
                ssm = toeplitz_to_ssm(t, decay=decay)
                y, state = [], None
                for token in x:
                    out, state = ssm.step(token, state)
                    y.append(out)
                errors["step"] = max(errors["step"], _off(torch.stack(y), truth))
                errors["scan"] = max(errors["scan"], _off(ssm.scan(x)[0], truth))
                single = toeplitz_to_ssm(t.float(), decay=decay).scan(x.float())[0]
                errors["float32"] = max(errors["float32"], _off(single.double(), truth))
                fewer = torch.einsum("jkd,kd->jd", ssm.powers(torch.arange(n))[:, :-1], ssm.weights[:-1]).real
                control = min(control, _off(_direct(fewer, x), truth))
    measured = ", ".join(f"{k} {e:.1e}" for k, e in errors.items())
    holds = max(errors["step"], errors["scan"]) < 1e-10 and errors["float32"] < 1e-6 < control
    return f"off by at most: {measured}; control {control:.1e} at least", holds


@claim(
    "etsc",
    statement="fitted by gradient descent, as many modes miss a kernel by over a million times more than the closed form does",
    published="gradient descent stays orders of magnitude above the closed form, and is unstable",
    note="n = 64, uniform taps, decay 0.99, 3 seeds, 1,500 steps of Adam on radius, angle and weights of all pairs, the best of "
    "three rates, roots of unity as start and weights of 0; l2 error over l2 norm; control: at the start the error is 1",
)
def gradient_descent_is_worse() -> tuple[str, bool]:
    fitted, closed = [], []
    for seed in range(3):
        t = _uniform(64, 1, seed)
        ssm = toeplitz_to_ssm(t, decay=0.99)
        closed.append(float(ssm.remainder.norm() / ssm.whole.norm()))
        fitted.append(min(_fit(ssm.whole[:, 0], rate) for rate in (1e-3, 1e-2, 1e-1)))
    measured = f"fitted {min(fitted):.1e} to {max(fitted):.1e}, closed form {max(closed):.1e} at most"
    return measured, min(fitted) > 1e6 * max(closed) and max(fitted) < 1


def _fit(kernel: Tensor, rate: float) -> float:
    """Relative error of modes trained on a kernel (n,), the least on the way."""
    n, pairs = len(kernel), len(kernel) // 2
    radius = torch.full((pairs,), 0.99, dtype=kernel.dtype).logit().requires_grad_()
    angle = (2 * math.pi * torch.arange(1, pairs + 1, dtype=kernel.dtype) / (n + 1)).requires_grad_()
    weights = torch.zeros(2, pairs, dtype=kernel.dtype, requires_grad=True)
    optimizer = torch.optim.Adam([radius, angle, weights], lr=rate)
    j, scale, best = torch.arange(n, dtype=kernel.dtype)[:, None], kernel.norm(), math.inf
    for _ in range(1500):
        size = radius.sigmoid() ** j
        loss = (
            (((size * (angle * j).cos()) @ weights[0] + (size * (angle * j).sin()) @ weights[1] - kernel) / scale).square().sum()
        )
        best = min(best, loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return math.sqrt(best)


@claim(
    "etsc",
    statement="time and memory per token do not depend on the position up to 100,000 tokens, and the output is still exact there",
    published="constant inference complexity in time and memory, where Toeplitz networks recompute an FFT",
    note="n = 64, 8 channels, with the kernel ended exactly; median of 2,000 tokens around 1,000 and at 100,000; truth: the "
    "last n inputs; controls: FFT recomputation grows with the position, a state in complex64 drifts",
)
def tokens_cost_the_same() -> tuple[str, bool]:
    n, tokens = 64, 100_000
    t, x = _uniform(n, 8, 0), _normal(tokens, 8, seed=0)
    ssm = toeplitz_to_ssm(t, beyond="exact")
    single, poles, weights = torch.zeros_like(ssm.weights).to(torch.complex64), ssm.poles.to(torch.complex64), ssm.weights
    leaving = weights * ssm.powers(torch.tensor([n]))[0]
    seconds, state, sizes = [], None, []
    for i in range(tokens):
        started = time.perf_counter()
        y, state = ssm.step(x[i], state)
        seconds.append(time.perf_counter() - started)
        sizes.append(state.modes.numel() + (0 if state.past is None else state.past.numel()))
        single = poles * single + (weights * x[i] - (leaving * x[i - n] if i >= n else 0)).to(torch.complex64)
    truth = (t.flip(0) * x[-n:]).sum(0)
    drift = _off(single.real.sum(0).double(), truth)
    slope = median(seconds[-2000:]) / median(seconds[500:2500])
    growth = _recomputed(t, x[:tokens]) / _recomputed(t, x[:1000])
    error = _off(y, truth)
    measured = (
        f"time at 100,000 over that at 1,000: {slope:.2f}, memory {sizes[-1] / sizes[999]:.0f}; output off by {error:.0e} "
        f"(complex64: {drift:.0e}); FFT recomputation {growth:.0f} times as long"
    )
    return measured, 0.67 < slope < 1.5 and len(set(sizes)) == 1 and error < 1e-10 and growth > 10 and drift > 1e-6


def _recomputed(t: Tensor, x: Tensor) -> float:
    """Seconds of the last output by an FFT over all inputs, the least of five."""
    found = []
    for _ in range(5):
        started = time.perf_counter()
        size = len(x) + len(t)
        torch.fft.irfft(torch.fft.rfft(x, size, dim=0) * torch.fft.rfft(t, size, dim=0), size, dim=0)[len(x) - 1]
        found.append(time.perf_counter() - started)
    return min(found)


@claim(
    "etsc",
    statement="beyond n tokens the recurrence is another convolution; with what leaves the window fed back it is exact",
    published="conversion is exact; what happens beyond the length of the kernel is not said",
    exact=True,
    note="4 n tokens, n = 64, 512, uniform taps, 5 seeds, largest difference over largest output; decay 0.99; the bound holds "
    "in each case; control: at decay 1 the recurrence that goes on is off by more than its largest output",
)
def what_lies_beyond_the_taps() -> tuple[str, bool]:
    wrapped: dict[tuple[int, float], list[float]] = {}
    ended, within = 0.0, True
    for seed in SEEDS:
        for n in (64, 512):
            for decay in (1.0, 0.99):
                t, x = _uniform(n, 2, seed), _normal(4 * n, 2, seed=seed)
                truth = _direct(t * decay ** torch.arange(n, dtype=t.dtype)[:, None], x)
                on = toeplitz_to_ssm(t, decay=decay, beyond=math.inf)
                y = on.scan(x)[0]
                wrapped.setdefault((n, decay), []).append(_off(y, truth))
                within &= float((y - truth).abs().max()) <= on.wrap_error_bound(4 * n) * float(x.abs().max())
                ended = max(ended, _off(toeplitz_to_ssm(t, decay=decay, beyond="exact").scan(x)[0], truth))
    text = ", ".join(f"n = {n}, decay {decay:g}: {median(e):.2g}" for (n, decay), e in wrapped.items())
    measured = f"going on, off by {text} (medians), within the bound: {within}; ended: {ended:.0e} at most"
    return measured, ended < 1e-10 and within and min(min(wrapped[n, 1.0]) for n in (64, 512)) > 1


@claim(
    "etsc",
    statement="a tenth of the state or less keeps smooth taps to 1e-3 of their l1 norm, those of trained networks too; not noise",
    published="state as large as the kernel; smaller ones are not considered",
    note="sums of ten random oscillations over 512 taps, 5 seeds; both mixers of networks trained here (128 taps, 3 seeds); "
    "outputs stay within the bound; control: normal noise, at half of the state",
)
def smooth_taps_need_few_modes() -> tuple[str, bool]:
    saved, noise, within = {"oscillations": [], "trained": []}, [], True
    kernels = [("oscillations", _oscillations(seed), 1.0) for seed in SEEDS]
    for seed in range(3):
        mixers = [block.mixer for block in trained_tnn(seed).blocks]
        kernels += [("trained", m.taps().double(), m.decay) for m in mixers]
    for name, taps, decay in kernels:
        ssm = toeplitz_to_ssm(taps, error=1e-3, decay=decay)
        saved[name].append(len(taps) / ssm.order)
        x = _normal(len(taps), taps.shape[1], seed=0)
        gap = (ssm.scan(x)[0] - _direct(ssm.whole, x)).abs().max()
        within &= ssm.error() <= 1e-3 and float(gap) <= ssm.bound() * float(x.abs().max()) + 1e-12
    for seed in SEEDS:
        noise.append(toeplitz_to_ssm(_normal(512, 2, seed=seed), order=256).error())
    text = "; ".join(f"{name} {min(v):.1f} to {max(v):.1f}" for name, v in saved.items())
    measured = (
        f"state smaller by, at 1e-3: {text}; bound kept: {within}; noise at half the state {min(noise):.2f} to {max(noise):.2f}"
    )
    return measured, within and min(min(v) for v in saved.values()) >= 10 and min(noise) > 0.1


def _oscillations(seed: int) -> Tensor:
    """Four channels, each of five damped oscillations and a slow power law."""
    g, j = torch.Generator().manual_seed(seed), torch.arange(512, dtype=torch.float64)[:, None, None]
    damping, turn, size = (torch.rand(4, 5, generator=g, dtype=torch.float64) for _ in range(3))
    return ((-j * (0.005 + 0.05 * damping)).exp() * (0.3 * turn * j).cos() * size).sum(-1) + 1 / (1 + j[..., 0] / 20)


@claim(
    "etsc",
    statement="a trained Toeplitz language model, converted, is itself: logits to 1e-6, perplexity as it was, without training",
    published="language models keep their perplexity after conversion",
    note="two blocks of 128 taps trained on bytes of Python's help, 3 seeds, held-out text, float32; ended exactly over 1,024 "
    "bytes; control: the recurrence that goes on; with modes to 1e-3, a tenth of the state, perplexity moves by less than 1e-3",
)
def a_trained_network_stays_itself() -> tuple[str, bool]:
    text = help_text()
    held = text[len(text) * 9 // 10 :][: 8 * 1025].reshape(8, 1025)
    inputs, targets = held[:, :-1], held[:, 1:]
    errors, moved, before, control = [], [], [], []
    for seed in range(3):
        model = trained_tnn(seed)
        logits = model(inputs)
        before.append(perplexity(logits, targets))
        for keep, options in ((errors, {}), (moved, {"error": 1e-3})):
            found = to_recurrent(model, inputs[:1, :128], beyond="exact", **options)(inputs)
            keep.append(_off(found, logits) if keep is errors else abs(perplexity(found, targets) / before[-1] - 1))
        on = to_recurrent(model, inputs[:1, :128], beyond=math.inf)(inputs)
        control.append(perplexity(on, targets) / before[-1])
    measured = (
        f"logits off by {max(errors):.1e} of the largest at most; perplexity per byte {min(before):.2f} to {max(before):.2f}, "
        f"moved by {max(moved):.0e} with a tenth of the state; where the kernel goes on {min(control):.3g} to "
        f"{max(control):.3g} times as high"
    )
    return measured, max(errors) < 1e-6 and max(moved) < 1e-3 and min(control) > 1.05
