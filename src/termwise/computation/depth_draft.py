r"""Assisted decoding without a second model: a model with layers skipped drafts, the whole model verifies.

    drafts d_1 ... d_k by the layers of `method`,      then one pass of all layers over (last token, d_1 ... d_k)
    accepted: d_1 ... d_a that are what the whole model says, and its own next token behind them

Tokens are those of greedy generation; what the schedule changes is how many drafts are accepted. Both use one cache: a draft
leaves keys and values only in the layers it went through, these are cropped, layer by layer, before all layers verify.

Cost of a round: k drafts of n_i layers and one pass over k + 1 tokens, for 1 to k + 1 tokens.
Source: Fan et al. 2025 for the draft; Leviathan et al. 2023 (speculative decoding) for verification; Elhoushi et al. 2024
(LayerSkip) for a model that drafts for itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from termwise.core.arguments import integer
from termwise.core.pictures import Bars, Line, Lines, Picture, Pictured

from .decoder_layers import crop_cache, find_decoder
from .depth_decay import Depths

__all__ = ["Drafted", "draft_decode"]


@dataclass(frozen=True, eq=False)
class Drafted(Pictured):
    """What was generated, and what it took.

    Attributes:
        sequences: prompt and generated tokens, (1, tokens).
        drafted: tokens that were proposed, by round.
        accepted: of these, by round.
        layer_calls: one for each layer and pass of a draft; a pass that verifies counts once, however many tokens it has.
        full_calls: of plain generation.
    """

    sequences: Int[Tensor, "1 t"]
    drafted: tuple[int, ...]
    accepted: tuple[int, ...]
    layer_calls: int
    full_calls: int

    @property
    def acceptance(self) -> float:
        """Accepted over drafted."""
        return sum(self.accepted) / max(sum(self.drafted), 1)

    @property
    def speedup(self) -> float:
        """Layer calls of plain generation over those made; in time, where a few tokens take no longer than one."""
        return self.full_calls / self.layer_calls

    def summary(self) -> str:
        """One line."""
        return (
            f"{len(self.drafted)} rounds, {self.acceptance:.0%} of {sum(self.drafted)} drafts accepted: {self.layer_calls} "
            f"layer calls instead of {self.full_calls}, {self.speedup:.2f}x fewer"
        )

    __str__ = summary

    def pictures(self, sample: int = 0) -> list[Picture]:
        """What was drafted and what was accepted, round by round; and the layer calls that it took."""
        at = list(range(1, len(self.drafted) + 1))
        lines = [
            Line("drafted", at, list(self.drafted), role="chance", stems=True),
            Line("accepted", at, list(self.accepted), stems=True),
        ]
        calls = {"layer calls": [self.full_calls, self.layer_calls]}
        took = f"{self.layer_calls} instead of {self.full_calls}."
        return [
            Lines("Drafts by round", lines, x="round", y="tokens", note=f"{self.acceptance:.0%} of the drafts were accepted."),
            Bars("Layer calls", ["plain", "with drafts"], calls, y="calls of a layer", note=took),
        ]


@torch.no_grad()
def draft_decode(
    model: Any,
    input_ids: Int[Tensor, "1 t"],
    method: Depths,
    *,
    max_new_tokens: int,
    drafts: int = 4,
    confidence: float = 0.0,
    eos_token_id: int | Iterable[int] | None = None,
) -> Drafted:
    """Generate what greedy generation does, with drafts of the same model with fewer layers.

    Args:
        model: as `skip_layers` takes it.
        input_ids: one prompt.
        method: a `DepthDecay`, or another schedule.
        max_new_tokens: to generate.
        drafts: k, proposed in a round at most.
        confidence: a round's drafts end behind one that was less probable than this.
        eos_token_id: ends the generation, as in `generate`; the model's own when not given, -1 for none.

    Returns:
        A `Drafted`. Its tokens are those of `model.generate(do_sample=False)` without penalties, up to ties within the rounding
        between a pass over one token and over several.

    Raises:
        TypeError, ValueError: as `skip_layers`; for a batch of more than one.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=6, num_attention_heads=2)
        >>> model, prompt = LlamaForCausalLM(config).double().eval(), torch.tensor([[1, 2, 3]])
        >>> found = draft_decode(model, prompt, tw.computation.DepthDecay(0.8, 2, 3), max_new_tokens=9, eos_token_id=-1)
        >>> greedy = model.generate(prompt, max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=0)
        >>> bool((found.sequences == greedy).all())
        True
    """
    from transformers.cache_utils import DynamicCache

    if input_ids.ndim != 2 or input_ids.shape[0] != 1 or not input_ids.shape[1]:
        raise ValueError(f"one prompt of shape (1, tokens) is drafted for at a time, got {tuple(input_ids.shape)}")
    for name, value in {"max_new_tokens": max_new_tokens, "drafts": drafts}.items():
        if integer(value) is None or value < 1:
            raise ValueError(f"{name} is a whole number, at least 1, got {value!r}")
    max_new_tokens, drafts = int(max_new_tokens), int(drafts)
    if not 0 <= confidence <= 1:
        raise ValueError(f"confidence is a probability, got {confidence!r}")
    found = find_decoder(model)
    ends = _ends(model.generation_config.eos_token_id if eos_token_id is None else eos_token_id)
    cache = DynamicCache()
    new = [_next(model, input_ids, cache)[-1:]]
    drafted, accepted, calls = [], [], len(found)
    while len(new) < max_new_tokens and not ends & {int(new[-1])}:
        known, length = len(new), cache.get_seq_length()
        proposed: list[Tensor] = []
        for i in range(known, min(known + drafts, max_new_tokens - 1)):
            kept = method.layers(i, len(found))
            with found.only(kept):
                logits = model(input_ids=(proposed or new)[-1][None], past_key_values=cache, logits_to_keep=1).logits[0]
            proposed.append(logits.argmax(-1))
            calls += len(kept)
            if confidence and logits.softmax(-1).max() < confidence:
                break
        crop_cache(cache, length)
        said = _next(model, torch.cat([new[-1], *proposed])[None], cache)
        calls += len(found)
        right = torch.cat([*proposed, said[:0]]) == said[: len(proposed)]
        count = int(right.cumprod(0).sum())
        crop_cache(cache, length + 1 + count)
        new += [*said[: count + 1].split(1)]
        drafted.append(len(proposed))
        accepted.append(count)
        if ends:
            at = next((j for j, token in enumerate(new) if int(token) in ends), len(new))
            new = new[: at + 1]
    sequences = torch.cat([input_ids, torch.cat(new)[None]], 1)
    return Drafted(sequences, tuple(drafted), tuple(accepted), calls, len(found) * len(new))


def _next(model: Any, ids: Tensor, cache: Any) -> Tensor:
    """What the whole model says behind each of the tokens, (tokens,)."""
    said: Tensor = model(input_ids=ids, past_key_values=cache).logits[0].argmax(-1)
    return said


def _ends(ids: int | Iterable[int] | None) -> set[int]:
    several = () if ids is None else ids if integer(ids) is None else (ids,)
    return {int(end) for end in several}
