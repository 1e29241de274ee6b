"""Independent twins of whole rule sets: another program, none of our rules, the same numbers."""

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from termwise.predictions import explain
from termwise.testing.architectures import build

# -- LRP-0 is gradient x input where everything is piecewise linear ---------------------------------------------------


def convolutional(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = [
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 6, 3, groups=2),
        nn.LeakyReLU(),
    ]
    model = nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 4)).double().eval()
    with torch.no_grad():
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2)
    return model


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_zero_is_gradient_times_input(seed):
    model = convolutional(seed)
    x = torch.randn(1, 3, 12, 12, dtype=torch.float64)
    why = explain(model, x, target=2, rules="zero").check()
    leaf = x.clone().requires_grad_()
    weights = dict(model.named_parameters())
    gradient, *of_biases = torch.autograd.grad(model(leaf)[0, 2], [leaf, *(weights[f"{i}.bias"] for i in (0, 4, 8))])
    torch.testing.assert_close(why.inputs["input"], x * gradient, rtol=1e-10, atol=1e-12)
    for i, g in zip((0, 4, 8), of_biases, strict=True):
        torch.testing.assert_close(why.biases[f"{i}"][0], weights[f"{i}.bias"].detach() * g, rtol=1e-10, atol=1e-12)
    # batch norm: its offset beta - mu gamma / sigma, times the gradient of beta
    norm = model[1]
    (of_beta,) = torch.autograd.grad(model(leaf)[0, 2], norm.bias)
    offset = norm.bias - norm.running_mean * norm.weight / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(why.biases["1"][0], (offset * of_beta).detach(), rtol=1e-10, atol=1e-12)


def test_a_linear_model_is_w_times_x():
    model = nn.Linear(5, 3).double().eval()
    x = torch.randn(4, 5, dtype=torch.float64)
    for rules in ("zero", "cp-lrp", "attnlrp", "default"):
        why = explain(model, x, target=1, rules=rules)
        torch.testing.assert_close(why.inputs["input"], x * model.weight[1].detach(), rtol=1e-14, atol=0)
        torch.testing.assert_close(why.biases[""].sum(1), model.bias[1].detach().expand(4), rtol=1e-14, atol=0)


# -- CP-LRP is gradient x input with attention, normalisers and activation ratios held --------------------------------


@pytest.fixture
def everything_held(monkeypatch):
    """Patch torch so that a model built now holds what CP-LRP holds. Knows nothing of our rules."""
    gelu, silu, tanh, rsqrt, softmax = F.gelu, F.silu, torch.tanh, torch.rsqrt, F.softmax

    def held_ratio(f):
        def activation(x, *args, **kwargs):
            ratio = torch.where(x == 0, 0.5, f(x, *args, **kwargs) / torch.where(x == 0, 1.0, x))
            return x * ratio.detach()

        return activation

    def layer_norm(x, shape, weight=None, bias=None, eps=1e-5):
        centred = x - x.mean(-1, keepdim=True)
        y = centred * rsqrt(centred.square().mean(-1, keepdim=True) + eps).detach()
        return y * weight + bias

    def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        q, k = q.detach(), k.detach()
        if enable_gqa:
            k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
        scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
        return softmax(scores, -1) @ v

    from transformers import activations

    monkeypatch.setattr(F, "layer_norm", layer_norm)
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    monkeypatch.setattr(F, "gelu", held_ratio(gelu))
    monkeypatch.setattr(torch, "tanh", held_ratio(tanh))
    monkeypatch.setattr(F, "silu", lambda x, inplace=False: silu(x).detach())  # the gate of a gated MLP
    monkeypatch.setattr(torch, "rsqrt", lambda x: rsqrt(x).detach())

    def gelu_new(x):
        return 0.5 * x * (1.0 + tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))

    monkeypatch.setattr(activations.NewGELUActivation, "forward", lambda self, x: held_ratio(gelu_new)(x))


@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "distilbert", "gpt2", "vit", "deit", "llama", "mistral", "qwen2"])
def test_cp_lrp_is_gradient_times_input_of_a_held_model(name, request):
    subject = build(name, batch=2).to(torch.float64)
    why = explain(subject.model, *subject.inputs, kwargs=subject.kwargs, rules="cp-lrp").check()

    request.getfixturevalue("everything_held")
    twin = build(name, batch=2).to(torch.float64)
    leaves = []

    def cut(module, args, output):
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    if subject.kwargs:
        twin.model.get_input_embeddings().register_forward_hook(cut)
        output = twin.model(**twin.kwargs)
    else:
        leaves.append(twin.inputs[0].clone().requires_grad_())
        output = twin.model(leaves[0])
    logits = output.logits if output.logits.ndim == 2 else output.logits[:, -1]
    whole = logits[torch.arange(2), why.target]
    torch.testing.assert_close(why.whole, whole.detach(), rtol=1e-6, atol=0)  # float32 casts inside some of them
    (gradient,) = torch.autograd.grad(whole.sum(), leaves)
    expected = leaves[0].detach() * gradient
    (ours,) = why.inputs.values()
    expected = expected.sum(-1) if subject.kwargs else expected
    scale = expected.abs().max().item()
    casts = 1e-6 if name in ("llama", "mistral", "qwen2") else 1e-9  # their norms compute in float32
    torch.testing.assert_close(ours, expected, rtol=0, atol=casts * scale)


@pytest.mark.parametrize("rules", ["zero", "cp-lrp"])
@pytest.mark.parametrize(
    "weights",
    [
        lambda s, x: s.softmax(-1),
        lambda s, x: s.float().softmax(-1).type_as(x),
        lambda s, x: 0.5 * s.softmax(-1).masked_fill(torch.eye(5, dtype=torch.bool), 0.0),
        lambda s, x: s.softmax(-1) / (1 + s.softmax(-1).sum(-2, keepdim=True)),
    ],
    ids=["plain", "cast", "masked", "renormalised"],
)
def test_attention_written_out_gives_all_to_the_values(weights, rules):
    """The weights are constant whatever is done to them on their way: nothing of the product with the values is theirs."""

    class Attention(nn.Module):
        def __init__(self, held):
            super().__init__()
            self.held, self.value, self.head = held, nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            v = self.value(x)
            a = weights(v @ v.mT, x)
            return self.head(((a.detach() if self.held else a) @ v).mean(1))

    torch.manual_seed(0)
    model = Attention(held=False).double().eval()
    twin = Attention(held=True).double().eval()
    twin.load_state_dict(model.state_dict())
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(twin(x)[:, 1].sum(), x)
    why = explain(model, x, target=1, rules=rules).check()
    torch.testing.assert_close(why.inputs["x"], (x * gradient).detach(), rtol=1e-9, atol=1e-12)
    assert not why.constants


def test_held_weights_that_are_a_summand_are_a_constant():
    torch.manual_seed(0)
    x = torch.randn(2, 5, dtype=torch.float64)
    why = explain(lambda x: x + x.softmax(-1), x, target=1, rules="zero").check()
    torch.testing.assert_close(why.inputs["x"][:, 1], x[:, 1])
    torch.testing.assert_close(sum(why.constants.values()).flatten(1).sum(1), x.softmax(-1)[:, 1])
    with pytest.raises(ValueError, match=r"ends in aten\.softmax"):  # nothing else: all of it would be a constant
        explain(lambda x: x.softmax(-1), x, target=1, rules="zero")


@pytest.mark.parametrize("view", [lambda ids: ids.T, lambda ids: ids[:, 1:].T, lambda ids: ids[:, :4].T])
def test_relevance_of_ids_lies_where_the_ids_lie(view):
    """Looked up in another order, the parts still have the shape of what was given, and samples stay apart."""

    class SequenceFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.body, self.head = nn.Embedding(20, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, ids):
            return self.head(torch.relu(self.body(self.table(view(ids)))).cumsum(0).tanh().mean(0))

    torch.manual_seed(0)
    model, ids = SequenceFirst().double().eval(), torch.randint(20, (3, 6))
    why = explain(model, ids, target=1, rules="zero").check()
    assert why.inputs["ids"].shape == (3, 6)
    for i in range(3):
        alone = explain(model, ids[i : i + 1], target=1, rules="zero").check()
        for name, part in why.parts.items():
            torch.testing.assert_close(part[i : i + 1], alone.parts[name], rtol=1e-9, atol=1e-12)
    order = torch.arange(18).reshape(3, 6)
    unused = ~torch.isin(order, view(order).contiguous())
    assert torch.equal(why.inputs["ids"] == 0, unused)


@pytest.mark.parametrize("rules", ["zero", "attnlrp"])
def test_a_float32_island_closes_as_the_rest_does(rules):
    """Its rounding is booked: that of each operation, and that of the ratios of several uses where they are summed."""

    class Island(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            h = self.body(x).float()
            h = 1e3 - (1e3 - h) + h.exp() + 0.3 * h + h.sigmoid() * h
            return self.head(h.to(x.dtype))

    torch.manual_seed(0)
    x = torch.randn(3, 6, dtype=torch.float64)
    why = explain(Island().double().eval(), x, target=1, rules=rules).check(1e-12)
    assert 0 < sum(abs(v).max() for v in why.losses.values()) < 1e-3 * why.whole.abs().max()


def test_an_infinite_mask_that_is_handed_in():
    torch.manual_seed(0)
    body, head = nn.Linear(8, 8).double(), nn.Linear(8, 3).double()
    mask = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)

    def causal(x, mask):
        q = body(x)
        return head(torch.nn.functional.scaled_dot_product_attention(q, q, x, mask)[:, 2])

    x = torch.randn(2, 5, 8, dtype=torch.float64)
    why = explain(causal, x, mask.expand(2, 5, 5), target=1, rules="attnlrp").check()
    assert not why.inputs["x"][:, 3:].any()
    assert why.inputs["x"][:, :3].all()


@pytest.mark.parametrize("rules", ["zero", "attnlrp"])
def test_what_an_infinite_mask_hides_is_no_relevance(rules):
    """nn.MultiheadAttention adds -inf to scores when it returns its weights; others take exp of a masked score."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True), nn.Linear(8, 3)

        def forward(self, x, mask):
            y, _ = self.attention(x, x, x, key_padding_mask=mask, need_weights=True)
            scores = (x @ x.mT).masked_fill(mask[:, None], -torch.inf)
            return self.head((y + scores.exp() @ x).mean(1))

    torch.manual_seed(0)
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[1, 3:] = True
    why = explain(Masked().double().eval(), torch.randn(3, 5, 8, dtype=torch.float64), mask, target=1, rules=rules).check()
    kept = {"softmax", "scaled_dot_product_attention"} if rules == "attnlrp" else set()
    for name, lost in why.losses.items():
        assert name.partition("@")[0] in kept or lost.abs().max() < 1e-12


def test_a_twenty_step_scan_remembers_its_past():
    """Half to each factor at every step would leave 1e-4 to the first half of a sequence; held gates leave what is there."""

    class Scan(nn.Module):
        def __init__(self):
            super().__init__()
            self.decay, self.read = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            gate, read = torch.sigmoid(self.decay(x) + 3), self.read(x)
            h = torch.zeros_like(x[:, 0])
            for t in range(x.shape[1]):
                h = gate[:, t] * h + read[:, t]
            return h

    torch.manual_seed(0)
    model = Scan().double().eval()
    x = torch.rand(1, 20, 4, dtype=torch.float64)
    why = explain(model, x, target=0, rules="attnlrp").check()
    with torch.no_grad():  # what the recurrence itself says: each step's write, decayed by all later gates
        gate, read = torch.sigmoid(model.decay(x) + 3)[0], model.read(x)[0]
        left = torch.stack([read[t] * gate[t + 1 :].prod(0) for t in range(20)])[:, 0]
    bias = (model.read.bias[0].detach() * torch.stack([gate[t + 1 :, 0].prod() for t in range(20)])).sum()
    torch.testing.assert_close(why.inputs["x"].sum() + bias, left.sum())
    assert why.inputs["x"][0, :10].sum() / left.sum() > 0.1


# -- nothing of the model is kept --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rules", ["default", {nn.Linear: "epsilon"}], ids=["named", "mapping"])
def test_an_explained_model_can_be_freed(rules):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    for batch in (1, 3, 3):
        explain(model, torch.randn(batch, 4), rules=rules)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_pass_leaves_no_tensors_behind():
    """A hook that holds its own tensor would be a cycle through autograd, which nothing frees."""
    model = convolutional(0)

    def alive() -> int:
        for rules in ("zero", "gamma", "z+"):
            explain(model, torch.zeros(2, 3, 12, 12, dtype=torch.float64) + 1, rules=rules, target=0)
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    alive()
    before = alive()
    assert alive() == before
