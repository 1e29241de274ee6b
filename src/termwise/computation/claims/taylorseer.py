"""What Liu et al. (2025) claim of TaylorSeer, measured on polynomials and smooth curves, and on digits drawn here."""

from __future__ import annotations

from statistics import median

import numpy as np
import torch

from termwise.core.claims import claim

from ..forecast import forecast
from ..taylorseer import TaylorSeer
from .curves import oscillations, slope
from .digits import SEEDS, drawn, error, run

ORDERS = range(5)
FORMS = ("newton", "published")
DISTANCES = (0.1, 0.05, 0.025, 0.0125)


@claim(
    "taylorseer",
    statement="Newton's divided differences continue polynomials of their degree exactly on any spacing; the published series, "
    "from degree 2 on, does not",
    published="features are forecast by a Taylor series whose derivatives are finite differences, of any order",
    exact=True,
    note="degrees 0 to 4 through as many values and one, spacings uniform in [0.2, 1], 200 draws each, float64, relative to the "
    "largest value times the sum of |weights|; control: the published form, its median",
)
def polynomials_are_continued() -> tuple[str, bool]:
    worst, published = 0.0, {}
    for degree in ORDERS:
        missed = []
        for seed in range(200):
            rng = np.random.default_rng(seed)
            u = -np.cumsum(rng.uniform(0.2, 1, degree + 1))
            curve = np.polynomial.Polynomial(rng.normal(size=degree + 1))
            for form in FORMS:
                made = forecast([torch.tensor(v, dtype=torch.float64) for v in curve(u)], u.tolist(), 0.0, form=form)
                off = abs(made.value.item() - curve(0.0)) / (made.gain * abs(curve(u)).max())
                if form == "newton":
                    worst = max(worst, off)
                else:
                    missed.append(off)
        published[degree] = median(missed)
    text = ", ".join(f"{d}: {e:.0e}" for d, e in published.items())
    holds = worst < 1e-10 and min(published[d] for d in (2, 3, 4)) > 1e-3 and max(published[d] for d in (0, 1)) < 1e-10
    return f"Newton off by {worst:.0e} at most; the published form, by degree, {text}", holds


@claim(
    "taylorseer",
    statement="the error of a forecast of order m falls as the (m + 1)-th power of the distance of the computed steps",
    published="a Taylor series of order m, its derivatives replaced by finite differences",
    note="sums of ten random oscillations, forecast 3/4 of a distance ahead from even spacing, distances 0.1 to 0.0125, slope of "
    "log error against log distance, 5 seeds, medians; control: Newton's form has the slopes m + 1 to 0.3",
    contradicted="so it is for Newton's form; the published weights x^i / i! lack the rising factorials of differences taken "
    "backward, and its slopes stay at 2 from order 2 on",
)
def higher_orders_have_steeper_errors() -> tuple[str, bool]:
    slopes = {form: [median(_slope(form, m, seed) for seed in range(5)) for m in ORDERS] for form in FORMS}
    measured = "; ".join(f"{form} {', '.join(f'{s:.2f}' for s in found)}" for form, found in slopes.items())
    if not all(abs(s - m - 1) < 0.3 for m, s in enumerate(slopes["newton"])):
        raise AssertionError(f"the control fails: Newton's slopes are {slopes['newton']}")
    return f"orders 0 to 4: {measured}", all(abs(s - m - 1) < 0.3 for m, s in enumerate(slopes["published"]))


def _slope(form: str, order: int, seed: int) -> float:
    curve, errors = oscillations(seed), []
    for d in DISTANCES:
        u = [-j * d for j in range(order + 1)]
        errors.append((forecast([curve(x) for x in u], u, 0.75 * d, form=form).value - curve(0.75 * d)).norm().item())
    return slope(DISTANCES, errors)


@claim(
    "taylorseer",
    statement="of 50 steps, intervals 3, 4, 5, 6 compute 18, 14, 11, 10, and a computed step costs all blocks, another none",
    published="2.77, 3.57, 4.53 and 5 times fewer operations",
    exact=True,
    note="calls of every block's attention counted on the digits' transformer, two first steps, one seed; control: interval 1 "
    "computes all and changes no bit",
)
def steps_are_counted() -> tuple[str, bool]:
    found = [run(TaylorSeer(interval=n, first_steps=2, sites="modules"), SEEDS[0])[1] for n in (3, 4, 5, 6)]
    same = torch.equal(run(TaylorSeer(interval=1), SEEDS[0])[0], drawn(SEEDS[0]))
    counts = [(report.evaluations, report.cost) for report in found]
    measured = (
        f"{', '.join(str(n) for n, _ in counts)} ({', '.join(f'{50 / n:.2f}x' for n, _ in counts)}); interval 1 the same: {same}"
    )
    return measured, same and counts == [(18, 18.0), (14, 14.0), (11, 11.0), (10, 10.0)]


@claim(
    "taylorseer",
    statement="forecasts of order 1 are nearer to the 50 steps than reuse and DDIM of as many steps (0.7 times the error), and "
    "with 11 steps computed, 4.5 times fewer, nearer than reuse with 18",
    published="nearly lossless at 4.5 times fewer operations, where reuse loses",
    note="attention and feed-forward outputs of 12 blocks, digits' transformer, DDIM-50 without clipping as truth, 10 pictures, "
    "relative L2, median of pictures, 3 seeds, in each; control: reuse",
)
def forecasts_beat_reuse_and_fewer_steps() -> tuple[str, bool]:
    errors: dict[str, list[float]] = {}
    for seed in SEEDS:
        truth = drawn(seed)
        for interval, evaluations in ((4, 14), (5, 11)):
            for order in (0, 1):
                pictures, report = run(TaylorSeer(interval=interval, order=order, first_steps=2), seed)
                assert report.evaluations == evaluations
                errors.setdefault(f"order {order}, {evaluations}", []).append(error(pictures, truth))
            errors.setdefault(f"DDIM, {evaluations}", []).append(error(drawn(seed, steps=evaluations), truth))
        errors.setdefault("order 0, 18", []).append(error(run(TaylorSeer(interval=3, order=0, first_steps=2), seed)[0], truth))
    holds = all(
        line < 0.7 * errors[f"{other}, {n}"][i]
        for n in (14, 11)
        for i, line in enumerate(errors[f"order 1, {n}"])
        for other in ("order 0", "DDIM")
    ) and all(line < reuse for line, reuse in zip(errors["order 1, 11"], errors["order 0, 18"], strict=True))
    return "; ".join(f"{name}: {median(e):.4f}" for name, e in errors.items()), holds


@claim(
    "taylorseer",
    statement="the higher the order, up to 4, the nearer is the result",
    published="order 4 is recommended: higher orders predict better",
    note="the model's output and the modules of its blocks, interval 4 (14 of 50 steps), otherwise as above; the control, order "
    "1 against reuse, is nearer",
    contradicted="in the published form orders 2 to 4 are within 10 % of each other, a tenth nearer than order 1; in Newton's, "
    "order 2 is the best and order 4 is further than order 1, ten times as far where it is the output that is forecast",
)
def higher_orders_are_better() -> tuple[str, bool]:
    errors: dict[str, list[float]] = {}
    for sites in ("output", "modules"):
        for form, orders in (("published", (0, 1, 2, 4)), ("newton", (2, 4))):
            for order in orders:
                method = TaylorSeer(interval=4, order=order, form=form, sites=sites, first_steps=2)
                found = [error(run(method, seed)[0], drawn(seed)) for seed in SEEDS]
                errors[f"{sites}, {form} {order}"] = found
    middle = {name: median(found) for name, found in errors.items()}
    for sites in ("output", "modules"):
        if not middle[f"{sites}, published 1"] < middle[f"{sites}, published 0"]:
            raise AssertionError(f"the control fails: {middle}")
    holds = all(
        middle[f"{sites}, {form} 4"] < 0.95 * middle[f"{sites}, {form} 2"] for sites in ("output", "modules") for form in FORMS
    )
    return "; ".join(f"{name}: {m:.3f}" for name, m in middle.items()), holds
