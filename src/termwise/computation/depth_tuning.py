"""Where to skip and how fast: the two numbers of depth decay, searched on prompts of the task.

    min over (decay, start, min_layers) of mean KL( full model | layers skipped ),      subject to the wanted number of layers

The full model continues every prompt; every candidate is then judged on those tokens in one pass, without labels.
Cost: one generation and one pass per candidate, for every prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional

from termwise.core.pictures import MANY, Bars, Picture, Pictured

from .decoder_layers import find_decoder
from .depth_decay import DepthDecay, Depths
from .depth_terms import one_pass

__all__ = ["TunedDepth", "divergence", "tune_depth"]

FLOORS = 4
"""How many least depths are tried, from what the slowest decay leaves to just below the mean depth wanted."""


@dataclass(frozen=True)
class TunedDepth(Pictured):
    """What was tried.

    Attributes:
        method: the best.
        kl: its mean divergence per generated token.
        tried: (decay, start, min_layers) and divergence of all, the best first.
    """

    method: DepthDecay
    kl: float
    tried: list[tuple[DepthDecay, float]]

    def pictures(self, sample: int = 0) -> list[Picture]:
        """How much every schedule that was tried changes the model, the best first."""
        shown = self.tried[:MANY]
        names = [f"{m.decay:.3g}, from {m.start}, least {m.min_layers}" for m, _ in shown]
        more = f" The best {len(shown)} of {len(self.tried)} are shown." if len(shown) < len(self.tried) else ""
        what = "Decay of the depth, first layer that is skipped, least depth"
        note = f"{what}: all skip as many layers, and the best changes {self.kl:.3g} nats per token.{more}"
        divergence = {"KL divergence": [kl for _, kl in shown]}
        return [Bars("Schedules that were tried", names, divergence, y="nats per generated token", note=note)]


def tune_depth(
    model: Any,
    prompts: Sequence[Int[Tensor, "1 t"]],
    target_speedup: float,
    *,
    max_new_tokens: int,
    starts: Sequence[int] | None = None,
) -> TunedDepth:
    """Search the depth decay that changes a model least, at a wanted number of layers.

    Args:
        model: as `skip_layers` takes it.
        prompts: token ids, each (1, tokens), of the task.
        target_speedup: layers of the full model over those run, in the mean over the generated tokens.
        max_new_tokens: how many are generated; the decay is right for about so many.
        starts: first layers to try; every one when not given.

    Returns:
        A `TunedDepth`.

    Raises:
        ValueError: without prompts, or where no decay saves that much.
    """
    if not prompts:
        raise ValueError("no prompts to tune on: give token ids of a few, each (1, tokens)")
    layers = len(find_decoder(model))
    slowest = DepthDecay.for_speedup(target_speedup, max_new_tokens=max_new_tokens, num_layers=layers)
    mean = math.ceil(layers / target_speedup) - 1
    texts = [(continued(model, p, max_new_tokens), p.shape[1]) for p in prompts]
    tried = []
    for least in sorted({round(v) for v in torch.linspace(slowest.min_layers, max(mean, slowest.min_layers), FLOORS).tolist()}):
        for start in range(1, least + 1) if starts is None else [s for s in starts if s <= least]:
            try:
                method = DepthDecay.for_speedup(
                    target_speedup, max_new_tokens=max_new_tokens, num_layers=layers, start=start, min_layers=least
                )
            except ValueError:  # so many layers can never be left
                continue
            tried.append((method, sum(divergence(model, ids, method, n) for ids, n in texts) / len(texts)))
    if not tried:
        raise ValueError(
            f"no start of {list(starts or ())} lies within the layers that are left: give some from 1 to {slowest.min_layers}"
        )
    tried.sort(key=lambda row: row[1])
    return TunedDepth(*tried[0], tried)


def divergence(model: Any, input_ids: Int[Tensor, "b t"], method: Depths, prompt_length: int) -> float:
    """KL(full model | layers skipped) of the next token, in nats, mean over the tokens behind the prompt."""
    with torch.no_grad():
        full = model(input_ids=input_ids, use_cache=False).logits[:, prompt_length:].log_softmax(-1)
    less = one_pass(model, input_ids, method, prompt_length=prompt_length)[:, prompt_length:].log_softmax(-1)
    return functional.kl_div(less, full, reduction="none", log_target=True).sum(-1).mean().item()


def continued(model: Any, prompt: Tensor, count: int) -> Tensor:
    """A prompt and what the model writes behind it, greedily."""
    mask = torch.ones_like(prompt)
    ids: Tensor = model.generate(
        prompt, attention_mask=mask, min_new_tokens=count, max_new_tokens=count, do_sample=False, pad_token_id=0
    )
    return ids
