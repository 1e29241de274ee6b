"""Fisher information, losses of compositions, adapters, ITA and IEL, each against a slow obvious twin.

One file: all of them are tested on the same small network, with the same modules and the same dense twin of it.
"""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import termwise as tw
from termwise.functions import IEL, ITA, CompositionalLoss, adapter, compose, diagonal_fisher, incremental, quadratic
from termwise.functions.compositional_loss import _dot
from termwise.functions.incremental import FLOOR
from termwise.functions.pretuning import ClassGaussian, align, probe
from termwise.testing.architectures import build
from termwise.testing.trained import SmallViT


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def net(seed: int = 0, *, classes: int = 3, inputs: int = 4, act: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(inputs, 5), act(), nn.Linear(5, 4), act(), nn.Linear(4, classes))
    return model.double().eval().requires_grad_(False)


def modules(model: nn.Module, n: int, *, scale: float = 0.3, seed: int = 0) -> list[dict[str, Tensor]]:
    names = dict(model.named_parameters())
    return [{k: scale * double(*p.shape, seed=seed + 31 * t + i) for i, (k, p) in enumerate(names.items())} for t in range(n)]


def flat(tau: dict[str, Tensor]) -> Tensor:
    return torch.cat([v.flatten() for v in tau.values()])


def dense(model: nn.Module):
    """A model as a function of one vector."""
    shapes = {k: p.shape for k, p in model.named_parameters()}

    def at(w: Tensor, x: Tensor) -> Tensor:
        pieces = w.split([s.numel() for s in shapes.values()])
        return torch.func.functional_call(model, {k: v.view(s) for (k, s), v in zip(shapes.items(), pieces, strict=True)}, (x,))

    return at, flat({k: p.detach() for k, p in model.named_parameters()})


# -- Fisher -----------------------------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 99), n=st.integers(1, 5), classes=st.integers(2, 5), batch=st.integers(1, 5))
def test_the_fisher_is_the_sum_over_samples_and_classes(seed, n, classes, batch):
    model, x = net(seed, classes=classes), double(n, 4, seed=seed)
    found = diagonal_fisher(model, x.split(batch))
    at, w = dense(model)
    total = torch.zeros_like(w)
    for i, c in itertools.product(range(n), range(classes)):
        leaf = w.clone().requires_grad_()
        log_p = at(leaf, x[i : i + 1]).log_softmax(1)[0, c]
        total += log_p.exp().detach() * torch.autograd.grad(log_p, leaf)[0].square() / n
    torch.testing.assert_close(flat(found), total, rtol=1e-10, atol=1e-14)


def test_the_fisher_is_the_diagonal_of_gauss_newton():
    model, x = net(), double(6, 4)
    at, w = dense(model)
    jacobian, p = torch.func.jacrev(at)(w, x), model(x).softmax(1)
    inner = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    ggn = torch.einsum("nci,ncd,ndi->i", jacobian, inner, jacobian) / 6
    torch.testing.assert_close(flat(diagonal_fisher(model, [x])), ggn, rtol=1e-10, atol=1e-14)


def test_drawn_classes_give_the_same_on_average():
    model, x = net(), double(3, 4)
    exact = flat(diagonal_fisher(model, [x]))
    many = [x.repeat(4000, 1)]
    drawn = flat(diagonal_fisher(model, many, estimator="mc", generator=torch.Generator().manual_seed(0)))
    again = flat(diagonal_fisher(model, many, estimator="mc", generator=torch.Generator().manual_seed(0)))
    assert torch.equal(drawn, again)
    assert 0 < (drawn - exact).norm() / exact.norm() < 0.05
    state = torch.get_rng_state()
    diagonal_fisher(model, [x], estimator="mc", generator=torch.Generator())
    assert torch.equal(state, torch.get_rng_state())


def test_the_fisher_of_a_transformer_and_of_some_parameters():
    subject = build("vit").to(torch.float64)
    model, (x,) = subject.model, subject.inputs
    name = next(n for n, p in model.named_parameters() if p.ndim == 2 and p.numel() < 2000)
    found = diagonal_fisher(model, [(x, "labels are not looked at")], params=name)
    assert list(found) == [name]
    total = torch.zeros_like(found[name])
    for sample in x.split(1):
        leaf = model.get_parameter(name).detach().clone().requires_grad_()
        log_p = torch.func.functional_call(model, {name: leaf}, (sample,)).logits.log_softmax(1)[0]
        for c in range(len(log_p)):
            (slope,) = torch.autograd.grad(log_p[c], leaf, retain_graph=True)
            total += log_p[c].exp().detach() * slope.square() / len(x)
    torch.testing.assert_close(found[name], total, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(
    ("kind", "make", "match"),
    [
        (ValueError, lambda m, x: diagonal_fisher(m, [x], estimator="empirical"), "'exact'.*'mc'.*'empirical'"),
        (ValueError, lambda m, x: diagonal_fisher(m, []), "no samples"),
        (ValueError, lambda m, x: diagonal_fisher(m, [x[:0]]), "no samples"),
        (ValueError, lambda m, x: diagonal_fisher(m, [x * math.nan]), "not finite"),
        (ValueError, lambda m, x: diagonal_fisher(nn.Flatten(0).eval(), [x]), "no parameter|finite and"),
        (TypeError, lambda m, x: diagonal_fisher(m, ["text"]), "begins with one.*str"),
        (TypeError, lambda m, x: diagonal_fisher(torch.tanh, [x]), "torch.nn.Module"),
        (ValueError, lambda m, x: diagonal_fisher(m, [x], params="0.wieght"), "0.weight"),
        (ValueError, lambda m, x: diagonal_fisher(nn.Sequential(m, nn.Dropout()).train(), [x]), "eval"),
        (ValueError, lambda m, x: diagonal_fisher(net(classes=1), [x]), r"one logit.*\[0, z\]"),
    ],
)
def test_fisher_says_what_is_wrong(kind, make, match):
    with pytest.raises(kind, match=match):
        make(net(), double(2, 4))


def test_the_fisher_of_a_recurrent_network():
    """Which has no batched derivatives: one sample after another, the same sum."""

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.gru(x)[0][:, -1])

    model, x = Reader().double().eval(), double(3, 5, 3)
    found = diagonal_fisher(model, [x[:2], x[2:]])
    total = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for i, c in itertools.product(range(3), range(3)):
        log_p = model(x[i : i + 1]).log_softmax(1)[0, c]
        for n, slope in zip(total, torch.autograd.grad(log_p, list(model.parameters())), strict=True):
            total[n] += log_p.exp().detach() * slope.square() / 3
    for n, f in found.items():
        torch.testing.assert_close(f, total[n], rtol=1e-9, atol=1e-14)
    learned = ITA(model, "head", kind="full", epochs=1).learn(x.repeat(4, 1, 1), torch.arange(12) % 2)
    assert learned.predict(x).shape == (3,)


# -- the loss of a composition ----------------------------------------------------------------------------------------


def off(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 99), n=st.integers(1, 4), act=st.sampled_from([nn.Tanh, nn.GELU, nn.Softplus]))
def test_the_terms_are_those_of_the_dense_hessian(seed, n, act):
    model, x, y = net(seed, act=act), double(5, 4, seed=seed), torch.arange(5) % 3
    taus = modules(model, n, seed=seed)
    weights = [(t + 1) / sum(range(n + 1)) for t in range(n)]
    found = quadratic(model, F.cross_entropy, x, y, taus, weights)
    at, w = dense(model)

    def loss(w: Tensor) -> Tensor:
        return F.cross_entropy(at(w, x), y)

    g, h = torch.func.grad(loss)(w), torch.func.hessian(loss)(w)
    t, a = torch.stack([flat(v) for v in taus]), torch.tensor(weights, dtype=torch.float64)
    torch.testing.assert_close(found.whole, loss(w + a @ t))
    torch.testing.assert_close(found.parts["order_0"], loss(w))
    torch.testing.assert_close(found.parts["order_1"], a * (t @ g), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.curvature, t @ h @ t.T, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.contribution("order_2"), (a @ t) @ h @ (a @ t) / 2, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.losses, torch.stack([loss(w + v) for v in t]))
    omega = sum(a[i] * a[j] * (t[i] - t[j]) @ h @ (t[i] - t[j]) / 2 for i, j in itertools.combinations(range(n), 2))
    torch.testing.assert_close(found.omega, torch.as_tensor(omega, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    left = a @ found.alone().remainder - found.remainder  # what is of third order in the gap
    torch.testing.assert_close(found.gap - found.omega, left, rtol=1e-9, atol=1e-12)


def test_the_terms_are_those_of_the_jet():
    """Along the composed direction the series of the loss has the same coefficients."""
    model, x, y = net(act=nn.GELU), double(5, 4), torch.arange(5) % 3
    taus = modules(model, 3)
    found = quadratic(model, F.cross_entropy, x, y, taus, [0.2, 0.3, 0.5])

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            z = self.model(x)
            return (z.exp().sum(1).log() - z.gather(1, y.unsqueeze(1)).squeeze(1)).mean(0, keepdim=True)

    direction = {f"model.{k}": sum(a * t[k] for a, t in zip((0.2, 0.3, 0.5), taus, strict=True)) for k in taus[0]}
    series = tw.expand(Loss().eval(), x, direction, order=2, wrt="parameters").coefficients[:, 0]
    ours = torch.stack([found.contribution(f"order_{k}") for k in range(3)])
    torch.testing.assert_close(ours, series, rtol=1e-9, atol=1e-12)


def test_what_is_left_is_of_third_order():
    model, x, y = net(), double(5, 4), torch.arange(5) % 3
    taus, lengths = modules(model, 4, scale=1.0), [10 ** (-3 + 0.25 * i) for i in range(5)]

    def slope(make) -> float:
        sizes = []
        for t in lengths:
            found = quadratic(model, F.cross_entropy, x, y, [{k: t * v for k, v in tau.items()} for tau in taus])
            sizes.append(abs(make(found).item()))
        a, b = torch.tensor([lengths, sizes], dtype=torch.float64).log()
        return (((a - a.mean()) * (b - b.mean())).sum() / (a - a.mean()).square().sum()).item()

    assert slope(lambda f: f.remainder) == pytest.approx(3, abs=0.1)
    assert slope(lambda f: f.gap - f.omega) == pytest.approx(3, abs=0.1)
    assert slope(lambda f: f.gap) == pytest.approx(2, abs=0.1)


def test_the_other_curvatures():
    model, x, y = net(), double(5, 4), torch.arange(5) % 3
    taus = modules(model, 3)
    at, w = dense(model)
    t, p = torch.stack([flat(v) for v in taus]), model(x).softmax(1)
    jacobian = torch.func.jacrev(at)(w, x)
    ggn = torch.einsum("nci,ncd,ndj->ij", jacobian, torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1), jacobian) / 5
    found = quadratic(model, F.cross_entropy, x, y, taus, hessian="ggn")
    torch.testing.assert_close(found.curvature, t @ ggn @ t.T, rtol=1e-9, atol=1e-12)
    fisher = quadratic(model, F.cross_entropy, x, y, taus, hessian="fisher")
    torch.testing.assert_close(fisher.curvature, t * ggn.diagonal() @ t.T, rtol=1e-9, atol=1e-12)
    own = {k: torch.full_like(p, 2.0) for k, p in model.named_parameters()}
    torch.testing.assert_close(quadratic(model, F.cross_entropy, x, y, taus, hessian=own).curvature, 2 * t @ t.T)
    assert found.omega > 0
    assert fisher.omega > 0


def test_the_curvature_of_a_transformer_encoder():
    """Its fused operator has no derivatives of second order."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
    model = nn.Sequential(nn.TransformerEncoder(layer, 1), nn.Flatten(), nn.Linear(24, 3)).double().eval().requires_grad_(False)
    x, y, taus = double(4, 3, 8), torch.arange(4) % 3, modules(model, 2, scale=0.05)
    at, w = dense(model)
    before = torch.backends.mha.get_fastpath_enabled()
    found = quadratic(model, F.cross_entropy, x, y, taus, hessian="ggn")
    assert torch.backends.mha.get_fastpath_enabled() == before
    with sdpa_kernel(SDPBackend.MATH):
        jacobian = torch.func.jacrev(at)(w, x)
    moves = [jacobian @ flat(t) for t in taus]
    p = model(x).softmax(1)
    inner = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    slow = torch.stack([torch.stack([torch.einsum("nc,ncd,nd->", a, inner, b) / 4 for b in moves]) for a in moves])
    torch.testing.assert_close(found.curvature, slow, rtol=1e-8, atol=1e-12)
    assert all(f.isfinite().all() for f in diagonal_fisher(model, [x]).values())


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(4), nn.Dropout()])
def test_a_model_in_training_mode_is_refused_and_left_alone(layer):
    model = nn.Sequential(layer, net()).eval()
    model[0].train()
    before = {n: b.clone() for n, b in model.named_buffers()}
    with pytest.raises(ValueError, match=r"training mode \(at 0\).*eval"):
        quadratic(model, F.cross_entropy, double(5, 4), torch.arange(5) % 3, [{"1.0.bias": double(5)}])
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())


def test_an_empty_sum_is_of_the_kind_of_its_numbers():
    other = _dot({"a": torch.ones(2, dtype=torch.float64, device="meta")}, {"b": torch.ones(2)})
    assert (other.dtype, other.device.type) == (torch.float64, "meta")


def test_modules_may_move_different_parameters():
    model, x, y = net(), double(5, 4), torch.arange(5) % 3
    a, b = modules(model, 2)
    zero = {k: torch.zeros_like(v) for k, v in a.items()}
    part = [{"0.weight": a["0.weight"]}, {"4.bias": b["4.bias"]}]
    full = [zero | p for p in part]
    for hessian in ("exact", "ggn", "fisher"):
        one, two = (quadratic(model, F.cross_entropy, x, y, t, hessian=hessian) for t in (part, full))
        torch.testing.assert_close(one.curvature, two.curvature, rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(one.total(), two.total())
    torch.testing.assert_close(compose(model, part)(x), compose(model, full)(x))


def test_pairs_are_drawn():
    model, x = net(), double(5, 4)
    found = quadratic(model, F.cross_entropy, x, torch.arange(5) % 3, modules(model, 3))
    steps, pairs, alone = found.pictures()
    shown = torch.tensor(pairs.values, dtype=torch.float64)
    assert torch.equal(shown[:, :3], found.parts["order_2"])
    assert torch.equal(shown[:, 3], found.parts["order_1"])
    assert steps.bars[-1].value == float(found.whole)
    named = {bar.label: bar.value for bar in steps.bars}
    assert named["remainder"] == pytest.approx(float(found.remainder))
    assert named["slope of module 1"] == float(found.parts["order_1"][1])
    assert named["pairs"] == pytest.approx(float(found.parts["order_2"].sum() - found.parts["order_2"].trace()))
    assert alone.values["loss"] == [*found.losses.tolist(), float(found.weights @ found.losses), float(found.whole)]
    assert len(found.plot().axes) == 4


def test_a_loss_without_third_order_adds_up(tmp_path):
    model, x = nn.Linear(4, 3).double().eval(), double(5, 4)
    before = [p.clone() for p in model.parameters()]
    found = quadratic(model, F.mse_loss, x, double(5, 3, seed=1), modules(model, 4, scale=3.0), [0.1, 0.2, 0.3, 0.4]).check(1e-12)
    torch.testing.assert_close(found.gap, found.omega, rtol=1e-10, atol=0)
    found.alone().check(1e-12)
    back = CompositionalLoss.load(found.save(tmp_path / "loss"))
    assert torch.equal(back.curvature, found.curvature)
    assert torch.equal(back.omega, found.omega)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("kind", "change", "match"),
    [
        (ValueError, {"weights": [0.5, 0.6]}, r"sum to 1.*sum 1\.1"),
        (ValueError, {"weights": [1.5, -0.5]}, "not negative"),
        (ValueError, {"weights": [math.nan, 1.0]}, "not negative"),
        (ValueError, {"weights": [1.0]}, "2 modules and 1 weights"),
        (ValueError, {"taus": []}, "no modules"),
        (ValueError, {"taus": [{}]}, "no modules"),
        (ValueError, {"taus": [{"0.wieght": torch.zeros(5, 4)}]}, r"taus\[0\].*'0.wieght'.*0\.weight"),
        (ValueError, {"taus": [{"0.weight": torch.zeros(4, 5)}]}, r"taus\[0\].*\(4, 5\).*\(5, 4\)"),
        (ValueError, {"taus": [{"0.weight": torch.full((5, 4), math.inf)}]}, "not finite at 0.weight"),
        (TypeError, {"model": torch.tanh}, "torch.nn.Module"),
        (TypeError, {"taus": modules(net(), 1)[0]}, r"sequence of modules.*\[tau\]"),
        (TypeError, {"taus": ["0.weight"]}, "sequence of modules"),
        (ValueError, {"hessian": "diagonal"}, "'ggn'.*'diagonal'"),
        (ValueError, {"hessian": {"0.weight": torch.ones(5, 4)}}, "nothing for 0.bias"),
        (ValueError, {"hessian": {"0.weight": torch.ones(4, 5)}}, r"shape \(4, 5\) for 0.weight"),
        (ValueError, {"loss": lambda z, y: z.mean() / 0}, "the loss at w_0 is (-?inf|nan)"),
        (ValueError, {"loss": lambda z, y: F.cross_entropy(z, y, reduction="none")}, r"without axes, got shape \(2,\)"),
    ],
)
def test_quadratic_says_what_is_wrong(kind, change, match):
    model = net()
    given = {"model": model, "loss": F.cross_entropy, "taus": modules(model, 2), "weights": None, "hessian": "exact"} | change
    with pytest.raises(kind, match=match):
        quadratic(
            given["model"], given["loss"], double(2, 4), torch.tensor([0, 1]), given["taus"], given["weights"],
            hessian=given["hessian"],
        )  # fmt: skip
    if {"taus", "weights", "model"} & {*change}:
        with pytest.raises(kind, match=match):
            compose(given["model"], given["taus"], given["weights"])


def test_compose_adds_the_weighted_modules():
    model, taus = net(), modules(net(), 3)
    before = {k: p.clone() for k, p in model.named_parameters()}
    found = dict(compose(model, taus, [0.2, 0.0, 0.8]).named_parameters())
    for k, p in model.named_parameters():
        assert torch.equal(p, before[k])
        torch.testing.assert_close(found[k], p + 0.2 * taus[0][k] + 0.8 * taus[2][k])


# -- adapters ---------------------------------------------------------------------------------------------------------


def test_adapters_are_what_they_say():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 3)).eval()
    shapes = {k: p.shape for k, p in model.named_parameters()}
    full, lora, ia3 = (adapter(model, kind, rank=2) for kind in ("full", "lora", "ia3"))
    assert {k: d.shape for k, d in full.deltas().items()} == shapes
    assert list(lora.deltas()) == list(ia3.deltas()) == ["0.weight", "4.weight"]  # no norm, no bias
    for module in (full, lora, ia3):
        assert all(not d.any() for d in module.deltas().values())
        for p in module.parameters():
            torch.nn.init.normal_(p)
    for a, b, delta in zip(lora.a, lora.b, lora.deltas().values(), strict=True):
        torch.testing.assert_close(delta.flatten(1), b @ a)
        assert torch.linalg.matrix_rank(delta.flatten(1)) == 2
    for factor, (name, delta) in zip(ia3.factors, ia3.deltas().items(), strict=True):
        torch.testing.assert_close(model.get_parameter(name) + delta, factor * model.get_parameter(name))
    assert adapter(model, "lora", rank=99).a[0].shape == (4, 18)
    one, two = (adapter(model, "lora", generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.a, two.a, strict=True))
    attention = nn.MultiheadAttention(4, 2).eval()
    assert list(adapter(attention, "lora").deltas()) == ["in_proj_weight", "out_proj.weight"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kind": "LORA2"}, "full, lora, ia3, got 'LORA2': did you mean 'lora'"),
        ({"kind": "lora", "rank": 0}, "rank is 1 or more"),
        ({"kind": "lora", "params": "0.bias"}, r"lora moves matrices, and 0.bias is of shape \(5,\)"),
        ({"kind": "full", "params": "nothing"}, "'nothing'"),
    ],
)
def test_adapter_says_what_is_wrong(options, match):
    with pytest.raises(ValueError, match=match):
        adapter(net(), **options)


def test_no_matrices_is_said():
    with pytest.raises(ValueError, match="no linear, convolutional or attention layers"):
        adapter(nn.LayerNorm(3).eval(), "ia3")


# -- pre-tuning -------------------------------------------------------------------------------------------------------


def test_class_gaussians_have_the_moments_of_their_class():
    x = double(40, 6) @ double(6, 6, seed=1) + 3
    g = ClassGaussian.of(x)
    torch.testing.assert_close(g.factor @ g.factor.T, torch.cov(x.T))
    drawn = g.draw(100_000, torch.Generator().manual_seed(0))
    assert off(drawn.mean(0), x.mean(0)) < 0.02
    assert off(torch.cov(drawn.T), torch.cov(x.T)) < 0.03
    few = ClassGaussian.of(x[:2]).draw(3, None)  # fewer samples than axes
    assert torch.linalg.matrix_rank(few - x[:2].mean(0), atol=1e-6) == 1
    torch.testing.assert_close(ClassGaussian.of(x[:1]).draw(2, None), x[:1].expand(2, -1))


def test_probing_moves_its_rows_alone_and_alignment_all():
    generator = torch.Generator().manual_seed(0)
    centres = 3 * double(4, 6)
    x, y = centres.repeat_interleave(30, 0) + 0.3 * double(120, 6, seed=1), torch.arange(4).repeat_interleave(30)
    head = nn.Linear(6, 4).double()
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    probe(head, x[y >= 2], y[y >= 2] - 2, slice(2, 4), epochs=20, generator=generator)
    assert not head.weight[:2].any()
    assert (head(x[y >= 2])[:, 2:].argmax(1) == y[y >= 2] - 2).all()
    align(head, [ClassGaussian.of(x[y == c]) for c in range(4)], samples=64, epochs=20, generator=generator)
    assert (head(x).argmax(1) == y).float().mean() > 0.98


# -- ITA and IEL ------------------------------------------------------------------------------------------------------


def tasks(n: int = 2, size: int = 24, *, inputs: int = 4) -> list[tuple[Tensor, Tensor]]:
    """Two classes each, apart by where they lie."""
    found = []
    for t in range(n):
        y = torch.arange(size) % 2 + 2 * t
        found.append((double(size, inputs, seed=t) + 2 * double(2 * n, inputs, seed=99)[y], y))
    return found


def learner(kind=ITA, strength: float = 0.5, **options):
    options = {"epochs": 2, "lr": 1e-2, "batch_size": 8, "generator": torch.Generator().manual_seed(0)} | options
    return kind(net(), "4", strength, **options)


@pytest.mark.parametrize("kind", ["full", "lora", "ia3"])
def test_the_penalty_of_ita_is_a_step_down_alpha_over_two_tau_f_tau(kind):
    model = ITA(net(), "4", 1e-6, kind=kind, rank=2)
    module = adapter(model._features, kind, rank=2)
    for i, p in enumerate(module.parameters()):
        p.data = double(*p.shape, seed=i)
    fisher = {n: double(*d.shape, seed=7).square() for n, d in module.deltas().items()}
    before = [p.detach().clone() for p in module.parameters()]
    penalty = sum(((fisher[n] + FLOOR) * d.square()).sum() for n, d in module.deltas().items()) * 1e-6 / 2
    slopes = torch.autograd.grad(penalty, list(module.parameters()))
    model._penalise(module, fisher, 0.7)
    for old, p, slope in zip(before, module.parameters(), slopes, strict=True):
        torch.testing.assert_close(p - old, -0.7 * slope, rtol=1e-4, atol=1e-15)  # alpha is so small that the step is explicit


def test_a_strong_penalty_is_the_proximal_step():
    model = ITA(net(), "4", 1e4, kind="full")
    module = adapter(model._features, "full")
    for i, p in enumerate(module.parameters()):
        p.data = double(*p.shape, seed=i)
    fisher = {n: double(*d.shape, seed=7).square() for n, d in module.deltas().items()}
    before = {n: d.detach().clone() for n, d in module.deltas().items()}
    model._penalise(module, fisher, 0.5)
    for n, d in module.deltas().items():  # argmin |tau - before|^2 / 2 + 0.5 (alpha / 2) tau F tau
        torch.testing.assert_close(d, before[n] / (1 + 0.5 * 1e4 * (fisher[n] + FLOOR)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("former", [1, 2, 4])
def test_the_penalty_of_iel_is_t_times_the_gradient_of_omega(former):
    model, t = IEL(net(), "4", 1.0, kind="full"), former + 1
    taus = modules(model._features, t)
    fisher = {n: double(*v.shape, seed=5).square() for n, v in taus[0].items()}
    model._taus = taus[:-1]
    leaves = {n: v.clone().requires_grad_() for n, v in taus[-1].items()}
    everything = [*taus[:-1], leaves]
    omega = sum(
        (fisher[n] * (a[n] - b[n]).square()).sum() / 2 / t**2 for a, b in itertools.combinations(everything, 2) for n in fisher
    )
    slopes = torch.autograd.grad(omega, list(leaves.values()))
    for (n, v), slope in zip(taus[-1].items(), slopes, strict=True):
        torch.testing.assert_close(fisher[n] * model._pull(n, v), t * slope, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(model._moved(n, v), sum(m[n] for m in taus) / t)


def test_the_first_task_of_iel_has_a_penalty():
    model = IEL(net(), "4", 1.0)
    torch.testing.assert_close(model._pull("0.weight", torch.ones(2)), torch.full((2,), 0.5))


@pytest.mark.parametrize("kind", [ITA, IEL])
def test_tasks_are_learned_one_after_another(kind):
    base, given = net(), tasks(3)
    before = [p.clone() for p in base.parameters()]
    model = kind(base, "4", 0.1, kind="full", epochs=5, lr=1e-2, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    for x, y in given:
        found = model.learn(x, y)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(base.parameters(), before, strict=True))
    assert found.classes == ((0, 1), (2, 3), (4, 5))
    assert found.weights == pytest.approx((1 / 3,) * 3)
    x, y = torch.cat([x for x, _ in given]), torch.cat([y for _, y in given])
    assert (found.predict(x) == y).float().mean() > 0.7
    by_hand = compose(found.base, found.taus)
    torch.testing.assert_close(found.model(x), by_hand(x))
    assert found.model(x).shape == (len(x), 6)
    again = kind(base, "4", 0.1, kind="full", epochs=5, lr=1e-2, generator=torch.Generator().manual_seed(0))
    for x, y in given:
        same = again.learn(x, y)
    assert all(
        torch.equal(a, b) for s, t in zip(found.taus, same.taus, strict=True) for a, b in zip(s.values(), t.values(), strict=True)
    )


def test_past_classes_are_masked(monkeypatch):
    """A task's module is the same whatever logits the classes before it have."""
    (first, second), seen = tasks(2), []
    model = learner()
    model.learn(*first)
    real = F.cross_entropy
    monkeypatch.setattr(F, "cross_entropy", lambda z, y: seen.append((z.shape[1], int(y.max()))) or real(z, y))
    model.learn(*second)
    assert {(2, 1)} == {*seen[-6:]}  # two logits, the task's own


def test_f_is_the_mean_over_all_samples_at_the_classifier_of_the_time():
    given, model = tasks(2), learner()
    bases = [model.learn(*given[0][:1], given[0][1]).base, model.learn(*given[1]).base]
    each = [diagonal_fisher(b, [x], params=list(model.fisher)) for b, (x, _) in zip(bases, given, strict=True)]
    for n, f in model.fisher.items():
        torch.testing.assert_close(f, (each[0][n] + each[1][n]) / 2, rtol=1e-9, atol=1e-14)


def test_a_stronger_penalty_keeps_modules_nearer():
    sizes = []
    for strength in (0.0, 10.0, 1e6):
        model = learner(strength=strength)
        for task in tasks(2):
            found = model.learn(*task)
        sizes.append(sum(float(d.norm()) for tau in found.taus for d in tau.values()))
    assert sizes[0] > 1.2 * sizes[1]
    assert sizes[1] > 1.2 * sizes[2]


def test_specialise_and_unlearn_move_the_weights():
    model = learner()
    for task in tasks(3):
        found = model.learn(*task)
    assert found.unlearn(1).weights == pytest.approx((0.5, 0, 0.5))
    assert found.unlearn(-1).weights == pytest.approx((0.5, 0.5, 0))
    assert found.specialise([2]).weights == (0, 0, 1)
    assert found.unlearn(0).unlearn(1).weights == (0, 0, 1)
    only = compose(found.base, [found.taus[2]])
    x = double(5, 4)
    torch.testing.assert_close(found.specialise([2]).model(x), only(x))
    torch.testing.assert_close(found.unlearn(1).model(x), compose(found.base, [found.taus[0], found.taus[2]])(x))
    with pytest.raises(ValueError, match="the only module"):
        found.specialise([1]).unlearn(1)
    with pytest.raises(ValueError, match=r"0\.\.2, got \[\]"):
        found.specialise([])
    with pytest.raises(ValueError, match=r"got \[1\]"):
        found.unlearn(1).specialise([1])
    with pytest.raises(IndexError):
        found.unlearn(3)


@pytest.mark.parametrize("place", ["align", "diagonal_fisher", "_train"])
def test_a_task_that_failed_leaves_no_trace(monkeypatch, place):
    given, (failed, clean) = tasks(2), (learner(), learner())
    for model in (failed, clean):
        model.learn(*given[0])
    before = dict(failed.fisher)

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ITA if place == "_train" else incremental, place, stop)
        with pytest.raises(KeyboardInterrupt):
            failed.learn(*given[1])
    assert all(torch.equal(f, before[n]) for n, f in failed.fisher.items())
    failed._generator.manual_seed(5)
    clean._generator.manual_seed(5)
    again, once = failed.learn(*given[1]), clean.learn(*given[1])
    assert again.classes == ((0, 1), (2, 3))
    torch.testing.assert_close(again.model(given[1][0]), once.model(given[1][0]), rtol=0, atol=0)


def test_nothing_draws_from_the_global_generator():
    state = torch.get_rng_state()
    one, two = (ITA(net(), "4", epochs=1).learn(*tasks(1)[0]).taus[0] for _ in range(2))
    a, b = (adapter(net(), "lora", rank=2) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert all(torch.equal(p, q) for p, q in zip(a.a, b.a, strict=True))


def test_a_training_that_diverges_is_stopped():
    with pytest.raises(ValueError, match=r"loss of task 0 is (nan|inf).*lower lr \(1e\+200\)"):
        learner(lr=1e200, epochs=5).learn(*tasks(1)[0])


def test_learners_say_what_is_wrong():
    x, y = tasks(1)[0]
    for kind, options, match in (
        (TypeError, (torch.tanh, "4"), "torch.nn.Module"),
        (ValueError, (net(), "3"), r"'3'.*\['4'\]"),
        (ValueError, (net(), "4", -1.0), "penalty >= 0"),
        (ValueError, (net(), "4", math.inf), "penalty >= 0"),
        (ValueError, (net().train(), "4"), "eval"),
    ):
        with pytest.raises(kind, match=match):
            ITA(*options)
    with pytest.raises(ValueError, match="did you mean 'lora'"):
        IEL(net(), "4", kind="lora_")
    model = learner()
    model.learn(x, y)
    for inputs, labels, match in (
        (x, y, r"classes \[0, 1\] were in an earlier task"),
        (x[:0], y[:0], "n > 0"),
        (x, y[:3], r"\(24, 4\) and \(3,\)"),
        (x, y.double(), "float64"),
        (x, torch.full_like(y, 7), "class 7 alone"),
        (x * math.nan, y + 10, "not finite"),
    ):
        with pytest.raises(ValueError, match=match):
            model.learn(inputs, labels)
    with pytest.raises(ValueError, match=r"inputs are torch.float32, the model torch.float64: give inputs.to\(torch.float64\)"):
        model.learn(x.float(), y + 2)
    for inputs, labels in ((x.numpy(), y + 2), (x, y.tolist())):
        with pytest.raises(TypeError, match=r"must be a tensor, got (ndarray|list)"):
            model.learn(inputs, labels)
    assert model.learn(x, y + 2).classes == ((0, 1), (2, 3))  # what was refused left no trace
    for width in (3, 2):  # a layer follows, of the same width or not
        inner = ITA(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, width)).double().eval(), "1")
        with pytest.raises(ValueError, match="'1' is not what makes the logits"):
            inner.learn(x, y)


def test_a_vision_transformer_learns_tasks():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SmallViT((2, 2), width=8, depth=1, heads=2, classes=3).eval()
    learner = ITA(model, "head", 0.1, rank=2, epochs=1, generator=torch.Generator().manual_seed(0))
    pictures = torch.randn(12, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for t in range(2):
        found = learner.learn(pictures, torch.arange(12) % 2 + 2 * t)
    assert sorted(found.taus[0]) == sorted(["patches.weight", *(f"blocks.0.{n}.weight" for n in ("qkv", "proj", "up", "down"))])
    assert found.model(pictures).shape == (12, 4)
    assert "0.5 x 0, 1; 0.5 x 2, 3" in repr(found)
    loss = quadratic(found.base, F.cross_entropy, pictures, torch.arange(12) % 4, found.taus)
    assert loss.error() < 0.1


def test_what_nothing_depends_on_has_no_curvature():
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model, x = Idle().eval(), double(5, 4)
    for hessian in ("exact", "ggn"):
        found = quadratic(model, lambda z, y: z.mean(), x, x, modules(model, 2), hessian=hessian).check(1e-10)
        assert not found.curvature.any()
        assert found.slopes.all()
