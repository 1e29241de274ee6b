"""A model that is computed at some steps and forecast at others: what it must do, and leave undone."""

import gc
import weakref

import pytest
import torch
from torch import nn

import termwise as tw
from termwise.computation import ABCache, Accelerated, Adaptive, ConfidenceGate, TaylorSeer
from termwise.computation.sites import find_blocks, find_sites


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mix = nn.Linear(width, width)

    def forward(self, x):
        return torch.tanh(self.mix(x))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attn, self.mlp, self.gate = Attention(width), nn.Sequential(nn.Linear(width, width), nn.GELU()), nn.Linear(1, width)

    def forward(self, x, t):
        gate = self.gate(t)
        return x + gate * self.attn(x)


class Denoiser(nn.Module):
    """Four blocks that are told the time, and count how often they run."""

    def __init__(self, width=6, depth=4, dropout=0.0):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head, self.dropout = nn.Linear(width, width), nn.Dropout(dropout)
        self.calls = [0] * depth
        for i, block in enumerate(self.blocks):
            block.gate.register_forward_hook(lambda *_, i=i: self.calls.__setitem__(i, self.calls[i] + 1))

    def forward(self, x, timestep):
        t = torch.as_tensor(timestep, dtype=x.dtype).reshape(-1, 1)
        for block in self.blocks:
            x = block(x, t)
        return self.head(self.dropout(x)) + t


GRID = torch.linspace(1, 0.05, 20, dtype=torch.float64)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Denoiser().double().eval().requires_grad_(False)


@torch.no_grad()
def sampled(denoiser, x=None, grid=GRID, calls=1):
    """Euler's method; with several calls for each time, the mean of the same prediction and its neighbours'."""
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) if x is None else x
    for t, after in zip(grid, [*grid[1:], torch.zeros(())], strict=True):
        parts = [denoiser(x * (1 + i), t) for i in range(calls)]
        x = x + (after - t) * sum(parts) / calls
    return x


EVERY = [TaylorSeer(interval=1), ConfidenceGate(threshold=0.0), ABCache(interval=1), Adaptive(tolerance=0.0)]
SOME = [
    TaylorSeer(interval=3), TaylorSeer(interval=3, sites="output"), TaylorSeer(interval=3, sites="last_block", order=2, form="published"),
    TaylorSeer(interval=3, sites=("blocks.*.attn",)), ConfidenceGate(threshold=1.0, max_skip=2), ABCache(interval=3, order=2),
    ABCache(interval=2, history="queue"), Adaptive(tolerance=0.05), Adaptive(budget=8), TaylorSeer(interval=4, order=0),
]  # fmt: skip


@pytest.mark.parametrize("method", EVERY, ids=lambda m: type(m).__name__)
def test_computing_every_step_changes_no_bit(model, method):
    truth = sampled(model)
    with tw.accelerate(model, method, scheduler=GRID) as fast:
        assert torch.equal(sampled(model), truth)
    assert fast.report.evaluations == 20
    assert fast.report.speedup == 1.0
    assert fast.report.estimate == 0


@pytest.mark.parametrize("method", SOME, ids=repr)
def test_what_is_reported_is_what_was_run(model, method):
    truth = sampled(model)
    model.calls = [0] * 4
    with tw.accelerate(model, method, scheduler=GRID) as fast:
        out = sampled(model)
    report = fast.report
    assert len(report.steps) == 20
    assert 0 < report.evaluations < 20
    if method.sites in ("output", "last_block"):
        assert sum(model.calls) == pytest.approx(4 * report.cost)
        assert model.calls[1] == report.evaluations
    assert (out - truth).norm() / truth.norm() < 0.2
    assert all(
        s.weights and sum(s.weights) == pytest.approx(1) for s in report.steps if not s.computed and method.sites == "output"
    )
    assert torch.equal(sampled(model), truth), "nothing is left behind"
    assert not [m for m in model.modules() if "forward" in m.__dict__]
    assert str(report).count("\n") == 21
    assert len(report.to_frame()) == 20
    assert report.plot().axes


def test_interval_of_the_paper(model):
    for interval, computed in ((3, 18), (4, 14), (5, 11), (6, 10)):
        grid = torch.linspace(1, 0.02, 50)
        with tw.accelerate(model, TaylorSeer(interval=interval, first_steps=2)) as fast:
            sampled(model, grid=grid)
        assert fast.report.evaluations == computed


def test_output_forecast_is_the_polynomial_through_computed_outputs(model):
    outputs = {}
    with tw.accelerate(model, ABCache(interval=3, order=1, first_steps=2)) as fast:
        x = torch.ones(1, 6, dtype=torch.float64)
        for i, t in enumerate(GRID.tolist()):
            out = model(x, t)
            if fast.report.steps[-1].computed:
                outputs[i] = out.clone()
            else:
                (new, f), (old, g) = sorted(outputs.items())[-1], sorted(outputs.items())[-2]
                assert torch.allclose(out, f + (i - new) / (new - old) * (f - g))
    assert set(outputs) == {0, 1, 4, 7, 10, 13, 16, 19}


def test_modules_are_forecast_and_gates_are_not(model):
    """What a block does with a forecast is computed with the true time."""
    with tw.accelerate(model, TaylorSeer(interval=2, order=0, first_steps=1)):
        x = torch.ones(1, 6, dtype=torch.float64)
        model(x, 1.0)
        kept = []
        z = x
        for block in model.blocks:  # by hand: attention at t = 1, gates at t = .9
            forward = type(block.attn).forward
            kept.append((block, forward(block.attn, z)))
            z = z + block.gate(torch.ones(1, 1, dtype=torch.float64)) * kept[-1][1]
        t = torch.tensor([[0.9]], dtype=torch.float64)
        z = x
        for block, attention in kept:
            z = z + block.gate(t) * attention
        assert torch.allclose(model(x, 0.9), model.head(z) + t)


def test_error_on_computed_steps_is_that_of_the_forecast(model):
    with tw.accelerate(model, ABCache(interval=2, order=1, first_steps=2)) as fast:
        outputs = [model(torch.ones(2, 6, dtype=torch.float64) * t, t) for t in GRID.tolist()]
    made = 2.0 * outputs[1] - outputs[0]  # at step 2, which is forecast
    assert torch.allclose(outputs[2], made)
    step = fast.report.steps[3]  # from 1 and 0 to 3
    wrong = outputs[1] + 2 * (outputs[1] - outputs[0]) - outputs[3]
    assert step.computed
    assert step.error == pytest.approx((wrong.norm(dim=1) / outputs[3].norm(dim=1)).mean().item())


def test_queue_diverges_where_computed_history_does_not(model):
    truth = sampled(model)

    def wrong(method):
        with tw.accelerate(model, method, scheduler=GRID):
            return ((sampled(model) - truth).norm() / truth.norm()).item()

    assert wrong(ABCache(interval=3, order=2, history="queue")) > 3 * wrong(ABCache(interval=3, order=2))


def test_several_calls_in_a_step_have_histories_of_their_own(model):
    truth = sampled(model, calls=2)
    with tw.accelerate(model, TaylorSeer(interval=2, sites="output", first_steps=2), scheduler=GRID) as fast:
        out = sampled(model, calls=2)
    assert len(fast.report.steps) == 20
    assert fast.report.evaluations == 11
    assert (out - truth).norm() / truth.norm() < 0.02


def test_a_second_run_begins_anew(model):
    with tw.accelerate(model, TaylorSeer(interval=3)) as fast:
        first = sampled(model)
        second = sampled(model)
        assert torch.equal(first, second)
        assert len(fast.report.steps) == 20


def test_as_a_call_it_remembers_from_call_to_call(model):
    truth = tw.accelerate(model, TaylorSeer(interval=3))
    with tw.accelerate(model, TaylorSeer(interval=3)):
        expected = sampled(model)
    assert torch.equal(sampled(truth), expected)
    assert truth.report.evaluations < 20
    assert not [m for m in model.modules() if "forward" in m.__dict__]


def test_a_function_of_time(model):
    def velocity(t, y):
        return -y * t

    fast = tw.accelerate(velocity, ABCache(interval=2, order=2))
    y = torch.ones(2, 3, dtype=torch.float64)
    made = [fast(t, y) for t in GRID.tolist()]
    assert fast.report.evaluations < 12
    assert torch.allclose(torch.stack(made)[:, 0, 0], -GRID, atol=1e-12)
    with pytest.raises(TypeError, match="call this object"), fast:
        pass
    with pytest.raises(TypeError, match="no modules inside"):
        tw.accelerate(velocity, TaylorSeer())


def test_an_exception_leaves_the_model_as_it_was(model):
    truth = sampled(model)
    with pytest.raises(ZeroDivisionError), tw.accelerate(model, TaylorSeer(interval=2)):
        model(torch.ones(1, 6, dtype=torch.float64), 1.0)
        raise ZeroDivisionError
    assert torch.equal(sampled(model), truth)
    assert not [m for m in model.modules() if "forward" in m.__dict__]


def test_a_forward_of_somebody_elses_is_put_back(model):
    own = model.blocks[0].forward
    model.blocks[0].forward = own
    with tw.accelerate(model, TaylorSeer(sites="last_block")):
        assert model.blocks[0].forward is not own
    assert model.blocks[0].forward is own


def test_kept_values_are_let_go(model):
    with tw.accelerate(model, TaylorSeer(interval=2)) as fast:
        sampled(model)
        kept = [weakref.ref(h) for h in fast._histories.values()]
        assert (
            fast.report.memory == sum(h().bytes for h in kept) == 4 * 2 * 3 * 6 * 8 + (4 * 2 * 3 * 6 * 8 if len(kept) > 4 else 0)
        )
    gc.collect()
    assert kept
    assert not [k for k in kept if k() is not None]


def test_memory_of_a_gate_does_not_grow_with_depth():
    sizes = []
    for depth in (3, 9):
        torch.manual_seed(0)
        deep = Denoiser(depth=depth).double().eval().requires_grad_(False)
        with tw.accelerate(deep, ConfidenceGate(threshold=0.1), scheduler=GRID) as fast:
            sampled(deep)
        sizes.append(fast.report.memory)
    assert sizes == [2 * 2 * 3 * 6 * 8] * 2


def test_a_gate_without_end_skips_as_often_as_it_may(model):
    with tw.accelerate(model, ConfidenceGate(threshold=float("inf"), max_skip=2, first_steps=2, last_steps=0)) as gate:
        out = sampled(model)
    with tw.accelerate(model, TaylorSeer(interval=3, first_steps=2, sites="last_block")) as fixed:
        assert torch.equal(sampled(model), out)
    assert [s.computed for s in gate.report.steps] == [s.computed for s in fixed.report.steps]
    assert gate.report.cost == pytest.approx(gate.report.evaluations + (20 - gate.report.evaluations) / 4)


def test_no_number_is_never_skipped(model):
    poison = iter([0.0] * 6 + [float("nan")] * 2 + [0.0] * 40)
    model.blocks[0].attn.register_forward_hook(lambda m, a, out: out + next(poison))
    with tw.accelerate(model, ConfidenceGate(threshold=1e9, first_steps=2), scheduler=GRID) as fast:
        sampled(model)
    assert fast.report.steps[6].computed


def test_shape_that_changes_begins_anew(model):
    with tw.accelerate(model, ABCache(interval=3)) as fast:
        for t in GRID[:5].tolist():
            model(torch.ones(2, 6, dtype=torch.float64), t)
        assert not fast.report.steps[-2].computed or not fast.report.steps[-1].computed
        out = model(torch.ones(4, 6, dtype=torch.float64), 0.5)
        assert out.shape == (4, 6)
        assert "changed its shape" in fast.report.steps[-1].note


def test_tolerance_bounds_what_it_estimates(model):
    truth, before = sampled(model), 20
    for tolerance in (1e-4, 1e-3, 1e-2, 1e-1):
        with tw.accelerate(model, tolerance=tolerance, scheduler=GRID) as fast:
            out = sampled(model)
        assert fast.report.estimate <= tolerance
        assert fast.report.evaluations <= before
        assert (out - truth).norm() / truth.norm() < 5 * tolerance
        before = fast.report.evaluations
    assert before < 12


@pytest.mark.parametrize("budget", [4, 8, 14, 20])
def test_budget_is_kept(model, budget):
    with tw.accelerate(model, budget=budget, scheduler=GRID) as fast:
        sampled(model)
    assert fast.report.evaluations == budget


def test_two_at_once(model):
    torch.manual_seed(1)
    other = Denoiser().double().eval().requires_grad_(False)
    alone = []
    for m in (model, other):
        with tw.accelerate(m, TaylorSeer(interval=3)):
            alone.append(sampled(m))
    with tw.accelerate(model, TaylorSeer(interval=3)), tw.accelerate(other, TaylorSeer(interval=3)):
        xs = [torch.randn(3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) for _ in range(2)]
        for t, after in zip(GRID, [*GRID[1:], torch.zeros(())], strict=True):
            xs = [x + (after - t) * m(x, t) for x, m in zip(xs, (model, other), strict=True)]
    assert torch.equal(xs[0], alone[0])
    assert torch.equal(xs[1], alone[1])


X = torch.ones(2, 6, dtype=torch.float64)


@pytest.mark.parametrize(
    ("act", "kind", "message"),
    [
        (lambda m: tw.accelerate(m, "taylor"), ValueError, "choose one of"),
        (lambda m: tw.accelerate(m, TaylorSeer(), tolerance=0.1), ValueError, "TaylorSeer has a schedule of its own"),
        (lambda m: tw.accelerate(m, "ab-cache", budget=4), ValueError, "schedule of its own"),
        (lambda m: tw.accelerate(m, tolerance=-1.0), ValueError, "tolerance"),
        (lambda m: tw.accelerate(m, budget=1, tolerance=0.1), ValueError, "one of them"),
        (lambda m: tw.accelerate(m, 3), TypeError, "method"),
        (lambda m: tw.accelerate(nn.Linear(2, 2), TaylorSeer()), ValueError, "time= its name"),
        (lambda m: tw.accelerate(object(), TaylorSeer()), TypeError, "no model, function, or pipeline"),
        (lambda m: tw.accelerate(m, TaylorSeer(variable="log_snr")), ValueError, "no scheduler was given"),
        (lambda m: TaylorSeer(interval=0), ValueError, "at least 1"),
        (lambda m: TaylorSeer(order=-1), ValueError, "order is a whole number"),
        (lambda m: TaylorSeer(form="spline"), ValueError, "choose one of"),
        (lambda m: TaylorSeer(sites="blocks"), ValueError, "choose one of"),
        (lambda m: TaylorSeer(variable="sigma"), ValueError, "choose one of"),
        (lambda m: ConfidenceGate(threshold=float("nan")), ValueError, "threshold"),
        (lambda m: ABCache(history="all"), ValueError, "history"),
        (lambda m: find_sites(m, ("block.*",)), ValueError, "nearest are blocks"),
        (lambda m: find_blocks(nn.Linear(3, 3)), ValueError, "no list of blocks"),
    ],
)
def test_what_makes_no_sense_is_refused(model, act, kind, message):
    with pytest.raises(kind, match=message):
        act(model)


@pytest.mark.parametrize(
    ("act", "kind", "message"),
    [
        (lambda m, f: [m(X, t) for t in [1.0] * 12], ValueError, "must not repeat"),
        (lambda m, f: m(X, torch.tensor([1.0, 0.5])), ValueError, "one finite time"),
        (lambda m, f: m(X, float("nan")), ValueError, "one finite time"),
        (lambda m, f: m(X.clone().requires_grad_(), 1.0), RuntimeError, "no_grad"),
        (lambda m, f: tw.accelerate(m, TaylorSeer()).__enter__(), RuntimeError, "accelerated already"),
    ],
)
def test_calls_that_make_no_sense(model, act, kind, message):
    with tw.accelerate(model, TaylorSeer(interval=2, sites="output")) as fast, pytest.raises(kind, match=message):
        act(model, fast)


@pytest.mark.parametrize(
    ("method", "scheduler", "message"),
    [
        (TaylorSeer(first_steps=9), GRID[:5], "nothing would be saved"),
        (Adaptive(budget=30), GRID, "nothing would be saved"),
        (TaylorSeer(), torch.tensor([1.0, 0.5, 0.7]), "go back or repeat"),
        (ConfidenceGate(), None, "when the run ends"),
        (Adaptive(tolerance=0.1), None, "when the run ends"),
    ],
)
def test_grids_that_make_no_sense(model, method, scheduler, message):
    with tw.accelerate(model, method, scheduler=scheduler), pytest.raises(ValueError, match=message):
        model(X, 1.0)


def test_more_calls_than_the_scheduler_has(model):
    with tw.accelerate(model, TaylorSeer(), scheduler=GRID[:6]), pytest.raises(ValueError, match="after them"):
        sampled(model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_that_is_told_a_share_of_the_time(model, dtype):
    class Schedule:
        timesteps = 1000 * GRID
        config = {"num_train_timesteps": 1000}  # noqa: RUF012

    told = GRID.to(dtype).double()
    with tw.accelerate(model, TaylorSeer(variable="timestep"), scheduler=Schedule()) as fast:
        sampled(model, grid=told)
    assert [s.time for s in fast.report.steps] == (1000 * GRID).tolist()
    with tw.accelerate(model, TaylorSeer(), scheduler=Schedule()) as fast:
        sampled(model, grid=told[6:])  # from a picture
    assert [s.time for s in fast.report.steps] == (1000 * GRID[6:]).tolist()
    with tw.accelerate(model, TaylorSeer(), scheduler=Schedule()), pytest.raises(ValueError, match="the right one"):
        model(X, 37.5)


def test_dropout_is_refused():
    with pytest.raises(RuntimeError, match=r"call .eval\(\)"):
        tw.accelerate(Denoiser(dropout=0.5), TaylorSeer()).__enter__()


def test_result_has_the_report_of_a_class():
    assert isinstance(tw.accelerate(Denoiser(), TaylorSeer()), Accelerated)


def test_little_memory_is_told_in_small_units(model):
    with tw.accelerate(model, ABCache(interval=3)) as fast:
        sampled(model)
    assert fast.report.summary().endswith(f"{fast.report.memory / 1024:.1f} KiB of kept values")
    assert fast.report.memory > 0
    fast.report.memory = 3 * 2**20
    assert fast.report.summary().endswith("3.0 MiB of kept values")


class Conditioned(nn.Module):
    """Says its condition: easy to tell whose history a forecast comes from."""

    def forward(self, x, timestep, class_labels=None):
        return torch.zeros_like(x) + class_labels


def test_calls_are_told_apart_by_their_condition():
    """Guidance that is turned off in mid-run leaves the other call its own history."""
    model = Conditioned()
    with tw.accelerate(model, ABCache(interval=3)) as fast:
        for i, t in enumerate(GRID.tolist()):
            for label in (2.0, 1.0) if i < 9 else (1.0,):
                assert torch.allclose(model(X, t, torch.tensor(label)), torch.full_like(X, label))
    assert fast.report.evaluations < 12


def test_a_run_that_was_left_is_over_when_the_scheduler_sets_its_times(model):
    class Schedule:
        def set_timesteps(self):
            self.timesteps = GRID.clone()

    scheduler = Schedule()
    with tw.accelerate(model, ABCache(interval=4, order=0), scheduler=scheduler) as fast:
        scheduler.set_timesteps()
        for t in GRID[:4].tolist():
            model(X, t)
        scheduler.set_timesteps()
        out = model(5 * X, GRID[7].item())
        assert fast.report.steps[0].computed
        assert len(fast.report.steps) == 1
    assert torch.equal(out, model(5 * X, GRID[7].item()))


def test_another_scheduler_than_the_one_in_use(model):
    with tw.accelerate(model, TaylorSeer(), scheduler=1000 * GRID), pytest.raises(ValueError, match="is it the one in use"):
        for t in (1000.0, 999.0, 998.0, 997.0):
            model(X, t)


def test_outputs_without_a_tensor_are_refused():
    class Odd(nn.Module):
        def forward(self, x, t):
            return {1, 2}

    odd = Odd()
    with tw.accelerate(odd, ABCache()), pytest.raises(TypeError, match="no floating tensor is seen"):
        odd(X, 1.0)


def test_patterns_of_names_cost_what_still_runs(model):
    with tw.accelerate(model, TaylorSeer(interval=2, sites=("blocks.0.attn",)), scheduler=GRID) as fast:
        sampled(model)
    assert 1.0 < fast.report.speedup < 1.1


def test_times_that_are_one_in_half_precision(model):
    class Schedule:
        timesteps = torch.linspace(1000, 5, 200, dtype=torch.float64)
        config = {"num_train_timesteps": 1000}  # noqa: RUF012

    with tw.accelerate(model, TaylorSeer(variable="timestep", sites="output"), scheduler=Schedule()) as fast:
        for t in (Schedule.timesteps / 1000).to(torch.bfloat16).double().tolist():
            model(X, t)
    assert abs(fast.report.steps[-1].time - 5) < 10


def test_a_pipeline_may_change_its_scheduler(model):
    class Schedule:
        def __init__(self, times):
            self.timesteps = times

    class Pipeline:
        def __init__(self):
            self.transformer, self.scheduler = model, Schedule(GRID)

        def __call__(self):
            return sampled(self.transformer, grid=self.scheduler.timesteps)

    pipeline = Pipeline()
    fast = tw.accelerate(pipeline, tolerance=0.01)
    fast()
    pipeline.scheduler = Schedule(GRID[::2] + 0.003)
    fast()
    assert [s.time for s in fast.report.steps] == (GRID[::2] + 0.003).tolist()


def test_entering_twice_leaves_the_first(model):
    with tw.accelerate(model, TaylorSeer()) as fast:
        model(X, 1.0)
        with pytest.raises(RuntimeError, match="accelerated already"), fast:
            pass
        assert len(fast.report.steps) == 1
    with pytest.raises(TypeError, match="runs it along its grid"):
        tw.accelerate(model, budget=8, scheduler=GRID).calibrate(X, 1.0)


def test_estimates_are_of_the_order_that_is_used(model):
    """With noise in every output, lines of high order are the worse ones."""
    generator = torch.Generator().manual_seed(0)
    model.head.register_forward_hook(lambda m, a, y: y + 0.05 * torch.randn(y.shape, generator=generator, dtype=y.dtype))
    estimates = {}
    for order in (1, 6):
        with tw.accelerate(model, ABCache(interval=2, order=order, first_steps=8), scheduler=GRID) as fast:
            sampled(model)
        estimates[order] = fast.report.estimate
    assert estimates[6] > 3 * estimates[1]
