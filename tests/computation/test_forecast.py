"""Forecasts are polynomials through computed values: exact where they should be, and where published ones are not."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import KroghInterpolator

from termwise.computation import adams_bashforth_reuse_weights, adams_bashforth_weights, forecast, forecast_terms
from termwise.computation.forecast import FORMS, damped
from termwise.computation.history import History

nodes = st.lists(st.floats(-3, 3), min_size=1, max_size=5, unique=True).filter(
    lambda u: all(abs(a - b) > 0.1 for a, b in itertools.combinations(u, 2))
)


@given(nodes, st.floats(-4, 4), st.integers(0, 2**31))
@settings(max_examples=80, deadline=None)
def test_newton_continues_polynomials_on_any_spacing(u, at, seed):
    coefficients = np.random.default_rng(seed).normal(size=len(u))
    values = [torch.tensor(np.polyval(coefficients, x)) for x in u]
    made = forecast(values, u, at)
    size = made.gain * max(abs(v) for v in values) + 1
    assert abs(made.value - np.polyval(coefficients, at)) <= 1e-10 * size


@given(nodes, st.floats(-4, 4))
@settings(max_examples=80, deadline=None)
def test_newton_agrees_with_another_interpolation_order_by_order(u, at):
    values = np.cos(np.array(u))
    sums = np.cumsum(forecast_terms(u, at) @ values)
    for order, made in enumerate(sums):
        twin = KroghInterpolator(u[: order + 1], values[: order + 1])(at)
        gain = np.abs(forecast_terms(u[: order + 1], at).sum(0)).sum()
        assert made == pytest.approx(twin, abs=1e-9 * (1 + gain))


@pytest.mark.parametrize("form", [f for f in FORMS if f != "least_squares"])
def test_orders_0_and_1_continue_constants_and_lines(form):
    u, at = [5.0, 2.0], 8.0
    terms = forecast_terms(u, at, form)
    assert terms[0].tolist() == [1.0, 0.0]
    half = 0.5 if form == "hermite" else 1.0  # sigma H_1(sigma x) = 2 sigma^2 x
    assert terms[1].tolist() == pytest.approx([half, -half])


def test_published_terms_are_differences_of_differences():
    f, u, at = [7.0, 1.0, 4.0], [6.0, 3.0, 1.0], 8.0  # newest first, spacing 3 and 2
    first, before = (7 - 1) / 3, (1 - 4) / 2
    second = (first - before) / 3  # over the newest spacing alone
    terms = forecast_terms(u, at, "published") @ np.array(f)
    assert terms.tolist() == pytest.approx([7, first * 2, second * 2**2 / 2])
    hermite = forecast_terms(u, at, "hermite") @ np.array(f)
    assert hermite.tolist() == pytest.approx([7, first * 0.5 * 2, second * 0.25 * (4 * (0.5 * 2) ** 2 - 2) / 2])


def test_published_parabola_is_wrong_and_newton_is_not():
    u = [4.0, 3.0, 2.0]
    values = [torch.tensor(x**2) for x in u]
    assert forecast(values, u, 5.0).value.item() == pytest.approx(25.0)
    assert abs(forecast(values, u, 5.0, form="published").value.item() - 25.0) == pytest.approx(1.0)  # half the second difference


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_least_squares_is_a_fit_of_half_the_degree(k):
    u, at = np.array([9.0, 7.5, 7.0, 4.0, 1.0])[:k], 11.0
    values = np.sin(u)
    terms = forecast_terms(u, at, "least_squares") @ values
    for degree, made in enumerate(np.cumsum(terms)):
        assert made == pytest.approx(np.polyval(np.polyfit(u, values, degree), at))
    assert len(terms) == k // 2 + 1


@pytest.mark.parametrize(
    ("form", "order", "slope"), [("newton", m, m + 1) for m in range(5)] + [("published", m, min(m + 1, 2)) for m in range(5)]
)
def test_order_of_the_error(form, order, slope):
    def error(d):
        u = [-j * d for j in range(order + 1)]
        return abs(
            forecast([torch.tensor(math.exp(x), dtype=torch.float64) for x in u], u, 0.75 * d, form=form).value.item()
            - math.exp(0.75 * d)
        )

    assert math.log2(error(0.02) / error(0.01)) == pytest.approx(slope, abs=0.2)


def test_parts_and_remainder_make_the_truth():
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made = forecast([x, x.sin(), x.cos()], [3.0, 2.0, 0.5], 4.0)
    truth = x.exp()
    known = made.measured(truth)
    assert list(known.parts) == ["order 0", "order 1", "order 2"]
    assert torch.allclose(known.total() + known.remainder, truth)
    assert torch.allclose(known.total(), made.value)
    assert torch.allclose(made.value, made.weights[0] * x + made.weights[1] * x.sin() + made.weights[2] * x.cos())
    assert made.estimate == pytest.approx((made.parts["order 2"].norm() / made.value.norm()).item())
    assert made.gain == pytest.approx(sum(map(abs, made.weights)))


def test_gain_of_even_and_uneven_anchors():
    def gain(u, at):
        return forecast([torch.zeros(()) for _ in u], u, at).gain

    assert [round(gain([-float(j) for j in range(k)], 0.75), 1) for k in (2, 3, 4, 5)] == [2.5, 5.1, 9.9, 19.0]
    assert [round(gain(u, 8.0)) for u in ([5.0, 2.0], [5.0, 2.0, 1.0], [5.0, 2.0, 1.0, 0.0])] == [3, 15, 82]


def test_damping_leaves_the_first_two_terms():
    terms = forecast_terms([3.0, 2.0, 1.0, 0.0], 4.0)
    assert np.allclose(damped(terms, 0.25)[:2], terms[:2])
    assert np.allclose(damped(terms, 0.25)[2:], terms[2:] / 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: forecast_terms([1.0, 1.0], 2.0), "must not repeat"),
        (lambda: forecast_terms([1.0, math.nan], 2.0), "finite nodes"),
        (lambda: forecast_terms([1.0], 2.0, "spline"), "choose one of newton"),
        (lambda: forecast([torch.zeros(2)], [1.0, 0.0], 2.0), "one value for each node"),
        (lambda: forecast([torch.zeros(2), torch.zeros(3)], [1.0, 0.0], 2.0), "differ in shape"),
        (lambda: forecast([torch.zeros(2)], [1.0], 2.0, damping=2.0), "damping is a number"),
        (lambda: adams_bashforth_weights(0), "at least 1"),
        (lambda: adams_bashforth_reuse_weights(-1), "at least 1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 6])
def test_adams_bashforth(k):
    reuse, rule = adams_bashforth_reuse_weights(k), adams_bashforth_weights(k)
    assert reuse.sum().item() == pytest.approx(1, abs=1e-12)
    assert rule.sum().item() == pytest.approx(1, abs=1e-12)
    u = [-float(j) for j in range(k)]
    assert np.allclose(forecast_terms(u, 1.0).sum(0), reuse, atol=1e-12)
    for degree in range(k):  # the rule integrates, the reuse continues, polynomials of degree below k
        values = torch.tensor([x**degree for x in u], dtype=torch.float64)
        assert (rule @ values).item() == pytest.approx(1 / (degree + 1), abs=1e-10)
        assert (reuse @ values).item() == pytest.approx(1.0, abs=1e-10)
    known = {2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}
    if k in known:
        assert rule.tolist() == pytest.approx(known[k])


# -- what is kept of a feature ------------------------------------------------------------------------------------------


def test_history_is_a_ring_of_copies():
    history, kept = History(3), []
    for i in range(7):
        value = torch.full((2, 4), float(i * i), dtype=torch.float64)
        history.append(value, float(i))
        kept.insert(0, value.clone())
        value.zero_()  # by its owner
        u = history.nodes
        assert u == [float(i - j) for j in range(min(i + 1, 3))]
        weights = forecast_terms(u, i + 1.0).sum(0)
        twin = sum(w * k for w, k in zip(weights, kept, strict=False))
        assert torch.allclose(history.value(weights), twin)
    assert history.bytes == 3 * 8 * 8


def test_history_of_trees_keeps_what_is_no_feature():
    history = History(2)
    for i in (1.0, 2.0):
        history.append((None, {"a": torch.full((1, 2), i)}, torch.tensor([int(i)]), "text"), i)
    nothing, features, whole, text = history.value([2.0, -1.0])
    assert nothing is None
    assert text == "text"
    assert whole.item() == 2
    assert features["a"].tolist() == [[3.0, 3.0]]


def test_history_begins_anew_with_another_shape():
    history = History(2)
    history.append(torch.zeros(1, 2), 0.0)
    assert history.fits(torch.ones(1, 2))
    assert not history.fits(torch.ones(2, 2))
    assert not history.fits((torch.ones(1, 2),))
    history.append(torch.ones(2, 2), 1.0)
    assert history.nodes == [1.0]
    assert history.value([1.0]).shape == (2, 2)


def test_half_precision_is_combined_in_single():
    history = History(3)
    truth = [torch.full((1, 50), 1 + i / 128, dtype=torch.bfloat16) for i in range(3)]
    for i, value in enumerate(truth):
        history.append(value, float(i))
    made = history.combine(forecast_terms(history.nodes, 6.0).sum(0))[0]
    assert made.dtype == torch.float32
    assert torch.allclose(made, torch.full((1, 50), 1 + 6 / 128))
    assert history.value([1.0, 0.0, 0.0]).dtype == torch.bfloat16
