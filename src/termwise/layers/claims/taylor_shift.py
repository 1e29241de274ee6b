"""What Nauen, Palacio and Dengel (2024) claim of TaylorShift: one function in two forms, their costs, the way to the softmax."""

from __future__ import annotations

import math
import time
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from termwise.core.claims import claim
from termwise.testing.cost import peak

from ..taylor_shift import crossover, taylor_shift_attention
from ..taylor_shift_expansion import taylor_shift_expansion

SEEDS = range(5)


def _heads(seed: int, length: int, d: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Random query, key and value of three heads."""
    g = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 3, length, d, generator=g, dtype=dtype)
    return q, k, v


def _off(found: Tensor, truth: Tensor) -> float:
    return ((found - truth).norm() / truth.norm()).item()


@claim(
    "taylor-shift",
    statement="the efficient form is the direct one: full attention between all tokens without a matrix of scores, causal too",
    published="full token-to-token interactions in linear time and space",
    exact=True,
    note="d = 8, 15, 32, 500 tokens, 5 seeds, float64; control: without the quadratic term (linear attention)",
)
def both_forms_are_one() -> tuple[str, bool]:
    worst, control = 0.0, math.inf
    for seed in SEEDS:
        for d in (8, 15, 32):
            q, k, v = _heads(seed, 500, d)
            for causal in (False, True):
                direct, efficient = (
                    taylor_shift_attention(q, k, v, 2.0, implementation=form, is_causal=causal)
                    for form in ("direct", "efficient")
                )
                worst = max(worst, _off(efficient, direct))
                weights = 1 + 2 * F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT
                weights = weights.tril() if causal else weights
                control = min(control, _off(weights / weights.sum(-1, keepdim=True) @ v, direct))
    return f"off by {worst:.0e} at most; without the quadratic term by {control:.2g} at least", worst < 1e-12 < 1e-2 < control


@claim(
    "taylor-shift",
    statement="its weights are a distribution: 1/2 or more before they are normalised, and rows sum to 1, at any temperature",
    published="the Taylor softmax of an even order is a probability distribution",
    exact=True,
    note="efficient form on unit vectors as values, temperatures up to 20, 5 seeds; control: order 1, whose weights fall below 0",
)
def weights_are_a_distribution() -> tuple[str, bool]:
    sums, least, control = 0.0, math.inf, math.inf
    for seed in SEEDS:
        q, k, _ = _heads(seed, 200, 8)
        for tau in (0.1, 1.0, 20.0):
            weights = taylor_shift_attention(q, k, torch.eye(200, dtype=q.dtype), tau, implementation="efficient")
            sums = max(sums, float((weights.sum(-1) - 1).abs().max()))
            s = tau * F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT
            least = min(least, float((weights * (1 + s + s**2 / 2).sum(-1, keepdim=True)).min()))
            control = min(control, float((1 + s).min()))
    measured = f"sums off by {sums:.0e}; least weight {least:.4f} before it is normalised; of order 1 {control:.1f}"
    return measured, sums < 1e-12 and least >= 0.5 - 1e-9 and control < 0


@claim(
    "taylor-shift",
    statement="queries and keys of length 1: weights before the sum are off by tau^3 e^tau / 6 at most, outputs by what follows",
    published="a Taylor approximation of the softmax; the bound is Taylor's theorem",
    note="e^s against T(s), and the bound on outputs, 5 seeds, temperatures 0.5, 1, 2, against attention by torch; "
    "control: vectors of their own length, at which the same figure is exceeded",
)
def the_remainder_is_bounded() -> tuple[str, bool]:
    weights: dict[float, list[float]] = {0.5: [], 1.0: [], 2.0: []}
    worst, outputs, control = 0.0, 0.0, math.inf
    errors: dict[float, list[float]] = {tau: [] for tau in weights}
    for seed in SEEDS:
        q, k, v = _heads(seed, 300, 16)
        for tau, found in weights.items():
            e = taylor_shift_expansion(q, k, v, tau)
            softmax = F.scaled_dot_product_attention(F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, scale=tau)
            remainder = softmax - taylor_shift_attention(q, k, v, tau)
            bound = tau**3 * math.exp(tau) / 6
            found.append(float(e.weight_error.max()) / bound)
            outputs = max(outputs, float((remainder.norm(dim=-1) / e.bound()).max()))
            worst = max(worst, _off(e.remainder, remainder))
            errors[tau].append(e.error())
            s = tau * q @ k.mT
            control = min(control, float((s.exp() - (1 + s + s**2 / 2)).abs().max()) / bound)
    measured = (
        f"weights {max(max(f) for f in weights.values()):.2f} of the bound, outputs {outputs:.3f} of theirs; outputs off by "
        + ", ".join(f"{median(errors[tau]):.1%} at {tau:g}" for tau in errors)
        + f"; vectors of their own length {control:.0f} times the bound"
    )
    holds = max(max(f) for f in weights.values()) <= 1 and outputs <= 1 < control
    return measured, holds and worst < 1e-9


@claim(
    "taylor-shift",
    statement="operations of the efficient form grow as the length, of the direct form as its square, and seconds follow",
    published="O(N d^3) against O(N^2 d); inference is faster from about 1,700 tokens on (d near 40)",
    note="products counted by torch between 1,024 and 4,096 tokens, d = 16, three heads; seconds of the processor at 4,096, "
    "least of three, float32, one core in place of a GPU; that the direct form has the lead at 16 tokens is the control",
)
def time_is_linear() -> tuple[str, bool]:
    counts, seconds = {}, {}
    with torch.no_grad():
        for length in (16, 1024, 4096):
            q, k, v = _heads(0, length, 16, torch.float32)
            for form in ("direct", "efficient"):
                with FlopCounterMode(display=False) as counter:
                    taylor_shift_attention(q, k, v, implementation=form)
                counts[form, length] = counter.get_total_flops()
                seconds[form, length] = min(_seconds(q, k, v, form) for _ in range(3))
    exponents = {form: math.log(counts[form, 4096] / counts[form, 1024], 4) for form in ("direct", "efficient")}
    ratios = {length: seconds["direct", length] / seconds["efficient", length] for length in (16, 4096)}
    measured = (
        ", ".join(f"{form} N^{n:.3f}" for form, n in exponents.items())
        + f"; direct / efficient {ratios[4096]:.0f} in seconds at 4,096 tokens, {ratios[16]:.2f} at 16"
    )
    linear = abs(exponents["efficient"] - 1) < 0.01 and abs(exponents["direct"] - 2) < 0.01
    return measured, linear and ratios[4096] > 4 and ratios[16] < 1


def _seconds(q: Tensor, k: Tensor, v: Tensor, form: str) -> float:
    """Of the processor, which other programs do not add to."""
    started = time.process_time()
    for _ in range(max(1, 1024 // q.shape[-2])):
        taylor_shift_attention(q, k, v, implementation=form)
    return time.process_time() - started


@claim(
    "taylor-shift",
    statement="the efficient form holds less than the direct one at N_1 tokens, and less than a quarter at eight times that",
    published="memory efficiency from 800 tokens on (d near 40); N_1 agrees with measurement",
    note="bytes of the allocator in a forward pass, float32, d = 16, one head; ours holds 128 rows of pairs at a time, and half "
    "of them, so that it is ahead before N_1; control: at a fifth of N_1 it holds more",
)
def memory_crosses() -> tuple[str, bool]:
    analytic, ratios = crossover(16).memory, []
    for factor in (0.2, 1, 8):
        q, k, v = (x[:1] for x in _heads(0, int(factor * analytic), 16, torch.float32))
        with torch.no_grad():
            efficient, direct = (
                peak(lambda f=f: taylor_shift_attention(q, k, v, implementation=f)) for f in ("efficient", "direct")
            )
        ratios.append(efficient / direct)
    before, at, beyond = ratios
    measured = (
        f"{at:.2f} of the direct form's bytes at N_1 = {analytic:.0f}, {beyond:.3f} at eight times that, {before:.1f} at a fifth"
    )
    return measured, before > 1 > at and beyond < 0.25
