"""Chefer's method against its equations written out; the harness on every architecture with attention."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from predictions.literal_chefer import chefer as literal
from predictions.test_targets import ONE, STARTS, X
from termwise.core import capture
from termwise.predictions import (
    attention_gradcam,
    attention_rollout,
    chefer,
    contrast,
    gradient_rollout,
    partial_lrp,
    raw_attention,
    weighting,
)
from termwise.predictions.attention_maps import NoAttention, attentions
from termwise.predictions.chefer import RULES
from termwise.predictions.relevance_form import Carried
from termwise.predictions.rollout import patches
from termwise.predictions.starts import Seen
from termwise.predictions.targets import asked
from termwise.predictions.unfused import inlined, unfused
from termwise.testing.architectures import build
from termwise.testing.trained import SmallViT

SIBLINGS = (attention_gradcam, attention_rollout, gradient_rollout, partial_lrp, raw_attention)


def vit(seed: int, depth: int = 1, **options) -> SmallViT:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SmallViT((2, 3), width=16, depth=depth, heads=4, classes=5, **options)
        for parameter in model.parameters():  # positions and biases as large as the rest
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model.double().eval()


def pictures(n: int = 3) -> torch.Tensor:
    return torch.randn(n, 1, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# -- against the equations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "depth"), [(0, 1), (1, 2), (2, 3)])
def test_equal_to_the_method_written_out(seed, depth):
    model, x = vit(seed, depth), pictures()
    why = chefer(model, x, target=2).check(1e-9)
    assert why.whole.tolist() == [1.0, 1.0, 1.0]
    last = partial_lrp(model, x, target=2)
    for i in range(len(x)):
        wanted = literal(model, x[i], 2)
        close = {"rtol": 1e-8, "atol": 1e-12}
        torch.testing.assert_close(why.token_relevance[i], wanted["tokens"].detach(), **close)
        for block, (found, r, gradient) in enumerate(
            zip(why.attention_relevance.values(), wanted["R"], wanted["gradient"], strict=True)
        ):
            torch.testing.assert_close(found[i], (r * gradient).relu().detach(), **close)
            torch.testing.assert_close(last.attention_relevance[f"blocks.{block}"][i], r.mean(0), **close)
        torch.testing.assert_close(last.token_relevance[i], wanted["R"][-1].mean(0)[0], **close)
        assert any((r < 0).any() for r in wanted["R"])  # signs are there to be lost
        scale = wanted["pixels"].abs().max().item() + 1
        torch.testing.assert_close(why.inputs["pixels"][i], wanted["pixels"].detach(), rtol=1e-7, atol=1e-10 * scale)
        torch.testing.assert_close(why.constants["positions"][i, 0], wanted["positions"].detach(), rtol=1e-7, atol=1e-10 * scale)
        torch.testing.assert_close(
            why.constants["token"].reshape(3, -1)[i], wanted["class token"].detach(), rtol=1e-7, atol=1e-10 * scale
        )


def test_what_rounding_leaves_of_the_positive_products_gets_nothing():
    """P = 2e-16 beside products of size 1 is no number: z + A has lost its digits. P = 1e-13 is one."""
    for size, kept in ((2e-16, 0.0), (1e-13, 1.0)):
        model = nn.Linear(2, 1, bias=False).double().eval()
        model.weight.data = torch.tensor([[-1.0, size]], dtype=torch.float64)
        x = torch.ones(1, 2, dtype=torch.float64)
        program = capture(model, x)
        result = Carried(program, RULES, start="one").run([x], lambda z: z[:, 0])
        assert result.parts["input:input"].tolist() == [[0.0, pytest.approx(kept, rel=1e-2)]]
        (lost,) = [value.item() for name, value in result.parts.items() if name.startswith("rule:")]
        assert lost == pytest.approx(1 - kept, abs=1e-2)


@pytest.mark.parametrize("name", STARTS)
def test_one_is_shared_among_the_entries_of_a_start_by_size(name):
    target, whole = STARTS[name]
    program = capture(ONE, X)
    z = ONE(X).detach().requires_grad_()
    held = z.detach().softmax(1)
    value = z[:, 2] - (held * z).sum(1) if name == "against probabilities" else whole(z)
    (w,) = torch.autograd.grad(value.sum(), z)
    (start,) = asked(target).starts
    found, r = Carried(program, RULES, start="one")._starting(z.detach(), lambda z: start.of(z, Seen(3))[0])
    size = (w * z.detach()).abs()
    torch.testing.assert_close(r, size / size.sum(1, keepdim=True), rtol=1e-12, atol=1e-14)
    assert found.tolist() == [1.0, 1.0, 1.0]


def test_a_contrast_is_the_recorded_difference():
    """Eq. 9-10, the rule for sums, says what a start of two entries is."""
    model, x = vit(4, depth=2), pictures()
    recorded = chefer(model, x, target=lambda z: z[:, 1] - z[:, 0])
    for target in (contrast(1, 0), weighting(torch.tensor([-1.0, 1, 0, 0, 0]))):
        why = chefer(model, x, target=target).check(1e-9)
        assert why.whole.tolist() == [1.0, 1.0, 1.0]
        torch.testing.assert_close(why.token_relevance, recorded.token_relevance, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(why.inputs["pixels"], recorded.inputs["pixels"], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(
        partial_lrp(model, x, target=contrast(1, 0)).token_relevance,
        partial_lrp(model, x, target=lambda z: z[:, 1] - z[:, 0]).token_relevance,
        rtol=1e-9, atol=1e-12,
    )  # fmt: skip


def test_an_entry_that_is_0_still_starts_with_one_and_no_entry_with_none():
    pass_ = Carried(capture(ONE, X), RULES, start="one")
    z = torch.zeros(3, 5, dtype=torch.float64)
    _, r = pass_._starting(z.clone(), lambda z: z[:, 1] - 3 * z[:, 0])
    assert r[0].tolist() == [0.75, 0.25, 0, 0, 0]
    whole, r = pass_._starting(z.clone(), lambda z: z[:, 1] - z[:, 1])
    assert not whole.any()
    assert not r.any()


def test_siblings_written_out():
    model, x = vit(3, depth=2), pictures()
    measured = {f: f(model, x, target=1) for f in SIBLINGS}
    weights, gradients = composed(model, x, 1)
    eye = torch.eye(7, dtype=torch.float64)
    normal = [(eye + a.mean(1)) / 2 for a in weights]
    wanted = {
        attention_rollout: (normal[1] @ normal[0])[:, 0],
        gradient_rollout: (
            (eye + (gradients[1] * weights[1]).relu().mean(1)) @ (eye + (gradients[0] * weights[0]).relu().mean(1))
        )[:, 0],
        raw_attention: weights[1].mean(1)[:, 0],
        attention_gradcam: (gradients[1][:, :, 0].mean(2)[:, :, None] * weights[1][:, :, 0]).mean(1).relu(),
    }
    for function, tokens in wanted.items():
        torch.testing.assert_close(measured[function].token_relevance, tokens, rtol=1e-10, atol=1e-13)
    why = chefer(model, x, target=1)
    (_, last) = why.attention_relevance.values()
    partial = measured[partial_lrp].attention_relevance["blocks.1"]
    torch.testing.assert_close(measured[partial_lrp].token_relevance, partial[:, 0])
    # relu(gradient * R) of the last layer: its R is the one that partial LRP reads
    assert (partial.sum((1, 2)) != 0).all()
    assert last.shape == (3, 4, 7, 7)


def composed(model, x, target):
    """A and dy/dA of every block, by hooks on nothing: the blocks once more."""
    tokens = torch.cat([model.token.expand(len(x), -1, -1), model.patches(x).flatten(2).transpose(1, 2)], 1) + model.positions
    weights = []
    for block in model.blocks:
        q, k, v = block.qkv(block.norm1(tokens)).unflatten(-1, (3, block.heads, -1)).permute(2, 0, 3, 1, 4)
        weights.append((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1))
        tokens = tokens + block.proj((weights[-1] @ v).transpose(1, 2).flatten(2))
        tokens = tokens + block.down(F.gelu(block.up(block.norm2(tokens))))
    y = model.head(model.norm(tokens)[:, 0])[:, target]
    return [a.detach() for a in weights], torch.autograd.grad(y.sum(), weights)


# -- what it promises -------------------------------------------------------------------------------------------------


def test_samples_do_not_touch_each_other():
    model, x = vit(5, depth=3), pictures(4)
    together = chefer(model, x, target=0)
    for i in range(4):
        alone = chefer(model, x[i : i + 1], target=0)
        torch.testing.assert_close(together.token_relevance[i], alone.token_relevance[0], rtol=1e-10, atol=1e-13)
        for name, part in alone.parts.items():
            torch.testing.assert_close(together.parts[name][i], part[0], rtol=1e-8, atol=1e-10)


def test_rollout_does_not_see_the_target_and_sums_to_one():
    model, x = vit(5, depth=3), pictures()
    one, other = attention_rollout(model, x, target=0), attention_rollout(model, x, target=1)
    assert torch.equal(one.token_relevance, other.token_relevance)
    torch.testing.assert_close(one.token_relevance.sum(1), torch.ones(3, dtype=torch.float64))
    assert not torch.allclose(chefer(model, x, target=0).token_relevance, chefer(model, x, target=1).token_relevance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_answered_in_float32(dtype):
    model, x = vit(5, depth=2), pictures()
    for function in (chefer, *SIBLINGS):
        wide = function(model.to(dtype).float(), x.to(dtype).float(), target=1)
        half = function(model.to(dtype), x.to(dtype), target=1)
        assert half.token_relevance.dtype == torch.float32, function.__name__
        scale = wide.token_relevance.abs().max().item()
        torch.testing.assert_close(half.token_relevance, wide.token_relevance, rtol=0, atol=0.1 * scale, msg=function.__name__)
    model.double()


class Pooled(nn.Module):
    """A vision transformer read at the mean of its tokens."""

    def __init__(self):
        super().__init__()
        self.body = vit(0)

    def forward(self, x):
        tokens = self.body.patches(x).flatten(2).transpose(1, 2)
        return self.body.head(self.body.blocks(tokens + self.body.positions[:, 1:]).mean(1))


def test_the_rows_that_the_head_reads_are_found():
    x = pictures()
    tokens = attention_rollout(Pooled().double().eval(), x).token_relevance
    assert tokens.shape == (3, 6)
    torch.testing.assert_close(tokens.sum(1), torch.ones(3, dtype=torch.float64))
    subject = build("gpt2").to(torch.float64)  # the last token is read
    last = chefer(subject.model, kwargs=subject.kwargs, target=(-1, 5))
    third = chefer(subject.model, kwargs=subject.kwargs, target=(3, 5))
    assert third.token_relevance[:, 3].gt(0.9).all()
    assert not third.token_relevance[:, 4:].any()  # causal: nothing of the future
    assert last.token_relevance[:, -1].gt(0.9).all()


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("bart", "nn.Transformer", "deberta-v2")]


@pytest.mark.parametrize("name", ["vit", "deit", "bert", "gpt2", "llama", "t5", "clip", "whisper", *SLOW])
def test_every_attention_is_found(name):
    subject = build(name).to(torch.float64)
    why = chefer(subject.model, *subject.inputs, kwargs=subject.kwargs, target=subject.target).check(1e-9)
    streams = {"t5": 2, "bart": 2, "whisper": 2, "clip": 2, "nn.Transformer": 2}.get(name, 1)
    assert len(why.tokens) == streams
    layers = 6 if name in ("t5", "bart", "whisper", "nn.Transformer") else 4 if name == "clip" else 2
    assert len(why.attention_relevance) == layers
    assert all(m.min() >= 0 and m.any() for m in why.attention_relevance.values())
    for weights in why.attention_weights.values():
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    for tokens in why.tokens.values():
        assert tokens.isfinite().all()
        assert tokens.any(1).all()


def test_encoder_tokens_are_reached_through_cross_attention():
    """Rollout on the joint set of encoder and decoder tokens, as a product of whole matrices."""
    subject = build("bart").to(torch.float64)
    why = chefer(subject.model, kwargs=subject.kwargs)
    maps = {k: v.mean(1) for k, v in why.attention_relevance.items()}
    n, m = 9, 6
    joint = torch.eye(n + m, dtype=torch.float64).expand(2, -1, -1)
    for path, a in maps.items():
        step = torch.eye(n + m, dtype=torch.float64).repeat(2, 1, 1)
        rows = slice(0, n) if "encoder.layers" in path and "decoder" not in path else slice(n, None)
        columns = slice(n, None) if path.endswith("self_attn") and "decoder" in path else slice(0, n)
        step[:, rows, columns] += a
        joint = step @ joint
    torch.testing.assert_close(why.tokens["input_ids"], joint[:, -1, :n], rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(why.tokens["decoder_input_ids"], joint[:, -1, n:], rtol=1e-10, atol=1e-13)


def test_layers_can_be_left_out_and_rows_normalised():
    model, x = vit(1, depth=3), pictures()
    why = chefer(model, x, target=1)
    step = [torch.eye(7, dtype=torch.float64) + a.mean(1) for a in why.attention_relevance.values()]
    torch.testing.assert_close(chefer(model, x, target=1, start_layer=1).token_relevance, (step[2] @ step[1])[:, 0])
    rows = [s / s.sum(-1, keepdim=True) for s in step]
    normal = chefer(model, x, target=1, normalize_rows=True).token_relevance
    torch.testing.assert_close(normal, (rows[2] @ rows[1] @ rows[0])[:, 0])
    torch.testing.assert_close(normal.sum(1), torch.ones(3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"start_layer must lie in 0..2"):
        chefer(model, x, start_layer=3)


def test_heatmaps():
    model, x = vit(1), pictures()
    why = chefer(model, x, target=1)
    grid = why.token_relevance[:, 1:].reshape(3, 1, 2, 3)
    torch.testing.assert_close(why.heatmap(sample=2), F.interpolate(grid, (4, 6), mode="bilinear")[2, 0])
    assert torch.equal(why.heatmap("pixels", 0), why.heatmap())
    with pytest.raises(ValueError, match=r"no stream of tokens 'pictures'"):
        why.heatmap("pictures")
    assert patches(torch.arange(18.0)[None], 8, 8).shape == (1, 8, 8)  # two leading tokens
    with pytest.raises(ValueError, match=r"3 tokens are no grid of a picture of 4 x 100"):
        patches(torch.ones(1, 3), 4, 100)
    text = build("bert")
    with pytest.raises(ValueError, match=r"no input has the shape of images"):
        chefer(text.model, kwargs=text.kwargs).heatmap()


# -- what it refuses --------------------------------------------------------------------------------------------------


def test_a_model_without_attention_is_told_so():
    for function in (chefer, *SIBLINGS):
        with pytest.raises(NoAttention, match=r"Sequential has no attention: no softmax in it is multiplied"):
            function(nn.Sequential(nn.Linear(4, 3), nn.Softmax(-1), nn.Linear(3, 2)).eval(), torch.randn(2, 4))


def test_windows_have_no_rollout():
    subject = build("swin").to(torch.float64)
    why = chefer(subject.model, *subject.inputs).check(1e-9)
    assert len(why.attention_relevance) == 4
    with pytest.raises(ValueError, match=r"attends within windows"):
        _ = why.token_relevance
    with pytest.raises(ValueError, match=r"attends within windows"):
        gradient_rollout(subject.model, *subject.inputs)


class Merging(nn.Module):
    """Tokens are pooled in pairs between two layers."""

    def __init__(self):
        super().__init__()
        self.inner = vit(0, depth=2)

    def forward(self, x):
        one, two = self.inner.blocks
        return self.inner.head(two(one(x).unflatten(1, (-1, 2)).mean(2)).mean(1))


def test_merged_tokens_have_no_rollout():
    x = torch.randn(2, 8, 16, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"inner.blocks.0 attends among 8 tokens, the attention after it among 4"):
        attention_rollout(Merging().eval(), x)
    assert raw_attention(Merging().eval(), x).token_relevance.shape == (2, 4)


# -- operators taken apart --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t5", "mistral"])
def test_composed_attention_is_the_fused_one(name):
    subject = build(name).to(torch.float64)
    program = capture(subject.model, kwargs=subject.kwargs)
    apart = inlined(unfused(program))
    assert "scaled_dot_product_attention" not in {n.name for n in apart.nodes}
    torch.testing.assert_close(apart(kwargs=subject.kwargs), program(kwargs=subject.kwargs), rtol=1e-10, atol=1e-12)
    assert unfused(program).graph is unfused(program).graph  # kept with the recording


@pytest.mark.parametrize(
    "options",
    [{}, {"is_causal": True}, {"scale": 0.3}, {"enable_gqa": True}, {"attn_mask": torch.randn(4, 5, dtype=torch.float64)}, {"attn_mask": torch.rand(4, 5, generator=torch.Generator().manual_seed(1)) > 0.6}],
    ids=["plain", "causal", "scaled", "grouped", "additive", "boolean"],
)  # fmt: skip
def test_every_form_of_fused_attention(options):
    torch.manual_seed(0)
    heads = 1 if "enable_gqa" in options else 2
    q, k, v = (torch.randn(3, h, n, 4, dtype=torch.float64) for h, n in ((2, 4), (heads, 5), (heads, 5)))

    def attend(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, **options)

    program = capture(attend, q, k, v)
    torch.testing.assert_close(unfused(program)(q, k, v), attend(q, k, v), rtol=1e-10, atol=1e-12)
    (found,) = attentions(unfused(program))
    assert (found.queries, found.keys, found.read) == (("q",), ("v",), True)


def test_two_towers_are_both_read():
    subject = build("clip").to(torch.float64)
    found = attentions(unfused(capture(subject.model, kwargs=subject.kwargs, select=subject.target)))
    assert {a.queries for a in found if a.read} == {("input_ids",), ("pixel_values",)}
