"""CP, its correction, Tucker, and the chains of convolutions they make: three different sizes everywhere."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import termwise as tw
from termwise.testing.contract import check_decomposition
from termwise.weights import METHODS, CPDecomposition, cp, decompose_conv, epc, stable_cp, tucker2
from termwise.weights.cp import balance, khatri_rao, sensitivity_of, unfold
from termwise.weights.epc import _root, _step
from termwise.weights.evidence import Evidence
from termwise.weights.layers import Layer
from termwise.weights.tensor_layers import cp_choices, cp_layers, fit_cp, fit_tucker, tucker_choices, tucker_layers
from termwise.weights.tucker import hosvd

SIZES = (5, 7, 4)
GEOMETRIES = [
    {},
    {"stride": (2, 1), "padding": (1, 2), "dilation": (2, 1)},
    {"padding": "same", "dilation": (1, 2), "padding_mode": "reflect"},
    {"stride": 3, "padding": (2, 1), "padding_mode": "circular", "bias": False},
]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def factors(rank: int, sizes=SIZES, seed: int = 0) -> list[torch.Tensor]:
    return [draw(size, rank, seed=seed + i) for i, size in enumerate(sizes)]


def total(f: list[torch.Tensor]) -> torch.Tensor:
    """The sum, entry by entry."""
    t = torch.zeros([len(x) for x in f], dtype=torch.float64)
    for i, j, k in itertools.product(*map(range, t.shape)):
        t[i, j, k] = sum(f[0][i, r] * f[1][j, r] * f[2][k, r] for r in range(f[0].shape[1]))
    return t


def conv_layer(**geometry) -> Layer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Layer("c", nn.Conv2d(6, 5, (3, 2), **geometry).double())


# -- terms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", range(3))
def test_unfoldings_and_products_have_one_order(mode):
    f = factors(2)
    p, q = (f[i] for i in range(3) if i != mode)
    assert torch.allclose(unfold(total(f), mode), f[mode] @ khatri_rao(p, q).T)


def test_sensitivity_is_what_noise_does():
    f = factors(6)
    jacobian = torch.autograd.functional.jacobian(lambda *x: torch.einsum("ir,jr,kr->ijk", *x), tuple(f))
    assert sensitivity_of(f) == pytest.approx(sum(float(j.square().sum()) for j in jacobian), rel=1e-12)
    g = torch.Generator().manual_seed(0)
    noisy = [x + 1e-3 * torch.randn(4000, *x.shape, generator=g, dtype=x.dtype) for x in f]
    moved = torch.einsum("nir,njr,nkr->nijk", *noisy) - total_fast(f)
    assert moved.square().sum((1, 2, 3)).mean().item() / 1e-6 == pytest.approx(sensitivity_of(f), rel=0.03)
    grams = [x.T @ x for x in f]
    published = 4 * (grams[0] * grams[1]).trace() + 5 * (grams[1] * grams[2]).trace() + 7 * (grams[0] * grams[2]).trace()
    assert sensitivity_of(f) == pytest.approx(float(published), rel=1e-12)


def total_fast(f):
    return torch.einsum("ir,jr,kr->ijk", *f)


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.integers(1, 9)] * 3), st.integers(1, 5), st.integers(0, 999))
def test_balanced_terms_are_the_least_sensitive_of_their_sum(sizes, rank, seed):
    f = [x * s for x, s in zip(factors(rank, sizes, seed), (10, 0.1, 3), strict=True)]
    found = balance(f)
    assert torch.allclose(total_fast(found), total_fast(f))
    lambdas = torch.stack([x.norm(dim=0) for x in f]).prod(0)
    least = 3 * math.prod(sizes) ** (1 / 3) * float((lambdas ** (4 / 3)).sum())
    assert sensitivity_of(found) == pytest.approx(least, rel=1e-9)
    assert least <= sensitivity_of(f) * (1 + 1e-12)


def test_a_term_with_a_zero_vector_is_zero():
    f = factors(2)
    f[1][:, 0] = 0
    found = balance(f)
    assert all(x.isfinite().all() for x in found)
    assert torch.allclose(total_fast(found), total_fast(f))


def test_als_steps_are_least_squares():
    """One sweep against lstsq, factor by factor."""
    w = draw(*SIZES)
    start = cp(w, 3, max_sweeps=0, init="random")
    f = list(start.vectors)
    for mode in range(3):
        p, q = (f[i] for i in range(3) if i != mode)
        f[mode] = torch.linalg.lstsq(khatri_rao(p, q), unfold(w, mode).T).solution.T
    assert torch.allclose(cp(w, 3, init=start, max_sweeps=1).total(), total_fast(f), atol=1e-10)


@pytest.mark.parametrize("init", ["svd", "random"])
def test_terms_that_are_there_are_found(init):
    w = total(factors(2))
    found = cp(w, 2, init=init, tol=1e-12, max_sweeps=2000)
    assert found.error() < 1e-6
    assert found.intensities.sort().values == pytest.approx(
        torch.stack([x.norm(dim=0) for x in factors(2)]).prod(0).sort().values, rel=1e-4
    )


@pytest.mark.parametrize("rank", [1, 4, 11])
def test_errors_never_rise_and_are_what_they_say(rank):
    w = draw(*SIZES)
    found = cp(w, rank, tol=0, max_sweeps=60)
    assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(found.history))
    assert found.history[-1] == pytest.approx(float((w - total(found.vectors)).norm() / w.norm()))
    assert found.rank == rank  # 11 exceeds all sizes
    assert cp(w, rank, max_sweeps=5, generator=torch.Generator().manual_seed(0)).history == found.history[:5]


def test_it_is_a_factorization_of_four_axes(tmp_path):
    w = draw(6, 5, 3, 2)
    found = cp(w, 4)
    assert found.parts["rank_one"].shape == (6, 5, 3, 2, 4)
    assert torch.allclose(found.parts["rank_one"].sum(-1), found.total())
    assert torch.allclose(found.parts["rank_one"].flatten(0, 3).norm(dim=0), found.intensities)
    assert torch.allclose(found.total().flatten(2), cp(w.flatten(2), 4).total())
    assert "largest term" in found.summary()
    again = tw.Decomposition.load(found.save(tmp_path / "w"))
    assert isinstance(again, CPDecomposition)
    assert torch.equal(again.total(), found.total())
    assert again.history == found.history
    made = dict.fromkeys(
        ("check_passes_where_exact_and_can_fail", "a_missing_number_fails", "slices_are_decompositions"),
        "parts are made from the factors, and of the whole weight",
    )
    check_decomposition(lambda x: cp(x, 4, max_sweeps=20), exact=False, inputs=(w,), batched=False, exceptions=made)
    half = cp(w.to(torch.bfloat16), 4)
    assert half.factors["a"].dtype == torch.bfloat16


# -- the correction ---------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.tuples(*[st.integers(2, 7)] * 3), st.integers(1, 4), st.integers(0, 999), st.sampled_from([0.01, 0.2]))
def test_the_error_is_kept_and_the_sensitivity_falls(sizes, rank, seed, slack):
    found = cp(draw(*sizes, seed=seed), rank, max_sweeps=50)
    if not 1e-3 < found.error() < 0.8:
        return
    for objective in ("sensitivity", "norm"):
        stable = epc(found, slack=slack, objective=objective, sweeps=30, tol=0)
        assert stable.error() == pytest.approx((1 + slack) * found.error(), rel=1e-9)
        assert all(b <= a * (1 + 1e-11) for a, b in itertools.pairwise(stable.history))
    assert epc(found, slack=slack, sweeps=30).sensitivity <= found.sensitivity


@pytest.mark.parametrize("mode", range(3))
@pytest.mark.parametrize("objective", ["sensitivity", "norm"])
def test_a_step_is_the_best_there_is(mode, objective):
    """Against scipy, which knows nothing of singular values."""
    optimize = pytest.importorskip("scipy.optimize")
    w = draw(*SIZES)
    f = cp(w, 3).vectors
    for i, scale in enumerate(draw(3, 3, seed=1).exp()):  # balanced ones would hide which size goes with which norm
        f[i], f[i - 1] = f[i] * scale, f[i - 1] / scale
    delta = float((w - total_fast(f)).norm()) * 1.1
    found = _step(w, list(f), mode, delta, objective)

    def value(x):
        moved = [x.reshape(f[mode].shape) if i == mode else y for i, y in enumerate(f)]
        n = [y.square().sum(0) for y in moved]
        return (n[0] * n[1] * n[2]).sum() if objective == "norm" else (4 * n[0] * n[1] + 5 * n[1] * n[2] + 7 * n[0] * n[2]).sum()

    def room(x):
        moved = [x.reshape(f[mode].shape) if i == mode else y for i, y in enumerate(f)]
        return delta**2 - (w - total_fast(moved)).square().sum()

    def both(function):
        tensor = lambda x: torch.tensor(x, requires_grad=True)
        slope = lambda x: torch.autograd.grad(function(y := tensor(x)), y)[0].numpy()
        return {"fun": lambda x: function(tensor(x)).item(), "jac": slope}

    start = f[mode].flatten().numpy()
    best = optimize.minimize(
        x0=start, constraints=[{"type": "ineq", **both(room)}], method="SLSQP", options={"maxiter": 500}, **both(value)
    )
    assert value(found).item() == pytest.approx(best.fun, rel=1e-4)
    assert value(found).item() <= best.fun * (1 + 1e-7)
    assert abs(room(found).item()) < 1e-10 * delta**2


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(1e-6, 1e3)), min_size=1, max_size=6), st.floats(1e-4, 0.99))
def test_the_root_is_one(pairs, share):
    energies, squares = [e for e, _ in pairs], [s for _, s in pairs]
    room = share * sum(energies)
    x = _root(energies, squares, room)
    assert sum(e * (x / (s + x)) ** 2 for e, s in pairs) == pytest.approx(room, rel=1e-8)
    assert _root(energies, squares, 0.0) == _root(energies, squares, -1.0) == 0


def test_degenerate_terms_are_tamed_and_nothing_moves_without_slack():
    (a1, a2), (b1, b2), (c1, c2) = ((draw(d, seed=d), draw(d, seed=d + 50)) for d in (8, 9, 10))
    w = sum(torch.einsum("i,j,k->ijk", *t) for t in ((a1, b1, c2), (a1, b2, c1), (a2, b1, c1)))
    noise = draw(*w.shape)
    w = w + 0.01 * noise * w.norm() / noise.norm()
    found = cp(w, 2, max_sweeps=3000)
    assert found.intensities.min() > 2 * w.norm()
    stable = epc(found, slack=0.2)
    assert stable.sensitivity < 0.65 * found.sensitivity
    assert stable.intensities.max() < found.intensities.min()
    assert epc(found, slack=0.0).sensitivity > 0.999 * found.sensitivity
    assert epc(found, error=0.05).error() == pytest.approx(0.05, rel=1e-9)


def test_fits_and_corrections_in_turn():
    w = draw(6, 5, 3, 2)
    once, often = (stable_cp(w, 6, rounds=rounds, slack=0.05) for rounds in (1, 6))
    assert often.error() < once.error()
    assert often.sensitivity < cp(w, 6).sensitivity
    assert stable_cp(draw(20, 19, 9), 1, slack=0.5).error() < 1  # no slack to give away


# -- Tucker -----------------------------------------------------------------------------------------------------------


def test_what_lies_beyond_the_core_is_the_error():
    w = draw(*SIZES)
    out, into, errors = hosvd(w)
    for p, q in itertools.product(range(6), range(8)):
        kept = torch.einsum("ois,op,xp,iq,yq->xys", w, out[:, :p], out[:, :p], into[:, :q], into[:, :q])
        assert float((w - kept).square().sum() / w.square().sum()) == pytest.approx(float(errors[p, q]), abs=1e-12)
    assert torch.allclose(out.T @ out, torch.eye(5, dtype=w.dtype))


@settings(max_examples=20, deadline=None)
@given(st.tuples(*[st.integers(1, 7)] * 3), st.integers(0, 999), st.data())
def test_the_alternation_is_no_worse_than_its_start(sizes, seed, data):
    w = draw(*sizes, seed=seed)
    ranks = data.draw(st.integers(1, sizes[0])), data.draw(st.integers(1, sizes[1]))
    errors = [tucker2(w, ranks, sweeps=n).error() ** 2 for n in (0, 1, 10)]
    assert errors[0] == pytest.approx(float(hosvd(w)[2][ranks]), abs=1e-10)
    assert errors[0] >= errors[1] - 1e-12 >= errors[2] - 2e-12
    found = tucker2(w, ranks)
    assert found.factors["core"].shape == (*ranks, sizes[2])
    assert torch.allclose(found.parts["core"].sum(-1), found.total())


# -- chains of convolutions -------------------------------------------------------------------------------------------


def kernel_of(chain: nn.Sequential) -> torch.Tensor:
    """Multiplied out."""
    weights = [layer.weight.detach() for layer in chain]
    middle = next(i for i, w in enumerate(weights) if w.shape[2:] != (1, 1))
    kernel = weights[middle]
    if kernel.shape[1] == 1 and chain[middle].groups > 1:
        kernel = torch.stack([torch.zeros_like(kernel[:, 0])] * len(kernel), 1)
        for r in range(len(kernel)):
            kernel[r, r] = weights[middle][r, 0]
    for w in reversed(weights[:middle]):
        kernel = torch.einsum("orhw,ri->oihw", kernel, w[:, :, 0, 0])
    for w in weights[middle + 1 :]:
        kernel = torch.einsum("or,rihw->oihw", w[:, :, 0, 0], kernel)
    return kernel


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("make", ["cp", "tucker", "cp-epc", "tkd-cpd-epc"])
def test_a_chain_is_the_convolution_of_its_kernel(geometry, make):
    layer, x = conv_layer(**geometry), draw(2, 6, 11, 13)
    if make == "cp":
        found = cp(layer.kernel, 7, max_sweeps=20)
        chain = cp_layers(layer, found).module
    elif make == "tucker":
        found = tucker2(layer.kernel, (4, 3))
        chain = tucker_layers(layer, found).module
    else:
        found, chain = None, decompose_conv(layer.module, make, 4, slack=0.1)
    kernel = kernel_of(chain)
    if found is not None:
        assert torch.allclose(kernel, found.total(), atol=1e-12)
    truth = torch.func.functional_call(layer.module, {"weight": kernel}, (x,))
    assert torch.allclose(chain(x), truth, atol=1e-12)
    assert all(type(m) is nn.Conv2d for m in chain)
    assert [m.bias is None for m in chain] == [True] * (len(chain) - 1) + [layer.bias is None]


def test_more_terms_come_nearer_and_rank_enough_is_exact():
    conv = conv_layer(padding=1).module
    x = draw(2, 6, 8, 9)
    with torch.no_grad():
        offs = [float((decompose_conv(conv, "cp", r)(x) - conv(x)).norm() / conv(x).norm()) for r in (2, 8, 40)]
    assert offs[0] > offs[1] > offs[2]
    assert offs[2] < 1e-3
    layer = Layer("c", conv)
    assert torch.allclose(tucker_layers(layer, tucker2(layer.kernel, (5, 6))).module(x), conv(x), atol=1e-12)


def test_neighbours_are_merged_where_that_is_smaller():
    conv = nn.Conv2d(30, 40, 3)
    five = decompose_conv(conv, "tkd-cpd-epc", 25, ranks=(6, 5))
    assert [tuple(m.weight.shape[:2]) for m in five] == [(5, 30), (25, 5), (25, 1), (6, 25), (40, 6)]
    three = decompose_conv(conv, "tkd-cpd-epc", 5, ranks=(6, 5))
    assert [tuple(m.weight.shape[:2]) for m in three] == [(5, 30), (5, 1), (40, 5)]


# -- as methods -------------------------------------------------------------------------------------------------------


def cnn() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 3, stride=2, dilation=2), nn.ReLU(), nn.Conv2d(16, 20, 1),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(80, 5),
        ).double()  # fmt: skip


@pytest.mark.parametrize("method", ["cp", "tucker"])
def test_a_model_gets_smaller_and_is_read_back(method, tmp_path):
    model, x = cnn(), draw(64, 3, 12, 12)
    small = tw.compress(model, 0.5, data=x, method=method, progress=False)
    assert small.kept <= 0.5
    forms = {name: part.form for name, part in small.parts.items()}
    assert forms["2"] == method
    assert set(forms.values()) <= {method, "low_rank"}
    assert {type(m) for m in small.model.modules()} == {type(m) for m in model.modules()}
    assert torch.equal(tw.load_compressed(small.save(tmp_path / "small"), cnn())(x), small.model.eval()(x))
    part = small.parts["2"]
    assert torch.equal(part.whole, model[2].weight)
    assert torch.allclose(kernel_of(small.model[2]), part.total(), atol=1e-12)


@pytest.mark.parametrize(("fit", "choices"), [(fit_cp, cp_choices), (fit_tucker, tucker_choices)])
def test_a_ladder_says_what_it_stores_and_spoils(fit, choices):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = Layer("c", nn.Conv2d(9, 14, (3, 2)).double())
    ladder = choices(layer, fit(Evidence(layer)))
    assert len(ladder) > 4
    assert (np.diff(ladder.params) > 0).all()
    for i in range(len(ladder) - 1):
        built = ladder.build(i)
        assert sum(p.numel() for p in built.module.parameters()) - 14 == ladder.params[i] < layer.size
        off = built.weight.error() ** 2
        assert off == pytest.approx(ladder.errors[i], rel=1e-9) if fit is fit_cp else off <= ladder.errors[i] * (1 + 1e-9)


def test_matrices_get_singular_values():
    for module in (nn.Linear(9, 14), nn.Conv2d(9, 14, 1)):
        layer = Layer("m", module)
        svd = METHODS["svd"]
        wanted = svd.ladder(layer, svd.fit(Evidence(layer)))
        for name in ("cp", "tucker"):
            found = METHODS[name].ladder(layer, METHODS[name].fit(Evidence(layer)))
            assert found.errors.tolist() == wanted.errors.tolist()


def test_layers_of_zeros():
    model = cnn()
    model[2].weight.data.zero_()
    for method in ("cp", "tucker"):
        assert math.isfinite(tw.compress(model, 0.6, data=draw(64, 3, 12, 12), method=method, progress=False).measured)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: cp(draw(3, 4), 2), r"shape \(f, c, s\) or \(f, c, kh, kw\), got \(3, 4\)"),
        (lambda: cp(draw(0, 4, 2), 2), r"got \(0, 4, 2\)"),
        (lambda: cp(draw(3, 4, 2) * torch.nan, 2), r"\(3, 4, 2\) holds NaN"),
        (lambda: cp(draw(3, 4, 2), 0), "rank must be at least 1, a whole number; got 0"),
        (lambda: cp(draw(3, 4, 2), 2, init="best"), "'svd', 'random' or a CPDecomposition, got 'best'"),
        (lambda: cp(draw(3, 4, 2), 2, init=cp(draw(3, 4, 2), 3)), "wanted is rank 2"),
        (lambda: epc(cp(draw(*SIZES), 2), objective="size"), "'sensitivity' or 'norm', got 'size'"),
        (lambda: epc(cp(draw(*SIZES), 2), error=0.01), r"between that of the terms, 0\.\d+, and 1, got 0\.01"),
        (lambda: epc(cp(draw(*SIZES), 2), slack=5.0), "and 1, got"),
        (lambda: epc(cp(draw(*SIZES), 2), slack=-0.5), "and 1, got"),
        (lambda: tucker2(draw(3, 4, 2), (4, 1)), r"lie in 1\.\.3 and 1\.\.4, got \(4, 1\)"),
        (lambda: tucker2(draw(3, 4, 2), (1, 0)), r"got \(1, 0\)"),
        (lambda: decompose_conv(nn.Conv2d(4, 4, 3, groups=2), "cp", 2), "this one has 2"),
        (lambda: decompose_conv(nn.Conv2d(4, 4, 3), "parafac", 2), "'cp', 'cp-epc' or 'tkd-cpd-epc', got 'parafac'"),
    ],
)
def test_what_makes_no_sense_is_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call()
    with pytest.raises(TypeError, match="got Linear"):
        decompose_conv(nn.Linear(2, 2))
