"""Compressed models of transformers: they generate, are saved with their config, and are exported."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import termwise as tw
from termwise.weights import Pivoted

transformers = pytest.importorskip("transformers")


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, tie_word_embeddings=True, pad_token_id=0, eos_token_id=None, bos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config).eval()


def ids(n: int = 12) -> list[dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(60, (2, 16), generator=g)} for _ in range(n)]


@pytest.fixture(scope="module")
def small() -> tw.Compressed:
    return tw.compress(llama(), 0.7, data=ids(), progress=False)


def test_it_is_judged_by_its_logits(small):
    assert small.metric == "kl"  # what returns logits
    assert {row.layer.split(".")[-1] for row in small.layers} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip
    assert "tied" in small.left["lm_head"]
    assert small.model.lm_head.weight is small.model.model.embed_tokens.weight


def test_it_generates_with_its_cache(small):
    prompt = ids(1)[0]["input_ids"]
    with torch.no_grad():
        found = small.model.generate(prompt, max_new_tokens=12, do_sample=False)
        again = small.model.generate(prompt, max_new_tokens=12, do_sample=False, use_cache=False)
    assert found.shape == (2, 28)
    assert torch.equal(found, again)


def test_it_is_saved_with_its_config_and_read_without_the_model(small, tmp_path):
    folder = small.save(tmp_path / "small")
    again = tw.load_compressed(folder)
    batch = ids(1)[0]
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, small.model(**batch).logits)
    assert again.lm_head.weight is again.model.embed_tokens.weight


@pytest.mark.parametrize("way", ["save", "save_pretrained", "copied and loaded"])
def test_from_pretrained_does_not_fill_in_what_it_does_not_know(small, way, tmp_path):
    """Its layers would be random numbers, and a warning all there is to it."""
    folder, batch = tmp_path / "small", ids(1)[0]
    if way == "save":
        small.save(folder)
    elif way == "save_pretrained":
        small.model.save_pretrained(folder)  # the host's own way
    else:
        small.model.save_pretrained(tmp_path / "once")
        copy.deepcopy(tw.load_compressed(tmp_path / "once")).save_pretrained(folder)
    for read in (transformers.LlamaForCausalLM, transformers.AutoModelForCausalLM):
        with pytest.raises(OSError, match="no file named model"):
            read.from_pretrained(folder)
    assert "tw.load_compressed" in (folder / "README.md").read_text()
    again = tw.load_compressed(folder)
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, small.model(**batch).logits)
    assert again.lm_head.weight is again.model.embed_tokens.weight
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    assert size < 4.2 * small.after + 20_000
    with pytest.raises(ValueError, match="upload the folder"):
        small.model.save_pretrained(folder, push_to_hub=True)


def test_it_is_read_in_the_precision_it_was_saved_in(tmp_path):
    batch = ids(1)[0]
    half = tw.compress(llama().bfloat16(), 0.8, data=ids(), progress=False)
    again = tw.load_compressed(half.save(tmp_path / "half"))
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, half.model(**batch).logits)


def test_a_config_of_another_architecture_is_refused(small, tmp_path):
    folder = small.save(tmp_path / "small")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace("LlamaForCausalLM", "OsSystem"))
    with pytest.raises(ValueError, match="'OsSystem', which transformers does not have"):
        tw.load_compressed(folder)


def test_gpt2_keeps_its_matrices_transposed():
    config = transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=1, n_head=2, n_positions=32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config).eval()
    whole = tw.compress(model, 1.0, data=ids(), progress=False)
    assert whole.measured < 1e-6
    small = tw.compress(model, 0.6, data=ids(), progress=False)
    assert any(name.endswith("c_fc") for name in small.parts)
    assert small.kept <= 0.6


def test_it_compiles_copies_halves_and_is_exported(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 24), nn.ReLU(), nn.Linear(24, 4)
        ).eval()
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    small = tw.compress(model, 0.5, data=x, progress=False).model.eval()
    assert any(isinstance(m, Pivoted) for m in small.modules())
    truth = small(x)
    assert torch.equal(copy.deepcopy(small)(x), truth)
    assert torch.allclose(torch.export.export(small, (x,)).module()(x), truth, atol=1e-6)
    assert torch.allclose(copy.deepcopy(small).bfloat16()(x.bfloat16()).float(), truth, atol=0.2)
    loss = truth.square().sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in small.parameters())
