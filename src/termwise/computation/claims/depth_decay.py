"""What Fan et al. (2025) claim of depth decay (D^3): on random decoders, a language model trained here, and SmolLM2-135M."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import cache
from statistics import median
from typing import Any

import torch
from torch import Tensor

from termwise.core.claims import claim
from termwise.testing.trained_lm import help_pages, small_lm

from ..depth_decay import DepthDecay, skip_layers
from ..depth_draft import draft_decode
from ..depth_terms import depth_terms, one_pass
from ..depth_tuning import divergence
from .depth_subjects import help_windows, losses, rivals, smollm, tiny_decoder

SEEDS = range(5)
GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def _decode(model: Any, ids: Tensor, prompt: int) -> Tensor:
    """Logits of a sequence, given to the model token by token behind the prompt."""
    from transformers.cache_utils import DynamicCache

    cache = DynamicCache()
    calls = [ids[:, :prompt], *ids[:, prompt:].split(1, 1)]
    with torch.no_grad():
        return torch.cat([model(input_ids=call, past_key_values=cache).logits for call in calls], 1)


@claim(
    "depth-decay",
    statement="a decay of 1 generates exactly the tokens of the full model",
    published="n_i = floor(L decay^i) layers for token i",
    exact=True,
    note="5 random Llamas of 8 layers, float64, batches of 2, 24 tokens; control: a decay of 0.9 changes some",
)
def no_decay_no_change() -> tuple[str, bool]:
    same, changed = [], []
    for seed in SEEDS:
        model, prompt = tiny_decoder(seed)
        full = model.generate(prompt, max_new_tokens=24, **GREEDY)
        same += (skip_layers(model, DepthDecay(1, 2, 3))(prompt, max_new_tokens=24, **GREEDY) == full)[:, 5:].flatten().tolist()
        changed += (
            (skip_layers(model, DepthDecay(0.9, 2, 3))(prompt, max_new_tokens=24, **GREEDY) != full)[:, 5:].flatten().tolist()
        )
    measured = f"{sum(same)} of {len(same)} tokens alike; with decay 0.9 {sum(changed)} others"
    return measured, all(same) and sum(changed) > len(changed) / 4


@claim(
    "depth-decay",
    statement="decoding token by token equals one pass in which a layer sees only the tokens that went through it",
    published="consecutive skips that only grow leave no missing keys and values, unlike early exit",
    exact=True,
    note="5 random Llamas, float64, batches of 2, 24 tokens; logits relative to the largest; control: the reference with the "
    "schedule one token late",
)
def decoding_is_one_pass() -> tuple[str, bool]:
    worst, control = 0.0, math.inf
    for seed in SEEDS:
        model, prompt = tiny_decoder(seed)
        method = DepthDecay(0.95, 2, 3)
        with skip_layers(model, method):
            ids = model.generate(prompt, max_new_tokens=24, **GREEDY)
            found = _decode(model, ids, 5)
        size = found.abs().max()
        worst = max(worst, float((found - one_pass(model, ids, method, prompt_length=5)).abs().max() / size))
        control = min(control, float((found - one_pass(model, ids, method, prompt_length=6)).abs().max() / size))
    return f"off by {worst:.0e} at most; with the control by {control:.2g} at least", worst < 1e-12 < 1e-3 < control


@claim(
    "depth-decay",
    statement="the cache of a layer has one entry for each token that went through it, and its calls are those of the formula",
    published="1.5x fewer operations are layers not run",
    exact=True,
    note="5 random Llamas of 8 to 16 layers, 40 tokens; calls counted by hooks on the layers; control: without skipping",
)
def what_is_counted() -> tuple[str, bool]:
    from transformers.cache_utils import DynamicCache

    exact, saved = True, []
    for seed in SEEDS:
        layers = 8 + 2 * seed
        model, prompt = tiny_decoder(seed, layers)
        method, cache, calls = DepthDecay.for_speedup(1.5, max_new_tokens=40, num_layers=layers), DynamicCache(), [0] * layers
        hooks = [
            layer.register_forward_hook(lambda *_, j=j: calls.__setitem__(j, calls[j] + 1))
            for j, layer in enumerate(model.model.layers)
        ]
        fast = skip_layers(model, method)
        fast(prompt, max_new_tokens=40, past_key_values=cache, **GREEDY)
        formula = [5 + sum(j in method.layers(i, layers) for i in range(1, 40)) for j in range(layers)]
        exact &= [x.get_seq_length() for x in cache.layers] == formula == fast.report.cache_lengths
        exact &= calls == [n - 4 for n in formula] and fast.report.calls == sum(calls)
        saved.append(40 * layers / sum(calls))
        calls[:] = [0] * layers
        model.generate(prompt, max_new_tokens=40, **GREEDY)
        exact &= calls == [40] * layers
        for hook in hooks:
            hook.remove()
    return f"all counts alike: {exact}; layers saved {min(saved):.3f}x to {max(saved):.3f}x for 1.5x", exact and 1.5 <= min(
        saved
    ) < 1.56


@claim(
    "depth-decay",
    statement="layers come in one gap that only grows, so a layer that is run has been run for every token before",
    published="flex layers are skipped consecutively, core layers never",
    exact=True,
    note="every start and floor of 4 to 40 layers, six decays, 60 tokens; control: random layers at each token",
)
def the_gap_only_grows() -> tuple[str, bool]:
    schedules, breaks, control = 0, 0, 0
    g = torch.Generator().manual_seed(0)
    for layers in (4, 7, 12, 30, 40):
        for decay in (1.0, 0.999, 0.99, 0.95, 0.8, 0.3):
            for least in range(1, layers + 1):
                start = int(torch.randint(1, least + 1, (), generator=g))
                kept = [DepthDecay(decay, start, least).layers(i, layers) for i in range(60)]
                core = {*range(start), *range(start + layers - least, layers)}
                schedules += 1
                nested = all(set(b) <= set(a) for a, b in itertools.pairwise(kept))
                breaks += not (nested and all(core <= set(k) and len(k) >= least for k in kept))
                loose = [set(torch.randperm(layers, generator=g)[: len(k)].tolist()) for k in kept]
                control += all(b <= a for a, b in itertools.pairwise(loose)) and len(kept[-1]) < layers
    return f"{breaks} of {schedules} schedules break it; of random layers {control} hold", breaks == control == 0


@claim(
    "depth-decay",
    statement="what skipping changes in the residual stream is what was left out plus what the other layers add differently",
    published="dropping the middle layers changes the hidden state least",
    exact=True,
    note="5 random Llamas, float64; relative to the last hidden state; control: without the change downstream",
)
def the_remainder_is_two_sums() -> tuple[str, bool]:
    worst, control = 0.0, math.inf
    for seed in SEEDS:
        model, prompt = tiny_decoder(seed)
        ids = model.generate(prompt, max_new_tokens=24, **GREEDY)
        d = depth_terms(model, ids, DepthDecay(0.95, 2, 3), prompt_length=5)
        size = d.whole.norm()
        worst = max(worst, float((d.remainder - d.skipped - d.downstream).norm() / size))
        control = min(control, float((d.remainder - d.skipped).norm() / size))
    return f"off by {worst:.0e} at most; without the change downstream by {control:.2g} at least", worst < 1e-12 < 1e-3 < control


@claim(
    "depth-decay",
    statement="as drafts that the full model verifies, the same skips give the tokens of greedy generation",
    published="(ours: the paper has no lossless form)",
    exact=True,
    note="5 random Llamas, float64, 40 tokens, 1 to 5 drafts a round; control: the drafts by themselves, not verified",
)
def drafts_lose_nothing() -> tuple[str, bool]:
    same, rates, control = [], [], []
    for seed in SEEDS:
        model, prompt = tiny_decoder(seed)
        prompt, method = prompt[:1], DepthDecay(0.98, 2, 4)
        full = model.generate(prompt, max_new_tokens=40, **GREEDY)
        control.append(torch.equal(skip_layers(model, method)(prompt, max_new_tokens=40, **GREEDY), full))
        for drafts in (1, 3, 5):
            found = draft_decode(model, prompt, method, max_new_tokens=40, drafts=drafts, eos_token_id=-1)
            same.append(torch.equal(found.sequences, full))
            rates.append(found.acceptance)
    measured = (
        f"{sum(same)} of {len(same)} runs alike, {min(rates):.0%} to {max(rates):.0%} of drafts accepted; unverified "
        f"{sum(control)} alike"
    )
    return measured, all(same) and min(rates) < 1 and not any(control)


# -- a language model trained here ------------------------------------------------------------------------------------


@claim(
    "depth-decay",
    statement="tokens later in a text have a lower loss than those at its beginning",
    published="tokens predicted later have lower perplexity and thus require less computation",
    note="characters of Python's help, 120 held-out windows of 96; places 48 to 95 against 1 to 8; control: the same "
    "characters, each known by the 8 before it at most",
)
def later_is_easier() -> tuple[str, bool]:
    model, ids = small_lm(), help_pages()[1][: 120 * 96].view(120, 96)
    early, late = _ends(losses(model, ids))
    before, after = _ends(losses(model, ids.view(-1, 8)), ids.shape)
    return (
        f"{early:.2f} to {late:.2f} nats; with 8 characters of context {before:.2f} to {after:.2f}",
        early - late > 0.1 and early - late > 2 * abs(before - after),
    )


def _ends(found: Tensor, shape: Any = None) -> tuple[float, float]:
    """Mean loss at the beginning and in the second half of windows."""
    if shape is not None:  # pieces of a window, each without its first token
        found = torch.cat([found.new_full((len(found), 1), float("nan")), found], 1).view(shape)[:, 1:]
    half = found.shape[1] // 2
    return found[:, :8].nanmean().item(), found[:, half:].nanmean().item()


def _tuned(model: Any, ids: Tensor, prompt: int, speedup: float, starts: Any = None) -> DepthDecay:
    """The start with the least divergence on some windows, decay and floor by the wanted speed-up."""
    layers, tokens = model.config.num_hidden_layers, ids.shape[1] - prompt
    slowest = DepthDecay.for_speedup(speedup, max_new_tokens=tokens, num_layers=layers)
    tried = [replace(slowest, start=start) for start in starts or range(1, slowest.min_layers + 1) if start <= slowest.min_layers]
    return min(tried, key=lambda method: divergence(model, ids, method, prompt))


def _against(model: Any, ids: Tensor, prompt: int, method: DepthDecay) -> dict[str, float]:
    """Divergence of the schedule and of its rivals, which run as many layers; the median of the random ones."""
    found = rivals(method, ids.shape[1] - prompt + 1, model.config.num_hidden_layers)
    return {name: median(divergence(model, ids, s, prompt) for s in schedules) for name, schedules in found.items()}


@cache
def _small_rivals() -> list[dict[str, float]]:
    model, held = small_lm(), help_pages()[1]
    ids = held[: 56 * 96].view(56, 96)
    method = _tuned(model, ids[:8], 32, 1.5)
    return [_against(model, part, 32, method) for part in ids[8:].split(16)]


def _shown(rows: list[dict[str, float]]) -> str:
    return ", ".join(f"{name} {' '.join(f'{row[name]:.3f}' for row in rows)}" for name in rows[0])


@claim(
    "depth-decay",
    statement="skipping a gap in the middle changes the next token less than dropping as many of the last layers",
    published="early and late layers change the hidden state most, the middle least",
    note="1.5x fewer layers on a language model of 8 layers trained here; KL per token on three times 16 held-out windows, "
    "32 characters of prompt and 64 behind; start tuned on 8 other windows",
)
def the_middle_beats_the_end() -> tuple[str, bool]:
    rows = _small_rivals()
    return _shown(rows), all(row["decay"] < row["last"] for row in rows)


@claim(
    "depth-decay",
    statement="a depth that decays with the place changes the next token less than a constant one with as many layers",
    published="later tokens require less computation",
    note="1.5x fewer layers, as above; the constant depth skips from the same start, which was tuned for the decay",
    contradicted="KL per token is larger with decay than with constant depth on each of three sets of windows: later tokens are "
    "easier, and yet the first layers that are skipped cost less than the last ones",
)
def decay_beats_constant_depth() -> tuple[str, bool]:
    rows = _small_rivals()
    return _shown(rows), all(row["decay"] < row["constant"] for row in rows)


# -- SmolLM2-135M -----------------------------------------------------------------------------------------------------


@claim(
    "depth-decay",
    statement="SmolLM2-135M: tokens later in a text have a lower loss than those at its beginning",
    published="tokens predicted later have lower perplexity and thus require less computation",
    slow=True,
    note="Python's help in 12 windows of 256 tokens; places 128 to 255 against 1 to 8; control: the same tokens, each known "
    "by the 8 before it at most",
)
def later_is_easier_for_smollm2() -> tuple[str, bool]:
    model, ids = smollm().model.language_model, help_windows(12, 256)
    early, late = _ends(torch.cat([losses(model, part) for part in ids.split(2)]))
    before, after = _ends(torch.cat([losses(model, part) for part in ids.view(-1, 8).split(128)]), ids.shape)
    measured = f"{early:.2f} to {late:.2f} nats; with 8 tokens of context {before:.2f} to {after:.2f}"
    return measured, early - late > 0.5 and early - late > 2 * abs(before - after)


STARTS = (4, 6, 8, 10, 12)


@cache
def _smollm_methods() -> tuple[Any, Tensor, dict[float, DepthDecay]]:
    """The model, windows that nothing was tuned on, and schedules tuned on two others: 64 tokens of prompt, 128 behind."""
    model, ids = smollm().model.language_model, help_windows(8, 192)
    return model, ids[2:], {s: _tuned(model, ids[:2], 64, s, STARTS) for s in (1.1, 1.5)}


@claim(
    "depth-decay",
    statement="SmolLM2-135M: 1.5x fewer layers cost less than 1 % of perplexity",
    published="average 1.5x speedup with nearly no performance drop (< 1 %) on GSM8K and BBH, Llama 7B to 70B",
    slow=True,
    note="Python's help, 6 windows, 64 tokens of prompt and 128 behind, start tuned on two others; perplexity in place of "
    "answers",
    contradicted="a model of 135 million parameters and 30 layers has no layers to spare: the perplexity of real text grows "
    "over tenfold at 1.5x, and by a tenth or more at 1.1x already",
)
def smollm2_at_two_thirds() -> tuple[str, bool]:
    model, ids, methods = _smollm_methods()
    full = _perplexity(model, ids)
    found = {s: _perplexity(model, ids, m) for s, m in methods.items()}
    saved = {s: m.speedup(128, 30) for s, m in methods.items()}
    measured = f"{full:.2f} in full, " + ", ".join(
        f"{p:.4g} with {saved[s]:.2f}x fewer layers (start {methods[s].start})" for s, p in found.items()
    )
    return measured, found[1.5] < 1.01 * full


def _perplexity(model: Any, ids: Tensor, method: DepthDecay | None = None) -> float:
    return math.exp(torch.cat([losses(model, part, method, 64)[:, 64:] for part in ids.split(2)]).mean().item())
