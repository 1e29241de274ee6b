"""The allocator against all combinations, and against its own bound."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from termwise.weights.allocation import allocate
from termwise.weights.ladder import Curve


def instance(seed: int, layers: int, choices: int) -> dict[str, Curve]:
    rng = np.random.default_rng(seed)
    curves = {}
    for i in range(layers):
        costs = np.sort(rng.choice(np.arange(1, 60), choices, replace=False)).astype(float)
        errors = np.sort(rng.exponential(size=choices))[::-1].copy()
        errors[-1] = 0.0
        curves[f"l{i}"] = Curve(costs, errors)
    return curves


def best(curves: dict[str, Curve], budget: float, combine) -> float:
    """Every combination."""
    found = np.inf
    for picks in itertools.product(*(range(len(c.costs)) for c in curves.values())):
        chosen = list(zip(curves.values(), picks, strict=True))
        if sum(c.costs[i] for c, i in chosen) <= budget:
            found = min(found, combine(c.errors[i] for c, i in chosen))
    return found


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(2, 6), st.floats(0.3, 1.0))
def test_the_programme_is_exact(seed, layers, choices, share):
    curves = instance(seed, layers, choices)
    least, most = (sum(f(c.costs) for c in curves.values()) for f in (np.min, np.max))
    budget = least + share * (most - least)
    found = allocate(curves, budget)
    assert found.cost <= budget + 1e-9
    assert found.error == pytest.approx(best(curves, budget, sum), abs=1e-12)
    assert found.bound <= found.error + 1e-9
    assert found.cost == pytest.approx(sum(curves[n].costs[i] for n, i in found.choice.items()))
    assert found.error == pytest.approx(sum(curves[n].errors[i] for n, i in found.choice.items()))
    worst = allocate(curves, budget, objective="max")
    assert worst.error == pytest.approx(best(curves, budget, max), abs=1e-12)
    assert worst.cost <= budget + 1e-9


def test_the_programme_is_never_above_the_price():
    for seed in range(200):
        curves = instance(seed, 8, 8)
        budget = 8 * 25.0
        exact, priced = (allocate(curves, budget, method=m) for m in ("dp", "lagrange"))
        assert exact.error <= priced.error + 1e-12
        assert exact.bound <= exact.error + 1e-9
        assert max(exact.cost, priced.cost) <= budget
        assert priced.gap >= exact.gap - 1e-9
    spread = allocate(curves, budget, method="uniform")
    assert spread.cost <= budget
    assert spread.error >= exact.error


def test_costs_that_are_no_integers_keep_the_budget():
    rng = np.random.default_rng(0)
    curves = {f"{i}": Curve(np.sort(rng.uniform(0.1, 9, 40)), np.sort(rng.exponential(size=40))[::-1].copy()) for i in range(100)}
    found = allocate(curves, 300.0)
    assert found.cost <= 300
    assert found.gap <= 0.02 * found.error  # within two percent of what any choice can reach


def test_tied_layers_choose_alike():
    curves = instance(0, 4, 5)
    found = allocate(curves, 120.0, groups=[["l0", "l2"]])
    assert found.choice["l0"] == found.choice["l2"]
    assert found.error >= allocate(curves, 120.0).error


def test_bounds_are_kept():
    curves = instance(1, 3, 6)
    low = float(curves["l1"].costs[3])
    found = allocate(curves, 100.0, bounds={"l1": (low, np.inf)})
    assert curves["l1"].costs[found.choice["l1"]] >= low


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"budget": 1.0}, "below the cheapest choices of all layers"),
        ({"budget": -1.0}, "positive number"),
        ({"budget": float("nan")}, "positive number"),
        ({"budget": 100.0, "objective": "least"}, "'sum' or 'max'"),
        ({"budget": 100.0, "method": "greedy"}, "'dp', 'lagrange' or 'uniform'"),
        ({"budget": 100.0, "groups": [["l0", "x"]]}, "'x'"),
        ({"budget": 100.0, "groups": [["l0"], ["l0"]]}, "in two"),
        ({"budget": 100.0, "bounds": {"l0": (1e6, 1e7)}}, "no choice of l0"),
    ],
)
def test_what_makes_no_sense_is_refused(options, text):
    with pytest.raises(ValueError, match=text):
        allocate(instance(0, 3, 4), **options)
    with pytest.raises(ValueError, match="different length"):
        allocate({**instance(0, 2, 4), "z": Curve(np.ones(1), np.zeros(1))}, 500.0, groups=[["l0", "z"]])
    with pytest.raises(ValueError, match="finite"):
        Curve(np.array([1.0]), np.array([np.nan]))
    with pytest.raises(ValueError, match="one length"):
        Curve(np.ones(2), np.ones(3))
