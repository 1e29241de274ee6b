"""Laplacians and mixed derivatives against nested differentiation, and collapsing against the series one by one."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import termwise as tw
from termwise.core.capture import capture
from termwise.functions import biharmonic, derivatives, jet, laplacian, linear_operator, partial
from termwise.functions.differential import _along, _combination


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network(n: int = 4) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(n)
        return (
            nn.Sequential(nn.Linear(n, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 1))
            .double()
            .eval()
        )


def hessians(model: nn.Module, x: Tensor) -> Tensor:
    """Reverse over reverse, which is right through layer norms."""
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(model(leaf).sum(), leaf, create_graph=True)
    return torch.stack([torch.autograd.grad(g[:, i].sum(), leaf, retain_graph=True)[0] for i in range(x.shape[1])], 1)


def test_a_laplacian_is_the_trace_of_the_hessian():
    model, x = network(), double(5, 4)
    h = hessians(model, x)
    torch.testing.assert_close(laplacian(model, x)[:, 0], h.diagonal(dim1=1, dim2=2).sum(1), rtol=1e-10, atol=1e-12)
    s = double(4, 2, seed=1)
    weighted = torch.einsum("im,bij,jm->b", s, h, s)
    torch.testing.assert_close(laplacian(model, x, s)[:, 0], weighted, rtol=1e-10, atol=1e-12)


def test_random_signs_are_unbiased_with_the_variance_that_is_said():
    a = double(5, 5)
    a = a + a.T
    x = double(1, 5)
    f = capture(lambda x: (x @ a * x).sum(1) / 2, x)
    many = torch.cat(
        [laplacian(f, x, method="hutchinson", samples=4, generator=torch.Generator().manual_seed(i)) for i in range(1500)]
    )
    off = a.square().sum() - a.diagonal().square().sum()
    assert many.mean().item() == pytest.approx(a.trace().item(), abs=4 * (2 * off / 4 / 1500).sqrt().item())
    assert many.var().item() == pytest.approx((2 * off / 4).item(), rel=0.2)


@settings(max_examples=8, deadline=None)
@given(alpha=st.tuples(*[st.integers(0, 2)] * 3).filter(lambda a: 0 < sum(a) <= 4))
def test_a_mixed_derivative_of_a_polynomial_is_known(alpha):
    x = double(2, 3)
    total = torch.zeros(2, dtype=torch.float64)
    for beta in itertools.product(range(4), repeat=3):  # x^beta, summed
        if all(b >= a for a, b in zip(alpha, beta, strict=True)):
            term = torch.ones(2, dtype=torch.float64)
            for i, (a, b) in enumerate(zip(alpha, beta, strict=True)):
                for j in range(a):
                    term = term * (b - j)
                term = term * x[:, i] ** (b - a)
            total += term
    torch.testing.assert_close(partial(POLYNOMIAL, x, alpha), total, rtol=1e-10, atol=1e-10)


def POLYNOMIAL(x: Tensor) -> Tensor:  # recorded once
    sums = [sum(x[:, i] ** k for k in range(4)) for i in range(3)]
    return sums[0] * sums[1] * sums[2]


def test_a_mixed_derivative_of_a_network_is_the_nested_one():
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1)).double().eval()
    x = double(1, 3)

    def nested(indices: tuple[int, ...]) -> Tensor:
        f = lambda v: model(v)[0, 0]
        for i in indices:
            e = torch.zeros(1, 3, dtype=torch.float64)
            e[0, i] = 1
            f = (lambda f, e: lambda v: torch.func.jvp(f, (v,), (e,))[1])(f, e)
        return f(x)

    torch.testing.assert_close(partial(model, x, (2, 1, 1))[0, 0], nested((0, 0, 1, 2)), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(partial(model, x, (0, 0, 1))[0, 0], nested((2,)), rtol=1e-12, atol=1e-14)
    both = sum(nested((i, i, j, j)) for i in range(3) for j in range(3))
    torch.testing.assert_close(biharmonic(model, x)[0, 0], both, rtol=1e-9, atol=1e-12)


def test_an_operator_of_several_orders():
    x = double(4, 2)
    f = lambda x: x[:, 0].sin() * x[:, 1].exp()
    found = linear_operator(f, x, {(2, 0): 1.0, (0, 1): -2.0, (0, 0): 3.0, (1, 1): 0.5})
    s, c, e = x[:, 0].sin(), x[:, 0].cos(), x[:, 1].exp()
    torch.testing.assert_close(found, (-s - 2 * s + 3 * s + 0.5 * c) * e)


SMOOTH = [
    torch.exp, torch.tanh, torch.sigmoid, lambda v: torch.log(v * v + 1), lambda v: torch.sqrt(v * v + 1), torch.sin, torch.atan,
    F.gelu, lambda v: 1 / (v * v + 2), lambda v: torch.softmax(v, -1), lambda v: F.layer_norm(v, (3,)), F.mish, lambda v: v**3,
    lambda v: v @ v.T, lambda v: F.logsigmoid(v) * v, lambda v: torch.where(v > 0, v, v * v),
]  # fmt: skip


@pytest.mark.parametrize("order", [2, 3, 4])
def test_collapsing_sums_what_the_series_have_one_by_one(order):
    x, directions, weights = double(2, 3), double(5, 3, seed=1), double(5, seed=2)
    for f in SMOOTH:
        program = capture(f, x)
        each = [jet(program, [x], [[d.expand(2, 3), *[torch.zeros_like(x)] * (order - 1)]])[1][-1] for d in directions]
        wanted = torch.tensordot(weights, torch.stack(each), dims=1)
        torch.testing.assert_close(_along(program, x, directions, weights, order), wanted, rtol=1e-9, atol=1e-10)


def test_a_laplacian_can_be_trained_through():
    model, x = network(2), double(3, 2)
    (g,) = torch.autograd.grad(laplacian(model, x).square().sum(), model[0].weight)
    with torch.no_grad():
        model[0].weight[1, 1] += 1e-5
        above = laplacian(model, x).square().sum()
        model[0].weight[1, 1] -= 2e-5
        below = laplacian(model, x).square().sum()
    assert g[1, 1].item() == pytest.approx(((above - below) / 2e-5).item(), rel=1e-5)


def test_derivatives_of_a_sine():
    x = torch.tensor(0.4, dtype=torch.float64)
    found = derivatives(torch.sin, x, torch.ones_like(x), 4)
    wanted = [x.sin(), x.cos(), -x.sin(), -x.cos(), x.sin()]
    torch.testing.assert_close(torch.stack(found), torch.stack(wanted))
    assert len(derivatives(torch.sin, x, torch.ones_like(x), 0)) == 1


def test_weights_are_exact():
    """sum_d w_d v_d^beta / beta! is 1 for beta = alpha, 0 for any other of its order."""
    alpha = (2, 1, 1)
    for beta in itertools.product(range(5), repeat=3):
        if sum(beta) == 4:
            factorial = math.prod(map(math.factorial, beta))
            found = sum(w * math.prod(v**b for v, b in zip(d, beta, strict=True)) / factorial for d, w in _combination(alpha))
            assert found == (beta == alpha)


def test_what_is_refused():
    model, x = network(), double(5, 4)
    for call, message in (
        (lambda: laplacian(model, x[0]), r"x is \(batch, n\), got \(4,\)"),
        (lambda: laplacian(model, x, method="exact"), "method is"),
        (lambda: laplacian(model, x, double(3, 2)), r"weights are \(4, m\)"),
        (lambda: partial(model, x, (1, 1)), "multi-indices have 4 entries"),
        (lambda: partial(model, x, (1, 1, 0, -1)), "multi-indices"),
        (lambda: linear_operator(model, x, {}), "no terms"),
        (lambda: derivatives(model, x, x, -1), "order is 0 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_they_are_in_the_room():
    assert tw.functions.laplacian is laplacian
