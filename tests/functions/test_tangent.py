"""Tangent models: f + D_w f v to rounding on every architecture, linear in v, composed and forgotten exactly."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import termwise as tw
from termwise.core.capture import capture, explained
from termwise.functions.jet import Run
from termwise.functions.jet_rules import Jet
from termwise.functions.pairs import PAIR_RULES, Pair, run_pairs
from termwise.functions.taylor import Taylor
from termwise.testing.architectures import build


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mlp(seed: int = 0, act: type[nn.Module] = nn.GELU) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 12), act(), nn.Linear(12, 12), nn.LayerNorm(12), nn.Linear(12, 3)).double().eval()


def filled(model: tw.TangentModel, scale: float = 0.1, seed: int = 0) -> tw.TangentModel:
    with torch.no_grad():
        for i, v in enumerate(model.parameters()):
            v.copy_(scale * double(*v.shape, seed=seed * 1000 + i))
    return model


def moved(model: nn.Module, v: dict[str, Tensor], inputs, kwargs=None) -> tuple[Tensor, Tensor]:
    """Value and slope by torch.func, from the model's own code."""
    weights = {n: p.detach() for n, p in model.named_parameters()}

    def f(chosen):
        return explained(torch.func.functional_call(model, {**weights, **chosen}, tuple(inputs), dict(kwargs or {})))

    with sdpa_kernel(SDPBackend.MATH):
        return torch.func.jvp(f, ({n: weights[n] for n in v},), ({n: t.detach() for n, t in v.items()},))


@pytest.mark.parametrize("name", ["resnet", "vit", "gpt2"])
def test_it_is_the_value_and_the_derivative(name):
    s = build(name).to(torch.float64)
    model = filled(tw.tangent(s.model))
    value, slope = moved(s.model, model.tangent, s.inputs, s.kwargs)
    assert slope.norm() > 1e-2 * value.norm()
    torch.testing.assert_close(model(*s.inputs, **(s.kwargs or {})), value + slope, rtol=1e-10, atol=1e-10)


def test_a_part_of_the_weights():
    s = build("bert").to(torch.float64)
    for params in ("*.bias", ["*layer.1*", "classifier.*"], "*word_embeddings*", "*query.weight"):
        model = filled(tw.tangent(s.model, params))
        value, slope = moved(s.model, model.tangent, s.inputs, s.kwargs)
        torch.testing.assert_close(model(*s.inputs, **(s.kwargs or {})), value + slope, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["resnet", "vgg"])
@pytest.mark.parametrize("ending", ["bias", "weight"])
def test_one_kind_of_weights(name, ending):
    s = build(name).to(torch.float64)
    model = filled(tw.tangent(s.model, f"*{ending}"))
    value, slope = moved(s.model, model.tangent, s.inputs, s.kwargs)
    torch.testing.assert_close(model(*s.inputs), value + slope, rtol=1e-10, atol=1e-10)


A, B, C = double(2, 3, 4), double(2, 3, 4, seed=1), double(2, 4, 3, seed=2)
FUNCTIONS = [torch.exp, torch.log, torch.sqrt, torch.rsqrt, torch.square, torch.reciprocal, torch.sin, torch.cos, torch.tanh, torch.sigmoid,
             F.silu, F.mish, torch.erf, F.gelu, lambda x: F.gelu(x, approximate="tanh"), torch.neg, lambda x: x**1.5]  # fmt: skip
MOVES = [lambda x: x.mean(-1, keepdim=True), lambda x: x.sum(1), lambda x: x.permute(1, 0, 2).flip(0), lambda x: F.avg_pool1d(x, 3, 1, 1),
         lambda x: x[:, 1:2].expand(2, 3, 4), lambda x: x[:, :1].squeeze(1), lambda x: x.roll(1, 2)]  # fmt: skip
CASES = {
    "add": (lambda a, b: a + 2 * b, A, B), "sub": (lambda a, b: torch.sub(a, b, alpha=3), A, B), "mul": (torch.mul, A, B),
    "div": (torch.div, A, B), "matmul": (torch.matmul, A, C), "bmm": (torch.bmm, A, C), "cat": (lambda a, b: torch.cat([a, b], 1), A, B),
    "stack": (lambda a, b: torch.stack([a, b], 1), A, B), "linear": (lambda x, w: F.linear(x, w[0]), A, B),
    "linear, bias": (lambda x, b: F.linear(x, B[0], b[0, 0, :3]), A, B), "addmm": (lambda a, b: torch.addmm(b[0, :, :3], a[0], C[0], beta=2, alpha=3), A, B),
    "broadcast": (lambda a, b: a + b[0, 0], A, B), "broadcast product": (lambda a, b: a * b[0, 0], A, B),
    "view": (lambda a, b: (a.transpose(1, 2).contiguous().view(2, 12), b.expand(2, 3, 4).reshape(2, 12))[0] * b.reshape(2, 12), A, B),
    "split": (lambda a, b: a.split(2, -1)[1] * b.chunk(2, -1)[0], A, B), "softmax": (lambda a, b: (a * b).softmax(1), A, B),
    "attention": (lambda a, b: F.scaled_dot_product_attention(a, b, a + b), A, B),
    "attention, causal": (lambda a, b: F.scaled_dot_product_attention(a, b, a * b, is_causal=True, scale=0.3), A, B),
    "attention, masked": (lambda a, b: F.scaled_dot_product_attention(a, b, b, attn_mask=torch.eye(3, dtype=torch.bool)), A, B),
    "attention, a mask that moves": (lambda a, b: F.scaled_dot_product_attention(A, B, A, attn_mask=a @ b.transpose(1, 2)), A, B),
    "attention, grouped": (lambda a, b: F.scaled_dot_product_attention(a.reshape(1, 2, 3, 4), b[:1].unsqueeze(1), b[:1].unsqueeze(1), enable_gqa=True), A, B),
    "conv": (lambda x, w: F.conv1d(x, w.reshape(4, 3, 2), w[0, 0]), A, B), "conv of a fixed input": (lambda w, b: F.conv1d(C, w.reshape(3, 4, 2), b[0, 0, :3]), A, B), "conv, up": (lambda x, w: F.conv_transpose1d(x, w.reshape(3, 4, 2), w[0, 0]), A, B), "embedding": (lambda x, w: F.embedding(torch.tensor([[2, 0], [1, 1]]), x[0]) * F.embedding(torch.tensor([[0, 0], [1, 2]]), w[1]), A, B), "conv, bias alone": (lambda x, b: F.conv1d(A, C.reshape(4, 3, 2), b[0, 0]), A, B),
    "layer norm": (lambda x, w: F.layer_norm(x, (4,), w[0, 0], w[1, 1]), A, B), "layer norm, plain": (lambda x, w: F.layer_norm(x, (4,)) * w, A, B),
    "layer norm, gain": (lambda x, w: F.layer_norm(A, (4,), w[0, 0], x[0, 0]), A, B), "layer norm, fixed gain": (lambda x, w: F.layer_norm(x * w, (4,), B[0, 0], B[1, 1]), A, B),
    "batch norm": (lambda x, w: F.batch_norm(x, A[0, :, 0], A[0, :, 1].square(), w[0, :, 0], w[0, :, 1]), A, B),
    "batch norm, fixed": (lambda x, w: F.batch_norm(x, A[0, :, 0], A[0, :, 1].square()) * w, A, B),
    "batch norm, offset": (lambda x, w: F.batch_norm(A, A[0, :, 0], A[0, :, 1].square(), B[0, :, 0], w[0, :, 1]), A, B),
    "functions": (lambda a, b: torch.stack([f(a) for f in FUNCTIONS]) * b, A.abs() + 0.5, B),
    "moves and sums": (lambda a, b: torch.cat([f(a * b).flatten() for f in MOVES]), A, B),
    "relu": (lambda a, b: F.relu(a) * b, A, B), "max": (lambda a, b: a.amax(-1) * b[..., 0], A, B), "where": (lambda a, b: torch.where(A > 0, a, b), A, B),
}  # fmt: skip


def entries(program) -> list[str]:
    return [name for name, p in program.placeholders.items() if p.kind == "input"]


@pytest.mark.parametrize("name", CASES)
def test_every_rule_is_the_jet_rule_and_the_derivative(name):
    """Beside torch.func.jvp, and beside its slow twin, the recurrences over rows at order 1."""
    f, a, b = CASES[name]
    da, db = double(*a.shape, seed=5), double(*b.shape, seed=6)
    with sdpa_kernel(SDPBackend.MATH):
        value, slope = torch.func.jvp(f, (a, b), (da, db))
    program = capture(f, a, b)
    x, y = entries(program)
    found = run_pairs(program, {**program.bind([a, b]), x: Pair(a, da), y: Pair(b, db)})
    torch.testing.assert_close(found.value, value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.slope, slope, rtol=1e-11, atol=1e-11)
    if name != "attention, a mask that moves":  # the jet rule of attention has a mask that does not
        rows = (
            Run(Taylor(1)).of(program, {**program.bind([a, b]), x: Jet(torch.stack([a, da])), y: Jet(torch.stack([b, db]))}).rows
        )
        torch.testing.assert_close(found.slope, rows[1], rtol=1e-11, atol=1e-11)
    for moving in (x, y):  # one alone
        alone = run_pairs(program, {**program.bind([a, b]), moving: Pair(a, da) if moving == x else Pair(b, db)})
        given = (da, torch.zeros_like(db)) if moving == x else (torch.zeros_like(da), db)
        with sdpa_kernel(SDPBackend.MATH):
            _, slope = torch.func.jvp(f, (a, b), given)
        torch.testing.assert_close(
            alone.slope if isinstance(alone, Pair) else torch.zeros_like(alone), slope, rtol=1e-11, atol=1e-11
        )


BASES = [mlp(0), mlp(1, nn.Tanh)]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1), a=st.floats(-2, 2), b=st.floats(-2, 2))
def test_the_output_is_affine_in_v(seed, a, b):
    base, x = BASES[seed], double(2, 4, seed=seed)
    one, two = (filled(tw.tangent(base), seed=i) for i in (1, 2))
    both = one.compose([one, two], [a, b])
    expected = base(x) + a * (one(x) - base(x)) + b * (two(x) - base(x))
    torch.testing.assert_close(both(x), expected, rtol=1e-11, atol=1e-11)


class Largest(nn.Module):
    def forward(self, x):
        return torch.cat([x[:, :3].amax(1, keepdim=True), x[:, 1:]], 1)


@pytest.mark.parametrize("act", [nn.ReLU, nn.LeakyReLU, Largest])
def test_at_first_it_is_the_model_and_even_on_a_kink_it_is_linear(act):
    base = mlp(0, act)
    with torch.no_grad():
        base[0].weight[:3] = 0  # three units exactly on their kink
        base[0].bias[:3] = 0
    x, model = double(2, 4), tw.tangent(base)
    assert torch.equal(model(x), base(x))
    there = filled(model)(x) - base(x)
    back = model.compose([model], [-1.0])(x) - base(x)
    assert there.norm() > 1e-3
    torch.testing.assert_close(there, -back)


def test_decomposition():
    base, x = mlp(), double(5, 4)
    model = filled(tw.tangent(base, ["0.*", "2.weight", "*"]), scale=0.05)
    d = model.decompose(x)
    assert list(d.parts) == ["primal", "tangent:0.*", "tangent:2.weight", "tangent:*"]
    weights = {n: p + model.tangent[n] for n, p in base.named_parameters()}
    torch.testing.assert_close(d.whole, torch.func.functional_call(base, weights, (x,)))
    torch.testing.assert_close(d.total(), model(x), rtol=1e-12, atol=1e-12)
    for group, names in model.groups.items():
        _, slope = moved(base, {n: model.tangent[n] for n in names}, [x])
        torch.testing.assert_close(d.parts[f"tangent:{group}"], slope, rtol=1e-11, atol=1e-11)
    assert sum(map(len, model.groups.values())) == len(model.tangent) == len(list(base.parameters()))
    near = model.compose([model], [0.1]).decompose(x).remainder.norm()
    assert d.remainder.norm() / near == pytest.approx(100, rel=0.3)  # O(|v|^2)


def test_compose_and_forget():
    base, x = mlp(), double(3, 4)
    models = [filled(tw.tangent(base, ["2.*", "4.*"]), seed=i) for i in range(1, 4)]
    mean = models[0].compose(models)
    torch.testing.assert_close(mean(x), sum(m(x) for m in models) / 3, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mean.forget(1)(x), (models[0](x) + models[2](x)) / 2, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mean.forget(-1).forget(0)(x), models[1](x), rtol=1e-12, atol=1e-12)
    uneven = mean.compose([m.tangent for m in models], [0.5, 0.3, 0.2]).forget(0)
    torch.testing.assert_close(uneven(x), 0.6 * models[1](x) + 0.4 * models[2](x), rtol=1e-12, atol=1e-12)
    assert mean.weights == (1 / 3,) * 3  # as it was
    with torch.no_grad():
        models[1].tangent["4.bias"].add_(1)  # what was composed is a copy
    assert mean.forget(0).tangent["4.bias"] is not models[1].tangent["4.bias"]


def test_training_reaches_the_least_squares_solution():
    """A square loss of a tangent head is linear regression, whose solution is known."""
    base, x, y = mlp(), double(30, 4), double(30, 3, seed=1)
    model = tw.tangent(base, "4.*")
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=300, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=1e-16
    )

    def loss():
        optimizer.zero_grad()
        value = (model(x) - y).square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        features = torch.cat([base[:4](x), torch.ones(30, 1, dtype=torch.float64)], 1)
        best = (features @ torch.linalg.lstsq(features, y).solution - y).square().sum()
    assert loss().item() == pytest.approx(best.item(), rel=1e-8)


def test_gradients_are_those_of_the_derivative():
    """d/dv of a sum of outputs is D_w f, whatever v is."""
    s = build("vit").to(torch.float64)
    model = filled(tw.tangent(s.model))
    found = torch.autograd.grad(model(*s.inputs, **(s.kwargs or {})).sum(), list(model.parameters()), allow_unused=True)
    twin = copy.deepcopy(s.model).requires_grad_(True)
    expected = torch.autograd.grad(
        explained(twin(*s.inputs, **(s.kwargs or {}))).sum(), [twin.get_parameter(n) for n in model.tangent], allow_unused=True
    )
    for g, e in zip(found, expected, strict=True):
        torch.testing.assert_close(
            g if g is not None else torch.zeros(()), e if e is not None else torch.zeros(()), rtol=1e-9, atol=1e-11
        )


def test_values_before_the_first_tangent_weight_stay_plain(monkeypatch):
    base, seen = mlp(), []
    monkeypatch.setitem(PAIR_RULES, "linear", lambda op, *args, rule=PAIR_RULES["linear"]: seen.append(args) or rule(op, *args))
    filled(tw.tangent(base, "4.weight"))(double(2, 4))
    assert [type(x) for x, *_ in seen] == [Tensor]
    seen.clear()
    filled(tw.tangent(base, "2.bias"))(double(2, 4))
    assert [[type(a) for a in args] for args in seen] == [[Tensor, Tensor, Pair], [Pair, Tensor, Tensor]]


def test_it_is_a_module_and_the_model_is_left_alone(tmp_path):
    base, x = mlp(), double(2, 4)
    before = copy.deepcopy(base.state_dict())
    model = filled(tw.tangent(base, ["0.*", "4.*"]))
    assert set(model.state_dict()) == {"v.0.weight", "v.0.bias", "v.4.weight", "v.4.bias"}
    torch.save(model.state_dict(), tmp_path / "v.pt")
    again = tw.tangent(base, ["0.*", "4.*"])
    again.load_state_dict(torch.load(tmp_path / "v.pt", weights_only=True))
    assert torch.equal(again(x), model(x))
    model.train()
    model(x).sum().backward()
    assert not base.training
    assert all(p.grad is None for p in base.parameters())
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    y = model(x)
    single = model.float()
    assert single(x.float()).dtype == torch.float32
    torch.testing.assert_close(single(x.float()).double(), y, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(v, before[k]) and v.dtype == torch.float64 for k, v in base.state_dict().items())


def test_other_sizes_and_keywords():
    s = build("bert").to(torch.float64)
    model = filled(tw.tangent(s.model, "*layer.1*"))
    ids = torch.randint(5, 20, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    for kwargs in ({"input_ids": ids}, {"input_ids": ids, "attention_mask": mask}, {"input_ids": ids[:, :5]}):
        value, slope = moved(s.model, model.tangent, (), kwargs)
        torch.testing.assert_close(model(**kwargs), value + slope, rtol=1e-10, atol=1e-10)


def test_a_weight_used_twice_moves_in_both_places():
    s = build("gpt2").to(torch.float64)
    s.model.tie_weights()
    name = next(n for n, p in s.model.named_parameters() if "wte" in n)
    model = filled(tw.tangent(s.model, name))
    value, slope = moved(s.model, model.tangent, s.inputs, s.kwargs)
    torch.testing.assert_close(model(*s.inputs, **(s.kwargs or {})), value + slope, rtol=1e-10, atol=1e-10)


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.other = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.used(x)


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


def test_recurrent_layers_have_tangents_too():
    model = nn.LSTM(3, 4, batch_first=True, bidirectional=True).double().eval()
    linear, x = filled(tw.tangent(model)), double(2, 5, 3)
    value, slope = moved(model, linear.tangent, [x])
    torch.testing.assert_close(linear(x), value + slope, rtol=1e-10, atol=1e-10)


def test_bad_input():
    base = mlp()
    with pytest.raises(TypeError, match="function"):
        tw.tangent(torch.relu)
    with pytest.raises(ValueError, match=r"no parameter of Sequential is called '4.weigth'; there are 4.weight"):
        tw.tangent(base, "4.weigth")
    with pytest.raises(ValueError, match=r"training mode.*model.eval\(\)"):
        tw.tangent(copy.deepcopy(base).train())
    with pytest.raises(ValueError, match=r"depends on none .*other.weight"):
        tw.tangent(Unused().eval(), "other.*")(torch.ones(1, 2))
    model = filled(tw.tangent(base))
    with pytest.raises(ValueError, match="got 0 tangents"):
        model.compose([])
    with pytest.raises(ValueError, match="got 1 tangents, 2 weights"):
        model.compose([model], [0.5, 0.5])
    with pytest.raises(ValueError, match=r"tangents\[0\] does not belong .*0.bias"):
        model.compose([tw.tangent(base, "4.*")])
    with pytest.raises(ValueError, match="compose"):
        model.forget(0)
    both = model.compose([model, model])
    with pytest.raises(IndexError):
        both.forget(2)
    with torch.no_grad():
        both.tangent["4.bias"].add_(1)
    with pytest.raises(ValueError, match="trained after"):
        both.forget(0)
    with pytest.raises(ValueError, match=r"no jet rule for aten.*bessel"):
        tw.tangent(nn.Sequential(nn.Linear(2, 2), Bessel()).eval())(torch.ones(1, 2))
