"""Residual paths: branches are found, the series in their strength is what its terms say, subsets add up to the network."""

import importlib
import itertools
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import termwise as tw
from termwise.core.capture import capture
from termwise.functions import residual_expansion, scale_residuals, subset_expansion
from termwise.functions.residual_blocks import Tower, find_blocks
from termwise.testing.architectures import build


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


MIX = double(3, 3, seed=9)
SUBSETS = importlib.import_module("termwise.functions.subset_expansion")


class Stack(nn.Module):
    """D o (1 + g_n) o ... o (1 + g_1) with g = act o linear; `on` leaves branches out, `scale` weakens them."""

    def __init__(self, n: int, act=torch.tanh, head=None, width: int = 4, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(n))
        self.act, self.head, self.on, self.scale = act, head or (lambda z: z), range(n), 1.0
        self.double().eval()

    def branch(self, i: int, z: Tensor) -> Tensor:
        return self.act(self.layers[i](z))

    def forward(self, x: Tensor) -> Tensor:
        for i in self.on:
            x = x + self.scale * self.branch(i, x)
        return self.head(x)

    def only(self, on, x: Tensor) -> Tensor:
        """The network of these branches, the slow way."""
        self.on = on
        found = self(x).detach()
        self.on = range(len(self.layers))
        return found


def curved(z: Tensor) -> Tensor:
    return torch.sin(z) * z.sum(-1, keepdim=True)


def straight(z: Tensor) -> Tensor:
    return z


# -- branches are found -------------------------------------------------------------------------------------------------

FOUND = {"resnet": 3, "gpt-neox": 2, "llama": 4, "convnext": 5}


@pytest.mark.parametrize("name", FOUND)
def test_branches_of_architectures(name):
    """As many as the model has; all on it is the model, and order 0 of the series is all off."""
    subject = build(name, batch=2).to(torch.float64)
    tower = Tower(subject.model, subject.inputs, subject.kwargs)
    assert len(tower.blocks) == len(set(tower.names)) == FOUND[name]
    assert torch.equal(tower.at(tower.switches(1.0)), tower.whole())
    on, off = tower.at(torch.stack([tower.switches(1.0), tower.switches(0.0)]))
    torch.testing.assert_close(on, tower.whole(), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(off, on)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # units that are off at strength 0 start on their kink
        far, near = (
            residual_expansion(subject.model, *subject.inputs, kwargs=subject.kwargs, order=1, scale=s) for s in (2e-3, 1e-3)
        )
    torch.testing.assert_close(far.parts["order_0"], off, rtol=1e-10, atol=1e-10)
    if far.kink_radius > 2e-3 and not far.blind:
        assert far.remainder.norm() / near.remainder.norm() == pytest.approx(4, rel=0.1)


def test_names_say_where_the_branch_ends():
    subject = build("llama", batch=1)
    blocks = find_blocks(capture(subject.model, *subject.inputs, kwargs=subject.kwargs))
    assert [b.name for b in blocks[:2]] == ["model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj"]
    assert [b.name for b in Tower(lambda x: x + torch.tanh(x @ MIX), (double(2, 3),)).blocks] == ["block_1"]


def test_what_is_no_block_of_its_own():
    def inner(x: Tensor) -> Tensor:  # an addition within a branch, a sum of constants, a parallel sum
        h = torch.tanh(x @ MIX)
        h = h + torch.cos(h @ MIX)
        return (x + 1.0) + h

    assert len(Tower(inner, (double(2, 3),)).blocks) == 1

    def parallel(x: Tensor) -> Tensor:
        return (x + torch.tanh(x @ MIX)) + torch.sin(x @ MIX)

    assert len(Tower(parallel, (double(2, 3),)).blocks) == 2


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_post_norm_is_refused(name):
    subject = build(name)
    with pytest.raises(ValueError, match=r"normalises the stream between its blocks \(aten.layer_norm at .*post-norm"):
        residual_expansion(subject.model, *subject.inputs, kwargs=subject.kwargs)


def test_a_network_without_branches_is_refused():
    subject = build("vgg")
    with pytest.raises(ValueError, match=r"Sequential has no residual branch: in none of its 0 additions"):
        subset_expansion(subject.model, *subject.inputs)
    two = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()
    with pytest.raises(ValueError, match="in none of its 1 additions"):  # neither is the other's shortcut
        residual_expansion(lambda x: two[0](x) + two[1](x), double(2, 3))


# -- the series in the strength -----------------------------------------------------------------------------------------


@settings(max_examples=5, deadline=None)
@given(n=st.integers(1, 5), seed=st.integers(0, 5), head=st.sampled_from([straight, curved]))
def test_the_first_two_orders_are_those_of_the_theorem(n, seed, head):
    """f_1 = D' G, f_2 = sum_(i<j) D' g_j' g_i + (1/2) D''[G, G], by jvps at z."""
    model, z = Stack(n, head=head, seed=seed), double(2, 4, seed=seed)
    e = residual_expansion(model, z, order=2)
    g = [model.branch(i, z).detach() for i in range(n)]
    push = lambda v: torch.func.jvp(head, (z,), (v,))[1]
    bend = lambda v, w: torch.func.jvp(lambda p: torch.func.jvp(head, (p,), (v,))[1], (z,), (w,))[1]
    steep = lambda j, v: torch.func.jvp(lambda p: model.branch(j, p), (z,), (v,))[1].detach()
    pairs = {(i, j): push(steep(j, g[i])) + bend(g[i], g[j]) for j in range(n) for i in range(j)}
    twice = [bend(v, v) / 2 for v in g]
    torch.testing.assert_close(e.parts["order_0"], head(z))
    torch.testing.assert_close(e.parts["order_1"], push(sum(g)), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(e.parts["order_2"], sum(pairs.values()) + sum(twice), rtol=1e-10, atol=1e-12)
    first, second = e.paths(1).check(), e.paths(2)
    second.check() if e.parts["order_2"].norm() > 1e-9 else None
    for i, name in enumerate(e.blocks):
        torch.testing.assert_close(first.parts[name], push(g[i]), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(second.parts[f"{name} > {name}"], twice[i], rtol=1e-10, atol=1e-12)
    for (i, j), term in pairs.items():
        torch.testing.assert_close(second.parts[f"{e.blocks[i]} > {e.blocks[j]}"], term, rtol=1e-9, atol=1e-11)


def test_a_linear_tower_is_the_sum_of_its_paths():
    n, x = 5, double(3, 4)
    model = Stack(n, act=straight)
    for layer in model.layers:
        nn.init.zeros_(layer.bias)
    e = residual_expansion(model, x, order=n, scale=0.7)
    d = subset_expansion(model, x).check()
    for k in range(n + 1):
        paths = []
        for subset in itertools.combinations(range(n), k):
            v = x
            for i in subset:
                v = v @ model.layers[i].weight.T
            paths.append(v.detach())
        assert len(paths) == math.comb(n, k)
        torch.testing.assert_close(e.parts[f"order_{k}"], 0.7**k * sum(paths), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(d.parts[f"size_{k}"], torch.stack(paths, -1), rtol=1e-9, atol=1e-11)
    assert e.degree == n
    assert e.error() < 1e-12
    assert math.isinf(float(e.radius))
    assert "a polynomial of degree 5" in e.summary()
    assert residual_expansion(model, x, order=n - 1).degree == -1
    assert residual_expansion(model, x, order=n - 1).error() > 1e-4


def test_high_orders_are_derivatives_in_the_strength():
    """Reverse mode, nested, on the network written with its strength."""
    model, x = Stack(3, head=curved), double(1, 4)
    e = residual_expansion(model, x, order=4)

    def f(s: Tensor) -> Tensor:
        model.scale = s
        found = model(x).sum()
        model.scale = 1.0
        return found

    s = torch.zeros((), dtype=torch.float64, requires_grad=True)
    value = f(s)
    for k in range(5):
        assert e.parts[f"order_{k}"].sum().item() == pytest.approx(value.item() / math.factorial(k), rel=1e-9, abs=1e-12)
        (value,) = torch.autograd.grad(value, s, create_graph=True)


def test_another_strength_is_the_network_with_weaker_branches():
    model, x = Stack(4), double(2, 4)
    e = residual_expansion(model, x, order=12, scale=0.1)
    model.scale = 0.1
    torch.testing.assert_close(e.whole, model(x))
    assert e.check().kink_radius == math.inf
    assert not e.diverges()
    assert "radius" in e.summary()
    assert "DIVERGES" not in e.summary()


@pytest.mark.parametrize("seed", range(3))
def test_where_it_diverges_it_says_so(seed):
    model, x = Stack(8, width=16, seed=seed), double(2, 16, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.layers:
            layer.weight.normal_(0, 0.25, generator=generator)
    early, late = (residual_expansion(model, x, order=k) for k in (10, 24))
    assert late.error() > 10 * early.error() > 1
    for e in (early, late):
        assert e.diverges()
        assert "THE SERIES DIVERGES" in e.summary()
        assert "no approximation" in e.summary()
    assert "too few orders" in residual_expansion(model, x, order=1).summary()
    assert not residual_expansion(model, x, order=10, scale=1 / 8).diverges()


def test_a_rectified_tower_ends_at_its_first_kink():
    model, x = Stack(4, act=torch.relu, width=8), double(2, 8)
    r = residual_expansion(model, x).kink_radius
    assert 0 < r < 1
    assert residual_expansion(model, x, order=4, scale=0.99 * r).error() < 1e-12  # linear up to there
    beyond = residual_expansion(model, x, order=4)
    assert beyond.diverges()
    assert "THE SERIES ENDS before" in beyond.summary()
    assert "relu" in beyond.summary()


def test_a_loaded_expansion_has_no_paths(tmp_path):
    e = residual_expansion(Stack(2), double(2, 4), order=2)
    again = tw.Decomposition.load(e.save(tmp_path / "paths"))
    assert tuple(again.blocks) == e.blocks
    assert again.degree == e.degree
    for lost in (again, e[0]):
        with pytest.raises(RuntimeError, match="has no model to trace paths through"):
            lost.paths(1)
    with pytest.raises(ValueError, match=r"up to the order of the expansion \(2\); got 3"):
        e.paths(3)


# -- subsets ------------------------------------------------------------------------------------------------------------


@settings(max_examples=5, deadline=None)
@given(n=st.integers(1, 5), seed=st.integers(0, 5))
def test_subsets_are_those_of_the_definition(n, seed):
    """Inclusion and exclusion over networks that really lack the branches; Shapley values over all orders."""
    model, x = Stack(n, head=curved, seed=seed), 3 * double(2, 4, seed=seed)
    d = subset_expansion(model, x).check()
    value = {s: model.only(s, x) for k in range(n + 1) for s in itertools.combinations(range(n), k)}
    for s in value:
        slow = sum((-1) ** (len(s) - len(t)) * value[t] for t in value if set(t) <= set(s))
        torch.testing.assert_close(d.term(*s), slow, rtol=1e-9, atol=1e-10)
    orders = list(itertools.permutations(range(n)))
    for i, name in enumerate(d.blocks):
        gains = []
        for order in orders:
            first = order[: order.index(i)]
            gains.append(value[tuple(sorted((*first, i)))] - value[tuple(sorted(first))])
        torch.testing.assert_close(d.by_branch()[name], sum(gains) / len(orders), rtol=1e-9, atol=1e-10)
    assert f"{2**n} subsets" in d.summary()


def test_many_branches_are_sampled_by_orders(monkeypatch):
    model, x = Stack(6, head=curved), double(2, 4)
    exact = subset_expansion(model, x).by_branch()
    monkeypatch.setattr(SUBSETS, "MOST", 5)
    d = subset_expansion(model, x, orders=200).check()
    assert list(d.parts) == ["none", *d.blocks]
    torch.testing.assert_close(d.parts["none"], model.only((), x))
    found, truth = (torch.stack(list(shares.values()), -1) for shares in (d.by_branch(), exact))
    assert (d.deviation > 0).any()
    assert ((found - truth).abs() <= 5 * d.deviation + 1e-12).all()
    assert (found - truth).norm() < 0.1 * truth.norm()
    few = subset_expansion(model, x, orders=10)
    assert 2 < few.deviation.mean() / d.deviation.mean() < 10  # sqrt(20)
    assert "200 sampled orders of 6 branches" in d.summary()
    with pytest.raises(ValueError, match="orders must be at least 2, a whole number; got 1"):
        subset_expansion(model, x, orders=1)
    with pytest.raises(ValueError, match="sampled by orders"):
        d.term(0)


def test_subsets_in_pieces_are_the_same(monkeypatch):
    model, x = Stack(4), double(2, 4)
    whole = subset_expansion(model, x)
    monkeypatch.setattr(SUBSETS, "ROWS", 3)
    for name, part in subset_expansion(model, x).parts.items():
        torch.testing.assert_close(part, whole.parts[name])
    with pytest.raises(ValueError, match=r"no distinct branches out of 0 \.\.\. 3"):
        whole.term(0, 0)


# -- scaling ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "strength"), [("1/n", 1 / 5), ("1/sqrt(n)", 5**-0.5), ("skipinit", 0.0)])
def test_branches_are_scaled_and_it_trains(rule, strength):
    model, x = Stack(5, width=4), double(3, 4)
    before = {n: p.clone() for n, p in model.named_parameters()}
    weak = scale_residuals(model, x, rule=rule)
    model.scale = strength
    torch.testing.assert_close(weak(x), model(x))
    model.scale = 1.0
    learned = [n for n, p in weak.named_parameters() if p.requires_grad]
    assert ("scales" in learned) == (rule == "skipinit")
    assert len(learned) == len(before) + (rule == "skipinit")
    optimizer = torch.optim.SGD(weak.parameters(), lr=0.05)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = (weak(x[:2]) - 1).square().mean()  # another batch size than it was recorded with
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_what_is_refused():
    model, x = Stack(2), double(2, 4)
    for bad, message in (
        ({"order": -1}, "order must be at least 0, a whole number; got -1"), ({"order": 1.5}, "order must be"), ({"scale": 0.0}, "not 0"),
        ({"scale": math.nan}, "finite"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            residual_expansion(model, x, **bad)
    with pytest.raises(ValueError, match="not finite"):
        residual_expansion(model, x * math.nan)
    with pytest.raises(ValueError, match=r"rule is one of 1/n, 1/sqrt\(n\), skipinit, got '1/m'"):
        scale_residuals(model, x, rule="1/m")
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module"):
        scale_residuals(lambda x: x + x.sin(), x)
    with pytest.raises(ValueError, match="training mode"):
        residual_expansion(Stack(2).train(), x)
    with pytest.raises(ValueError, match=r"no jet rule for .*digamma"):
        residual_expansion(lambda x: torch.digamma(x + torch.sin(x @ MIX)), double(2, 3))


def test_a_start_on_a_kink_is_warned_of():
    with pytest.warns(UserWarning, match=r"starts on a kink of aten\.relu"):
        residual_expansion(lambda x: torch.relu(x + torch.cos(x @ MIX)), torch.zeros(1, 3).double())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        residual_expansion(Stack(2), double(1, 4))


def test_the_verb_is_at_the_top():
    assert tw.residual_expansion is residual_expansion
