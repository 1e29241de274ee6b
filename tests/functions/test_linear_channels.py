"""Partly linear networks: slopes are those of the formula, path lengths those of the paths, merged layers the same function."""

import copy
import itertools
import math
import pickle

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import termwise as tw
from termwise.functions import attach_slopes, average_path_length, collapse, linearity_scores, linearize_channels
from termwise.functions.linear_channels import _move
from termwise.testing.architectures import build


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    for p in model.parameters():
        nn.init.normal_(p, std=0.5, generator=torch.Generator().manual_seed(seed := seed + 1))
    return model.double().eval()


class Mixed(nn.Module):
    """A module used twice, a function, a residual sum; `slopes` makes it the slow twin."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head, self.act = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2), nn.ReLU()
        self.slopes: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        first = [self.act, self.act, F.relu] if self.slopes is None else [lambda v, s=s: F.prelu(v, s) for s in self.slopes]
        x = first[0](self.a(x))
        x = x + first[1](self.b(x))
        return self.head(first[2](self.b(x)).mean((2, 3)))


# -- slopes -------------------------------------------------------------------------------------------------------------


def test_slopes_are_those_of_prelu():
    model, x = seeded(Mixed()), double(4, 1, 6, 6)
    before = copy.deepcopy(model.state_dict())
    net = attach_slopes(model, x)
    assert [(a.name, a.channels, a.axis) for a in net.layers] == [("act#1", 3, -3), ("act#2", 3, -3), ("relu", 3, -3)]
    assert torch.equal(net(x), model(x))
    assert net.share == 1
    slopes = torch.rand(3, 3, generator=torch.Generator().manual_seed(0)).double()
    net.slopes.data.copy_(slopes.flatten())
    model.slopes = slopes
    torch.testing.assert_close(net(x[:3]), model(x[:3]), rtol=1e-12, atol=1e-12)
    model.slopes = None
    net(x).sum().backward()
    assert net.slopes.grad.abs().min() > 0
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("act", "f"), [(nn.GELU(), F.gelu), (nn.SiLU(), F.silu), (nn.ReLU(), F.relu)])
def test_other_activations_by_the_same_formula(act, f):
    model, x, a = seeded(nn.Sequential(nn.Linear(3, 5), act, nn.Linear(5, 2))), double(4, 7, 3), torch.linspace(0, 1, 5).double()
    net = attach_slopes(model, x)
    net.slopes.data.copy_(a)
    z = model[0](x)
    torch.testing.assert_close(net(x), model[2]((1 - a) * f(z) + a * z), rtol=1e-12, atol=1e-12)
    assert net.active["1"].tolist() == [True] * 4 + [False]


def test_channels_of_real_architectures():
    for name, axis in (("resnet", -3), ("llama", -1), ("bert", -1), ("convnext", -1)):
        subject = build(name, batch=2).to(torch.float64)
        net = attach_slopes(subject.model, *subject.inputs, kwargs=subject.kwargs)
        assert {a.axis for a in net.layers} == {axis}, name
        recorded = tw.capture(subject.model, *subject.inputs, kwargs=subject.kwargs)
        assert torch.equal(net(*subject.inputs, **subject.kwargs), recorded(*subject.inputs, kwargs=subject.kwargs))
        assert average_path_length(net, *subject.inputs, kwargs=subject.kwargs) > 0


def test_what_is_left_is_named():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 2, 1), nn.Tanh(), nn.ReLU()).eval()
    net = attach_slopes(model, torch.randn(2, 1, 6, 6))
    assert [a.name for a in net.layers] == ["1"]  # the last one is the output
    assert [u.partition(" (")[0] for u in net.untouched] == ["aten.max_pool2d at 2", "aten.tanh at 4", "aten.relu at 5"]


def test_penalty_and_snapping():
    net = attach_slopes(seeded(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))), double(3, 2))
    net.slopes.data.copy_(torch.tensor([0.0, 0.75, 0.995, 1.3]))
    assert net.snap_() == 2
    assert net.slopes.tolist() == [0.0, 0.75, 1.0, 1.0]
    assert net.penalty().item() == pytest.approx(1 + 0.5)
    assert net.penalty(1.0).item() == pytest.approx(1.25)
    (grad,) = torch.autograd.grad(net.penalty(), net.slopes)
    assert grad.tolist() == pytest.approx([-0.5, -1.0, 0.0, 0.0])
    assert net.share == 0.5
    with pytest.raises(ValueError, match=r"p lies in \(0, 1\].*got 2"):
        net.penalty(2)


def test_it_is_kept_in_files(tmp_path):
    x = torch.randn(5, 2)
    found = linearize_channels(small(), HALF, omega=0.1, epochs=2, progress=False)
    torch.save(found, tmp_path / "found.pt")
    again = torch.load(tmp_path / "found.pt", weights_only=False)
    assert torch.equal(again.model(x), found.model(x))
    assert (again.history, again.share, again.model.untouched) == (found.history, found.share, found.model.untouched)
    assert again.model.layers == found.model.layers
    torch.save(found.model.state_dict(), tmp_path / "state.pt")
    plain = attach_slopes(small(), x)
    plain.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert torch.equal(plain(x), found.model(x))
    moved = pickle.loads(pickle.dumps(found.model.double().train()))  # recorded in float32, in eval mode
    torch.testing.assert_close(moved(x.double()).float(), plain(x))
    assert moved.training
    assert moved.model[0].training
    subject = build("llama", batch=2)
    net = attach_slopes(subject.model, *subject.inputs, kwargs=subject.kwargs)
    for copied in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        assert torch.equal(copied(*subject.inputs, **subject.kwargs), net(*subject.inputs, **subject.kwargs))


def test_another_dtype_is_named():
    net, x = attach_slopes(small(), torch.randn(5, 2)), torch.randn(3, 2)
    with pytest.raises(
        ValueError, match=r"\['free', 2\]\} in float32 on cpu, with weights in float32 on cpu .* in float64 on cpu"
    ):
        net(x.double())
    with pytest.raises(ValueError, match=r"in float64 on cpu, with weights in float64 on cpu: capture it anew"):
        net.double()(x.double())


def test_what_cannot_be_given_slopes_is_refused():
    with pytest.raises(ValueError, match=r"Sequential has no activation that can be made linear.*aten.tanh at 1"):
        attach_slopes(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)).eval(), torch.randn(3, 2))
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module"):
        attach_slopes(lambda x: x.relu() * 2, torch.randn(3, 2))

    class Folded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x.view(len(x), 2, 3)).flatten(1) * 2

    with pytest.raises(ValueError, match=r"the channels of aten.relu at the top of the model .*cannot be told"):
        attach_slopes(Folded().eval(), torch.randn(4, 6))


# -- path length --------------------------------------------------------------------------------------------------------


class Graph(nn.Module):
    """Values of one width, each made from earlier ones: ("layer", i) is relu(linear(v_i)), ("sum", i, j) is v_i + v_j."""

    def __init__(self, plan, width: int = 2) -> None:
        super().__init__()
        self.plan = plan
        self.layers = nn.ModuleList(nn.Linear(width, width) for step in plan if step[0] == "layer")

    def forward(self, x: Tensor) -> Tensor:
        values, layers = [x], iter(self.layers)
        for kind, *of in self.plan:
            values.append(F.relu(next(layers)(values[of[0]])) if kind == "layer" else values[of[0]] + values[of[1]])
        return values[-1] * 1.0


@st.composite
def plans(draw):
    plan = [("layer", 0)]
    for k in range(1, draw(st.integers(1, 6))):
        i, j = draw(st.integers(max(0, k - 2), k)), draw(st.integers(0, k))
        plan.append(draw(st.sampled_from([("layer", i), ("sum", k, j)])) if i != j else ("layer", k))
    return [*plan, ("layer", len(plan))]


def flat(plan, k: int) -> list[int]:
    """What a sum is of: a sum within, which nothing else reads, is no value of its own."""
    live, found = {len(plan)}, []
    for v in range(len(plan), 0, -1):
        live |= {*plan[v - 1][1:]} if v in live else set()
    readers = [v for r in live if r for v in plan[r - 1][1:]]
    for v in plan[k - 1][1:]:
        found += flat(plan, v) if v and plan[v - 1][0] == "sum" and readers.count(v) == 1 else [v]
    return found


def slow_paths(plan, on: list[list[int]], k: int, unit: int):
    """Every path backward from a unit of value k: (probability, weight 1, active units)."""
    if k == 0:
        return [(1.0, 0)]
    kind, *of = plan[k - 1]
    if kind == "sum":
        summands = flat(plan, k)
        return [(p / len(summands), n) for v in summands for p, n in slow_paths(plan, on, v, unit)]
    own = on[sum(s[0] == "layer" for s in plan[: k - 1])][unit]
    return [(p / len(on[0]), n + own) for u in range(len(on[0])) for p, n in slow_paths(plan, on, of[0], u)]


@settings(max_examples=15, deadline=None)
@given(plan=plans(), seed=st.integers(0, 99))
def test_lengths_are_those_of_all_paths(plan, seed):
    model, x = seeded(Graph(plan)), double(3, 2)
    net = attach_slopes(model, x)
    on = torch.rand(len(model.layers), 2, generator=torch.Generator().manual_seed(seed)) < 0.7
    used = {a.node for a in net.layers}
    if len(used) < len(model.layers):
        return  # a value that nothing reads is not recorded
    net.slopes.data.copy_((~on).double().flatten())
    paths = [path for unit in range(2) for path in slow_paths(plan, on.long().tolist(), len(plan), unit)]
    assert average_path_length(net, x) == pytest.approx(sum(p * n for p, n in paths) / 2, abs=1e-12)
    assert average_path_length(net, x, weighting="paths") == pytest.approx(sum(n for _, n in paths) / len(paths), abs=1e-12)


def test_by_jacobian_paths_have_their_weights():
    """|w| along every path and |phi'| at its units, path by path; a shortcut counts for what it carries."""
    model, x = seeded(Graph([("layer", 0), ("layer", 1), ("sum", 2, 0)])), double(1, 2)
    net = attach_slopes(model, x)
    net.slopes.data.copy_(torch.tensor([0.3, 1.0, 0.1, 0.0]))
    w = [m.weight.detach().abs() for m in model.layers]
    arriving, slopes, on = net.arriving(x), net.slopes.detach().view(2, 2), torch.tensor([[1, 0], [1, 1]])
    steep = [torch.where(v[0] > 0, 1.0, a) for v, a in zip(arriving.values(), slopes, strict=True)]
    n, t = 2.0, 0.0  # two paths past the layers
    for i, j, k in itertools.product(range(2), repeat=3):
        size = (w[1][k, j] * steep[1][k] * w[0][j, i] * steep[0][j]).item()
        n, t = n + size, t + size * (on[1][k] + on[0][j]).item()
    assert average_path_length(net, x, weighting="jacobian") == pytest.approx(t / n, rel=1e-12)


def test_by_jacobian_a_slope_may_outweigh_a_falling_unit():
    class Falling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(F.gelu(self.up(x))) + x

    model, x, a = Falling().double().eval(), torch.full((1, 1), -0.7).double(), 0.05  # gelu falls at -1.4
    model.up.weight.data.fill_(2.0)
    model.down.weight.data.fill_(1.5)
    net = attach_slopes(model, x)
    net.slopes.data.fill_(a)
    steep = torch.func.jvp(F.gelu, (2 * x,), (torch.ones_like(x),))[1].item()
    size = 3 * abs((1 - a) * steep + a)
    assert steep < 0
    assert average_path_length(net, x, weighting="jacobian") == pytest.approx(size / (1 + size), rel=1e-12)


def test_lengths_of_convolutions():
    """A path of a convolution ends at one of the values under its kernel: counted by a network of ones, one layer each."""
    layers = nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)
    net = attach_slopes(seeded(nn.Sequential(*layers)), double(2, 1, 6, 6))
    net.slopes.data.copy_(torch.tensor([1.0, 0, 0, 1, 0]))
    x = double(2, 1, 6, 6)
    assert average_path_length(net, x) == pytest.approx(2 / 3 + 1 / 2)
    assert average_path_length(net, x, weighting="paths") == pytest.approx(2 / 3 + 1 / 2)  # nine ways into each of the first
    normed = seeded(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)))
    normed[1].running_var.fill_(2.0)
    assert average_path_length(normed, double(4, 3), weighting="paths") == 1
    assert average_path_length(normed, double(4, 3), weighting="jacobian") == pytest.approx(1)


class Of(nn.Module):
    """A function of an input and of two rectified layers."""

    def __init__(self, f) -> None:
        super().__init__()
        self.f, self.a, self.b = f, nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x, F.relu(self.a(x)), F.relu(self.b(x)))


def test_a_sum_is_the_same_however_it_is_written():
    x = double(2, 3)
    for f in (
        lambda x, p, q: p + q + x, lambda x, p, q: x + p + q, lambda x, p, q: p + (x + q), lambda x, p, q: torch.add(x + p, q, alpha=2),
    ):  # fmt: skip
        assert average_path_length(seeded(Of(f)), x) == pytest.approx(2 / 3)
    for f in (lambda x, p, q: torch.cat([p, x, x, x], -1), lambda x, p, q: torch.stack([x, p, x, x])):
        assert average_path_length(seeded(Of(f)), x) == pytest.approx(1 / 4)
    assert average_path_length(seeded(Of(lambda x, p, q: (p + x) * (p + x))), x) == pytest.approx(1 / 2)


def test_by_jacobian_a_factor_of_a_sum_counts():
    x = double(2, 3)
    for add, scale in (
        (lambda x, p, q: torch.add(x, p, alpha=100.0), lambda x, p, q: x + 100.0 * p),
        (lambda x, p, q: torch.sub(p, x, alpha=3), lambda x, p, q: p - 3 * x),
        (lambda x, p, q: torch.add(torch.ones(3).double(), p, alpha=3) + x, lambda x, p, q: 3 * p + x),
    ):
        lengths = [average_path_length(seeded(Of(f)), x, weighting="jacobian") for f in (add, scale)]
        assert lengths[0] == pytest.approx(lengths[1], rel=1e-12)


@pytest.mark.parametrize(
    "act", [torch.sin, lambda v: v.clamp(min=0), lambda v: torch.maximum(v, torch.zeros(3).double()), torch.square, torch.exp]
)
def test_every_bend_is_a_unit(act):
    model, x = seeded(Of(lambda x, p, q: act(p) * 2)), double(2, 3)
    assert average_path_length(model, x) == 2
    if "maximum" not in str(act.__code__.co_names if hasattr(act, "__code__") else ""):
        assert average_path_length(model, x, weighting="paths") == 2


def test_units_that_are_hidden_are_refused():
    for model in (nn.GRU(3, 4), nn.LSTM(3, 4), nn.RNN(3, 4)):
        with pytest.raises(ValueError, match=r"through aten\.(gru|lstm|rnn_tanh) at .*cannot be counted: its units lie within"):
            average_path_length(model.eval(), torch.randn(2, 5, 3))
    with pytest.raises(ValueError, match=r"aten\.logcumsumexp at .*not known whether it has units"):
        average_path_length(Of(lambda x, p, q: p.logcumsumexp(-1)).eval(), torch.randn(2, 3))


def test_paths_that_cannot_be_counted_are_refused():
    model, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2)).eval(), torch.randn(2, 1, 6, 6)
    assert average_path_length(model, x) == 1
    with pytest.raises(ValueError, match=r'paths through aten.max_pool2d at 2 .*weighting="normalized"'):
        average_path_length(model, x, weighting="paths")
    with pytest.raises(ValueError, match=r"paths through aten\.mul"):
        average_path_length(Of(lambda x, p, q: p * q).eval(), torch.randn(2, 3), weighting="paths")
    with pytest.raises(ValueError, match="weighting is one of normalized, paths, jacobian, got 'mean'"):
        average_path_length(model, x, weighting="mean")


# -- merged layers ------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(plan=plans(), seed=st.integers(0, 99), dead=st.floats(0, 1))
def test_merged_layers_are_the_same_function(plan, seed, dead):
    model, x = seeded(Graph(plan), seed), double(3, 2)
    net = attach_slopes(model, x)
    for on in net.by_layer(net.slopes.data).values():
        on.fill_(float(torch.rand((), generator=torch.Generator().manual_seed(seed := seed + 1)) < dead))
    merged = collapse(net)
    torch.testing.assert_close(merged(x[:2]), net(x[:2]), rtol=1e-9, atol=1e-9)
    if not net.share:
        assert [tuple(p.shape) for p in merged.parameters()] == [(2, 2), (2,)]


def test_what_is_merged_and_what_is_not():
    layers = [nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)]
    model, x = seeded(nn.Sequential(*layers)), double(4, 3)
    model[3].running_mean.fill_(0.3)
    model[3].running_var.fill_(2.0)
    net = attach_slopes(model, x)
    shapes = {}
    for linear in ((), ("1",), ("4",), ("1", "4")):
        for name, slopes in net.by_layer(net.slopes.data).items():
            slopes.fill_(float(name in linear))
        merged = collapse(net)
        torch.testing.assert_close(merged(x), net(x), rtol=1e-12, atol=1e-12)
        shapes[linear] = [tuple(p.shape) for p in merged.parameters() if p.ndim == 2]
    assert shapes == {(): [(8, 3), (8, 8), (2, 8)], ("1",): [(8, 3), (2, 8)], ("4",): [(8, 3), (2, 8)], ("1", "4"): [(2, 3)]}
    picture = attach_slopes(seeded(Mixed()), double(2, 1, 6, 6))
    picture.slopes.data[:3] = 1.0
    torch.testing.assert_close(collapse(picture)(double(3, 1, 6, 6)), picture(double(3, 1, 6, 6)), rtol=1e-12, atol=1e-12)
    merged(x).sum().backward()
    assert all(p.grad is not None for p in merged.parameters())
    with pytest.raises(TypeError, match=r"takes a PartlyLinear.*got Linear"):
        collapse(nn.Linear(2, 2))


def test_statistics_are_no_parameters_of_the_merged_network():
    """Behind a convolution, where batch norms stay as they are; with gradients and without."""
    layers = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2, affine=False), nn.ReLU()]
    model, x = seeded(nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 2))), double(4, 1, 6, 6)
    model[1].running_mean.fill_(0.3)
    model[4].running_var.fill_(2.0)
    net = attach_slopes(model, x)
    net.slopes.data[:3] = 1.0
    merged = collapse(net)
    torch.testing.assert_close(merged(x), net(x), rtol=1e-12, atol=1e-12)
    merged(x).sum().backward()
    assert all(p.grad is not None for p in merged.parameters())
    statistics = [(model[i].running_mean, model[i].running_var) for i in (1, 4)]
    for value in (v for pair in statistics for v in pair):
        assert any(torch.equal(b, value) for b in merged.buffers())
        assert not any(torch.equal(p, value) for p in merged.parameters())


@pytest.mark.parametrize("name", ["resnet", "llama", "mobilenet-v3", "bert"])
def test_architectures_are_merged(name):
    """With running statistics, with buffers that no state holds (inv_freq), with tied weights."""
    subject = build(name, batch=2).to(torch.float64)
    net = attach_slopes(subject.model, *subject.inputs, kwargs=subject.kwargs)
    assert "model.rotary_emb.inv_freq" not in subject.model.state_dict()
    net.slopes.data[: net.layers[0].channels] = 1.0
    merged, given = collapse(net), [*subject.inputs, *subject.kwargs.values()]
    torch.testing.assert_close(merged(*given), net(*subject.inputs, **subject.kwargs), rtol=1e-9, atol=1e-9)
    merged(*given).sum().backward()


# -- how linear a unit is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("act", "shape"), [(nn.ReLU(), (40, 3)), (nn.GELU(), (20, 3))])
def test_lines_are_those_of_least_squares(act, shape):
    model, x = seeded(nn.Sequential(nn.Linear(3, 4), act, nn.Linear(4, 2))), double(*shape)
    found = linearity_scores(model, x)["1"]
    z, y = model[0](x).detach(), act(model[0](x)).detach()
    assert torch.equal(found.whole, y)
    for c in range(4):
        slope, bias = numpy.polyfit(z[:, c].numpy(), y[:, c].numpy(), 1)
        assert found.slope[c].item() == pytest.approx(slope, abs=1e-9)
        assert found.parts["bias"][0, c].item() == pytest.approx(bias, abs=1e-9)
        r = numpy.corrcoef(z[:, c].numpy(), y[:, c].numpy())[0, 1]
        assert found.score[c].item() == pytest.approx(r**2, abs=1e-9)
    assert "R^2" in found.summary()


def test_lines_of_maps_and_of_dead_units():
    model, x = seeded(Mixed()), double(5, 1, 6, 6)
    scores = linearity_scores(model, x)
    assert list(scores) == ["act#1", "act#2", "relu"]
    assert all(
        s.whole.shape[1] == len(s.score) == 3 and 0 <= s.score.min() <= s.score.max() <= 1 + 1e-12 for s in scores.values()
    )
    model.a.bias.data.fill_(-100.0)
    dead = linearity_scores(model, x)["act#1"].check()
    assert dead.slope.abs().max() == 0
    assert dead.score.tolist() == [1.0] * 3
    with pytest.raises(ValueError, match="what arrives at act#1 is not finite"):
        linearity_scores(model, x * math.nan)


# -- under a price ------------------------------------------------------------------------------------------------------

X = torch.randn(192, 2, generator=torch.Generator().manual_seed(0))
RING = (X, (X.norm(dim=1) > 1.2).long())
HALF = (X, (X[:, 0] > 0).long())


def small(width: int = 12) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2)).eval()


def seeds(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_units_are_kept_where_they_are_needed():
    options = {"omega": 0.02, "epochs": 40, "lr": 1e-2, "progress": False, "generator": seeds()}
    ring, half = (linearize_channels(small(), data, **options) for data in (RING, HALF))
    assert half.share < ring.share / 2 < 0.5
    right = (ring.model(X).argmax(1) == RING[1]).float().mean()
    assert right > 0.9  # a line cannot read a ring: 0.6
    assert ring.history["share"][-1] == ring.share
    assert len(ring.history["loss"]) == 40
    assert ring.history["penalty"][-1] < ring.history["penalty"][0]
    assert not ring.model.slopes.requires_grad
    assert "units active in 2 layers" in repr(ring)
    assert set(ring.by_layer) == {"1", "3"}


def test_the_price_decides():
    options = {"epochs": 30, "lr": 1e-2, "progress": False}
    shares = [linearize_channels(small(), RING, omega=w, generator=seeds(), **options).share for w in (1e-4, 0.02, 10.0)]
    assert shares[0] > shares[1] > shares[2] == 0


def test_the_price_ends_and_begins_where_it_is_told():
    found = linearize_channels(small(), RING, omega=10.0, keep=0.25, epochs=12, start=6, progress=False, generator=seeds())
    assert found.history["share"][5] == 1 > found.history["share"][11]
    assert found.share == 0.25  # six of 24
    assert sorted({*found.model.slopes.tolist()}) == [0.0, 1.0]
    never = linearize_channels(small(), RING, epochs=2, start=2, progress=False)
    assert never.model.slopes.abs().max() == 0


def test_a_step_of_the_slopes_is_the_formula():
    slopes, g = torch.tensor([0.0, 0.5, 0.2, 0.9, 1.0, 0.99]).double(), torch.tensor([0.0, 0.3, -0.1, 5.0, 9.0, 0.0]).double()
    expected = []
    for a, d in zip(slopes.tolist(), g.tolist(), strict=True):
        q = 0.5 * 0.4 / math.sqrt(1 - a) if a != 1 else 0.0
        new = a if a == 1 else min(max(a + 0.05 * (q - d) / (q + abs(d)), 0.0), 1.0)
        expected.append(1.0 if 1 - new < 0.01 else new)
    _move(slopes, g, omega=0.4, step=0.05, tol=0.01, enough=0)
    torch.testing.assert_close(slopes, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    tie = torch.full((4,), 0.999).double()
    _move(tie, torch.tensor([0.3, -0.2, 0.1, -0.4]).double(), omega=1.0, step=0.1, tol=0.01, enough=2)
    assert tie.tolist() == [0.0, 1.0, 0.0, 1.0]  # those that resist least; the others are what they were


def test_the_same_seed_is_the_same_network_and_the_model_is_left_alone():
    model = small()
    before = copy.deepcopy(model.state_dict())
    options = {"epochs": 3, "omega": 0.1, "progress": False}
    a, b, c = (linearize_channels(model, RING, generator=seeds(s), **options) for s in (1, 1, 2))
    for name, p in a.model.state_dict().items():
        assert torch.equal(p, b.model.state_dict()[name]), name
        assert name == "slopes" or not torch.equal(p, c.model.state_dict()[name])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not model.training


def test_the_shuffling_is_its_own():
    before = torch.get_rng_state()
    a, b = (linearize_channels(small(), RING, epochs=2, omega=0.1, progress=False, generator=g) for g in (None, seeds(0)))
    assert torch.equal(torch.get_rng_state(), before)
    assert a.history == b.history


def test_batches_of_a_loader():
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*RING), batch_size=48)
    a = linearize_channels(small(), loader, epochs=2, progress=False)
    b = linearize_channels(small(), [((x,), y) for x, y in loader], epochs=2, progress=False)
    assert torch.equal(a.model.slopes, b.model.slopes)
    assert a.history == b.history


def test_the_picture_shows_the_core():
    found = linearize_channels(small(), RING, omega=10.0, keep=0.25, epochs=4, progress=False)
    core, share, losses = found.pictures()
    assert core.values["active"] == [int(on.sum()) for on in found.model.active.values()]
    assert [a + b for a, b in zip(*core.values.values(), strict=True)] == [12, 12]
    assert "25%" in core.note
    assert share.lines[0].y == found.history["share"]
    assert [line.y for line in losses.lines] == [found.history["loss"], found.history["penalty"]]
    axis = found.plot().axes[0]  # one on top of the other
    assert {bar.get_y() + bar.get_height() for bar in axis.patches[2:]} == {12}


def test_what_is_refused():
    for bad, message in (
        ({"omega": 0}, "omega is positive and finite, got 0"), ({"omega": math.nan}, "omega"), ({"lr": -1.0}, "lr is positive"),
        ({"epochs": 0}, "epochs is a number of 1 or more, got 0"), ({"batch_size": 1.5}, "batch_size"),
        ({"keep": 1.5}, r"keep lies in \[0, 1\]"), ({"tol": 0.0}, "tol in"), ({"start": 21}, r"start is an epoch out of 0 ... 20, got 21"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            linearize_channels(small(), RING, progress=False, **bad)
    with pytest.raises(ValueError, match="192 inputs and 3 targets"):
        linearize_channels(small(), (X, torch.zeros(3)), progress=False)
    for empty in ((X[:0], RING[1][:0]), []):
        with pytest.raises(ValueError, match="there is no data"):
            linearize_channels(small(), empty, progress=False)
    with pytest.raises(ValueError, match="an input is not finite"):
        linearize_channels(small(), (X * math.nan, RING[1]), progress=False)
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) in epoch 0"):
        linearize_channels(small(), RING, loss=lambda out, y: F.cross_entropy(out, y) / 0, progress=False)
    with pytest.raises(ValueError, match=r"the loss has shape \(64,\), not one number: give its mean"):
        linearize_channels(small(), RING, loss=lambda out, y: F.cross_entropy(out, y, reduction="none"), progress=False)
    for wrong in (X, iter([RING]), 3):
        with pytest.raises(TypeError, match="run through again"):
            linearize_channels(small(), wrong, progress=False)
    with pytest.raises(TypeError, match=r"a batch must be \(inputs, targets\)"):
        linearize_channels(small(), [X], progress=False)
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module"):
        linearize_channels(lambda x: x.relu() * 2, RING, progress=False)
