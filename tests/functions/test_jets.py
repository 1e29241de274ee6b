"""Jets: every rule against mpmath or a slow twin, the laws that jets obey, and what is refused."""

import math
import warnings

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

import termwise as tw
from termwise.functions import JET_RULES, Jet, jet, jet_rule
from termwise.functions.taylor import Taylor

mpmath.mp.dps = 40
half, two, pi = mpmath.mpf(1) / 2, mpmath.mpf(2), mpmath.pi
SMOOTH = {
    "exp": (torch.exp, mpmath.exp), "exp2": (torch.exp2, lambda x: two**x), "expm1": (torch.expm1, mpmath.expm1),
    "log": (torch.log, mpmath.log), "log2": (torch.log2, lambda x: mpmath.log(x, 2)), "log1p": (torch.log1p, lambda x: mpmath.log(1 + x)),
    "sqrt": (torch.sqrt, mpmath.sqrt), "rsqrt": (torch.rsqrt, lambda x: 1 / mpmath.sqrt(x)), "reciprocal": (torch.reciprocal, lambda x: 1 / x),
    "pow 3": (lambda x: x**3, lambda x: x**3), "pow 2.5": (lambda x: x**2.5, lambda x: x ** mpmath.mpf(2.5)), "pow x": (lambda x: x**x, lambda x: x**x),
    "sin": (torch.sin, mpmath.sin), "cos": (torch.cos, mpmath.cos), "sinh": (torch.sinh, mpmath.sinh), "cosh": (torch.cosh, mpmath.cosh),
    "atan": (torch.atan, mpmath.atan), "asin": (torch.asin, mpmath.asin), "acos": (torch.acos, mpmath.acos), "asinh": (torch.asinh, mpmath.asinh),
    "tanh": (torch.tanh, mpmath.tanh), "sigmoid": (torch.sigmoid, lambda x: 1 / (1 + mpmath.exp(-x))),
    "erf": (torch.erf, mpmath.erf), "erfc": (torch.erfc, mpmath.erfc),
    "gelu": (F.gelu, lambda x: x * (1 + mpmath.erf(x / mpmath.sqrt(2))) / 2),
    "gelu tanh": (lambda x: F.gelu(x, approximate="tanh"), lambda x: x * (1 + mpmath.tanh(mpmath.sqrt(2 / pi) * (x + mpmath.mpf(0.044715) * x**3))) / 2),
    "silu": (F.silu, lambda x: x / (1 + mpmath.exp(-x))), "mish": (F.mish, lambda x: x * mpmath.tanh(mpmath.log(1 + mpmath.exp(x)))),
    "softplus": (F.softplus, lambda x: mpmath.log(1 + mpmath.exp(x))), "softplus 3": (lambda x: F.softplus(x, beta=3), lambda x: mpmath.log(1 + mpmath.exp(3 * x)) / 3),
    "log_sigmoid": (F.logsigmoid, lambda x: -mpmath.log(1 + mpmath.exp(-x))), "elu below": (lambda x: F.elu(-x), lambda x: mpmath.exp(-x) - 1),
    "hardswish": (F.hardswish, lambda x: x * (x + 3) / 6), "div": (lambda x: x / (1 + x * x), lambda x: x / (1 + x * x)),
}  # fmt: skip


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def line(x: Tensor, h: Tensor, order: int) -> list[Tensor]:
    return [h, *[torch.zeros_like(x)] * (order - 1)] if order else []


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("where", [0.7, 0.05])
def test_a_function_of_numbers_to_order_ten(name, where):
    f, exact = SMOOTH[name]
    x = torch.tensor(where, dtype=torch.float64)
    value, series = jet(f, [x], [line(x, torch.ones_like(x), 10)])
    wanted = [float(c) for c in mpmath.taylor(exact, mpmath.mpf(where), 10)]
    largest = max(map(abs, wanted[1:]), default=1)
    for k, (found, truth) in enumerate(zip([value, *series], wanted, strict=True)):
        # beside the largest coefficient that its recurrence adds up, in units of its own scale 1/rho^k
        scale = max(abs(truth), 1e-3 * largest ** (k / 10))
        assert abs(found.item() - truth) <= 1e-12 * scale, (k, found.item(), truth)


def test_a_saturated_activation_keeps_its_digits():
    for where in (-30.0, 30.0):
        x = torch.tensor(where, dtype=torch.float64)
        _, series = jet(torch.sigmoid, [x], [line(x, torch.ones_like(x), 6)])
        wanted = mpmath.taylor(lambda x: 1 / (1 + mpmath.exp(-x)), mpmath.mpf(where), 6)[1:]
        for found, truth in zip(series, wanted, strict=True):
            assert abs(found.item() / float(truth) - 1) < 1e-9


# -- whole operations against primitives, differentiated by nesting ---------------------------------------------------


def written_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    d = x - x.mean(-1, keepdim=True)
    return d / (d.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w + b


def written_attention(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, added: Tensor | float = 0.0) -> Tensor:
    scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + added).masked_fill(hidden, -1e9)
    e = torch.exp(scores - scores.detach().amax(-1, keepdim=True))
    return e / e.sum(-1, keepdim=True) @ v


W, B = double(4, seed=50), double(4, seed=51)
K5 = double(6, 4, seed=52)
CAUSAL = torch.ones(3, 3, dtype=torch.bool).triu(1)
ADDED = double(3, 3, seed=53)
OPERATIONS = {
    "mul": (lambda a, b: a * b, None, [(2, 3, 4), (3, 4)]),
    "mul of fewer axes": (lambda a, b: a * b, None, [(4,), (2, 3, 4)]),
    "div": (lambda a, b: a / (b * b + 1), None, [(2, 4), (4,)]),
    "matmul": (lambda a, b: a @ b, None, [(2, 3, 4), (2, 4, 3)]),
    "matmul broadcast": (lambda a, b: a @ b, None, [(2, 3, 4), (4, 5)]),
    "matrix vector": (lambda a, b: a @ b, None, [(3, 4), (4,)]),
    "linear of moving weights": (lambda x, w, b: F.linear(x, w, b), None, [(2, 3, 4), (5, 4), (5,)]),
    "conv of moving weights": (lambda x, w, b: F.conv1d(x, w, b, padding=1), None, [(2, 3, 5), (4, 3, 3), (4,)]),
    "grouped conv2d": (lambda x, w: F.conv2d(x, w, groups=2, stride=2), None, [(2, 4, 5, 5), (4, 2, 3, 3)]),
    "softmax": (lambda x: F.softmax(x, 1), lambda x: torch.exp(x) / torch.exp(x).sum(1, keepdim=True), [(2, 3, 4)]),
    "log_softmax": (lambda x: F.log_softmax(x, -1), lambda x: x - torch.exp(x).sum(-1, keepdim=True).log(), [(2, 4)]),
    "logsumexp": (lambda x: torch.logsumexp(x, -1), lambda x: torch.exp(x).sum(-1).log(), [(2, 4)]),
    "layer_norm": (lambda x: F.layer_norm(x, (4,), W, B), lambda x: written_norm(x, W, B), [(2, 3, 4)]),
    "layer_norm of moving gains": (lambda x, w, b: F.layer_norm(x, (4,), w, b), written_norm, [(2, 3, 4), (4,), (4,)]),
    "rms_norm": (lambda x: F.rms_norm(x, (4,), W, 1e-6), lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * W, [(2, 3, 4)]),
    "group_norm": (
        lambda x: F.group_norm(x, 2, W, B),
        lambda x: written_norm(x.reshape(2, 2, -1), torch.ones(()), torch.zeros(())).reshape(x.shape) * W[:, None] + B[:, None],
        [(2, 4, 3)],
    ),
    "batch_norm": (
        lambda x: F.batch_norm(x, B, W.square() + 1, W, B),
        lambda x: (x - B[:, None]) / (W.square() + 1 + 1e-5).sqrt()[:, None] * W[:, None] + B[:, None], [(2, 4, 3)],
    ),
    "attention": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v), lambda q, k, v: written_attention(q, k, v, torch.zeros(3, 3).bool()),
        [(2, 2, 3, 4)] * 3,
    ),
    "causal attention": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), lambda q, k, v: written_attention(q, k, v, CAUSAL),
        [(2, 2, 3, 4)] * 3,
    ),
    "masked attention": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, ADDED.masked_fill(CAUSAL, -math.inf)),
        lambda q, k, v: written_attention(q, k, v, CAUSAL, ADDED), [(2, 2, 3, 4)] * 3,
    ),
    "embedding of a moving table": (lambda t: F.embedding(torch.tensor([[0, 2], [1, 1]]), t), lambda t: t[[0, 2, 1, 1]].reshape(2, 2, 4), [(3, 4)]),
    "cat with a constant": (lambda x: torch.cat([x, W.expand(2, 4)], 1) ** 2, None, [(2, 4)]),
    "pad": (lambda x: F.pad(x, (1, 1), value=2.0) ** 2, None, [(2, 4)]),
    "where": (lambda x: torch.where(W > 0, x * x, 1.5), None, [(2, 4)]),
    "mean and var": (lambda x: (x - x.mean(1, keepdim=True)).square().sum((0, 1)), None, [(2, 4, 3)]),
    "norm": (lambda x: F.normalize(x, dim=1), None, [(2, 4)]),
    "std": (lambda x: x.std(1) * x.var((0, 1), correction=0), lambda x: (((x - x.mean(1, keepdim=True)) ** 2).sum(1) / 3).sqrt() * (x - x.mean()).square().mean(), [(2, 4)]),
    "where against fewer axes": (lambda x: torch.where(W > 0, x * x, W), None, [(2, 4)]),
    "where by more axes": (lambda x: torch.where(double(2, 4, seed=60) > 0, x * x, double(2, 4, seed=61)), None, [(4,)]),
    "masked_fill by more axes": (lambda x: (x * x).masked_fill(double(2, 4, seed=60) > 0, 0.5), None, [(4,)]),
    "clamp between tensors": (lambda x: torch.clamp(x, min=W - 1, max=W + 1) ** 2, None, [(2, 4)]),
    "maximum with fewer axes": (lambda x: torch.maximum(x, W) ** 2, None, [(2, 4)]),
    "powers by entry": (lambda x: x.unsqueeze(-1) ** torch.arange(4), None, [(2, 4)]),
    "a power of its own shape": (lambda x: x ** torch.tensor([[2.0]]), None, [(4,)]),
    "scatter of a number": (lambda x: (x * x).scatter(1, torch.tensor([[0], [2]]), 3.0), None, [(2, 4)]),
    "attention with nothing to see": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, torch.tensor([[True, True, False], [False] * 3, [True] * 3])),
        lambda q, k, v: written_attention(q, k, v, torch.tensor([[False, False, True], [True] * 3, [False] * 3])) * torch.tensor([[1.0], [0.0], [1.0]]),
        [(2, 2, 3, 4)] * 3,
    ),
    "attention by a moving mask": (
        lambda q, m: F.scaled_dot_product_attention(q, q, q, m), lambda q, m: written_attention(q, q, q, torch.zeros(3, 3).bool(), m), [(1, 2, 3, 4), (1, 1, 3, 3)],
    ),
    "instance_norm": (
        lambda x: F.instance_norm(x, weight=W, bias=B),
        lambda x: written_norm(x, torch.ones(()), torch.zeros(())) * W[:, None] + B[:, None], [(2, 4, 3)],
    ),
    "group_norm of moving gains": (lambda w: F.group_norm(double(2, 4, 3), 2, w, w) ** 2, None, [(4,)]),
    "prelu of moving slopes": (lambda w: F.prelu(double(2, 4), w) ** 2, None, [(4,)]),
    "glu": (lambda x: F.glu(x, 1), lambda x: x[:, :2] / (1 + torch.exp(-x[:, 2:])), [(2, 4)]),
    "tan": (torch.tan, lambda x: x.sin() / x.cos(), [(2, 4)]),
    "einsum": (lambda a, b: torch.einsum("bij,bjk->bik", a, b), lambda a, b: a @ b, [(2, 3, 4), (2, 4, 3)]),
    "adaptive max pool": (lambda x: F.adaptive_max_pool2d(x * x, 2), lambda x: (x * x).reshape(1, 2, 2, 2, 2, 2).amax((3, 5)), [(1, 2, 4, 4)]),
    "shapes": (lambda x: x.transpose(1, 2).reshape(2, 12)[:, 1::2].unsqueeze(1).expand(2, 3, 6).permute(1, 0, 2).select(0, 1) ** 2, None, [(2, 3, 4)]),
    "fft": (lambda x: torch.fft.irfft(torch.fft.rfft(x, dim=1), n=4, dim=1) ** 2, None, [(2, 4)]),
    "avg_pool": (lambda x: F.avg_pool2d(x * x, 2), None, [(1, 2, 4, 4)]),
    "interpolate": (lambda x: F.interpolate(x * x, scale_factor=2, mode="bilinear"), None, [(1, 2, 3, 3)]),
    "bilinear": (lambda a, b: F.bilinear(a, b, double(5, 3, 4), B[:1].expand(5)), lambda a, b: torch.einsum("bi,oij,bj->bo", a, double(5, 3, 4), b) + B[:1], [(2, 3), (2, 4)]),
    "bilinear of moving weights": (lambda w: F.bilinear(double(2, 3), double(2, 4), w) ** 2, None, [(5, 3, 4)]),
    "lerp": (lambda a, b, w: torch.lerp(a, b, w), lambda a, b, w: a + w * (b - a), [(2, 4)] * 3),
    "lerp by a number": (lambda a: torch.lerp(a, W, 0.3) ** 2, lambda a: (0.7 * a + 0.3 * W) ** 2, [(2, 4)]),
    "hypot": (torch.hypot, lambda a, b: (a * a + b * b).sqrt(), [(2, 4), (4,)]),
    "cosine_similarity": (
        lambda a, b: F.cosine_similarity(a, b, 1), lambda a, b: (a * b).sum(1) / ((a * a).sum(1) * (b * b).sum(1)).sqrt(), [(2, 4, 3), (1, 4, 3)],
    ),
    "cdist": (lambda a, b: torch.cdist(a, b), lambda a, b: ((a.unsqueeze(2) - b.unsqueeze(1)) ** 2).sum(-1).sqrt(), [(2, 3, 4), (2, 5, 4)]),
    "prod": (lambda x: x.prod(1, keepdim=True), lambda x: (x[:, 0] * x[:, 1] * x[:, 2]).unsqueeze(1), [(2, 3)]),
    "cumprod": (lambda x: x.cumprod(1), lambda x: torch.stack([x[:, 0], x[:, 0] * x[:, 1], x[:, 0] * x[:, 1] * x[:, 2]], 1), [(2, 3)]),
    "ndtr": (torch.special.ndtr, lambda x: 0.5 * (1 + torch.erf(x / math.sqrt(2))), [(2, 3)]),
    "index_fill": (lambda x: (x * x).index_fill(1, torch.tensor([0, 2]), 1.5) ** 2, lambda x: torch.where(torch.tensor([True, False, True, False]), 1.5, x * x) ** 2, [(2, 4)]),
    "split": (lambda x: (x.split(2, 1)[1] * x.chunk(2, 1)[0]), None, [(2, 4)]),
}  # fmt: skip


def by_nesting(f, primals: list[Tensor], series: list[list[Tensor]], order: int) -> list[Tensor]:
    """Coefficients along t -> f(x(t)), one jvp around another: right for primitives, and exponentially slow."""

    def along(t: Tensor) -> Tensor:
        return f(*(x + sum(c * t ** (k + 1) for k, c in enumerate(s)) for x, s in zip(primals, series, strict=True)))

    found, g = [], along
    zero = torch.zeros((), dtype=torch.float64)
    for k in range(order + 1):
        found.append(g(zero) / math.factorial(k))
        g = (lambda g: lambda t: torch.func.jvp(g, (t,), (torch.ones_like(t),))[1])(g)
    return found


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_along_a_curved_path_is_its_primitives_differentiated(name):
    f, primitives, shapes = OPERATIONS[name]
    order = 4
    primals = [double(*s, seed=i) for i, s in enumerate(shapes)]
    series = [[0.3 * double(*s, seed=10 * i + k) for k in range(1, order + 1)] for i, s in enumerate(shapes)]
    value, found = jet(f, primals, series)
    for k, truth in enumerate(by_nesting(primitives or f, primals, series, order)):
        torch.testing.assert_close([value, *found][k], truth, rtol=1e-9, atol=1e-10, msg=lambda m, k=k: f"order {k}: {m}")


RECURRENT = {
    "lstm": lambda: nn.LSTM(3, 4, 2, bidirectional=True, batch_first=True), "gru": lambda: nn.GRU(3, 4, 2, bidirectional=True),
    "projected": lambda: nn.LSTM(3, 4, proj_size=2), "plain": lambda: nn.RNN(3, 4, bias=False), "lstm cell": lambda: nn.LSTMCell(3, 4), "gru cell": lambda: nn.GRUCell(3, 4),
    "cell": lambda: nn.RNNCell(3, 4, bias=False),
}  # fmt: skip


@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_layer_moves_as_its_values_do(name):
    torch.manual_seed(0)
    layer = RECURRENT[name]().double().eval()
    x, series = double(3, 5, 3), [0.3 * double(3, 5, 3, seed=k) for k in range(1, 4)]
    if name.endswith("cell"):
        x, series = x[:, 0], [c[:, 0] for c in series]
    f = lambda x: torch.cat([v.reshape(-1) for v in tree_leaves(layer(x))])
    value, found = jet(f, [x], [series])
    errors = []
    for t in (2e-2, 1e-2):
        moved = f(x + sum(c * t ** (k + 1) for k, c in enumerate(series)))
        errors.append((value + sum(c * t ** (k + 1) for k, c in enumerate(found)) - moved).norm().item())
    assert errors[0] < 1e-6
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.1)


PIECEWISE = {
    "relu": torch.relu, "leaky_relu": lambda x: F.leaky_relu(x, 0.2), "abs": torch.abs, "clamp": lambda x: x.clamp(-0.5, 0.4),
    "hardtanh": F.hardtanh, "relu6": F.relu6, "hardsigmoid": F.hardsigmoid, "hardswish": F.hardswish, "elu": F.elu, "selu": F.selu, "celu": lambda x: F.celu(x, 0.7),
    "max": lambda x: x.amax(1), "max and index": lambda x: x.max(1).values, "min": lambda x: x.amin((0, 2)),
    "maximum": lambda x: torch.maximum(x, x.flip(1)), "max_pool": lambda x: F.max_pool1d(x, 2), "topk": lambda x: x.topk(2, 1).values,
    "threshold": lambda x: F.threshold(x, 0.1, 0.7), "hardshrink": lambda x: F.hardshrink(x, 0.6), "softshrink": lambda x: F.softshrink(x, 0.6),
    "cummax": lambda x: x.cummax(1).values, "cummin": lambda x: x.cummin(2).values, "order": lambda x: x.take_along_dim(x.flip(1).argsort(1), 1), "sort": lambda x: x.sort(1).values, "prelu": lambda x: F.prelu(x, W[:3]),
}  # fmt: skip


@pytest.mark.parametrize("name", PIECEWISE)
def test_a_piecewise_operation_follows_its_piece(name):
    f = PIECEWISE[name]
    x = double(2, 3, 4, seed=3)
    series = [0.2 * double(2, 3, 4, seed=k) for k in range(4, 8)]
    value, found = jet(lambda x: f(x) ** 2, [x], [series])
    t = 1e-3  # small enough that nothing changes its branch: a polynomial of t is exact to t^5
    moved = f(x + sum(c * t ** (k + 1) for k, c in enumerate(series))) ** 2
    approximated = value + sum(c * t ** (k + 1) for k, c in enumerate(found))
    torch.testing.assert_close(approximated, moved, rtol=0, atol=1e-12)


def test_at_a_kink_the_side_that_follows():
    x, h = torch.zeros(3, dtype=torch.float64), torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    second = torch.tensor([0.0, 0.0, 2.0], dtype=torch.float64)
    with pytest.warns(UserWarning, match="starts on a kink of aten.relu"):
        _, (first, then) = jet(torch.relu, [x], [[h, second]])
    assert first.tolist() == [1, 0, 0]
    assert then.tolist() == [0, 0, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, (first, _) = jet(torch.relu, [x], [[h, second]], ties="torch")
    assert first.tolist() == [0, 0, 0]
    with pytest.warns(UserWarning, match="kink"):
        _, (first, _) = jet(lambda x: x.abs(), [x], [[h, second]])
    assert first.tolist() == [1, 1, 0]


def test_equal_entries_the_one_that_grows_wins():
    x, h = torch.tensor([[1.0, 1.0, 0.0]]).double(), torch.tensor([[0.0, 2.0, 9.0]]).double()
    _, (slope,) = jet(lambda x: x.amax(1), [x], [[h]])
    assert slope.item() == 2


# -- laws -------------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), order=st.integers(1, 6))
def test_the_jet_of_a_composition_is_the_composition_of_jets(seed, order):
    x = double(2, 3, seed=seed)
    series = [0.5 * double(2, 3, seed=seed + k) for k in range(1, order + 1)]
    inner = lambda x: torch.tanh(x) * x
    outer = lambda y: torch.exp(-y.square().mean(1))
    value, middle = jet(inner, [x], [series])
    step = jet(outer, [value], [middle])
    whole = jet(lambda x: outer(inner(x)), [x], [series])
    torch.testing.assert_close(step[0], whole[0])
    for a, b in zip(step[1], whole[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), degree=st.integers(1, 4))
def test_polynomials_end(seed, degree):
    x, h = double(2, 3, seed=seed), double(2, 3, seed=seed + 1)
    a = double(3, 3, seed=seed + 2)
    _, found = jet(lambda x: ((x @ a) ** degree).sum(1), [x], [line(x, h, degree + 2)])
    assert not any(c.any() for c in found[degree:])
    torch.testing.assert_close(found[degree - 1], ((h @ a) ** degree).sum(1))


def test_the_conventions_differ_by_factorials():
    x = torch.tensor(0.3, dtype=torch.float64)
    series = [torch.tensor(v, dtype=torch.float64) for v in (1.0, 0.5, -0.25)]
    as_derivatives = [c * math.factorial(k) for k, c in enumerate(series, 1)]
    _, coefficients = jet(torch.sin, [x], [series])
    _, derivatives = jet(torch.sin, [x], [as_derivatives], convention="derivatives")
    for k, (c, d) in enumerate(zip(coefficients, derivatives, strict=True), 1):
        torch.testing.assert_close(c * math.factorial(k), d)


def test_gradients_of_jets():
    model = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 1)).double().eval()
    x = double(3, 2).requires_grad_()

    def loss(x: Tensor) -> Tensor:
        _, found = jet(model, [x], [line(x, torch.ones_like(x), 3)])
        return sum(c.square().sum() for c in found)

    assert torch.autograd.gradcheck(loss, (x,), atol=1e-6)
    (g,) = torch.autograd.grad(loss(x), model[0].weight)
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-6
        above = loss(x)
        model[0].weight[0, 0] -= 2e-6
        below = loss(x)
    assert abs((above - below) / 2e-6 - g[0, 0]) < 1e-5 * abs(g[0, 0]) + 1e-7


def test_what_does_not_move_costs_no_rows():
    rows = Taylor(6).product(double(2, 3), double(1, 3))
    assert len(rows) == 2
    assert len(Taylor(6).square(double(2, 3))) == 3
    assert len(Taylor(2).square(double(3, 3))) == 3


# -- what is refused --------------------------------------------------------------------------------------------------


def test_bad_calls():
    x = double(2)
    with pytest.raises(ValueError, match="convention is one of"):
        jet(torch.sin, [x], [[x]], convention="taylor")
    with pytest.raises(ValueError, match="one list per primal: 1 primals, 2 lists"):
        jet(torch.sin, [x], [[x], [x]])
    with pytest.raises(ValueError, match=r"series\[0\]: order 1 has shape \(3,\), its primal \(2,\)"):
        jet(torch.sin, [x], [[double(3)]])
    with pytest.raises(TypeError, match="there are no curves"):
        jet(torch.sin, [torch.arange(3)], [[torch.arange(3)]])
    with pytest.raises(ValueError, match="ties is"):
        jet(torch.sin, [x], [[x]], ties="left")


class Strange(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.i0(self.inner(x))


def test_an_operation_without_a_rule_is_named_with_its_place():
    model = Strange().double().eval()
    x = double(2, 3)
    with pytest.raises(ValueError, match=r"no jet rule for aten.*i0 at .*test_jets.py:\d+.*@termwise.functions.jet_rule"):
        jet(model, [x], [[x]])
    value, found = jet(model, [x], [line(x, x, 2)], fallback="nested")
    truth = by_nesting(model, [x], [line(x, x, 2)], 2)
    for a, b in zip([value, *found], truth, strict=True):
        torch.testing.assert_close(a, b)


def test_what_is_random_or_reduces_is_refused():
    q = double(1, 2, 3, 4)
    with pytest.raises(ValueError, match="dropout_p"):
        jet(lambda q: F.scaled_dot_product_attention(q, q, q, dropout_p=0.5), [q], [[q]])
    with pytest.raises(ValueError, match="reduces while it scatters"):
        jet(
            lambda x: torch.scatter(double(2, 4), 1, torch.tensor([[0], [1]]), x, reduce="multiply"),
            [double(2, 1)],
            [[double(2, 1)]],
        )
    with pytest.raises(ValueError, match="join them before"):
        jet(lambda x: torch.diff(x, prepend=torch.ones(2, 1).double()), [double(2, 3)], [[double(2, 3)]])


def test_factorials_of_high_orders():
    x = torch.tensor(0.1, dtype=torch.float64)
    _, found = jet(torch.exp, [x], [line(x, torch.ones_like(x), 30)], convention="derivatives")
    assert found[-1].item() == pytest.approx(math.exp(0.1), rel=1e-12)


def test_norms_are_not_nested():
    from termwise.functions.jet import Run
    from termwise.functions.nested import nested

    run = Run(Taylor(2), fallback="nested")
    run.op = torch.ops.aten.layer_norm.default
    with pytest.raises(ValueError, match="wrong derivatives from order 2"):
        nested(run, Jet(double(2, 3)), [3])


def test_a_rule_of_ones_own():
    name = "special_i0" if "special_i0" not in JET_RULES else ""
    try:

        @jet_rule(name)
        def i0(at, x):  # type: ignore[no-untyped-def]
            return Jet(torch.cat([torch.special.i0(x.rows[:1]), x.rows[1:2] * torch.special.i1(x.rows[:1])]))

        x = double(2, 3)
        _, (slope,) = jet(torch.special.i0, [x], [[torch.ones_like(x)]])
        torch.testing.assert_close(slope, torch.special.i1(x))
        with pytest.raises(ValueError, match="already has a jet rule"):
            jet_rule(name)(i0)
    finally:
        JET_RULES.pop(name, None)


def test_nested_forward_differentiation_is_wrong_through_layer_norm_and_jets_are_not():
    """A fit of polynomials to the values is right for both; when torch repairs this, the second assertion says so."""
    x, h = double(1, 8, seed=1), double(1, 8, seed=2)
    f = lambda x: (F.layer_norm(x, (8,)) * double(8, seed=3)).sum(1)
    t = torch.cos(math.pi * (torch.arange(14, dtype=torch.float64) + 0.5) / 14)
    values = torch.cat([f(x + 0.1 * s * h) for s in t])
    fitted = torch.linalg.solve(t[:, None] ** torch.arange(14), values) * 10.0 ** torch.arange(14)
    _, found = jet(f, [x], [line(x, h, 2)])
    assert abs(found[1].item() / fitted[2].item() - 1) < 1e-7
    second = by_nesting(f, [x], [line(x, h, 2)], 2)[2].item()
    assert abs(second / fitted[2].item() - 1) > 1e-2


def test_the_verb_is_at_the_top():
    assert tw.jet is jet
