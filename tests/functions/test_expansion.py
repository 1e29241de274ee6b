"""Expansions of whole networks: the remainder falls as it must, the terms are exact, radii and kinks are where they are."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import termwise as tw
from termwise.core.capture import capture
from termwise.functions import expand, jet, radius
from termwise.testing.architectures import ARCHITECTURES, build


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mlp(seed: int = 0, act: type[nn.Module] = nn.Tanh, width: int = 12) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, width), act(), nn.Linear(width, width), act(), nn.Linear(width, 3)).double().eval()


def test_parts_are_the_terms_and_the_remainder_is_measured():
    model, x, h = mlp(), double(2, 4), double(2, 4, seed=1)
    e = expand(model, x, h, order=3, at=0.5)
    assert list(e.parts) == ["order_0", "order_1", "order_2", "order_3"]
    torch.testing.assert_close(e.whole, model(x + 0.5 * h))
    torch.testing.assert_close(e.parts["order_0"], model(x))
    _, slope = torch.func.jvp(model, (x,), (h,))
    torch.testing.assert_close(e.parts["order_1"], 0.5 * slope)
    torch.testing.assert_close(e.coefficients[1], slope)
    assert e.coefficients.shape == (4, 2, 3)
    torch.testing.assert_close(e.evaluate(0.5), e.total())
    torch.testing.assert_close(e.evaluate([0.1, 0.5])[1], e.total())
    torch.testing.assert_close(e.remainder, e.whole - sum(e.parts.values()))


@settings(max_examples=10, deadline=None)
@given(order=st.integers(0, 6), seed=st.integers(0, 3))
def test_the_remainder_falls_with_the_order(order, seed):
    model, x, h = mlp(seed), double(2, 4, seed=seed), double(2, 4, seed=seed + 1)
    large, small = (expand(model, x, h, order=order, at=t).remainder.norm().item() for t in (0.1, 0.05))
    assert large / small == pytest.approx(2 ** (order + 1), rel=0.25)


def test_the_remainder_is_the_integral_of_the_next_derivative():
    """R = int_0^1 (K + 1) (1 - s)^K f_(K+1)(x + s t h) ds t^(K+1), by Gauss and Legendre."""
    import numpy as np

    model, x, h, t, order = mlp(), double(1, 4), double(1, 4, seed=1), 0.3, 8
    nodes, weights = np.polynomial.legendre.leggauss(16)
    total = torch.zeros(1, 3, dtype=torch.float64)
    for s, w in zip((nodes + 1) / 2, weights / 2, strict=True):
        point = x + s * t * h
        _, found = jet(model, [point], [[h, *[torch.zeros_like(x)] * order]])
        total += w * (order + 1) * (1 - s) ** order * found[-1] * t ** (order + 1)
    measured = expand(model, x, h, order=order, at=t).remainder
    assert measured.norm() > 1e-12
    torch.testing.assert_close(measured, total, rtol=1e-6, atol=1e-14)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_expanded(name):
    """Order 0 is the model's own value, order 1 its slope by differences; twice as far the rest is four times as large."""
    subject = build(name, batch=2, size=1).to(torch.float64)
    direction = _direction(subject)

    def at(t: float, order: int):  # type: ignore[no-untyped-def]
        return expand(subject.model, *subject.inputs, direction, kwargs=subject.kwargs, order=order, at=t)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        far, near = at(0.02, 1), at(0.01, 1)
        step = 1e-3 if near.kink_radius > 1e-3 else 0.1 * near.kink_radius
        slope = (at(step, 0).whole - at(-step, 0).whole) / (2 * step)
        own = capture(subject.model, *subject.inputs, kwargs=subject.kwargs)(*subject.inputs, kwargs=subject.kwargs)
    torch.testing.assert_close(far.parts["order_0"], own, rtol=1e-6, atol=1e-6)  # some norms are in float32
    size = near.coefficients[1].norm().item()
    assert size > 0
    islands = 1e-7 * near.whole.norm().item() / step
    assert (near.coefficients[1] - slope).norm().item() <= 0.01 * size + islands
    rest = [e.remainder.norm().item() for e in (far, near)]
    if rest[1] > 1e-6 * near.whole.norm().item() and far.kink_radius > 0.02 and not far.blind:
        assert rest[0] / rest[1] == pytest.approx(4, rel=0.2)


def _direction(subject):  # type: ignore[no-untyped-def]
    """A unit vector in the first floating input, or where ids are looked up."""
    from termwise.core.program import info

    program = capture(subject.model, *subject.inputs, kwargs=subject.kwargs)
    values = program.bind(program.tensors(*subject.inputs, kwargs=subject.kwargs))
    given = {p.name: values[n] for n, p in program.placeholders.items() if p.kind == "input"}
    name = next((n for n, v in given.items() if v.is_floating_point()), None)
    if name is not None:
        shape = given[name].shape
    else:
        cut = next(n for n in program.nodes if info(n).role == "cut")
        name = info(cut).origin
        shape = (*given[name].shape, cut.meta["val"].shape[-1])
    h = double(*shape, seed=3)
    return {name: h / h.norm()}


def test_along_the_parameters():
    model, x = mlp(), double(2, 4)
    names = ["0.weight", "2.bias", "4.weight"]
    h = {n: double(*dict(model.named_parameters())[n].shape, seed=i) for i, n in enumerate(names)}
    far, near = (expand(model, x, h, order=2, at=t, wrt="parameters") for t in (0.02, 0.01))
    moved = {n: p + (0.02 * h[n] if n in h else 0) for n, p in model.named_parameters()}
    torch.testing.assert_close(far.whole, torch.func.functional_call(model, moved, (x,)))
    assert far.remainder.norm() / near.remainder.norm() == pytest.approx(8, rel=0.1)


def test_a_relu_network_is_linear_up_to_its_first_kink_and_not_behind():
    for seed in range(4):
        model, x, h = mlp(seed, nn.ReLU, 40), double(3, 4, seed=seed), double(3, 4, seed=seed + 9)
        r = expand(model, x, h, order=1, at=1.0).kink_radius
        assert 0 < r < 1
        assert expand(model, x, h, order=1, at=0.999 * r).error() < 1e-13
        assert expand(model, x, h, order=1, at=1.5 * r).error() > 1e-8
        back = expand(model, x, h, order=1, at=-1.0).kink_radius
        assert expand(model, x, h, order=1, at=-0.999 * back).error() < 1e-13
        assert "BEYOND A KINK" in expand(model, x, h, at=1.5 * r).summary()


def test_a_curved_unit_kinks_where_its_series_is_zero():
    f = lambda x: torch.relu(x.square() - 0.5)
    e = expand(f, torch.zeros(1, 1).double(), torch.ones(1, 1).double(), order=3, at=1.0)
    assert e.kink_radius == pytest.approx(math.sqrt(0.5), rel=1e-9)
    assert "relu" in e.kink


def coefficients(f, x: float, order: int = 40) -> Tensor:
    at = torch.tensor(x, dtype=torch.float64)
    value, found = jet(f, [at], [[torch.ones_like(at), *[torch.zeros_like(at)] * (order - 1)]])
    return torch.stack([value, *found])


RADII = {
    "tanh": (torch.tanh, 1.0, abs(1 - 0.5j * math.pi)), "sigmoid": (torch.sigmoid, 0.5, abs(0.5 - 1j * math.pi)),
    "softplus": (F.softplus, 0.5, abs(0.5 - 1j * math.pi)), "silu": (F.silu, 0.5, abs(0.5 - 1j * math.pi)),
    "mish": (F.mish, 0.5, abs(0.5 - math.log(2) / 2 - 0.75j * math.pi)), "atan": (torch.atan, 0.6, abs(0.6 - 1j)),
    "log": (torch.log, 2.0, 2.0), "rsqrt": (torch.rsqrt, 3.0, 3.0), "odd": (torch.tanh, 0.0, math.pi / 2),
    "reciprocal": (torch.reciprocal, -1.5, 1.5),
}  # fmt: skip


@pytest.mark.parametrize("name", RADII)
def test_a_radius_is_the_distance_of_the_nearest_singularity(name):
    f, x, truth = RADII[name]
    assert float(radius(coefficients(f, x))) == pytest.approx(truth, rel=0.01)
    rough = radius(coefficients(f, x, order=8))
    assert rough.low * 0.7 < truth < rough.high * 1.5


@pytest.mark.parametrize("f", [F.gelu, torch.exp, torch.sin, lambda x: x**3])
def test_entire_functions_have_none(f):
    assert math.isinf(float(radius(coefficients(f, 0.3))))


def test_the_radius_of_a_layer_norm_is_the_root_of_its_variance():
    x, h = double(1, 8), double(1, 8, seed=1)
    d, g = x - x.mean(), h - h.mean()
    # mean (d + t g)^2 + eps = 0
    import numpy as np

    roots = np.roots([g.square().mean().item(), 2 * (d * g).mean().item(), d.square().mean().item() + 1e-5])
    e = expand(nn.LayerNorm(8).double().eval(), x, h, order=39, at=0.1)
    assert float(radius(e.series[0, 0])) == pytest.approx(abs(roots[0]), rel=0.01)
    assert float(e.radius) == pytest.approx(abs(roots[0]), rel=0.05)


def test_beyond_the_radius_it_says_so():
    x = torch.ones(1, 1, dtype=torch.float64)
    inside, outside = (expand(lambda x: torch.log(1 + x), x, torch.ones_like(x), order=20, at=t) for t in (1.0, 3.0))
    assert not inside.diverges()
    assert "radius 2" in inside.summary()
    assert outside.diverges()
    assert "no approximation" in outside.summary()
    assert torch.isinf(outside.predicted_remainder).all()
    assert outside.error() > 10


def test_the_predicted_remainder_is_near_the_measured_one():
    x = torch.ones(1, 1, dtype=torch.float64)
    e = expand(lambda x: torch.log(1 + x), x, torch.ones_like(x), order=10, at=0.5)
    assert 0.3 < (e.predicted_remainder / e.remainder.abs()).item() < 3


def test_tied_parameters_move_together():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.out.weight = self.table.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(self.table(ids).tanh().mean(1))

    model, ids, h = Tied().double().eval(), torch.tensor([[1, 2, 6]]), double(7, 4)
    for name in ("table.weight", "out.weight"):
        e = expand(model, ids, {name: h}, order=2, at=0.1, wrt="parameters")
        moved = torch.func.functional_call(model, {"table.weight": model.table.weight + 0.1 * h}, (ids,))
        torch.testing.assert_close(e.whole, moved)
        assert 0 < e.error() < 1e-2


def test_backwards_the_side_of_a_kink_is_the_other_one():
    x, h = torch.zeros(1).double(), torch.ones(1).double()
    with pytest.warns(UserWarning, match="starts on a kink"):
        back = expand(torch.relu, x, h, order=1, at=-1.0)
    assert back.parts["order_1"].item() == 0
    assert back.error() == 0
    model, x, h = mlp(), double(2, 4), double(2, 4, seed=1)
    there = expand(model, x, -h, order=3, at=0.5)
    for name, part in expand(model, x, h, order=3, at=-0.5).parts.items():
        torch.testing.assert_close(part, there.parts[name])


def test_what_switches_is_watched_or_said():
    x, h = torch.tensor([[0.5, 0.2]]).double(), torch.tensor([[-1.0, 1.0]]).double()
    assert expand(lambda x: torch.where(x > 0, x, 0.1 * x), x, h, at=1.0).kink_radius == pytest.approx(0.5)
    assert expand(lambda x: x.sort(1)[0], x, h, at=1.0).blind
    assert "not watched" in expand(lambda x: x.floor() + x * x, x, h, at=0.1).summary()


def test_series_that_end_and_series_with_gaps():
    exact = expand(lambda x: x**2, double(2, 3), double(2, 3, seed=1), order=4, at=1000.0)
    assert math.isinf(exact.radius.value)
    assert not exact.diverges()
    zero, one = torch.zeros(1, 1).double(), torch.ones(1, 1).double()
    assert expand(lambda x: 1 / (1 + x**4), zero, one, order=18, at=2.0).radius.value == pytest.approx(1, rel=0.02)
    assert math.isnan(float(radius([1, math.nan, 1, 1, 1])))
    odd = expand(torch.atan, zero, one, order=5, at=0.5)
    assert 0.2 < (odd.predicted_remainder / odd.remainder.abs()).item() < 50


def test_pictures_and_files(tmp_path):
    e = expand(mlp(), double(2, 4), double(2, 4, seed=1), order=3)
    e.plot().savefig(tmp_path / "terms.png")
    assert (tmp_path / "terms.png").stat().st_size > 1000
    again = tw.Decomposition.load(e.save(tmp_path / "expansion"))
    assert torch.equal(again.coefficients, e.coefficients)
    assert again.kink_radius == e.kink_radius
    assert e[1].coefficients.shape == (4, 1, 3)
    assert "order 3 at 1" in repr(e)


def test_what_is_refused():
    model, x, h = mlp(), double(2, 4), double(2, 4, seed=1)
    for bad, message in (
        ({"order": -1}, "order must be at least 0, a whole number; got -1"), ({"order": 1.5}, "order must be"), ({"at": 0.0}, "not 0"),
        ({"at": math.nan}, "finite"), ({"wrt": "weights"}, "wrt is"), ({"wrt": "parameters"}, "a mapping from parameter names"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            expand(model, x, h, **bad)
    with pytest.raises(ValueError, match=r"has shape \(4,\), and goes with \(2, 4\)"):
        expand(model, x, h[0])
    with pytest.raises(ValueError, match="names 'y'; the inputs are input"):
        expand(model, x, {"y": h})
    with pytest.raises(ValueError, match="is not finite"):
        expand(model, x, h * math.nan)
    with pytest.raises(ValueError, match="is not finite"):
        expand(model, x * math.nan, h)
    with pytest.raises(ValueError, match="inputs, and after them the direction"):
        expand(model)
    with pytest.raises(TypeError, match="looked up in no embedding"):
        expand(lambda n: n * torch.ones(2).double(), torch.tensor([[1, 2]]), torch.ones(1, 2).double())
    with pytest.raises(ValueError, match="rounds"):
        expand(lambda x: torch.div(x, 2.0 * x, rounding_mode="floor"), x, h)


def test_the_verbs_are_at_the_top():
    assert tw.expand is expand
    assert issubclass(tw.Expansion, tw.Decomposition)
