"""Shapley values: exactness with few orders, the definition with all of them, and the pairs that reverses make exact."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from termwise.predictions import shapley


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


def test_many_orders_are_the_definition(network):
    model, x = network
    expected = definition(lambda x: model(x)[:, 1], x, 0.0)
    few, many = (shapley(model, x, target=1, orders=k).inputs["input"] for k in (2, 600))
    assert (many - expected).abs().max() < 0.15 * (few - expected).abs().max() or (few - expected).abs().max() < 1e-3
    assert (many - expected).abs().max() < 0.02 * expected.abs().max()


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
