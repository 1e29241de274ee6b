"""Shapley values: exactness with few orders, the definition and the axioms with all of them, and the pairs that reverses settle."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from termwise.predictions import shapley
from termwise.predictions.perturbation import Features


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().double().eval()


@pytest.fixture(scope="module")
def network():
    return seeded(lambda: nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 3))), torch.randn(3, 4, dtype=torch.float64)


def definition(f, x, base):
    """Over all orders, one sample at a time."""
    n = x.shape[1]
    values = torch.zeros_like(x)
    orders = list(itertools.permutations(range(n)))
    with torch.no_grad():
        for order in orders:
            current = x.clone()
            for i in order:
                following = current.clone()
                following[:, i] = base
                values[:, i] += (f(current) - f(following)) / len(orders)
                current = following
    return values


@settings(max_examples=10, deadline=None)
@given(orders=st.sampled_from([2, 4, 6]), seed=st.integers(0, 9))
def test_adds_up_with_any_number_of_orders(network, orders, seed):
    model, x = network
    why = shapley(model, x, target=1, orders=orders, baseline=0.3, generator=torch.Generator().manual_seed(seed)).check(1e-12)
    with torch.no_grad():
        assert torch.allclose(why.constants["baseline"], model(torch.full_like(x, 0.3))[:, 1])


@pytest.fixture
def every_order(monkeypatch):
    """Deal all orders of n features, once each, instead of drawing some; gives how many to ask for."""

    def deal(n):
        # of an order and its reverse, the one that starts lower: the other comes by itself
        ranks = [torch.tensor(o).argsort() for o in itertools.permutations(range(n)) if o[0] < o[-1]]
        dealt = itertools.cycle(ranks)
        monkeypatch.setattr(Features, "random_ranks", lambda self, *_, **__: next(dealt).expand(self.batch, -1))
        return 2 * len(ranks)

    return deal


def game(n):
    """A function of n features in which all of them meet."""
    return seeded(lambda: nn.Sequential(nn.Linear(n, 7), nn.Tanh(), nn.Linear(7, 1)).requires_grad_(False))


def draw(*shape, seed=3):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_all_orders_are_the_definition(every_order, n):
    model, x = game(n), draw(2, n)
    why = shapley(model, x, target=0, orders=every_order(n), baseline=0.2, batch_size=4000).check(1e-12)
    assert torch.allclose(why.inputs["input"], definition(lambda x: model(x)[:, 0], x, 0.2), atol=1e-12)


def test_few_orders_are_an_estimate():
    x = draw(3, 4)

    def f(x):
        return (x + 0.5).prod(1)

    expected = definition(f, x, 0.0)
    few, many = (shapley(f, x, orders=k).inputs["x"] for k in (2, 600))
    assert (few - expected).abs().max() > 0.02 * expected.abs().max()
    assert (many - expected).abs().max() < 0.2 * (few - expected).abs().max()


def test_symmetry_needs_all_orders(every_order):
    """Features 1 and 3 that no answer tells apart receive the same; two orders do not know that yet."""
    weight, x = draw(5, 4), draw(3, 4, seed=4)
    weight[:, 3], x[:, 3] = weight[:, 1], x[:, 1]

    def alike(x):
        return (x @ weight.mT).tanh().prod(1)

    few = shapley(alike, x, orders=2).inputs["x"]
    found = shapley(alike, x, orders=every_order(4), batch_size=999).inputs["x"]
    assert (few[:, 1] - few[:, 3]).abs().max() > 1e-3 * few.abs().max()
    assert torch.allclose(found[:, 1], found[:, 3], atol=1e-12)
    assert not torch.allclose(found[:, 0], found[:, 1], atol=1e-3)


@settings(max_examples=5, deadline=None)
@given(orders=st.sampled_from([2, 4, 8]), seed=st.integers(0, 99), base=st.floats(-1, 1))
def test_a_dummy_receives_its_own_and_no_more(orders, seed, base):
    """Feature 0 is never read, feature 1 only added: whatever the orders, 0 and what it adds."""
    inner, x = game(3), draw(2, 5)
    why = shapley(
        lambda x: inner(x[:, 2:])[:, 0] + 3 * x[:, 1], x, orders=orders, baseline=base,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    assert (why.inputs["x"][:, 0] == 0).all()
    assert torch.allclose(why.inputs["x"][:, 1], 3 * (x[:, 1] - base), atol=1e-12)


@pytest.mark.parametrize("orders", [2, 6])
def test_values_are_linear_in_the_model(orders):
    f, x = game(4), draw(2, 4)

    def g(x):
        return x.prod(1) + x[:, 0].cos()

    one, other = shapley(f, x, target=0, orders=orders), shapley(g, x, orders=orders)
    both = shapley(lambda x: 2.5 * f(x)[:, 0] - 0.7 * g(x), x, orders=orders)
    assert torch.allclose(both.inputs["x"], 2.5 * one.inputs["input"] - 0.7 * other.inputs["x"], atol=1e-12)
    assert torch.allclose(both.constants["baseline"], 2.5 * one.constants["baseline"] - 0.7 * other.constants["baseline"])


def test_an_order_and_its_reverse_are_exact_for_pairs():
    pairs = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def quadratic(x):
        return ((x @ pairs) * x).sum(1)

    expected = x * ((pairs + pairs.mT) @ x[..., None])[..., 0] / 2
    for seed in range(3):
        found = shapley(quadratic, x, generator=torch.Generator().manual_seed(seed)).inputs["x"]
        assert torch.allclose(found, expected, atol=1e-12)


def test_patches_share_evenly_and_samples_do_not_meet():
    model = seeded(lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)))
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    why = shapley(model, x, target=0, patch=3, batch_size=5).check(1e-12)
    found = why.inputs["input"]
    assert torch.equal(found[:, 0, :3, :3], found[:, 1, :1, :1].expand(2, 3, 3))
    # the first sample draws the same orders alone
    assert torch.allclose(shapley(model, x[:1], target=0, patch=3).inputs["input"].sum(), found[0].sum())


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 6), nn.Linear(6, 2)

    def forward(self, input_ids):
        return self.head(self.table(input_ids).cumsum(1).tanh().mean(1))


def test_tokens_are_taken_out():
    model, ids = seeded(Text), torch.tensor([[1, 4, 2, 7, 5]])
    keep = torch.tensor([True, False, False, False, False])
    why = shapley(model, {"input_ids": ids}, target=1, keep=keep).check(1e-12)
    assert why.inputs["input_ids"][0, 0] == 0
    assert torch.allclose(why.constants["baseline"], model(ids[:, :1])[:, 1])
    with pytest.raises(ValueError, match="nothing is left"):
        shapley(model, {"input_ids": ids}, target=1)


def test_one_feature_takes_all():
    x = torch.tensor([[3.0], [2.0]], dtype=torch.float64)
    assert torch.equal(shapley(lambda x: x[:, 0] ** 2, x).inputs["x"], torch.tensor([[9.0], [4.0]], dtype=torch.float64))


@pytest.mark.parametrize("orders", [0, 1, 3])
def test_orders_come_in_pairs(network, orders):
    with pytest.raises(ValueError, match=f"an order and its reverse; got {orders}"):
        shapley(*network, target=0, orders=orders)
