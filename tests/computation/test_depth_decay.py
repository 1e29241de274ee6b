"""Depth decay: the schedule is its formula, decoding is one pass of masked layers, drafts lose nothing, and misuse says so."""

import copy
import math
from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    StaticCache,
)
from transformers.cache_utils import DynamicCache

import termwise as tw
from termwise.computation import DepthDecay, depth_terms, draft_decode, one_pass, skip_layers, tune_depth
from termwise.computation.claims.depth_subjects import Listed, rivals, tiny_decoder
from termwise.computation.decoder_layers import crop_cache, find_decoder
from termwise.computation.depth_terms import visits
from termwise.computation.depth_tuning import divergence
from termwise.testing import check_decomposition

GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
METHOD = DepthDecay(0.9, 2, 4)


@pytest.fixture(scope="module")
def tiny():
    return tiny_decoder(0)


# -- the schedule -----------------------------------------------------------------------------------------------------

schedules = st.integers(2, 40).flatmap(
    lambda n: st.integers(1, n).flatmap(
        lambda least: st.tuples(st.just(n), st.just(least), st.integers(1, least), st.integers(1, 100), st.integers(0, 80))
    )
)


@given(schedules)
@settings(max_examples=60)
def test_the_count_is_the_formula_in_exact_arithmetic(drawn):
    n, least, start, percent, i = drawn
    kept = DepthDecay(percent / 100, start, least).layers(i, n)
    count = max(math.floor(n * Fraction(percent, 100) ** i), least)
    assert len(kept) == count
    gone = sorted({*range(n)} - {*kept})
    assert gone == list(range(start, start + n - count))


@given(st.integers(2, 48), st.integers(2, 300), st.floats(1, 3))
@settings(max_examples=40)
def test_the_slowest_decay_that_saves_enough(layers, tokens, speedup):
    try:
        found = DepthDecay.for_speedup(speedup, max_new_tokens=tokens, num_layers=layers)
    except ValueError as refused:
        assert "times fewer layers" in str(refused)
        assert DepthDecay(1e-9, 1, 1).speedup(tokens, layers) < speedup
        return
    assert found.speedup(tokens, layers) >= speedup - 1e-8
    slower = DepthDecay(min(found.decay * (1 + 1e-7), 1), 1, 1)
    assert found.decay == 1 or slower.speedup(tokens, layers) < speedup
    assert found.min_layers == len(found.layers(tokens - 1, layers))
    assert found.speedup(tokens, layers) == pytest.approx(
        layers / (sum(len(found.layers(i, layers)) for i in range(tokens)) / tokens), rel=1e-12
    )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DepthDecay(0.9, 0, 4), r"start is a whole number, at least 1 .*got 0"),
        (lambda: DepthDecay(0.9, True, 4), "start is a whole number"),
        (lambda: DepthDecay(0, 1, 4), r"decay is a number above 0 .*got 0"),
        (lambda: DepthDecay(1.01, 1, 4), "at most 1"),
        (lambda: DepthDecay(float("nan"), 1, 4), "got nan"),
        (lambda: DepthDecay("0.9", 1, 4), "got '0.9'"),
        (lambda: DepthDecay(0.9, 3, 2), r"min_layers .*at least start=3"),
        (lambda: METHOD.layers(-1, 8), "counts generated tokens from 0, got -1"),
        (lambda: METHOD.layers(1, 3), r"min_layers=4 is more than the model has, which is 3"),
        (lambda: DepthDecay.for_speedup(9, max_new_tokens=4, num_layers=8), r"can take 1 to .* times fewer layers; got 9"),
        (lambda: DepthDecay.for_speedup(0.5, max_new_tokens=4, num_layers=8), "got 0.5"),
        (lambda: DepthDecay.for_speedup(1.5, max_new_tokens=0, num_layers=8), "max_new_tokens is a whole number"),
    ],
)
def test_a_schedule_that_makes_no_sense_says_so(make, said):
    with pytest.raises(ValueError, match=said):
        make()


# -- generation -------------------------------------------------------------------------------------------------------


def gpt2():
    config = GPT2Config(
        vocab_size=40, n_embd=16, n_layer=6, n_head=2, n_positions=64, initializer_range=0.3, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config)


def qwen2():
    config = Qwen2Config(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=6, num_attention_heads=2, num_key_value_heads=1,
        initializer_range=0.3,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


def decode(model, ids, prompt, mask=None):
    cache = DynamicCache()
    outs, at = [], 0
    for call in [ids[:, :prompt], *ids[:, prompt:].split(1, 1)]:
        at += call.shape[1]
        extra = (
            {}
            if mask is None
            else {"attention_mask": mask[:, :at], "position_ids": (mask.cumsum(1) - 1).clamp(min=0)[:, at - call.shape[1] : at]}
        )
        outs.append(model(input_ids=call, past_key_values=cache, **extra).logits)
    return torch.cat(outs, 1), cache


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("make", [gpt2, qwen2])
def test_other_architectures_decode_as_one_pass(make, attention):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, ids = make().double().eval(), torch.randint(1, 40, (2, 20))
    model.set_attn_implementation(attention)
    with torch.no_grad(), skip_layers(model, METHOD) as fast:
        found, _ = decode(model, ids, 6)
    limit = 1e-11 if attention == "sdpa" else 1e-5  # the eager softmax is taken in float32
    torch.testing.assert_close(found, one_pass(model, ids, METHOD, prompt_length=6), rtol=0, atol=limit)
    assert fast.report.cache_lengths == [6 + sum(j in METHOD.layers(i, 6) for i in range(1, 15)) for j in range(6)]


def literal(model, ids, method, prompt):
    """Layer by layer on the tokens that visit it, with nothing of ours but the schedule."""
    decoder, length = model.model, ids.shape[1]
    depth = [set(range(len(decoder.layers)))] * prompt + [
        set(method.layers(i, len(decoder.layers))) for i in range(1, length - prompt + 1)
    ]
    h = decoder.embed_tokens(ids)
    for j, layer in enumerate(decoder.layers):
        seen = [t for t in range(length) if j in depth[t]]
        positions = torch.tensor(seen)[None]
        inner = h[:, seen]
        mask = torch.full((len(seen), len(seen)), -torch.inf, dtype=h.dtype).triu(1)[None, None]
        out = layer(
            inner,
            attention_mask=mask,
            position_ids=positions,
            position_embeddings=decoder.rotary_emb(inner, position_ids=positions),
        )
        h = h.index_copy(1, torch.tensor(seen), out)
    return model.lm_head(decoder.norm(h))


@pytest.mark.parametrize("method", [METHOD, DepthDecay(0.97, 1, 1), DepthDecay(0.5, 5, 6), Listed(METHOD, (6, 2, 4, 5, 1, 3, 7))])
def test_one_pass_is_the_definition(tiny, method):
    model, _ = tiny
    ids = torch.randint(1, 48, (2, 17), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(one_pass(model, ids, method, prompt_length=4), literal(model, ids, method, 4), rtol=0, atol=1e-11)


def test_generate_takes_the_tokens_of_the_definition(tiny):
    model, prompt = tiny
    ids = prompt
    for i in range(10):
        ids = torch.cat([ids, literal(model, ids, METHOD, 5)[:, -1:].argmax(-1)], 1)
        assert len(METHOD.layers(i, 8)) >= 4
    assert torch.equal(skip_layers(model, METHOD)(prompt, max_new_tokens=10, **GREEDY), ids)
    assert torch.equal(tw.accelerate(model, METHOD)(prompt, max_new_tokens=10, **GREEDY), ids)
    with pytest.raises(ValueError, match="takes no tolerance"):
        tw.accelerate(model, METHOD, tolerance=0.1)


def test_padding_on_the_left_changes_nothing(tiny):
    model, prompt = tiny
    alone = skip_layers(model, METHOD)(prompt[:1], max_new_tokens=12, **GREEDY)
    padded = torch.tensor([[0, 0, 0, *prompt[0].tolist()], [7, 8, 9, 10, 11, 12, 13, 14]])
    both = skip_layers(model, METHOD)(padded, attention_mask=(padded != 0).long(), max_new_tokens=12, **GREEDY)
    assert torch.equal(both[:1, 3:], alone)
    mask = (both != 0).long()
    mask[:, 8:] = 1
    with torch.no_grad(), skip_layers(model, METHOD):
        found, _ = decode(model, both, 8, mask)
    terms = one_pass(model, both, METHOD, prompt_length=8, attention_mask=mask)
    torch.testing.assert_close(found[1], terms[1], rtol=0, atol=1e-11)


def test_beams_and_samples_count_tokens_not_sequences(tiny):
    model, prompt = tiny
    for how in ({"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}):
        fast = skip_layers(model, METHOD)
        with torch.random.fork_rng():
            ids = fast(prompt, max_new_tokens=9, **{**GREEDY, **how})
        assert [len(k) for k in fast.report.layers] == [len(METHOD.layers(i, 8)) for i in range(len(fast.report.layers))]
        assert len(fast.report.layers) in (8, 9)
        assert ids.shape[1] == 14


def test_the_report_counts_layers(tiny):
    model, prompt = tiny
    fast = skip_layers(model, METHOD)
    fast(prompt, max_new_tokens=10, **GREEDY)
    kept = [len(METHOD.layers(i, 8)) for i in range(10)]
    assert (fast.report.calls, fast.report.saved) == (sum(kept), 80 - sum(kept))
    assert fast.report.speedup == pytest.approx(80 / sum(kept)) == METHOD.speedup(10, 8)
    assert fast.report.prompt == 5
    assert (
        str(fast.report)
        == f"10 tokens: {sum(kept)} layers run and {80 - sum(kept)} skipped, {80 / sum(kept):.2f}x fewer; 4 of 8 at the last"
    )


def test_the_model_is_put_back(tiny):
    model, prompt = tiny
    layers, state = model.model.layers, vars(model.model).copy()
    before = model.generate(prompt, max_new_tokens=8, **GREEDY)
    skip_layers(model, METHOD)(prompt, max_new_tokens=8, **GREEDY)

    def broken(*_):
        raise OSError("in mid-run")

    hook = model.model.layers[7].register_forward_hook(lambda *_: broken() if len(model.model.layers) < 8 else None)
    with pytest.raises(OSError, match="in mid-run"):
        skip_layers(model, METHOD)(prompt, max_new_tokens=8, **GREEDY)
    hook.remove()
    assert model.model.layers is layers
    assert vars(model.model).keys() == state.keys()
    assert torch.equal(model.generate(prompt, max_new_tokens=8, **GREEDY), before)
    with skip_layers(model, METHOD), pytest.raises(RuntimeError, match="being skipped already"):
        skip_layers(model, METHOD).__enter__()
    assert vars(model.model).keys() == state.keys()


def test_a_second_run_begins_anew(tiny):
    model, prompt = tiny
    with skip_layers(model, METHOD) as fast:
        first = model.generate(prompt, max_new_tokens=8, **GREEDY)
        assert torch.equal(model.generate(prompt, max_new_tokens=8, **GREEDY), first)
        assert len(fast.report.layers) == 8
        model.generate(prompt[:, :1], max_new_tokens=3, **GREEDY)  # a prompt of one token is a prompt
        assert [len(k) for k in fast.report.layers] == [8, 7, 6]


# -- what is refused --------------------------------------------------------------------------------------------------


def test_a_cache_with_gaps_is_refused(tiny):
    model, prompt = tiny
    cache = DynamicCache()
    with skip_layers(model, METHOD):
        ids = model.generate(prompt, max_new_tokens=8, past_key_values=cache, **GREEDY)
        more = torch.cat([ids, prompt], 1)
        with pytest.raises(ValueError, match=r"layer 2 is to be run, and its cache has 5 of 12 tokens.*prompt anew"):
            model.generate(more, max_new_tokens=8, past_key_values=cache, **GREEDY)
    with pytest.raises(ValueError, match="gaps"):  # in another context too
        skip_layers(model, METHOD)(more, max_new_tokens=8, past_key_values=cache, **GREEDY)


def test_a_cache_without_gaps_goes_on(tiny):
    model, prompt = tiny
    cache = DynamicCache()
    model.generate(prompt, max_new_tokens=4, past_key_values=cache, **GREEDY)  # all layers
    longer = torch.cat([model.generate(prompt, max_new_tokens=4, **GREEDY), prompt], 1)
    found = skip_layers(model, METHOD)(longer, max_new_tokens=8, past_key_values=cache, **GREEDY)
    assert torch.equal(found, skip_layers(model, METHOD)(longer, max_new_tokens=8, **GREEDY))


@pytest.mark.parametrize("how", [{"prompt_lookup_num_tokens": 3}, {"assistant_early_exit": 3}])
def test_drafts_of_transformers_are_refused(tiny, how):
    model, prompt = tiny
    with pytest.raises(ValueError, match=r"early exit|was skipped before"):
        skip_layers(model, METHOD)(prompt[:1].repeat(1, 3), max_new_tokens=20, **GREEDY, **how)
    assert len(model.model.layers) == model.config.num_hidden_layers == 8


def test_other_caches_are_refused(tiny):
    model, prompt = tiny
    fast = skip_layers(model, METHOD)
    with pytest.raises(ValueError, match="StaticCache"):
        fast(prompt, max_new_tokens=4, past_key_values=StaticCache(config=model.config, max_cache_len=16), **GREEDY)
    with pytest.raises(ValueError, match="StaticCache"):
        fast(prompt, max_new_tokens=4, cache_implementation="static", **GREEDY)
    with pytest.raises(ValueError, match="without a cache"):
        fast(prompt, max_new_tokens=4, use_cache=False, **GREEDY)


def small(cls, config, **options):
    return cls(
        config(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=1,
            **options,
        )
    ).eval()


def test_sliding_windows_are_refused():
    model = small(MistralForCausalLM, MistralConfig, sliding_window=8)
    with pytest.raises(ValueError, match="DynamicSlidingWindowLayer"):
        skip_layers(model, DepthDecay(0.9, 1, 2))(torch.ones(1, 3, dtype=torch.long), max_new_tokens=4, **GREEDY)
    mixed = small(Qwen2ForCausalLM, Qwen2Config, use_sliding_window=True, sliding_window=8, max_window_layers=2)
    with pytest.raises(ValueError, match="sliding_attention"):
        skip_layers(mixed, DepthDecay(0.9, 1, 2))


def test_what_is_no_decoder_is_refused(tiny):
    model = copy.deepcopy(tiny[0])
    with pytest.raises(TypeError, match=r"Linear is no causal language model"):
        skip_layers(torch.nn.Linear(2, 2), METHOD)
    with pytest.raises(ValueError, match="encoder and a decoder"):
        skip_layers(
            BartForConditionalGeneration(
                BartConfig(
                    vocab_size=20,
                    d_model=8,
                    encoder_layers=2,
                    decoder_layers=2,
                    encoder_attention_heads=2,
                    decoder_attention_heads=2,
                    encoder_ffn_dim=8,
                    decoder_ffn_dim=8,
                )
            ).eval(),
            METHOD,
        )
    with pytest.raises(ValueError, match=r"min_layers=9 is more than the model has, which is 8"):
        skip_layers(model, DepthDecay(0.9, 1, 9))
    with pytest.raises(ValueError, match=r"call \.eval"):
        skip_layers(model.train(), METHOD)
    model.eval().config.num_hidden_layers = 5
    with pytest.raises(ValueError, match="has no lists of 5 layers"):
        skip_layers(model, METHOD)


@dataclass(frozen=True)
class Back:
    """A layer that comes back, or the first one skipped."""

    first: bool

    def layers(self, i, num_layers):
        return list(range(1, num_layers)) if self.first and i else [j for j in range(num_layers) if i != 2 or j != 4]


def test_a_schedule_with_gaps_is_refused(tiny):
    model, prompt = tiny
    for schedule, said in (
        (Back(first=True), "layer 0 is always run"),
        (Back(first=False), "layer 4 is to be run, and its cache has 6 of 7"),
    ):
        with pytest.raises(ValueError, match=said):
            skip_layers(model, schedule)(prompt, max_new_tokens=6, **GREEDY)
        with pytest.raises(ValueError, match="layer 0 is always run, and no layer comes back"):
            visits(schedule, 8, 12, 4)


def test_a_decoder_that_does_not_listen_is_noticed(tiny):
    model = copy.deepcopy(tiny[0])
    all_of_them = list(model.model.layers)
    forward = model.model.forward

    def deaf(*args, **kwargs):
        model.model._modules["layers"] = torch.nn.ModuleList(all_of_them)
        return forward(*args, **kwargs)

    deaf.__signature__ = __import__("inspect").signature(forward)
    model.model.forward = deaf
    with pytest.raises(RuntimeError, match="did not run the layers that it was told"):
        skip_layers(model, METHOD)(tiny[1], max_new_tokens=4, **GREEDY)


# -- terms, tuning, drafts --------------------------------------------------------------------------------------------


def test_terms(tiny):
    model, prompt = tiny
    ids = model.generate(prompt, max_new_tokens=12, **GREEDY)
    d = depth_terms(model, ids, METHOD, prompt_length=5)
    make = lambda i: depth_terms(model, i, METHOD, prompt_length=5)
    check_decomposition(make, exact=False, inputs=(ids,), models=(model,))
    hidden = model(ids, output_hidden_states=True).hidden_states
    states = []
    hook = model.model.norm.register_forward_pre_hook(lambda _, args: states.append(args[0]))
    full = model(ids).logits
    less = one_pass(model, ids, METHOD, prompt_length=5)
    hook.remove()
    torch.testing.assert_close(d.whole, states[0], rtol=0, atol=1e-13)
    torch.testing.assert_close(d.total(), states[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(d.parts["embedding"], hidden[0], rtol=0, atol=0)
    gone = [j for j in range(8) if j not in METHOD.layers(9, 8)]
    slow = sum(hidden[j + 1] - hidden[j] for j in gone)[:, 5 + 8]
    torch.testing.assert_close(d.skipped[:, 5 + 8], slow, rtol=0, atol=1e-12)
    torch.testing.assert_close(d.remainder, d.skipped + d.downstream, rtol=0, atol=1e-12)
    p, q = full.log_softmax(-1), less.log_softmax(-1)
    torch.testing.assert_close(d.kl, (p.exp() * (p - q)).sum(-1), rtol=1e-9, atol=1e-12)
    assert d.kl[:, :5].abs().max() < 1e-12 < d.kl[:, 6:].min()
    assert d.depth[0].tolist() == [8] * 5 + [len(METHOD.layers(i, 8)) for i in range(1, 13)]
    assert "changed downstream" in d.summary()
    depth_terms(model, ids, DepthDecay(1, 2, 3), prompt_length=5).check(1e-12)
    for bad in (0, 18):
        with pytest.raises(ValueError, match="a prompt has 1 to all 17 tokens"):
            depth_terms(model, ids, METHOD, prompt_length=bad)


def test_tuning_finds_the_best_of_what_it_tries(tiny):
    model, prompt = tiny
    prompts = [prompt[:1], prompt[1:]]
    found = tune_depth(model, prompts, 1.3, max_new_tokens=16)
    assert found.kl == min(kl for _, kl in found.tried)
    assert {m.start for m, _ in found.tried} == set(range(1, max(m.min_layers for m, _ in found.tried) + 1))
    assert all(m.speedup(16, 8) >= 1.3 - 1e-8 for m, _ in found.tried)
    slow = 0.0
    for p in prompts:
        ids = model.generate(p, max_new_tokens=16, **GREEDY)
        full, less = model(ids).logits.log_softmax(-1), literal(model, ids, found.method, 5).log_softmax(-1)
        slow += (full.exp() * (full - less)).sum(-1)[:, 5:].mean().item() / 2
    assert found.kl == pytest.approx(slow, rel=1e-9)
    assert divergence(model, ids, DepthDecay(1, 1, 1), 5) < 1e-12
    with pytest.raises(ValueError, match="no prompts to tune on"):
        tune_depth(model, [], 1.3, max_new_tokens=8)
    with pytest.raises(ValueError, match=r"no start of \[99\]"):
        tune_depth(model, prompts, 1.3, max_new_tokens=8, starts=[99])


def test_rivals_run_as_many_layers():
    for method in (DepthDecay.for_speedup(1.5, max_new_tokens=64, num_layers=8), DepthDecay(0.99, 4, 12)):
        layers = 8 if method.min_layers < 8 else 30
        counts = {
            name: {sum(len(s.layers(i, layers)) for i in range(64)) for s in found}
            for name, found in rivals(method, 64, layers).items()
        }
        assert all(c == counts["decay"] for c in counts.values())
        assert len(counts["decay"]) == 1
        for found in rivals(method, 64, layers).values():
            for s in found:
                visits(s, layers, 64, 1)


@given(
    st.integers(0, 4), st.integers(1, 6), st.sampled_from([0.0, 0.1, 0.5]), st.sampled_from([0.5, 0.98, 1.0]), st.integers(1, 24)
)
@settings(max_examples=8, deadline=None)
def test_drafts_lose_nothing(seed, drafts, confidence, decay, count):
    model, prompt = tiny_decoder(seed)
    full = model.generate(prompt[:1], max_new_tokens=count, **GREEDY)
    found = draft_decode(
        model, prompt[:1], DepthDecay(decay, 2, 4), max_new_tokens=count, drafts=drafts, confidence=confidence, eos_token_id=-1
    )
    assert torch.equal(found.sequences, full)
    assert found.full_calls == 8 * count
    assert count == 1 + sum(found.accepted) + len(found.accepted)
    assert all(a <= d <= drafts for a, d in zip(found.accepted, found.drafted, strict=True))
    if decay == 1:
        assert found.accepted == found.drafted


def test_layer_calls_are_counted(tiny):
    model, prompt = tiny
    calls = []
    hooks = [layer.register_forward_hook(lambda *_: calls.append(1)) for layer in find_decoder(model).layers]
    found = draft_decode(model, prompt[:1], DepthDecay(0.98, 2, 4), max_new_tokens=20, drafts=3, eos_token_id=-1)
    for hook in hooks:
        hook.remove()
    assert found.layer_calls == len(calls)
    assert str(found).startswith(f"{len(found.drafted)} rounds, ")


def test_an_end_of_text_ends_the_drafts(tiny):
    model, prompt = tiny
    full = model.generate(prompt[:1], max_new_tokens=20, **GREEDY)
    for at in (5, 9, 14):
        end = int(full[0, at])
        kwargs = {**GREEDY, "eos_token_id": end}
        want = model.generate(prompt[:1], max_new_tokens=20, **kwargs)
        found = draft_decode(model, prompt[:1], DepthDecay(1, 2, 4), max_new_tokens=20, drafts=4, eos_token_id=[end])
        assert torch.equal(found.sequences, want)


def test_a_cache_is_cropped_layer_by_layer(tiny):
    model, prompt = tiny
    cache = DynamicCache()
    with torch.no_grad():
        model(input_ids=prompt, past_key_values=cache)
        before = [x.keys.clone() for x in cache.layers]
        with find_decoder(model).only([0, 1, 7]):
            for _ in range(3):
                model(input_ids=prompt[:, :1], past_key_values=cache)
    assert [x.get_seq_length() for x in cache.layers] == [8, 8, 5, 5, 5, 5, 5, 8]
    crop_cache(cache, 5)
    assert all(torch.equal(x.keys, k) for x, k in zip(cache.layers, before, strict=True))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"input_ids": torch.ones(2, 3, dtype=torch.long)}, r"one prompt of shape \(1, tokens\).*\(2, 3\)"),
        ({"drafts": 0}, "drafts is a whole number"),
        ({"max_new_tokens": 0}, "max_new_tokens is a whole number"),
        ({"confidence": 1.5}, "a probability, got 1.5"),
    ],
)
def test_bad_drafts_say_so(tiny, options, said):
    with pytest.raises(ValueError, match=said):
        draft_decode(tiny[0], method=METHOD, **{"input_ids": tiny[1][:1], "max_new_tokens": 3, **options})
