"""Highway backpropagation: orders are sums over subsets, the last is the gradient, and what cannot be done says so."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from termwise.core.capture import capture
from termwise.optimizers import HighwayBackward, HighwayRecurrent, highway_gradients, highway_recurrent
from termwise.optimizers.path_gradients import PathGradients
from termwise.optimizers.residual_stack import stack_of
from termwise.optimizers.scan import reverse_scan, reverse_sum
from termwise.testing import check_decomposition
from termwise.testing.architectures import build


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Tower(nn.Module):
    """Stem, n blocks around a stream that may be scaled by a weight on its way, head; `after` acts on the stream behind each block."""

    def __init__(self, n: int, *, gated=False, after=None, tied=False, width: int = 4, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.stem, self.head = nn.Linear(3, width), nn.Linear(width, 2)
            layers = [nn.Linear(width, width) for _ in range(n)]
            self.layers = nn.ModuleList([layers[0]] * n if tied else layers)
            self.gates = nn.ParameterList(nn.Parameter(torch.rand(width)) for _ in range(n)) if gated else None
        self.after = after or (lambda z: z)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        z = self.stem(x)
        for i, layer in enumerate(self.layers):
            z = self.after((z if self.gates is None else self.gates[i] * z) + torch.tanh(layer(z)))
        return self.head(z)


class Parallel(Tower):
    """Two branches beside each other, and one behind."""

    def forward(self, x: Tensor) -> Tensor:
        z, (a, b, c) = self.stem(x), self.layers
        z = z + torch.tanh(a(z)) + torch.sigmoid(b(z))
        return self.head(z + torch.tanh(c(z)))


class Mixed(nn.Module):
    """Two stages with a projection between, convolutions, a ReLU behind the addition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(c, d, 3, padding=1) for c, d in ((4, 4), (4, 4), (4, 6), (6, 6), (6, 6)))
        self.shortcut = nn.Conv2d(4, 6, 1)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        z = self.stem(x)
        for block in self.blocks:
            z = torch.relu((z if block.in_channels == block.out_channels else self.shortcut(z)) + torch.tanh(block(z)))
        return z.mean((-1, -2))


class Heads(Tower):
    """Whose head reads the stream on its way and the stem, and whose blocks are weighted by what the stem made."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.stem(x)
        weight, kept = torch.sigmoid(self.stem(x + 1).sum(-1, keepdim=True)), [z]
        for layer in self.layers:
            z = z + torch.tanh(layer(z)) * weight
            kept.append(z)
        return self.head(torch.stack(kept[::2]).square().sum(0))


def autograd(model: nn.Module, loss_fn, x, y) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss_fn(model(x), y), list(named.values()))
    return dict(zip(named, found, strict=True))


def assert_same(found, truth, rtol=1e-10) -> None:
    assert found.keys() == truth.keys()
    for name, value in truth.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=1e-12, msg=name)


CASES = {
    "tower": (Tower(4), "iiii", double(5, 3)),
    "gated": (Tower(4, gated=True), "dddd", double(5, 3)),
    "rectified": (Tower(4, after=lambda z: F.leaky_relu(z, 0.2)), "dddi", double(5, 3)),
    "normed between": (Tower(3, after=lambda z: z / z.square().sum(-1, keepdim=True).sqrt()), "ggi", double(5, 3)),
    "tied": (Tower(4, tied=True), "iiii", double(5, 3)),
    "parallel": (Parallel(3), "ii", double(5, 3)),
    "one block": (Tower(1), "i", double(5, 3)),
    "stages": (Mixed(), "ddgdi", double(2, 2, 5, 5)),
    "read on its way": (Heads(4), "iiii", double(5, 3)),
}


@pytest.mark.parametrize("name", CASES)
def test_all_iterations_are_the_gradient(name):
    model, kinds, x = CASES[name]
    assert "".join(layer.carry[0] for layer in stack_of(capture(model, x)).layers) == kinds
    y = double(*model(x).shape, seed=1)
    n = len(kinds)
    found = highway_gradients(model, F.mse_loss, (x, y), iterations=n)
    assert_same(found.exact(), autograd(model, F.mse_loss, x, y))
    assert found.error() < 1e-12
    assert found.layers == n
    if n > 1:
        assert found.errors()[-2] > 1e-7
    x = x.clone().requires_grad_()
    model.zero_grad()
    F.mse_loss(HighwayBackward(model, n)(x), y).backward()
    assert_same({k: p.grad for k, p in model.named_parameters()}, found.exact())
    (slow,) = torch.autograd.grad(F.mse_loss(model(x), y), x)
    torch.testing.assert_close(x.grad, slow, rtol=1e-10, atol=1e-13)


@settings(max_examples=8, deadline=None)
@given(n=st.integers(1, 5), seed=st.integers(0, 9), gated=st.booleans())
def test_every_order_is_its_sum_over_subsets(n, seed, gated):
    """By dense Jacobians of the blocks, on the bias of the stem."""
    model, x, y = Tower(n, seed=seed, gated=gated), double(1, 3, seed=seed), double(1, 2, seed=seed + 1)
    found = highway_gradients(model, F.mse_loss, (x, y), iterations=n)
    z, blocks, gates = model.stem(x)[0].detach(), [], []
    for i, layer in enumerate(model.layers):
        gate = model.gates[i].detach() if gated else torch.ones(4, dtype=torch.float64)
        blocks.append(torch.autograd.functional.jacobian(lambda v, layer=layer: torch.tanh(layer(v)), z))
        gates.append(torch.diag(gate))
        z = (gate * z + torch.tanh(layer(z))).detach()
    end = z.requires_grad_()
    (d,) = torch.autograd.grad(F.mse_loss(model.head(end), y[0]), end)
    for k in range(n + 1):
        slow = torch.zeros(4, dtype=torch.float64)
        for chosen in itertools.combinations(range(n), k):
            one = d
            for i in reversed(range(n)):
                one = (blocks[i] if i in chosen else gates[i]).mT @ one
            slow += one
        fast = found.gradient(k)["stem.bias"] - (found.gradient(k - 1)["stem.bias"] if k else 0)
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("k", [0, 1, 3])
def test_the_backward_pass_is_the_partial_sum(k):
    for model, _, x in (CASES["gated"], CASES["stages"], CASES["read on its way"]):
        y = double(*model(x).shape, seed=1)
        model.zero_grad()
        F.mse_loss(HighwayBackward(model, k)(x), y).backward()
        slow = highway_gradients(model, F.mse_loss, (x, y), iterations=k)
        assert_same({n: p.grad for n, p in model.named_parameters()}, slow.gradient())
        assert slow.error() > 1e-6


@pytest.mark.parametrize(("k", "exact"), [(2, False), (4, True)])
def test_it_keeps_the_contract(k, exact):
    model, _, x = CASES["gated"]
    y = double(5, 2)
    check_decomposition(
        lambda x: highway_gradients(model, F.mse_loss, (x, y), iterations=k),
        exact=exact,
        inputs=(x,),
        models=(model,),
        batched=False,
    )


@settings(max_examples=30, deadline=None)
@given(n=st.integers(0, 17), seed=st.integers(0, 99))
def test_scans_are_their_loops(n, seed):
    gates, terms = double(n, 2, 3, seed=seed), double(n + 1, 2, 3, seed=seed + 1)
    slow = [terms[-1]]
    for gate, term in zip(gates.flip(0), terms[:-1].flip(0), strict=True):
        slow.insert(0, term + gate * slow[0])
    torch.testing.assert_close(reverse_scan(gates, terms), torch.stack(slow))
    torch.testing.assert_close(reverse_sum(terms), reverse_scan(torch.ones_like(gates), terms))


def test_layers_alike_are_one_call_and_rounds_are_counted(monkeypatch):
    model, x, y = Tower(9), double(5, 3), double(5, 2, seed=1)
    assert [len(g) for g in stack_of(capture(model, x)).groups] == [9]
    calls = []
    real = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda outputs, *a, **k: calls.append(outputs) or real(outputs, *a, **k))
    loss = F.mse_loss(HighwayBackward(model, 2)(x), y)
    calls.clear()
    loss.backward()
    assert len(calls) == 1 + HighwayBackward(model, 2).depth(x)[0] == 4  # the head, two rounds, the weights
    assert HighwayBackward(model, 2).depth(x) == (3, 9)
    assert HighwayBackward(CASES["stages"][0], 2).depth(CASES["stages"][2]) == (6, 5)


def test_nothing_runs_forward_twice_per_iteration(monkeypatch):
    made = []
    real = PathGradients.__init__
    monkeypatch.setattr(PathGradients, "__init__", lambda self, *a: made.append(1) or real(self, *a))
    highway_gradients(Tower(4), F.mse_loss, (double(5, 3), double(5, 2)), iterations=4)
    assert len(made) == 1


def test_it_is_an_ordinary_module_to_optimizers():
    model, x, y = Tower(6), double(8, 3), double(8, 2, seed=1)
    before = {n: p.clone() for n, p in model.named_parameters()}
    answer, optimizer = HighwayBackward(model, 2), torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.mse_loss(answer(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(not torch.equal(before[n], p) for n, p in model.named_parameters())
    first = [p.grad.clone() for p in model.parameters()]
    F.mse_loss(answer(x), y).backward()  # gradients accumulate
    again = torch.autograd.grad(F.mse_loss(answer(x), y), list(model.parameters()))
    for p, a, b in zip(model.parameters(), first, again, strict=True):
        torch.testing.assert_close(p.grad, a + b)
    with torch.no_grad():
        assert torch.equal(answer(x), model(x))


def test_a_second_backward_pass_is_as_the_caller_asks():
    model, _, x = CASES["tower"]
    cell, steps = nn.GRUCell(2, 3).double(), double(6, 4, 2)
    for module, data in ((HighwayBackward(model, 2), x), (HighwayRecurrent(cell, 2), steps)):
        weights = list(module.parameters())
        loss = module(data).square().sum()
        once = torch.autograd.grad(loss, weights, retain_graph=True)
        twice = torch.autograd.grad(loss, weights)
        assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(loss, weights)


def test_they_are_modules():
    model, _, x = CASES["tower"]
    answer = HighwayBackward(model, 2)
    torch.testing.assert_close(nn.Sequential(answer)(x), model(x))
    assert {id(p) for p in nn.ModuleList([answer]).parameters()} == {id(p) for p in model.parameters()}
    cell, steps = nn.GRUCell(2, 3).double(), double(6, 4, 2)
    layer = HighwayRecurrent(cell, 15)
    assert nn.Sequential(layer)(steps).shape == (6, 4, 3)
    assert list(layer.state_dict()) == [f"cell.{n}" for n in cell.state_dict()]
    assert "iterations=2" in repr(answer)
    assert "iterations=15" in repr(layer)
    found = highway_recurrent(cell, lambda h, _: h.square().sum(), (steps, None), 15)
    assert (found.rounds, len(found.parts)) == (7, 16)
    assert found.error() < 1e-12
    assert not found.parts["paths_7"].any()


def test_frozen_weights_stay_so():
    model, x, y = Tower(3), double(5, 3), double(5, 2, seed=1)
    model.layers[1].requires_grad_(False)
    exact = autograd_of_the_trained(model, x, y)
    found = highway_gradients(model, F.mse_loss, (x, y), iterations=3)
    assert_same(found.gradient(), exact)
    assert "layers.1.weight" not in found.names
    F.mse_loss(HighwayBackward(model, 3)(x), y).backward()
    assert model.layers[1].weight.grad is None
    assert model.layers[2].weight.grad is not None


def autograd_of_the_trained(model, x, y):
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    return dict(zip(named, torch.autograd.grad(F.mse_loss(model(x), y), list(named.values())), strict=True))


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_architectures(name):
    subject = build(name).to(torch.float64)
    model = subject.model.requires_grad_(True)
    inputs = dict(subject.kwargs) if subject.kwargs else subject.inputs
    found = highway_gradients(model, lambda out, _: out.square().mean(), (inputs, None), iterations=10)
    assert found.error() < 1e-12
    assert found.errors()[0] > 1e-4
    for name_, value in found.gradient().items():
        torch.testing.assert_close(value, found.exact()[name_], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", ["tower", "gated"])
def test_files_and_order(name, tmp_path):
    model, _, x = CASES[name]
    found = highway_gradients(model, F.mse_loss, (x, double(5, 2)), iterations=2)
    again = type(found).load(found.save(tmp_path / "gradient"))
    assert (again.names, again.shapes) == (found.names, found.shapes)
    assert_same(again.gradient(1), found.gradient(1))
    assert found.norms()[-1] > 0
    assert "2 of 4 layers" in found.summary()
    with pytest.raises(ValueError, match=r"order lies in 0\.\.2, got 3"):
        found.gradient(3)


# -- through time -----------------------------------------------------------------------------------------------------


class Read(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3, 1)

    def forward(self, states: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(self.out(states), y)


class Leaky(nn.Module):
    """A gated linear path with a tanh beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.keep, self.inner = nn.Parameter(torch.rand(3)), nn.Linear(5, 3)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.keep * h + torch.tanh(self.inner(torch.cat([x, h], -1)))


@settings(max_examples=8, deadline=None)
@given(steps=st.integers(1, 7), seed=st.integers(0, 9), gru=st.booleans())
def test_through_time_it_is_the_gradient_and_its_subsets(steps, seed, gru):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        cell, loss = (nn.GRUCell(2, 3) if gru else Leaky()).double(), Read().double()
    x, y, h = double(steps, 4, 2, seed=seed), double(steps, 4, 1, seed=seed + 1), double(4, 3, seed=seed + 2)
    gate = None if gru else lambda x, h: cell.keep.expand_as(h)
    found = highway_recurrent(cell, loss, (x, y), iterations=steps, state=h, gate=gate)
    states = [h]
    for row in x:
        states.append(cell(row, states[-1]))
    weights = [*cell.parameters(), *loss.parameters()]
    slow = torch.autograd.grad(loss(torch.stack(states[1:]), y), weights)
    for a, b in zip(found.gradient().values(), slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert found.error() < 1e-12
    if steps > 2:
        assert found.errors()[0] > 1e-5


@pytest.mark.parametrize("k", [0, 2, 6])
@pytest.mark.parametrize("gru", [True, False])
def test_the_recurrent_backward_pass_is_the_partial_sum(k, gru):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        cell, loss = (nn.GRUCell(2, 3) if gru else Leaky()).double(), Read().double()
    x, y, h = double(6, 4, 2).requires_grad_(), double(6, 4, 1, seed=1), double(4, 3, seed=2).requires_grad_()
    gate = None if gru else lambda x, h: cell.keep.expand_as(h)
    loss(HighwayRecurrent(cell, k, gate=gate)(x, h), y).backward()
    slow = highway_recurrent(cell, loss, (x.detach(), y), iterations=k, state=h, gate=gate)
    assert_same(
        {
            **{n: p.grad for n, p in cell.named_parameters()},
            "loss.out.weight": loss.out.weight.grad,
            "loss.out.bias": loss.out.bias.grad,
        },
        slow.gradient(),
    )
    if k == 6:
        states = [h]
        for row in x:
            states.append(cell(row, states[-1]))
        exact = torch.autograd.grad(loss(torch.stack(states[1:]), y), [x, h])
        torch.testing.assert_close((x.grad, h.grad), exact)


def test_a_gate_of_zeros_truncates():
    """K iterations without a gate: backpropagation through K steps behind each loss, by detaching."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        cell = nn.GRUCell(2, 3).double()
    x, y = double(6, 4, 2), double(4, 3, seed=1)
    found = highway_recurrent(cell, lambda h, y: F.mse_loss(h[-1], y), (x, y), 2, gate=lambda x, h: torch.zeros_like(h))
    h = torch.zeros(4, 3, dtype=torch.float64)
    for t, row in enumerate(x):
        h = cell(row, h if t > 3 else h.detach())
    slow = torch.autograd.grad(F.mse_loss(h, y), list(cell.parameters()))
    for a, b in zip(found.gradient().values(), slow, strict=True):
        torch.testing.assert_close(a, b)


# -- what cannot be done ----------------------------------------------------------------------------------------------


class Unet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        a = x + torch.tanh(self.layers[0](x))
        b = a + torch.tanh(self.layers[1](a))
        return b + torch.tanh(self.layers[2](b * a))


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Tower(2), Tower(2)

    def forward(self, x: Tensor) -> Tensor:
        read, z = self.encoder(x).sum(-1, keepdim=True), self.decoder.stem(x)
        for layer in self.decoder.layers:
            z = z + torch.tanh(layer(z) * read)
        return self.decoder.head(z)


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (plain().eval(), "no residual branch"),
        (nn.Sequential(nn.Dropout(0.5), Tower(2)).train(), "training mode"),
        (Unet().eval(), "lies further back"),
        (Tower(2).requires_grad_(False), "no parameter that requires a gradient"),
    ],
)
def test_models_that_cannot_be_taken_apart(model, message):
    x = double(5, 3).to(next(model.parameters()).dtype)
    with pytest.raises(ValueError, match=message):
        highway_gradients(model, lambda out, _: out.sum(), (x, None), iterations=1)
    with pytest.raises(ValueError, match=message):
        HighwayBackward(model, 1)(x)


def test_an_encoder_and_a_decoder_are_two_stacks():
    model = Both().double().eval()
    with pytest.raises(ValueError, match="more than one stack"):
        highway_gradients(model, F.mse_loss, (double(5, 3), double(5, 2)), iterations=1)


def test_bad_arguments():
    model, x, y = Tower(2), double(5, 3), double(5, 2)
    for k in (-1, 1.5, True, "3"):
        with pytest.raises(ValueError, match="iterations is a number of 0 or more"):
            highway_gradients(model, F.mse_loss, (x, y), iterations=k)
        with pytest.raises(ValueError, match="iterations is a number of 0 or more"):
            HighwayBackward(model, k)
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, .* got function"):
        highway_gradients(lambda x: x, F.mse_loss, (x, y), iterations=1)
    with pytest.raises(ValueError, match="a pair"):
        highway_gradients(model, F.mse_loss, x, iterations=1)
    with pytest.raises(ValueError, match=r"one number .* shape \(5, 2\)"):
        highway_gradients(model, lambda out, y: out - y, (x, y), iterations=1)
    with pytest.raises(ValueError, match=r"one number .* float"):
        highway_gradients(model, lambda out, y: 1.0, (x, y), iterations=1)
    bad = x.clone()
    bad[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        highway_gradients(model, F.mse_loss, (bad, y), iterations=1)
    with pytest.raises(ValueError, match="not finite"):
        HighwayBackward(model, 1)(bad)


def test_bad_recurrent_arguments():
    cell, x = nn.GRUCell(2, 3).double(), double(6, 4, 2)
    loss = lambda h, y: h.square().sum()
    with pytest.raises(TypeError, match="cell must be"):
        highway_recurrent(lambda x, h: h, loss, (x, None), 1)
    with pytest.raises(ValueError, match="gate of a RNNCell is not known"):
        highway_recurrent(nn.RNNCell(2, 3).double(), loss, (x, None), 1)
    for layer, message in ((nn.GRU(2, 3), "a GRU is a whole layer; give a cell"), (nn.LSTMCell(2, 3), "LSTMCell has two states")):
        with pytest.raises(ValueError, match=message):
            HighwayRecurrent(layer, 1, gate=lambda x, h: h)
    with pytest.raises(ValueError, match="iterations"):
        HighwayRecurrent(cell, -2)
    with pytest.raises(ValueError, match=r"T > 0, got \(0, 4, 2\)"):
        highway_recurrent(cell, loss, (x[:0], None), 1)
    with pytest.raises(ValueError, match=r"T, samples, inputs\).* got \(4, 2\)"):
        highway_recurrent(cell, loss, (x[0], None), 1)
    with pytest.raises(ValueError, match="iterations"):
        highway_recurrent(cell, loss, (x, None), -1)
    with pytest.raises(ValueError, match=r"gate makes \(6, 4, 1\)"):
        highway_recurrent(cell, loss, (x, None), 1, gate=lambda x, h: h[:, :1])
    with pytest.raises(ValueError, match="give state="):
        highway_recurrent(Leaky().double(), loss, (x, None), 1, gate=lambda x, h: h)
    with pytest.raises(ValueError, match="one number"):
        highway_recurrent(cell, lambda h, y: h, (x, None), 1)
