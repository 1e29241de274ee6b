"""When to compute: budgets on uneven grids, tolerances, and plans that are made on one run and followed on others."""

import math

import pytest
import torch

import termwise as tw
from termwise.computation import ABCache, Adaptive
from termwise.computation.adaptive import polynomial_error
from termwise.computation.schedule import Now

GRIDS = {
    "late": torch.linspace(1, 0.1, 24, dtype=torch.float64) ** 3,
    "early": 1.1 - torch.linspace(0.1, 1, 24, dtype=torch.float64) ** 3,
    "rising": torch.linspace(0.1, 1, 24, dtype=torch.float64) ** 2,
    "random": torch.rand(24, generator=torch.Generator().manual_seed(0), dtype=torch.float64).sort(descending=True).values,
}
X = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def velocity(x, t):
    """Smooth, and curved in time most near 1."""
    return torch.sin(3 * t**3 + torch.arange(5)) * torch.ones_like(x) - 0.3 * x


def solved(f, grid):
    """Euler's method."""
    x = X
    for t, after in zip(grid, [*grid[1:], grid[-1]], strict=True):
        x = x + (after - t) * f(x, t)
    return x


@pytest.mark.parametrize("variable", ["step", "timestep"])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize(("budget", "last"), [(5, 0), (9, 2), (24, 0)])
def test_a_budget_is_spent_on_any_grid(grid, variable, budget, last):
    fast = tw.accelerate(velocity, Adaptive(budget=budget, variable=variable, last_steps=last, max_skip=24), scheduler=grid)
    solved(fast, grid)
    assert fast.report.evaluations == budget
    steps = [s.computed for s in fast.report.steps]
    assert all(steps[:3])
    assert all(steps[24 - last :])


def test_a_budget_is_spent_better_than_evenly():
    grid = torch.linspace(1, 0.05, 40, dtype=torch.float64)
    truth, errors = solved(velocity, grid), []
    for method in (Adaptive(budget=14, variable="timestep"), ABCache(interval=3, variable="timestep")):
        fast = tw.accelerate(velocity, method, scheduler=grid)
        errors.append((solved(fast, grid) - truth).norm().item())
        assert fast.report.evaluations == 14
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_a_tolerance_is_kept_on_any_grid(grid):
    truth, before = solved(velocity, grid), 25
    for tolerance in (0.0, 1e-4, 1e-2):
        fast = tw.accelerate(velocity, Adaptive(tolerance=tolerance, variable="timestep"), scheduler=grid)
        out = solved(fast, grid)
        assert fast.report.estimate <= tolerance
        assert (out - truth).norm() / truth.norm() <= 5 * tolerance
        assert fast.report.evaluations < before or tolerance == 1e-2
        before = fast.report.evaluations


def test_what_bends_nowhere_is_hardly_computed():
    grid = torch.linspace(1, 0.05, 40, dtype=torch.float64)
    fast = tw.accelerate(
        lambda x, t: t * torch.ones_like(x), Adaptive(tolerance=1e-6, max_skip=40, variable="timestep"), scheduler=grid
    )
    out = solved(fast, grid)
    assert fast.report.evaluations <= 4
    assert torch.allclose(out, solved(lambda x, t: t * torch.ones_like(x), grid))


def test_the_order_is_that_of_the_least_error():
    assert polynomial_error([2.0, 3.0, 5.0], [0.0, 1.0, 2.0], -1.0) == (2.0, 0)  # 2, 3 * 2, 5 * 2 * 3
    assert polynomial_error([2.0, 0.5, 5.0], [0.0, 1.0, 2.0], -1.0) == (1.0, 1)
    assert polynomial_error([2.0, 0.5, 0.1], [0.0, 1.0, 2.0], -1.0) == (pytest.approx(0.6), 2)
    assert polynomial_error([2.0, 0.5, 0.1], [0.0, 1.0], -1.0) == (1.0, 1)  # two values carry no parabola
    assert polynomial_error([], [0.0], -1.0) == (math.inf, 0)


@pytest.mark.parametrize(("budget", "skip"), [(2, 8), (3, 8), (5, 8), (5, 2)])
def test_theta_is_the_least_that_keeps_to_the_budget(budget, skip):
    """Among all values of theta, tried on a fine grid."""
    ahead = [float(i) for i in range(3, 17)]
    reach = [1.0 + math.sin(i) ** 2 for i in range(14)]

    def error(nodes, k):
        return abs(ahead[k] - nodes[0]) * reach[k]

    now = Now(3, 14, 0, 3, [2.0, 1.0, 0.0], ahead, error, 0.0, 0.0)
    control = Adaptive(budget=budget + 3, max_skip=skip).begin()
    theta = control.find(now, budget)
    computed, _ = control.walk(now, theta)
    assert computed <= budget or not any(control.walk(now, t)[0] <= budget for t in (0.1 * i for i in range(5000)))
    if computed <= budget:
        assert control.walk(now, 0.999 * theta)[0] > budget


def test_walk_is_what_the_rule_does():
    """Simulated step by step where the errors are as they were thought."""
    ahead, reach = [float(i) for i in range(3, 23)], [1 + (i % 5) / 3 for i in range(20)]
    method = Adaptive(tolerance=30.0, max_skip=4, last_steps=1, order=1)
    control = method.begin()

    def error(nodes, k, start=0):
        return abs(ahead[start + k] - nodes[0]) * reach[start + k]

    first = Now(3, 20, 0, 3, [2.0, 1.0], ahead, error, 0.0, 0.0)
    theta = control.find(first, None)
    computed, total = control.walk(first, theta)
    assert total <= 30
    assert control.walk(first, 1.01 * theta)[1] > 30 or control.walk(first, 1.01 * theta)[0] == computed
    nodes, since, segment, count, spent = [2.0, 1.0], 0, 0.0, 0, 0.0
    for i, u in enumerate(ahead):
        now = Now(3 + i, 20 - i, since, 3, nodes, ahead[i:], lambda n, k, i=i: error(n, k, i), segment, spent)
        control.theta, now_decides = theta, method.at_an_end(now)
        wrong = error(nodes, i)
        if now_decides or now.since >= method.max_skip or not segment + wrong <= theta:
            nodes, since, segment, count = [u, *nodes], 0, 0.0, count + 1
        else:
            since, segment, spent = since + 1, segment + wrong, spent + wrong
    assert (count, spent) == (computed, pytest.approx(total))


class Velocity(torch.nn.Module):
    """The same as a module."""

    def forward(self, x, t):
        return velocity(x, t)


@pytest.mark.parametrize("budget", [6, 10])
def test_a_plan_of_a_module(budget):
    model, grid = Velocity().eval(), torch.linspace(1, 0.05, 30, dtype=torch.float64)
    truth = solved(model, grid)
    fast = tw.accelerate(model, Adaptive(budget=budget, variable="timestep", first_steps=2), scheduler=grid)
    assert torch.equal(fast.calibrate(lambda f: solved(f, grid)), truth)
    assert fast.report.evaluations == 30
    errors = []
    for _ in range(2):
        with fast:
            errors.append(((solved(model, grid) - truth).norm() / truth.norm()).item())
        assert tuple(s.index for s in fast.report.steps if s.computed) == fast._plan.anchors
        assert fast.report.evaluations == budget
    assert errors[0] == errors[1]
    assert fast.report.estimate == pytest.approx(fast._plan.total)
    even = [round(i * 29 / (budget - 1)) for i in range(budget)]
    assert errors[0] < 0.2
    assert list(fast._plan.anchors) != even
    tight = tw.accelerate(model, Adaptive(tolerance=fast._plan.total, variable="timestep", first_steps=2), scheduler=grid)
    tight.calibrate(lambda f: solved(f, grid))
    assert len(tight._plan.anchors) <= budget
    assert tight._plan.total <= fast._plan.total


def test_a_plan_of_a_function_is_that_of_a_module():
    grid, plans = torch.linspace(1, 0.05, 30, dtype=torch.float64), []
    for f in (velocity, Velocity().eval()):
        fast = tw.accelerate(f, Adaptive(budget=8, variable="timestep"), scheduler=grid)
        assert torch.equal(fast.calibrate(lambda f: solved(f, grid)), solved(velocity, grid))
        plans.append(fast._plan)
    assert plans[0] == plans[1]
    fast = tw.accelerate(velocity, Adaptive(budget=8, variable="timestep"), scheduler=grid)
    fast.calibrate(lambda f: solved(f, grid))
    solved(fast, grid)
    assert tuple(s.index for s in fast.report.steps if s.computed) == plans[0].anchors


def test_a_calibration_that_fails_leaves_nothing():
    model, grid = Velocity().eval(), torch.linspace(1, 0.05, 30, dtype=torch.float64)
    fast = tw.accelerate(model, Adaptive(budget=8, variable="timestep"), scheduler=grid)

    def stops(f):
        f(X, grid[0])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fast.calibrate(stops)
    with fast:
        solved(model, grid)
    assert fast.report.evaluations == 8
    assert "forward" not in model.__dict__
    with pytest.raises(TypeError, match="adaptive schedule"):
        tw.accelerate(model, tw.computation.ABCache()).calibrate(lambda f: solved(f, grid))


def test_a_tolerance_that_nothing_keeps():
    model, grid = Velocity().eval(), torch.linspace(1, 0.05, 30, dtype=torch.float64)
    fast = tw.accelerate(model, Adaptive(budget=29, max_skip=1, last_steps=25, variable="timestep"), scheduler=grid)
    fast.calibrate(lambda f: solved(f, grid))
    assert len(fast._plan.anchors) == 29
    few = tw.accelerate(model, Adaptive(budget=4, max_skip=2, variable="timestep"), scheduler=grid)
    with pytest.raises(ValueError, match="possible are"):
        few.calibrate(lambda f: solved(f, grid))


def test_estimates_are_relative_to_the_picture():
    """The same velocity moves a picture ten times as large a tenth as much."""
    grid, estimates = torch.linspace(1, 0.05, 30, dtype=torch.float64), []
    for size in (1e3, 1e4):
        fast = tw.accelerate(lambda x, t: torch.sin(3 * t) * torch.ones_like(x), ABCache(variable="timestep"), scheduler=grid)
        for t in grid:
            fast(size * torch.ones(2, 3, dtype=torch.float64), t)
        estimates.append(fast.report.estimate)
    assert estimates[0] == pytest.approx(10 * estimates[1], rel=1e-6)


def test_planned_forecasts_are_lines():
    model, grid = Velocity().eval(), torch.linspace(1, 0.05, 30, dtype=torch.float64)
    fast = tw.accelerate(model, Adaptive(budget=8, variable="timestep", first_steps=2), scheduler=grid)
    fast.calibrate(lambda f: solved(f, grid))
    with fast:
        solved(model, grid)
    assert {len(s.weights) for s in fast.report.steps if not s.computed} == {2}
