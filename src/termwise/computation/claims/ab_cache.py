"""What Yu et al. (2025) claim of AB-Cache, measured on polynomials and smooth curves, and on digits drawn here."""

from __future__ import annotations

from statistics import median

import numpy as np

from termwise.core.claims import claim

from ..ab_cache import ABCache, adams_bashforth_reuse_weights, adams_bashforth_weights
from .curves import oscillations, slope
from .digits import SEEDS, drawn, error, run

ORDERS = (1, 2, 3, 4)
DISTANCES = (0.1, 0.05, 0.025, 0.0125)


@claim(
    "ab-cache",
    statement="binomial weights sum to 1 and continue polynomials of degree k - 1; those of Adams and Bashforth integrate them",
    published="an Adams-Bashforth step of order k and an Euler step agree where outputs are related by binomial coefficients",
    exact=True,
    note="k = 1 to 6, random polynomials, 20 seeds, float64, relative to the largest value times the sum of |weights|; control: "
    "degree k is missed by both",
)
def weights_continue_and_integrate() -> tuple[str, bool]:
    worst, control = 0.0, np.inf
    for k in range(1, 7):
        reuse, rule = adams_bashforth_reuse_weights(k).numpy(), adams_bashforth_weights(k).numpy()
        worst = max(worst, abs(reuse.sum() - 1), abs(rule.sum() - 1))
        u = -np.arange(k, dtype=np.float64)
        for seed in range(20):
            for degree in (k - 1, k):
                curve = np.polynomial.Polynomial(np.random.default_rng(seed).normal(size=degree + 1))
                area = curve.integ()
                wanted = ((reuse, curve(1.0)), (rule, area(1.0) - area(0.0)))
                off = [abs(w @ curve(u) - truth) / (abs(w).sum() * max(abs(curve(u)).max(), abs(truth))) for w, truth in wanted]
                worst, control = (max(worst, *off), control) if degree < k else (worst, min(control, *off))
    return f"off by {worst:.0e} at most; control {control:.0e} at least", worst < 1e-12 < 1e-6 < control


@claim(
    "ab-cache",
    statement="forecast from k computed outputs, the next one is off by O(h^k)",
    published="truncation error bounded by O(h^k)",
    note="sums of ten random oscillations, steps of 0.1 to 0.0125, k = 1 to 4, slope of log error against log step, 5 seeds, "
    "medians, to 0.2; control: weights of k - 1 have another slope",
)
def errors_fall_with_the_order() -> tuple[str, bool]:
    slopes = [median(_slope(k, seed) for seed in range(5)) for k in ORDERS]
    holds = all(abs(s - k) < 0.2 for s, k in zip(slopes, ORDERS, strict=True))
    apart = all(abs(before - k) > 0.2 for before, k in zip(slopes, ORDERS[1:], strict=False))
    return "slopes " + ", ".join(f"{s:.2f}" for s in slopes), holds and apart


def _slope(k: int, seed: int) -> float:
    curve, weights = oscillations(seed), adams_bashforth_reuse_weights(k).tolist()
    errors = [(sum(w * curve(-j * h) for j, w in enumerate(weights)) - curve(h)).norm().item() for h in DISTANCES]
    return slope(DISTANCES, errors)


@claim(
    "ab-cache",
    statement="every second step computed, k = 2 is at less than 0.7 times the error of reuse, with 26 of 50 steps",
    published="quality kept where reuse loses it",
    note="output of the digits' transformer, DDIM-50 without clipping as truth, 10 pictures, relative L2, median of pictures, "
    "3 seeds, in each; every third step (18) too; control: DDIM of as many steps is no nearer than k = 2",
)
def lines_beat_reuse() -> tuple[str, bool]:
    found: dict[str, list[float]] = {}
    for seed in SEEDS:
        for interval, evaluations in ((2, 26), (3, 18)):
            for order in (0, 1):
                pictures, report = run(ABCache(interval=interval, order=order), seed)
                assert report.evaluations == evaluations
                found.setdefault(f"k = {order + 1}, {evaluations}", []).append(error(pictures, drawn(seed)))
            found.setdefault(f"DDIM, {evaluations}", []).append(error(drawn(seed, steps=evaluations), drawn(seed)))
    ratios = [a / b for n in (26, 18) for a, b in zip(found[f"k = 2, {n}"], found[f"k = 1, {n}"], strict=True)]
    nearer = all(a < b for n in (26, 18) for a, b in zip(found[f"k = 2, {n}"], found[f"DDIM, {n}"], strict=True))
    measured = "; ".join(f"{name}: {median(e):.4f}" for name, e in found.items())
    return f"{measured}; ratios {min(ratios):.2f} to {max(ratios):.2f}", max(ratios) < 0.7 and nearer


@claim(
    "ab-cache",
    statement="where forecasts are among the last k outputs, k = 3 at every third step still keeps the result",
    published="the next output from the last k ones; whether these were computed is not said",
    note="as above, 18 of 50 steps; control: k = 3 from computed outputs is nearer than reuse",
    contradicted="forecasts fed back diverge, to over a million times the error of reuse: a computed output less a stale "
    "forecast is taken for a slope; this library keeps computed outputs alone, at their true distances",
)
def forecasts_may_be_fed_back() -> tuple[str, bool]:
    def found(order: int, history: str) -> list[float]:
        method = ABCache(interval=3, order=order, history=history)
        return [error(run(method, seed)[0], drawn(seed)) for seed in SEEDS]

    reuse, computed, queue = found(0, "computed"), found(2, "computed"), found(2, "queue")
    factors = [q / r for q, r in zip(queue, reuse, strict=True)]
    if not max(computed) < min(reuse):
        raise AssertionError(f"the control fails: computed {computed}, reuse {reuse}")
    measured = (
        f"queue {median(queue):.1e}, {min(factors):.0e} times reuse ({median(reuse):.4f}) at least; from computed outputs "
        f"{median(computed):.4f}"
    )
    return measured, min(factors) < 1e6
