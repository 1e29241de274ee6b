"""DecompX against its slow definition, against CP-LRP run backwards, and against itself in chunks and batches."""

import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.predictions.decompx_definition import Bert, decompose
from torch import nn

import termwise as tw
from termwise.core.capture import capture
from termwise.predictions.enlarge import enlarged
from termwise.predictions.token_sharing import ACTIVATIONS, ALONE, BIASES, fractions
from termwise.report.tokens import words
from termwise.testing.architectures import build
from termwise.testing.cost import peak
from termwise.testing.trained import SmallViT


@functools.cache  # recorded once
def bert() -> Bert:
    torch.manual_seed(3)
    net = Bert().double().eval()
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim == 1:
                p.add_(0.5 * torch.randn_like(p))
    return net.requires_grad_(False)


IDS = torch.tensor([[1, 7, 3, 9, 2], [4, 4, 11, 0, 2]])


# -- the slow definition ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ACTIVATIONS)
@pytest.mark.parametrize("rule", BIASES)
def test_the_definition(rule, mode):
    net = bert()
    found = tw.decompx(net, IDS, biases=rule, activation=mode)
    scale = 1e-10 * (1 + sum(p.abs().max().item() for p in found.parts.values()))  # dot weighs by numbers that may be large
    for sample in range(2):
        logits, hidden = decompose(net, IDS[sample], rule, mode)
        assert logits[:, :5].sub(found.inputs["ids"][sample]).abs().max() < scale
        if rule == "parts":
            assert logits[:, 5].sub(found.parts["bias:all modules"][sample]).abs().max() < scale
            assert logits[:, 6].sub(found.parts["constant:all modules"][sample]).abs().max() < scale
        else:
            assert "bias:all modules" not in found.parts
            assert found.parts["constant:all modules"].abs().max() < scale
    for i in range(2):
        inside = found.at(f"layers.{i}")
        assert inside.parts["input:ids"].shape == (2, 5, 8, 5)
        assert hidden[i][..., :5].sub(inside.parts["input:ids"][1]).abs().max() < scale


# -- against relevance run backwards; on every architecture in test_breadth.py, where they are recorded ------------------


def test_another_gate_rule_would_be_seen():
    """The duality can fail: relevance that shares gated products half and half is not DecompX."""
    s = build("llama").to(torch.float64)
    forwards = tw.decompx(s.model, kwargs=s.kwargs, biases="parts").of_class()
    halves = tw.explain(s.model, kwargs=s.kwargs, rules="zero", target=forwards.target)
    assert forwards.inputs["input_ids"].sub(halves.inputs["input_ids"]).abs().max() > 1e-3 * halves.whole.abs().min()


# -- sharing ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**31), st.booleans())
def test_absdot_shares_are_a_distribution(rows, width, seed, orthogonal):
    generator = torch.Generator().manual_seed(seed)
    parts = torch.randn(rows, 3, width, generator=generator, dtype=torch.float64)
    bias = torch.randn(3, width, generator=generator, dtype=torch.float64)
    if orthogonal:
        parts[:, 0] = 0  # at one position nothing has arrived
    for rule in ("absdot", "abssim", "norm", "equal"):
        weights = BIASES[rule](parts, bias, -1)
        shares = fractions(weights, weights.sum(0))
        assert (shares >= 0).all()
        expected = torch.ones(3, 1, dtype=torch.float64)
        if orthogonal:
            expected[0] = 0
        torch.testing.assert_close(shares.sum(0), expected, rtol=0, atol=1e-12)


class Reads(nn.Module):
    """A learned token, which is no input, beside the inputs."""

    def __init__(self):
        super().__init__()
        self.token, self.mix, self.head = nn.Parameter(torch.randn(1, 1, 4)), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.mix(torch.cat([self.token.expand(len(x), -1, -1), x], 1))
        return self.head(nn.functional.gelu(x).mean(1))


def test_a_bias_that_no_token_claims_stays_a_constant():
    net, x = Reads().double().eval(), torch.randn(2, 3, 4, dtype=torch.float64)
    nn.init.zeros_(net.head.bias)
    found = tw.decompx(net, x).check()
    with torch.no_grad():  # all of position 0, the bias of `mix` there included
        alone = net.head(nn.functional.gelu(net.mix(net.token[0]))[0] / 4)
    torch.testing.assert_close(found.parts["constant:all modules"], alone.expand(2, -1), rtol=1e-9, atol=1e-12)


def test_a_bias_is_shared_where_it_is_added():
    """And not later, by what a map has made of it."""
    x, c, w = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 3, 4), (4,), (4, 2)))
    found = tw.decompx(lambda x: (x.sum(1) + c) @ w, x)
    weights = (x @ c).abs() / (x @ c).abs().sum(1, keepdim=True)
    expected = (x + weights[..., None] * c) @ w
    torch.testing.assert_close(found.inputs["x"], expected.mT, rtol=1e-10, atol=1e-12)


SLOPES = {
    "gelu": lambda u: 0.5 * (1 + math.erf(u / math.sqrt(2))),
    "silu": lambda u: 1 / (1 + math.exp(-u)),
    "tanh": lambda u: math.tanh(u) / u if u else 1.0,
    "relu": lambda u: float(u > 0),
}


@pytest.mark.parametrize("name", SLOPES)
def test_slopes_have_their_limits(name):
    f = getattr(torch.ops.aten, name)
    u = torch.tensor([-3.0, -1e-3, -1.5e-12, -1e-300, 0.0, 1e-300, 1e-12, 1e-3, 2.0], dtype=torch.float64)
    slope, offset = ACTIVATIONS["zero-origin"](f, u, f(u))
    expected = torch.tensor([SLOPES[name](v) for v in u.tolist()], dtype=torch.float64)
    torch.testing.assert_close(slope, expected, rtol=1e-14, atol=1e-15)
    assert not offset.any()


@given(st.floats(-30, 30), st.sampled_from(["sigmoid", "gelu", "cos", "softplus"]), st.sampled_from(list(ACTIVATIONS)))
def test_slope_and_offset_make_the_function(u, name, mode):
    f, u = getattr(torch.ops.aten, name), torch.tensor([u], dtype=torch.float64)
    slope, offset = ACTIVATIONS[mode](f, u, f(u))
    torch.testing.assert_close(slope * u + offset, f(u), rtol=1e-7, atol=1e-12)


# -- memory and batches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", BIASES)
def test_chunks_are_the_whole(rule):
    net = bert()
    together = tw.decompx(net, IDS, biases=rule)
    run = vars(together)["_run"]
    for size in (1, 2, 4):
        calls = []
        run.capacity = lambda _, size=size: size
        run.totals.clear()
        through, run._through = run._through, lambda *a, **k: (calls.append(1), through(*a, **k))[1]
        rows = run(1).rows
        run._through = through
        pieces = math.ceil(5 / size)
        assert len(calls) == pieces if rule in ALONE else len(calls) > pieces
        scale = 1e-12 * (1 + together.inputs["ids"].abs().max())
        assert rows[2:].movedim(0, -1).sub(together.inputs["ids"]).abs().max() < scale


def test_chunks_count_the_constant_once():
    net, x = Reads().double().eval(), torch.randn(2, 3, 4, dtype=torch.float64)
    together = tw.decompx(net, x)
    assert together.parts["constant:all modules"].abs().min() > 0
    run = vars(together)["_run"]
    run.capacity = lambda _: 1
    rows = run(1).rows
    torch.testing.assert_close(rows[2:].movedim(0, -1), together.inputs["x"], rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(rows[1], together.parts["constant:all modules"], rtol=1e-10, atol=1e-13)


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(64, 2, 128, batch_first=True) for _ in range(2))
        self.head = nn.Linear(64, 3)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


def test_memory_is_kept():
    net, x = Wide().eval().requires_grad_(False), torch.randn(1, 48, 64)
    capture(net, x)
    everything = peak(lambda: tw.decompx(net, x, biases="parts"))
    for limit in (everything // 2, everything // 4, everything // 8):
        assert peak(lambda: tw.decompx(net, x, biases="parts", max_memory=limit)) <= limit
    # chunks are as long as they can be: no more than half of what is allowed stays unused
    assert peak(lambda: tw.decompx(net, x, biases="parts", max_memory=everything // 2)) > everything // 6
    torch.testing.assert_close(
        tw.decompx(net, x, biases="parts", max_memory=everything // 8).inputs["x"], tw.decompx(net, x, biases="parts").inputs["x"]
    )


def test_memory_too_small_for_one_token_says_what_is_needed():
    net = bert()
    with pytest.raises(ValueError, match=r"max_memory=1\.0KB is too small for one source token .* needs [\d.]+KB\.") as problem:
        tw.decompx(net, IDS, max_memory=1000)
    needed = str(problem.value).rpartition("needs ")[2].partition(". ")[0]
    tw.decompx(net, IDS, max_memory=needed).check()
    with pytest.raises(ValueError, match="too small"):
        tw.decompx(net, IDS, max_memory=int(0.95e3 * float(needed.removesuffix("KB"))))


def test_several_targets_and_contrasts():
    net = bert()
    every = tw.decompx(net, IDS, biases="parts")
    contrast = tw.predictions.contrast(0, 2)
    pair = tw.decompx(net, IDS, biases="parts", target=[1, contrast]).check()
    torch.testing.assert_close(pair.whole[:, 1], every.whole[:, 0] - every.whole[:, 2])
    torch.testing.assert_close(pair.inputs["ids"][:, 0], every.inputs["ids"][:, 1])
    torch.testing.assert_close(pair.inputs["ids"][:, 1], every.inputs["ids"][:, 0] - every.inputs["ids"][:, 2])
    assert pair.only(1).label() == tw.explain(net, IDS, target=contrast).label()


def test_groups_are_sums():
    net = bert()
    mask = torch.tensor([0, 1, 1, 2, 0])
    single, grouped = tw.decompx(net, IDS, biases="parts"), tw.decompx(net, IDS, biases="parts", feature_mask=mask)
    parts = single.inputs["ids"]
    expected = torch.stack([parts[..., [0, 4]].sum(-1), parts[..., [1, 2]].sum(-1), parts[..., 3]], -1)
    torch.testing.assert_close(grouped.inputs["ids"], expected, rtol=1e-10, atol=1e-13)
    per_sample = tw.decompx(net, IDS, biases="parts", feature_mask=torch.stack([mask, mask.flip(0)]))
    torch.testing.assert_close(per_sample.inputs["ids"][0], expected[0], rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(per_sample.inputs["ids"][1, :, 2], parts[1, :, 1], rtol=1e-10, atol=1e-13)


# -- the result, and bad input ----------------------------------------------------------------------------------------


def test_one_class_is_one_of_all():
    net = bert()
    every = tw.decompx(net, IDS, names=[list("abcde")] * 2, classes=["x", "y", "z"])
    for target in (1, torch.tensor([2, 0]), None):
        one, alone = every.of_class(target), tw.decompx(net, IDS, target=target if target is not None else every.whole.argmax(1))
        torch.testing.assert_close(one.whole, alone.whole)
        torch.testing.assert_close(one.inputs["ids"], alone.inputs["ids"])
        assert torch.equal(one.target, alone.target)
    assert every.of_class(1).label() == "y"
    assert every.of_class(1).top(1)[0][0].startswith("input:ids[")
    assert every.label() == "3 classes"
    assert [w.text for w in words(every.of_class())] == list("abcde")
    assert "adds up" in every.summary()
    with pytest.raises(ValueError, match="one class per sample already"):
        every.of_class(1).of_class(1)


def test_targets_of_a_sequence():
    s = build("gpt2").to(torch.float64)
    mask = torch.ones_like(s.kwargs["input_ids"])
    mask[1, 7:] = 0
    kwargs = {**s.kwargs, "attention_mask": mask}
    every = tw.decompx(s.model, kwargs=kwargs)
    logits = s.model(**kwargs).logits
    torch.testing.assert_close(every.whole, torch.stack([logits[0, -1], logits[1, 6]]))
    assert every.inputs["input_ids"][1, :, 7:].abs().max() == 0  # what comes later is not seen
    entry = tw.decompx(s.model, kwargs=kwargs, target=(3, 7))
    torch.testing.assert_close(entry.whole, logits[:, 3, 7])
    assert entry.inputs["input_ids"][:, 4:].abs().max() == 0
    margin = tw.decompx(s.model, kwargs=kwargs, target=lambda out: out.logits[:, -1, 3] - out.logits[:, -1, 5]).check()
    torch.testing.assert_close(margin.whole, logits[:, -1, 3] - logits[:, -1, 5])


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def test_what_cannot_be_decomposed_is_named():
    with pytest.raises(ValueError, match=r"aten\.lstm at rnn \(test_decompx\.py:\d+\) cannot be decomposed by token"):
        tw.decompx(Recurrent().eval(), torch.randn(2, 5, 3))
    with pytest.raises(ValueError, match=r"aten\.pow at the top of the model .* through argument 1, for which"):
        tw.decompx(lambda x: 2.0**x, torch.randn(2, 3))
    with pytest.raises(ValueError, match=r"no part of an input arrives at aten\.sign"):
        tw.decompx(lambda x: x.sign(), torch.randn(2, 3))


def test_bad_input():
    net = bert()
    with pytest.raises(ValueError, match=r"unknown biases 'absdto': did you mean 'absdot'\?"):
        tw.decompx(net, IDS, biases="absdto")
    with pytest.raises(ValueError, match="unknown activation 'LA': known are zero-origin, tangent, relu"):
        tw.decompx(net, IDS, activation="LA")
    with pytest.raises(ValueError, match="no convolution reads it in separate patches"):
        tw.decompx(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 2)).eval(), torch.randn(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"feature_mask has shape \(2,\), ids has \(2, 5\)"):
        tw.decompx(net, IDS, feature_mask=torch.tensor([0, 1]))
    with pytest.raises(TypeError, match=r"integers; it is torch\.float32"):
        tw.decompx(net, IDS, feature_mask=torch.rand(5))
    with pytest.raises(ValueError, match="the explained inputs are ids"):
        tw.decompx(net, IDS, feature_mask={"id": torch.arange(5)})
    found = tw.decompx(net, IDS)
    with pytest.raises(ValueError, match=r"no module 'layer\.1' .* did you mean 'layers\.1'"):
        found.at("layer.1")
    with pytest.raises(ValueError, match="sliced or loaded"):
        found[0].at("layers.0")
    with pytest.raises(ValueError, match="out of range"):
        found.of_class(3)
    with pytest.raises(ValueError, match="has 2 values that are NaN"):
        tw.decompx(nn.Linear(3, 2).eval(), torch.tensor([[math.nan, 1.0, math.nan]]))


def test_an_input_that_requires_grad_is_only_read():
    model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3)).double().eval()
    x = torch.randn(2, 4, dtype=torch.float64)
    grads = tw.decompx(model, leaf := x.clone().requires_grad_(), biases="parts")
    assert leaf.grad is None
    assert not grads.whole.requires_grad
    assert torch.equal(grads.inputs["input"], tw.decompx(model, x, biases="parts").inputs["input"])


def quotient(x):
    return (x[:, :2] * 3) / (x[:, 1:3].exp() + 2 * x[:, :2])


def test_a_quotient_of_two_parts_gives_half_to_each():
    """A / b by hand: half of a_k / b and half of a b_k / b^2, the exponential by its slope."""
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    why = tw.decompx(quotient, x, biases="parts").check(1e-12)
    zero = torch.zeros(2, 2, dtype=torch.float64)
    a = torch.stack([torch.stack([x[:, 0] * 3, zero[:, 0]], 1), torch.stack([zero[:, 0], x[:, 1] * 3], 1), zero], -1)
    slope = (x[:, 1:3].exp() - 1) / x[:, 1:3]  # the offset exp(0) = 1 is nobody's
    b = torch.stack(
        [
            torch.stack([2 * x[:, 0], zero[:, 0]], 1),
            torch.stack([slope[:, 0] * x[:, 1], 2 * x[:, 1]], 1),
            torch.stack([zero[:, 0], slope[:, 1] * x[:, 2]], 1),
        ],
        -1,
    )
    whole_a, whole_b = (x[:, :2] * 3)[..., None], (x[:, 1:3].exp() + 2 * x[:, :2])[..., None]
    torch.testing.assert_close(why.inputs["x"], (a / whole_b + whole_a * b / whole_b**2) / 2, rtol=1e-10, atol=1e-12)


def test_a_grid_of_patches_is_a_heatmap():
    torch.manual_seed(0)
    model = SmallViT((2, 3), width=16, depth=1, heads=4, classes=5).double().eval()
    x = torch.randn(2, 1, 4, 6, dtype=torch.float64)
    every = tw.decompx(model, x)
    one = every.of_class()
    (grid,) = one.inputs.values()
    assert grid.shape == (2, 2, 3)
    for why in (every, one, tw.decompx(model, x, target=one.target)):
        for sample in range(2):
            drawn = why.heatmap(sample=sample)
            assert drawn.shape == (4, 6)
            torch.testing.assert_close(drawn, enlarged(grid[sample], (4, 6)))
            torch.testing.assert_close(drawn.sum(), grid[sample].sum())
    assert every[1:].heatmap("pixels").shape == (4, 6)
    with pytest.raises(ValueError, match=r"2 targets are explained here"):
        tw.decompx(model, x, target=[0, 1]).heatmap()
    with pytest.raises(ValueError, match=r"no input image was read in patches"):
        every.heatmap("image")
    with pytest.raises(ValueError, match=r"was read in patches of an image: parts are"):
        tw.decompx(bert(), IDS).heatmap()


def test_half_precision_is_computed_in_single():
    net = Bert().eval()
    assert tw.decompx(net, IDS).check(1e-5).whole.dtype == torch.float32
    half = tw.decompx(net.to(torch.bfloat16), IDS).check(1e-5)
    assert half.whole.dtype == torch.float32
    torch.testing.assert_close(half.whole, net.float()(IDS).detach())
