"""Conversion: attention is swapped where it is called, parameters and arguments stay, and what cannot be swapped is named."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from termwise.layers import convert, taylor_shift_attention
from termwise.layers.shifted_calls import structure


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Attention(nn.Module):
    """Of one's own: pre-norm, a causal option, a mask of keys."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.qkv, self.out, self.dropout = nn.Linear(12, 36), nn.Linear(12, 12), dropout

    def forward(self, x: Tensor, attend=F.scaled_dot_product_attention, **options) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
        p = self.dropout if self.training else 0.0
        return self.out(attend(q, k, v, **options, **({"dropout_p": p} if p else {})).transpose(1, 2).flatten(2))


class Model(nn.Module):
    def __init__(self, layers: int = 2, **options) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attention(**options) for _ in range(layers))
        self.double()

    def forward(self, x: Tensor, **options) -> Tensor:
        for layer in self.layers:
            x = x + layer(x, **options)
        return x


class Softmax(Model):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) @ torch.softmax(x.mT @ x, -1)


def test_calls_are_swapped_where_they_are_made():
    model, x = Model(), double(2, 30, 12)
    before = model(x)
    shifted = convert(model, x)
    assert [n for n, _ in shifted.named_parameters() if n.endswith("temperature")] == [f"layers.{i}.temperature" for i in (0, 1)]
    assert isinstance(shifted, Model)
    torch.testing.assert_close(model(x), before)  # the model is as it was, and the mode ends with the call
    with torch.no_grad():
        shifted.layers[1].temperature.fill_(1.5)
        z = x
        for layer, tau in zip(model.layers, (1.0, 1.5), strict=True):
            z = z + layer(z, attend=lambda q, k, v, tau=tau: taylor_shift_attention(q, k, v, tau))
        torch.testing.assert_close(shifted(x), z, rtol=1e-10, atol=1e-12)
    shifted(x).square().sum().backward()
    assert shifted.layers[0].temperature.grad.abs() > 0


def test_a_model_that_is_one_attention():
    shifted = convert(Attention().double(), double(2, 30, 12))
    assert shifted.out.in_features == 12  # attributes are those of what is within
    assert shifted.training
    with pytest.raises(AttributeError, match="nowhere"):
        _ = shifted.nowhere


def test_masks_reach_it():
    x = double(2, 30, 12)
    shifted = convert(Model(), x)
    lower = torch.ones(30, 30, dtype=torch.bool).tril()
    causal = shifted(x, is_causal=True)
    additive = torch.zeros(30, 30, dtype=torch.float64).masked_fill(~lower, -torch.inf)
    for mask in (lower, additive, lower.expand(2, 1, 30, 30)):
        torch.testing.assert_close(shifted(x, attn_mask=mask), causal, rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match=r"layers\.0: a bias is added to its scores.*\(30, 30\)"):
        shifted(x, attn_mask=double(30, 30))


def test_structure_of_masks():
    lower, keys = torch.ones(6, 6, dtype=torch.bool).tril(), torch.tensor([True, True, False, True, True, True])
    cases = {
        "none": (torch.ones(6, 6, dtype=torch.bool), None, False),
        "causal": (lower, None, True),
        "keys": (keys.expand(6, -1), keys[None], False),
        "keys, one row": (keys, keys, False),
        "both": (lower & keys, keys[None], True),
        "neither": (lower.T, lower.T, False),
        "a window": (lower & ~lower.tril(-3), lower & ~lower.tril(-3), False),
    }
    for name, (mask, wanted, causal) in cases.items():
        found, behind = structure(mask, 6)
        assert behind == causal, name
        assert (found is None) if wanted is None else torch.equal(found, wanted), name
        if wanted is not None or causal:  # and it says the same
            whole = torch.ones(6, 6, dtype=torch.bool) if found is None else found.expand(6, 6)
            assert torch.equal(whole & lower if behind else whole, mask.expand(6, 6)), name


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("apart", [True, False])
def test_multihead_attention(batch_first, apart):
    """Same call and results as torch's, whose weights are replaced by those of the definition."""
    widths = {"kdim": 5, "vdim": 7} if apart else {}
    model = nn.MultiheadAttention(12, 3, batch_first=batch_first, **widths).double()
    q, k, v = double(2, 8, 12), double(2, 6, 5 if apart else 12, seed=1), double(2, 6, 7 if apart else 12, seed=2)
    padding, mask = torch.zeros(2, 6, dtype=torch.bool), torch.zeros(8, 6, dtype=torch.bool)
    padding[1, 4:], mask[:, 1] = True, True
    shifted = convert(model)
    assert {*dict(shifted.named_parameters())} == {*dict(model.named_parameters()), "temperature"}
    with torch.no_grad():
        shifted.temperature.copy_(torch.tensor([0.5, 1.0, 2.0]))
    swap = (lambda x: x) if batch_first else (lambda x: x.transpose(0, 1))
    options = {"key_padding_mask": padding, "attn_mask": mask, "average_attn_weights": False}
    (out, weights), (_, softmax) = (m(swap(q), swap(k), swap(v), **options) for m in (shifted, model))
    assert weights.shape == softmax.shape
    assert torch.equal(weights == 0, softmax == 0)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    whole = model.in_proj_weight
    w = (model.q_proj_weight, model.k_proj_weight, model.v_proj_weight) if apart else whole.chunk(3)
    heads = [(x @ a.T + b).unflatten(-1, (3, 4)) for x, a, b in zip((q, k, v), w, model.in_proj_bias.chunk(3), strict=True)]
    for h, tau in enumerate((0.5, 1.0, 2.0)):
        a, b = (F.normalize(x[:, :, h], dim=-1) for x in heads[:2])
        s = tau * a @ b.mT
        t = (1 + s + s**2 / 2) * ~(padding[:, None] | mask)
        torch.testing.assert_close(weights[:, h], t / t.sum(-1, keepdim=True), rtol=1e-9, atol=1e-12)
    values = torch.einsum("bhls,bshd->blhd", weights, heads[2]).flatten(2)
    torch.testing.assert_close(swap(out), model.out_proj(values), rtol=1e-9, atol=1e-12)
    again, nothing = shifted(swap(q), swap(k), swap(v), need_weights=False, **options)
    torch.testing.assert_close(again, out, rtol=1e-9, atol=1e-12)
    assert nothing is None
    one, of_one = shifted(q[0], k[0], v[0])
    torch.testing.assert_close(one, swap(shifted(swap(q), swap(k), swap(v))[0])[0], rtol=1e-9, atol=1e-12)
    assert of_one.shape == (8, 6)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_encoder_of_torch_takes_no_fused_way_around():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 2, 16, 0.0, batch_first=True), 2).double()
    shifted, x = convert(encoder), double(2, 9, 12)
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[1, 5:] = True
    with torch.no_grad():
        trained, used = shifted.train()(x, src_key_padding_mask=padding), shifted.eval()(x, src_key_padding_mask=padding)
        torch.testing.assert_close(trained[~padding], used[~padding], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(used[1:, :5], shifted(x[1:, :5]), rtol=1e-10, atol=1e-12)
        mask = nn.Transformer.generate_square_subsequent_mask(9, dtype=torch.float64)
        prefix = shifted(x[:, :4], mask=mask[:4, :4])
        torch.testing.assert_close(shifted(x, mask=mask, is_causal=True)[:, :4], prefix, rtol=1e-10, atol=1e-12)
        assert (used - encoder.eval()(x, src_key_padding_mask=padding)).abs().max() > 1e-4


def test_a_language_model_of_transformers_generates():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.arange(24).reshape(2, 12)
    shifted = convert(model, ids)
    with torch.no_grad():
        cached = shifted.generate(ids[:1], max_new_tokens=5, do_sample=False)
        whole = ids[:1]
        for _ in range(5):
            whole = torch.cat([whole, shifted(whole).logits[:, -1:].argmax(-1)], 1)
        assert torch.equal(cached, whole)
        seen = torch.ones_like(ids)
        seen[1, :5] = 0
        padded = shifted(ids, attention_mask=seen).logits[1, 5:]
        torch.testing.assert_close(padded, shifted(ids[1:, 5:]).logits[0], rtol=1e-4, atol=1e-5)
        assert (shifted(ids).logits - model(ids).logits).abs().max() > 1e-4
    config._attn_implementation = "eager"
    with pytest.raises(ValueError, match=r'softmax in model.layers.0.self_attn.*attn_implementation="sdpa"'):
        convert(transformers.LlamaForCausalLM(config), ids)


def test_shared_modules_stay_shared():
    model = Model()
    model.layers[1] = model.layers[0]
    shifted = convert(model, double(2, 30, 12))
    assert shifted.layers[0] is shifted.layers[1]


def test_what_cannot_be_swapped_is_named():
    x = double(2, 30, 12)
    with pytest.raises(ValueError, match=r"no nn\.MultiheadAttention.*example of its inputs"):
        convert(Model())
    with pytest.raises(ValueError, match="calls no scaled_dot_product_attention"):
        convert(nn.Linear(12, 3).double(), x)
    with pytest.warns(UserWarning, match="left as they are, with a softmax of their own: the model"):
        convert(Softmax(), x)
    own = type("Own", (nn.MultiheadAttention,), {"forward": lambda self, x: x})
    with pytest.raises(ValueError, match="1: Own is a MultiheadAttention with a forward of its own"):
        convert(nn.Sequential(nn.Linear(3, 3), own(4, 2)))
    with pytest.raises(ValueError, match=r"0: keys of its own \(add_bias_kv"):
        convert(nn.Sequential(nn.MultiheadAttention(4, 2, add_bias_kv=True)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shifted = convert(Model(dropout=0.1), x)
    with pytest.raises(ValueError, match=r"layers\.0: dropout of attention weights \(0\.1\)"):
        shifted(x)
    shifted.eval()(x)
    multihead = convert(nn.MultiheadAttention(4, 2, dropout=0.2))
    with pytest.raises(ValueError, match=r"dropout of attention weights \(0\.2\)"):
        multihead(*torch.zeros(3, 5, 1, 4))


def test_attention_inside_of_attention():
    """A parent that calls it, and holds a layer that has it too: both are replaced."""

    class Parent(Attention):
        def __init__(self) -> None:
            super().__init__()
            self.mha = nn.MultiheadAttention(12, 3, batch_first=True)

        def forward(self, x: Tensor, **options) -> Tensor:
            x = super().forward(x, **options)
            return x + self.mha(x, x, x)[0]

    model, x = Model(layers=1), double(2, 8, 12)
    model.layers[0] = Parent().double()
    shifted = convert(model, x)
    temperatures = [p for n, p in shifted.named_parameters() if n.endswith("temperature")]
    assert len(temperatures) == 2
    shifted(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in temperatures)
