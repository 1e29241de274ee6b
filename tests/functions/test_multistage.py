"""Multi-stage networks: bookkeeping, frequencies, the optimizer, equations by jets, files, and what is refused."""

import cmath
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

import termwise as tw
from termwise.functions import MultiStagePINN, dominant_frequency
from termwise.functions.multistage_pinn import Derivatives
from termwise.functions.quasi_newton import _between, _step, minimise
from termwise.functions.stage import Stage
from termwise.functions.staged import factor

DOUBLE = torch.float64


def line(n: int, low: float = -1, high: float = 1) -> Tensor:
    return torch.linspace(low, high, n, dtype=DOUBLE)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def target(x: Tensor) -> Tensor:
    return torch.sin(2 * x + 1) + 0.2 * torch.exp(1.3 * x)


def rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


# -- the regressor ----------------------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 99), n=st.integers(20, 60), stages=st.integers(1, 3), hidden=st.sampled_from([(5,), (6, 4)]),
    d=st.integers(1, 2), optimizer=st.sampled_from(["bfgs", "lbfgs"]),
)  # fmt: skip
def test_each_stage_fits_what_those_before_it_left(seed, n, stages, hidden, d, optimizer):
    x = torch.rand(n, d, dtype=DOUBLE, generator=seeded(seed)) * 3 - 1
    y = target(x.sum(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = tw.MultiStage(stages, hidden, iterations=12, optimizer=optimizer).fit(x, y, generator=seeded(seed))
    found = model.decompose(x, y)
    assert (
        torch.equal(sum(found.parts.values()) + found.remainder, y)
        or float((found.total() + found.remainder - y).abs().max()) < 1e-15
    )
    torch.testing.assert_close(found.total(), model.predict(x), rtol=1e-14, atol=1e-14)
    left = y
    for record, stage, part in zip(model.history, model.fitted, found.parts.values(), strict=True):
        assert record.eps == pytest.approx(rms(left), rel=1e-13)
        assert torch.equal(part, stage(x))
        left = left - part
        assert record.left == pytest.approx(rms(left), rel=1e-9)
        if record.f_d:
            slow = dominant_frequency(x, left + part)
            extent = x.amax(0) - x.amin(0)
            torch.testing.assert_close(torch.tensor(record.kappa), (math.pi * slow * extent).clamp(min=1), check_dtype=False)
    assert all(b.left < a.left for a, b in zip(model.history, model.history[1:], strict=False))


def test_a_stage_is_its_equation():
    low, high, kappa = torch.tensor([0.0, -2.0]).double(), torch.tensor([4.0, 0.0]).double(), torch.tensor([3.0, 7.0]).double()
    x = torch.rand(9, 2, dtype=DOUBLE, generator=seeded(1)) * torch.tensor([4.0, 2.0]) + low
    for k in (kappa, kappa[:0]):
        stage = Stage((low, high), (5, 4), 0.3, k, seeded(0)).requires_grad_(False)
        for b in stage.biases:
            b.copy_(torch.randn(b.shape, dtype=DOUBLE, generator=seeded(2)))
        for point, value in zip(x, stage(x), strict=True):
            z = [(float(point[0]) - 2) / 2, float(point[1]) + 1]
            w, v, u = (m.tolist() for m in stage.weights)
            b, c, e = (m.tolist() for m in stage.biases)
            wave = [
                sum(a * float(f) * w[i][j] for i, (a, f) in enumerate(zip(z, kappa if len(k) else [1, 1], strict=True))) + b[j]
                for j in range(5)
            ]
            first = [math.sin(a) if len(k) else math.tanh(a) for a in wave]
            second = [math.tanh(sum(first[i] * v[i][j] for i in range(5)) + c[j]) for j in range(4)]
            assert float(value) == pytest.approx(0.3 * (sum(s * u[i][0] for i, s in enumerate(second)) + e[0]), rel=1e-12)


def test_the_full_matrix_carries_further_than_the_first_network():
    x = line(300)
    model = tw.MultiStage(2, iterations=250).fit(x, target(x))
    assert model.history[0].left < 1e-4
    assert model.history[1].left < model.history[0].left / 100
    held = model.decompose(line(777), target(line(777)))
    assert held.remainder.abs().max() < 1e-6
    assert list(held.parts) == ["stage_0", "stage_1"]


def test_a_seed_is_the_model_and_the_rng_is_left_alone():
    x = line(40)
    state = torch.get_rng_state()
    models = [tw.MultiStage(1, (5,), iterations=10).fit(x, target(x), generator=g) for g in (None, seeded(0), seeded(1))]
    assert torch.equal(torch.get_rng_state(), state)
    first, second, third = (m.predict(x) for m in models)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    again = models[2].fit(x, target(x), generator=seeded(0))
    assert len(again.history) == 1
    assert torch.equal(again.predict(x), first)


def test_it_ends_where_only_rounding_is_left():
    x = line(50)
    assert len(tw.MultiStage(3, (5,), iterations=300, tol=1e-3).fit(x, x).history) < 3
    nothing = tw.MultiStage(2, (5,), iterations=20).fit(x, 0 * x)
    assert nothing.predict(x).isfinite().all()
    tiny = tw.MultiStage(1, (5,), iterations=30).fit(x, 1e-200 * target(x))
    assert tiny.history[0].eps == pytest.approx(1e-200 * rms(target(x)), rel=1e-12)
    assert rms(1e200 * tiny.predict(x) - target(x)) < 0.1 * rms(target(x))
    assert tiny.history[0].left < 0.1 * tiny.history[0].eps


def test_arrays_and_columns_are_taken():
    x = line(30)
    a = tw.MultiStage(1, (5,), iterations=5).fit(x.numpy(), target(x).numpy())
    b = tw.MultiStage(1, (5,), iterations=5).fit(x[:, None], target(x))
    assert torch.equal(a.predict(x), b.predict(x.numpy()[:, None]))
    assert a.fit(x, target(x), progress=True) is a


@pytest.mark.parametrize("stages", [1, 2])
def test_a_file_holds_the_whole_model(tmp_path, stages):
    x = line(40)
    model = tw.MultiStage(stages, (5, 3), iterations=10, optimizer="lbfgs").fit(x, target(x))
    back = tw.MultiStage.load(model.save(tmp_path / "model"))
    assert torch.equal(back.predict(x), model.predict(x))
    assert back.history == model.history
    assert (back.stages, back.hidden, back.iterations, back.optimizer) == (stages, (5, 3), 10, "lbfgs")
    other = tmp_path / "other.safetensors"
    tw.Decomposition(x, {"x": x}).save(other)
    with pytest.raises(ValueError, match="without stages"):
        tw.MultiStage.load(other)
    (tmp_path / "text.safetensors").write_text("no")
    with pytest.raises(ValueError, match="not a safetensors file"):
        tw.MultiStage.load(tmp_path / "text")
    with pytest.raises(FileNotFoundError):
        tw.MultiStage.load(tmp_path / "none")
    for header, message in (
        ('{"format": 99}', "format 99"),
        ('{"format": 1}', "cannot be read"),
        ("[]", "cannot be read"),
        ("{", "no JSON"),
    ):
        save_file({"a": x}, other, {"termwise.multistage": header})
        with pytest.raises(ValueError, match=message):
            tw.MultiStage.load(other)
    with pytest.raises(OSError, match="cannot be written"):
        model.save(tmp_path / "no" / "folder")


def test_the_plot_has_a_point_for_each_stage():
    x = line(60)
    figure = tw.MultiStage(2, (6,), iterations=20).fit(x, target(x)).plot()
    left, frequency = figure.axes
    assert len(left.lines[0].get_ydata()) == 3
    assert len(frequency.lines[0].get_ydata()) == 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"stages": 0}, ValueError, "1 or more"),
        ({"hidden": ()}, ValueError, r"\(20, 20\)"),
        ({"hidden": (3, 0)}, ValueError, "width"),
        ({"iterations": 0}, ValueError, "1 or more"),
        ({"optimizer": "bfg"}, ValueError, "nearest is bfgs"),
        ({"tol": math.nan}, ValueError, "tol"),
    ],
)
def test_settings_that_make_no_sense(change, error, message):
    with pytest.raises(error, match=message):
        tw.MultiStage(**change)


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (line(9).float(), line(9), TypeError, r"X is float32.*6e-8"),
        (line(9), np.zeros(9, np.float32), TypeError, r"y is float32"),
        (torch.arange(9), line(9), TypeError, "int64"),
        (line(9), line(8), ValueError, r"y is \(9,\).*\(8, 1\)"),
        (line(8).reshape(4, 2), line(8).reshape(4, 2), ValueError, "one model per column"),
        (torch.zeros(2, 2, 2, dtype=DOUBLE), line(2), ValueError, r"\(2, 2, 2\)"),
        (line(0), line(0), ValueError, "at least one point"),
        (torch.where(line(9) == 0, math.nan, line(9)), line(9), ValueError, "X is not finite at point 4"),
        (line(9), torch.where(line(9) == 0, math.inf, line(9)), ValueError, "y is not finite at point 4"),
        (0 * line(9), line(9), ValueError, "no extent along axis 0"),
        (torch.rand(9, 4, dtype=DOUBLE), line(9), ValueError, "4 coordinates"),
    ],
)
def test_data_that_make_no_sense(x, y, error, message):
    with pytest.raises(error, match=message):
        tw.MultiStage(1, (3,), iterations=2).fit(x, y)


@pytest.mark.parametrize("options", [{"hidden": 20}, {"hidden": (2.5,)}, {"stages": 2.0}, {"iterations": True}])
def test_numbers_are_whole(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} (is a whole number|has a width)"):
        tw.MultiStage(**options)
    with pytest.raises(ValueError, match=r"order is a whole number of 1 or more, got 1\.5"):
        MultiStagePINN(lambda x, u: u[0], 1.5, [(line(1, 0, 0), 0, line(1, 1, 1))])


def test_numbers_of_python_are_taken_and_the_tolerance_is_kept(tmp_path):
    model = tw.MultiStage(1, (3,), iterations=5, tol=1e-3)
    assert repr(model) == "MultiStage(stages=1, hidden=(3,), iterations=5, optimizer='bfgs', tol=0.001)"
    model.fit([0.0, 0.5, 1.0, 2.0], [1.0, 2.0, 3.0, 4.0])
    assert "1 fitted" in repr(model)
    assert tw.MultiStage.load(model.save(tmp_path / "model")).tol == 1e-3


def test_what_needs_a_fit_says_so():
    model = tw.MultiStage(1, (3,), iterations=2)
    for call in (lambda: model.predict(line(3)), lambda: model.decompose(line(3)), model.plot, lambda: model.save("x")):
        with pytest.raises(ValueError, match="call fit first"):
            call()
    model.fit(line(9), line(9))
    with pytest.raises(ValueError, match="2 coordinates"):
        model.predict(line(8).reshape(4, 2))
    with pytest.raises(ValueError, match=r"y is \(3,\)"):
        model.decompose(line(3), line(4))


def test_too_few_points_for_the_frequency_are_said():
    x = line(101)
    with pytest.warns(UserWarning, match=r"oscillates 10 times per unit of axis 0.*Give 189 or more"):
        factor(x[:, None], torch.tensor([10.0]).double(), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert factor(line(189)[:, None], torch.tensor([10.0]).double(), 1).item() == pytest.approx(20 * math.pi)
    with pytest.warns(UserWarning, match="stage 1"):
        tw.MultiStage(2, (3,), iterations=3).fit(line(30), torch.sin(40 * line(30)))


# -- frequencies ------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(k=st.integers(1, 40), start=st.floats(-3, 3), length=st.floats(0.1, 9), phase=st.floats(0, 6), mean=st.floats(-9, 9))
def test_a_wave_on_even_points_has_its_frequency(k, start, length, phase, mean):
    x = start + length * torch.arange(128, dtype=DOUBLE) / 128
    values = (
        mean
        + torch.cos(2 * math.pi * k * (x - start) / length + phase)
        + 0.2 * torch.cos(2 * math.pi * (k + 5) * (x - start) / length)
    )
    shuffled = torch.randperm(128, generator=seeded(k))
    found = dominant_frequency(x[shuffled], values[shuffled])
    assert found.item() == pytest.approx(k / length, rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(crossings=st.integers(1, 30), seed=st.integers(0, 99))
def test_elsewhere_it_is_the_peak_of_the_transform(crossings, seed):
    x = torch.cat([line(2, 2, 5), 2 + 3 * torch.rand(80, dtype=DOUBLE, generator=seeded(seed))])
    values = 3 + torch.sin(math.pi * crossings * x / 3) + 0.2 * torch.randn(82, dtype=DOUBLE, generator=seeded(seed))
    points = list(zip(x.tolist(), (values - values.mean()).tolist(), strict=True))
    sizes = [abs(sum(e * cmath.exp(-2j * math.pi * k * (at - 2) / 3) for at, e in points)) for k in range(1, 42)]
    assert dominant_frequency(x, values).item() == pytest.approx((sizes.index(max(sizes)) + 1) / 3)


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_scattered_points_tell_what_even_ones_do(noise):
    """Neither a mean nor noise, which crosses zero, hides a wave."""
    scattered = torch.rand(400, dtype=DOUBLE, generator=seeded(0)) * 2
    for x in (line(401, 0, 2)[:-1], scattered):
        for mean in (0, 3):
            values = torch.sin(2 * math.pi * 5 * x) + mean + noise * torch.randn(400, dtype=DOUBLE, generator=seeded(1))
            assert dominant_frequency(x, values).item() == pytest.approx(5, rel=0.01)
    fast = torch.rand(10_000, dtype=DOUBLE, generator=seeded(0))
    assert dominant_frequency(fast, torch.cos(2 * math.pi * 4000 * fast)).item() == pytest.approx(4000, rel=1e-3)


def test_what_does_not_vary_has_no_frequency():
    for x in (line(200), torch.rand(50, dtype=DOUBLE, generator=seeded(0)), torch.rand(60, 2, dtype=DOUBLE, generator=seeded(0))):
        for value in (0.0, 0.1, -7e9):
            assert dominant_frequency(x, torch.full((len(x),), value).double()).tolist() == [0.0] * (x.ndim if x.ndim > 1 else 1)


@settings(max_examples=15, deadline=None)
@given(
    f=st.tuples(st.integers(0, 6), st.integers(0, 6)).filter(any),
    seed=st.integers(0, 99),
    grid=st.booleans(),
    sign=st.sampled_from([1, -1]),
)
def test_in_two_dimensions_each_axis_has_its_own(f, seed, grid, sign):
    if grid:
        side = torch.arange(20, dtype=DOUBLE) / 19
        x = torch.cartesian_prod(2 * side, 4 * side)
    else:
        x = torch.rand(500, 2, dtype=DOUBLE, generator=seeded(seed)) * torch.tensor([2.0, 4.0])
    values = 3 + torch.cos(2 * math.pi * (f[0] * x[:, 0] / 2 + sign * f[1] * x[:, 1] / 4) + seed)
    found = dominant_frequency(x, values)
    length = x.amax(0) - x.amin(0)
    torch.testing.assert_close(found * length, torch.tensor(f).double(), rtol=1e-9, atol=1e-9)


def test_three_axes_and_no_more():
    x = torch.rand(2000, 3, dtype=DOUBLE, generator=seeded(0))
    found = dominant_frequency(x, torch.cos(2 * math.pi * (x @ torch.tensor([3.0, 0.0, 2.0]).double())))
    torch.testing.assert_close((found * (x.amax(0) - x.amin(0))).round(), torch.tensor([3.0, 0.0, 2.0]).double())
    for bad, values, message in (
        (torch.rand(9, 4), torch.rand(9), "3 at most"), (torch.rand(9, 2), torch.rand(8), r"\(9, 2\) and \(8,\)"),
        (torch.rand(3), torch.rand(3), "4 points"), (torch.ones(9), torch.rand(9), "no extent"),
        (torch.stack([torch.rand(9), torch.ones(9)], 1), torch.rand(9), "no extent along axis 1"),
        (torch.rand(9), torch.full((9,), math.nan), "values are not finite"), (torch.full((9,), math.inf), torch.rand(9), "x are not"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            dominant_frequency(bad, values)


# -- the optimizer ----------------------------------------------------------------------------------------------------


def valley(n: int, seed: int) -> tuple[nn.Parameter, Tensor]:
    root = torch.randn(n, n, dtype=DOUBLE, generator=seeded(seed))
    return nn.Parameter(torch.randn(n, dtype=DOUBLE, generator=seeded(seed + 1))), root @ root.T + 0.1 * torch.eye(
        n, dtype=DOUBLE
    )


@settings(max_examples=10, deadline=None)
@given(n=st.integers(1, 8), seed=st.integers(0, 99), optimizer=st.sampled_from(["bfgs", "lbfgs"]))
def test_the_bottom_of_a_quadratic_is_found(n, seed, optimizer):
    w, a = valley(n, seed)
    best = torch.randn(n, dtype=DOUBLE, generator=seeded(seed + 2))
    used = minimise(lambda: 1 + (w - best) @ a @ (w - best), [w], 100, optimizer)
    assert used <= 100
    torch.testing.assert_close(w.detach(), best, rtol=1e-5, atol=1e-5)


def test_the_matrix_becomes_the_inverse_hessian():
    """After n exact-enough steps on a quadratic the next is Newton's: superlinear, which a wrong update is not."""
    values = []
    w, a = valley(6, 3)
    minimise(lambda: 1 + w @ a @ w, [w], 25)
    values.append(w.detach().norm().item())
    assert values[0] < 1e-7


def test_rosenbrock_and_several_parameters():
    p, q = nn.Parameter(torch.tensor(-1.2, dtype=DOUBLE)), nn.Parameter(torch.tensor([1.0], dtype=DOUBLE))
    done = []
    minimise(lambda: ((1 - p) ** 2 + 100 * (q - p**2) ** 2 + 1e-30).sum().log(), [p, q], 80, report=done.append)
    assert (p - 1).abs() < 1e-9
    assert (q - 1).abs().item() < 1e-9
    assert 10 < sum(done) <= 80


def test_a_loss_with_a_wall_of_nan_is_walked_around():
    w = nn.Parameter(torch.tensor(0.01, dtype=DOUBLE))
    minimise(lambda: w - w.log(), [w], 60)
    assert w.item() == pytest.approx(1, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(best=st.floats(0.15, 1.8), bend=st.floats(0.05, 3), slope=st.floats(-1, 1))
def test_between_two_points_lies_the_minimum_of_their_cubic(best, bend, slope):
    def f(a: float) -> tuple[float, float, float]:  # f' = (a - best) (bend + slope (a - best)): the minimum is at best
        z = a - best
        return a, bend * z * z / 2 + slope * z**3 / 3, z * (bend + slope * z)

    low, high = f(0.0), f(2.0)
    if low[2] < 0 < high[2]:
        assert _between(low, high) == pytest.approx(min(max(best, 0.2), 1.8), rel=1e-6)
    assert _between(low, (2.0, math.nan, math.nan)) == 1.0


def test_a_step_does_not_end_where_there_is_no_value():
    def at(w: Tensor) -> tuple[float, Tensor]:
        blank = math.nan if w > 0.6 else 1.0
        return blank * float((w - 0.3) ** 2), blank * 2 * (w - 0.3).reshape(1)

    a, value, gradient = _step(at, torch.zeros(1).double(), torch.ones(1).double(), 0.09, -0.6, 1.0)
    assert value < 0.09
    assert a <= 0.6
    assert abs(gradient.item()) <= 0.4
    assert (
        _step(lambda w: (float(w), torch.ones(1).double()), torch.zeros(1).double(), torch.ones(1).double(), 0.0, -1.0, 1.0)
        is None
    )


def test_the_optimizer_refuses():
    w = nn.Parameter(torch.ones(1, dtype=DOUBLE))
    with pytest.raises(ValueError, match="optimizer is one of bfgs, lbfgs"):
        minimise(lambda: w.sum(), [w], 3, "adam")
    with pytest.raises(ValueError, match="nan before the first step"):
        minimise(lambda: (w * math.nan).sum(), [w], 3)
    with pytest.raises(ValueError, match="7000 x 7000"):
        minimise(lambda: w.sum(), [nn.Parameter(torch.ones(7000))], 3)


# -- equations --------------------------------------------------------------------------------------------------------


def test_derivatives_of_stages_are_those_of_autograd():
    x = torch.rand(6, 2, dtype=DOUBLE, generator=seeded(0))
    stages = [Stage((x.amin(0), x.amax(0)), (5, 4), 0.7, torch.tensor([4.0, 2.0]).double(), seeded(s)).eval() for s in (1, 2)]
    from termwise.core.capture import capture

    u = Derivatives(None, x, 3)
    for stage in stages:
        u = Derivatives(capture(stage, x), x, 3, u)
    z = x.clone().requires_grad_()
    value = sum(s(z) for s in stages)

    def d(t: Tensor, j: int) -> Tensor:
        return torch.autograd.grad(t.sum(), z, create_graph=True)[0][:, j]

    slow = {0: value, (1, 0): d(value, 0), (0, 2): d(d(value, 1), 1), (1, 1): d(d(value, 0), 1), (2, 1): d(d(d(value, 0), 0), 1)}
    for index, wanted in slow.items():
        torch.testing.assert_close(u[index], wanted, rtol=1e-10, atol=1e-10)
    weights = stages[1].weights[0]
    fast = torch.autograd.grad(u[1, 1].square().sum(), weights)[0]
    torch.testing.assert_close(fast, torch.autograd.grad(slow[1, 1].square().sum(), weights)[0], rtol=1e-9, atol=1e-9)
    for bad in (1, (1,), (-1, 0), (2, 2)):
        with pytest.raises(ValueError, match=r"u\[.*2 variables and order=3"):
            u[bad]


def decay(stages: int = 2, iterations: int = 80, **options) -> MultiStagePINN:
    return MultiStagePINN(
        lambda x, u: u[1] + u[0] ** 2,
        1,
        [(line(1, 0, 0), 0, line(1, 1, 1))],
        stages=stages,
        hidden=(8, 8),
        iterations=iterations,
        **options,
    )


def test_a_condition_lies_in_the_box():
    with pytest.raises(ValueError, match=r"outside the box of X, \[0\.5\] to \[1\.0\]"):
        decay().fit(line(20, 0.5, 1))


def test_a_stage_that_makes_things_worse_is_left_out(monkeypatch):
    from termwise.functions import multistage_pinn

    real = multistage_pinn.minimise

    def spoiled(loss, weights, *rest):
        used = real(loss, weights, *rest)
        if len(solver.fitted) == 1:
            with torch.no_grad():
                weights[-1].add_(1e3)
        return used

    solver = decay(stages=3, iterations=20)
    monkeypatch.setattr(multistage_pinn, "minimise", spoiled)
    assert len(solver.fit(line(40, 0, 1)).fitted) == 1


def test_an_equation_is_solved_by_stages():
    x = line(80, 0, 1)
    solver = decay().fit(x)
    found = solver.decompose(x, 1 / (1 + x))
    first = (1 / (1 + x) - found.parts["stage_0"]).abs().max()
    assert first < 1e-3
    assert found.remainder.abs().max() < first / 10
    u = solver.derivatives(x)
    torch.testing.assert_close(u[0], solver.predict(x), rtol=1e-13, atol=1e-13)
    assert rms(u[1] + u[0] ** 2) == pytest.approx(solver.history[-1].left, rel=1e-6)
    assert (u[1] + 1 / (1 + x) ** 2).abs().max() < 1e-4


def test_a_later_stage_has_the_scale_of_the_equation(tmp_path):
    x = line(80, 0, 1)
    solver = decay().fit(x)
    first, second = solver.history
    assert first.eps == 1.0  # the condition, u(0) = 1, of nothing
    scale = first.left / (2 * second.kappa[0])  # kappa is for [-1, 1], x has length 1
    missed = abs(1 - solver.fitted[0](line(1, 0, 0)[:, None]).item())
    assert second.eps == pytest.approx(max(scale, missed), rel=1e-9)
    back = tw.MultiStage.load(solver.save(tmp_path / "solver"))
    assert torch.equal(back.predict(x), solver.predict(x))


def test_poisson_in_two_dimensions():
    side = line(12, 0, 1)
    inner = torch.cartesian_prod(side, side)
    edge = inner[((inner == 0) | (inner == 1)).any(1)]

    def truth(x: Tensor) -> Tensor:
        return torch.sin(2 * x[:, 0] + x[:, 1])

    solver = MultiStagePINN(
        lambda x, u: u[2, 0] + u[0, 2] + 5 * truth(x), 2, [(edge, 0, truth(edge))], stages=1, hidden=(10, 10), iterations=100
    ).fit(inner)
    assert (solver.predict(inner) - truth(inner)).abs().max() < 2e-2


def test_a_condition_may_be_on_a_slope():
    x = line(40, 0, 1)
    start, one = line(1, 0, 0), line(1, 1, 1)
    solver = MultiStagePINN(
        lambda x, u: u[2] + u[0], 2, [(start, 0, 0 * one), (start, 1, one)], stages=1, hidden=(8, 8), iterations=120
    ).fit(x)
    assert (solver.predict(x) - x.sin()).abs().max() < 1e-3


def test_equations_that_make_no_sense():
    start, one = line(1, 0, 0), line(1, 1, 1)
    for change, message in (
        ({"order": 0}, "1 or more"), ({"conditions": []}, "many solutions"), ({"weight": 0}, "weight"),
        ({"conditions": [(start, 0, line(2))]}, "one value per point"),
        ({"conditions": [(start, 0, one * math.nan)]}, "not finite"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            MultiStagePINN(**{"residual": lambda x, u: u[1], "order": 1, "conditions": [(start, 0, one)], **change})
    with pytest.raises(ValueError, match=r"residual gives \(9,\).*\(9, 1\)"):
        MultiStagePINN(lambda x, u: u[1][:, None], 1, [(start, 0, one)]).fit(line(9))
    with pytest.raises(ValueError, match=r"u\[2\]"):
        MultiStagePINN(lambda x, u: u[2], 1, [(start, 0, one)]).fit(line(9))
    with pytest.raises(ValueError, match="points of 1 coordinates, X of 2"):
        MultiStagePINN(lambda x, u: u[0], 1, [(start, 0, one)]).fit(line(8).reshape(4, 2))
    with pytest.raises(ValueError, match="not finite"):
        MultiStagePINN(lambda x, u: u[0] * math.nan, 1, [(start, 0, one)], hidden=(3,), iterations=2).fit(line(9))
    with pytest.raises(TypeError, match="float32"):
        MultiStagePINN(lambda x, u: u[0], 1, [(start, 0, one)]).fit(line(9).float())
