"""The projector, its statistics, and what it is a corollary of."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from termwise.weights.calibration import CalibrationStats, LayerStats, shrink
from termwise.weights.evidence import Evidence
from termwise.weights.factorization import Factorization
from termwise.weights.layers import Layer, find_layers
from termwise.weights.low_rank import fit_aware, pairs
from termwise.weights.products import pair, pivoted, pivoted_size
from termwise.weights.projection import project
from termwise.weights.sensitivity import distance, sensitivity

SHAPES = st.tuples(st.integers(2, 9), st.integers(2, 9))


def problem(shape: tuple[int, int], seed: int, rows: int = 60):
    g = torch.Generator().manual_seed(seed)
    m, n = shape
    draw = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)
    x = draw(rows, n) @ draw(n, n) + 1
    a = draw(m, m)
    return draw(m, n), x, a @ a.T + 0.1 * torch.eye(m, dtype=torch.float64)


def cost(d: torch.Tensor, x: torch.Tensor, h: torch.Tensor | None = None) -> torch.Tensor:
    """E (D x)^T H (D x), row by row."""
    y = x @ d.T
    return sum(row @ (row if h is None else h @ row) for row in y) / len(x)


@settings(max_examples=30, deadline=None)
@given(SHAPES, st.integers(0, 999), st.booleans(), st.booleans())
def test_every_rank_costs_what_its_tail_says(shape, seed, data, felt):
    w, x, h = problem(shape, seed)
    x = x if data else torch.eye(shape[1], dtype=torch.float64) * shape[1] ** 0.5
    h = h if felt else None
    p = project(w, x.T @ x / len(x), h)
    for r in range(min(shape) + 1):
        left, right = p.factors(r)
        assert torch.isclose(cost(w - left @ right, x, h), p.tail()[r], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("shape", [(4, 7), (7, 4)])
def test_no_matrix_of_that_rank_is_better(shape):
    """Gradient descent on both factors from ten starts ends nowhere below."""
    w, x, h = problem(shape, 0)
    best = project(w, x.T @ x / 60, h).tail()[2]
    for seed in range(10):
        g = torch.Generator().manual_seed(seed)
        left, right = (torch.randn(*s, generator=g, dtype=torch.float64).requires_grad_() for s in ((shape[0], 2), (2, shape[1])))
        opt = torch.optim.LBFGS([left, right], max_iter=200, line_search_fn="strong_wolfe")

        def closure():
            opt.zero_grad()
            y = x @ (w - left @ right).T
            loss = ((y @ h) * y).sum() / len(x)
            loss.backward()
            return loss

        opt.step(closure)
        assert closure() >= best * (1 - 1e-7)
    assert closure() < best * 3  # it did descend


def test_without_data_it_is_eckart_young():
    w, *_ = problem((6, 9), 1)
    s = torch.linalg.svdvals(w)
    assert torch.allclose(project(w).tail(), torch.cat([s.square().flip(0).cumsum(0).flip(0), torch.zeros(1, dtype=s.dtype)]))


@pytest.mark.parametrize("shape", [(5, 8), (8, 5)])
def test_it_is_whitened_svd(shape):
    """SVD-LLM's way: truncate W S, multiply by the inverse of S."""
    w, x, _ = problem(shape, 2)
    g = x.T @ x / len(x)
    s = torch.linalg.cholesky(g)
    u, v, t = torch.linalg.svd(w @ s)
    whitened = (u[:, :3] * v[:3]) @ t[:3] @ torch.linalg.inv(s)
    left, right = project(w, g).factors(3)
    assert torch.allclose(left @ right, whitened, atol=1e-9)


@pytest.mark.parametrize("shape", [(5, 8), (8, 5)])
def test_fewer_rows_than_features_are_no_trouble(shape):
    w, x, _ = problem(shape, 3, rows=3)
    left, right = project(w, x.T @ x / 3).factors(3)
    assert torch.allclose(x @ (left @ right).T, x @ w.T, atol=1e-7)  # three rows need three terms


@settings(max_examples=20, deadline=None)
@given(SHAPES, st.integers(0, 99))
def test_errors_on_other_data_are_those_of_each_rank(shape, seed):
    """The cumulative sum over pairs of terms against each rank multiplied out."""
    w, x, h = problem(shape, seed)
    _, other, h2 = problem(shape, seed + 1)
    layer = Layer("l", nn.Linear(shape[1], shape[0], bias=False).double())
    layer.module.weight.data = w
    e = Evidence(layer, LayerStats.of(x), LayerStats.of(other), h, h2, shrinkage=0.0)
    found = e.project()
    errors = e.errors(found)
    for r in range(min(shape) + 1):
        left, right = found.factors(r)
        assert torch.isclose(errors[r], cost(w - left @ right, other, h2), rtol=1e-7, atol=1e-8)


def test_the_bias_takes_the_mean():
    w, x, _ = problem((4, 6), 5)
    layer = Layer("l", nn.Linear(6, 4).double())
    layer.module.weight.data = w
    e = Evidence(layer, LayerStats.of(x), shrinkage=0.0)
    small = pairs(layer, fit_aware(e)).build(1).module  # rank 2
    off = (small(x) - layer.module(x)).square().sum(1).mean()
    assert torch.isclose(off, e.project().tail()[2], rtol=1e-9)  # the affine optimum: eigenvalues of the covariance
    plain = project(w, LayerStats.of(x).gram)
    assert off < plain.tail()[2]  # and better than without a bias


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_pivoted_is_the_pair(bias, rank):
    w, x, _ = problem((6, 9), 6)
    layer = Layer("l", nn.Linear(9, 6, bias=bias).double())
    layer.module.weight.data = w
    left, right = project(w).factors(rank)
    shift = torch.arange(6.0, dtype=torch.float64) if bias else None
    a, b = (make(layer, left, right, shift) for make in (pair, pivoted))
    assert torch.allclose(a.module(x), b.module(x), atol=1e-10)
    assert torch.allclose(b.module.weight, left @ right, atol=1e-12)
    count = sum(p.numel() for n, p in b.module.named_parameters() if "bias" not in n)
    assert count == pivoted_size((6, 9), rank)
    if bias:
        assert torch.allclose(b.module.bias, layer.bias + shift, atol=1e-12)


@pytest.mark.parametrize("make", [pair, pivoted])
@pytest.mark.parametrize("geometry", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": "same"}, {"padding": 2, "padding_mode": "reflect"}])  # fmt: skip
def test_a_convolution_is_a_matrix_over_patches(make, geometry):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 7, 3, **geometry).double()
    layer = Layer("c", conv)
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    assert torch.allclose(layer.outputs(conv(x)), layer.rows(x) @ layer.matrix.T + conv.bias, atol=1e-12)
    left, right = project(layer.matrix).factors(4)
    conv2 = nn.Conv2d(3, 7, 3, **geometry).double()
    conv2.load_state_dict({"weight": (left @ right).reshape(conv.weight.shape), "bias": conv.bias})
    assert torch.allclose(make(layer, left, right).module(x), conv2(x), atol=1e-12)


# -- statistics ---------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), st.integers(0, 99))
def test_batches_joined_are_one_batch(sizes, seed):
    _, x, _ = problem((2, 4), seed, rows=sum(sizes))
    chunks = [LayerStats.of(c) for c in x.split(sizes)]
    for order in (chunks, chunks[::-1]):
        joined = order[0]
        for other in order[1:]:
            joined = joined.merge(other)
        whole = LayerStats.of(x)
        assert joined.count == whole.count
        for part in ("mean", "scatter", "abs_mean"):
            assert torch.allclose(getattr(joined, part), getattr(whole, part), atol=1e-9)
    assert torch.allclose(whole.gram, x.T @ x / len(x))
    assert torch.allclose(whole.norms, x.square().mean(0).sqrt())


def test_a_large_mean_does_not_cancel():
    x = 100 + 0.01 * torch.randn(4000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    truth = torch.cov(x.T, correction=0)
    joined = LayerStats.of(x[:2000].float(), torch.float32).merge(LayerStats.of(x[2000:].float(), torch.float32))
    naive = (x.float().T @ x.float()) / 4000 - torch.outer(x.float().mean(0), x.float().mean(0))
    assert (joined.covariance - truth).norm() < 5e-3 * truth.norm()  # the inputs themselves were rounded
    assert (naive - truth).norm() > 10 * truth.norm()


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x, attention_mask=None):
        return self.out(torch.tanh(self.q(x) * self.k(x)))


def test_layers_that_read_one_tensor_share_statistics(tmp_path):
    torch.manual_seed(0)
    model = Shared().double().train()
    batches = [torch.randn(5, 4, dtype=torch.float64) for _ in range(3)]
    layers, _ = find_layers(model)
    before = torch.random.get_rng_state()
    stats = CalibrationStats.collect(model, batches, layers)
    assert torch.equal(before, torch.random.get_rng_state())
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())
    assert stats["q"] is stats["k"]
    assert stats["q"] is not stats["out"]
    assert torch.allclose(stats["q"].gram, torch.cat(batches).T @ torch.cat(batches) / 15)
    again = CalibrationStats.load(stats.save(tmp_path / "s.safetensors"))
    assert again["q"] is again["k"]
    assert torch.equal(again["out"].scatter, stats["out"].scatter)


def test_hooks_go_when_the_model_fails():
    model = Shared()
    layers, _ = find_layers(model)
    with pytest.raises(ValueError, match=r"does not take this batch.*\(2, 3\)"):
        CalibrationStats.collect(model, [torch.zeros(2, 3)], layers)
    with pytest.raises(ValueError, match="does not take this batch"):
        sensitivity(model, [torch.zeros(2, 3)], layers)
    assert not any(m._forward_hooks for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_padding_does_not_count():
    model = Shared().double()
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    layers, _ = find_layers(model)
    stats = CalibrationStats.collect(model, [{"x": x, "attention_mask": mask}], layers)
    assert stats["q"].count == 3
    assert torch.allclose(stats["q"].mean, x[mask.bool()].mean(0))


def test_shrinkage_keeps_the_trace():
    g = LayerStats.of(torch.randn(9, 4)).gram
    for share in (0.0, 0.3, 1.0):
        assert torch.isclose(shrink(g, share).trace(), g.trace())
    assert torch.equal(shrink(g, 1.0), torch.eye(4, dtype=g.dtype) * g.trace() / 4)


# -- what errors do to the output -----------------------------------------------------------------------------------------


def test_sensitivity_is_the_jacobian_squared():
    """Many draws of random signs against the Jacobian of the output with respect to the layer's."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    layers, _ = find_layers(model)
    x = torch.randn(1, 3, dtype=torch.float64)
    found = sensitivity(model, [x.expand(4000, 3)], layers)
    jacobian = torch.func.jacrev(lambda h: model[2](torch.tanh(h)))(model[0](x)[0])
    assert torch.allclose(found["0"], jacobian.T @ jacobian, atol=0.05 * float(found["0"].norm()))
    assert torch.allclose(found["2"], torch.eye(2, dtype=x.dtype), atol=0.1)


def test_sensitivity_predicts_a_small_change():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 5)).double()
    layers, _ = find_layers(model)
    x = torch.randn(4000, 8, dtype=torch.float64)
    for metric in ("l2", "kl"):
        h = sensitivity(model, list(x.split(500)), layers, metric=metric)
        g = CalibrationStats.collect(model, [x], layers)["0"].gram
        d = 1e-3 * torch.randn(16, 8, dtype=torch.float64)
        truth = model(x)
        model[0].weight.data += d
        measured = distance(truth, model(x), metric).mean()
        model[0].weight.data -= d
        assert torch.isclose(measured, (h["0"] @ d @ g @ d.T).trace(), rtol=0.15)


@pytest.mark.parametrize("pooled", [True, False])
def test_rows_that_are_pooled_add_up(pooled):
    """Without its coherence H would be off by up to the number of rows."""
    torch.manual_seed(0)

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 3)

        def forward(self, x):
            h = torch.tanh(self.first(x))
            return self.last(h.mean(1) if pooled else h)

    model = Pooled().double()
    layers, _ = find_layers(model)
    x = torch.randn(600, 10, 6, dtype=torch.float64) + torch.randn(600, 1, 6, dtype=torch.float64) + 1
    h = sensitivity(model, list(x.split(100)), layers)
    g = CalibrationStats.collect(model, [x], layers)["first"].gram
    ratios = []
    truth = model(x)
    for _ in range(10):
        d = 1e-3 * torch.randn(12, 6, dtype=torch.float64)
        model.first.weight.data += d
        ratios.append((distance(truth, model(x), "l2").mean() / (h["first"] @ d @ g @ d.T).trace()).item())
        model.first.weight.data -= d
    assert 0.7 < sum(ratios) / 10 < 1.4


# -- factorizations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["low_rank", "grouped", "cur", "cp", "tucker"])
def test_terms_make_the_product(form, tmp_path):
    g = torch.Generator().manual_seed(0)
    t = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)
    factors, shape = {
        "low_rank": ({"left": t(4, 2), "right": t(2, 6)}, (4, 6)),
        "grouped": ({"left": t(3, 4, 2), "right": t(3, 2, 2)}, (4, 6)),
        "cur": ({"C": t(4, 2), "U": t(2, 2), "R": t(2, 6)}, (4, 6)),
        "cp": ({"a": t(6, 2), "b": t(3, 2), "c": t(4, 2)}, (4, 3, 2, 3)),
        "tucker": ({"out": t(4, 2), "core": t(2, 3, 6), "in": t(3, 3)}, (4, 3, 2, 3)),
    }[form]
    whole = t(*shape)
    f = Factorization(whole, form=form, factors=factors)
    made = sum(part.flatten(whole.ndim).sum(-1) if part.ndim > whole.ndim else part for part in f.parts.values())
    assert torch.allclose(made, f.total(), atol=1e-12)
    assert torch.allclose(f.remainder, whole - made, atol=1e-12)
    assert f.rank == 2
    again = Factorization.load(f.save(tmp_path / "f"))
    assert torch.equal(again.total(), f.total())
    assert len(f.parts) == len(again.parts)
    x = t(5, whole[0].numel())
    y = f.outputs(x)
    assert torch.allclose(y.remainder, x @ f.remainder.flatten(1).T, atol=1e-12)


def test_factors_that_do_not_fit_are_refused():
    w = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"make \(3, 5\), and the weight is \(3, 4\)"):
        Factorization(w, factors={"left": torch.zeros(3, 2), "right": torch.zeros(2, 5)})
    with pytest.raises(ValueError, match="got 'svd'"):
        Factorization(w, form="svd")
    for bad in (torch.full((3, 4), torch.nan), w):
        with pytest.raises(ValueError, match="shape"):
            project(bad, torch.zeros(3, 3))


def test_all_pairs_of_shapes_agree():
    """The side of the eigenproblem is a matter of cost alone."""
    for (m, n), seed in itertools.product([(4, 6), (6, 4)], range(3)):
        w, x, h = problem((m, n), seed)
        p = project(w, x.T @ x / 60, h)
        q = project(w.T, h, x.T @ x / 60)  # the mirrored problem has the same value at each rank
        assert torch.allclose(p.energies, q.energies, rtol=1e-7, atol=1e-9)
