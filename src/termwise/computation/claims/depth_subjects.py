"""What depth decay is measured on and against: random decoders, the small language model, SmolLM2-135M, and other schedules."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..depth_decay import DepthDecay, Depths
from ..depth_terms import one_pass

__all__ = ["ConstantDepth", "Listed", "help_windows", "losses", "rivals", "smollm", "tiny_decoder"]


def tiny_decoder(seed: int, layers: int = 8) -> tuple[Any, Tensor]:
    """A random Llama in float64 whose layers matter, and two prompts of 5 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=48, hidden_size=24, intermediate_size=40, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512, initializer_range=0.25, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).double().eval().requires_grad_(False), torch.randint(1, 48, (2, 5))


@dataclass(frozen=True)
class ConstantDepth:
    """The same layers for every token behind the prompt: `steps[0]` on, then `steps[1]`, from the token where it begins.

    Args:
        start: the first layer that is skipped.
        depth: layers that are left for the first `until` tokens; one less for the others.
        until: which token is the first of the others.
    """

    start: int
    depth: int
    until: int

    def layers(self, i: int, num_layers: int) -> list[int]:
        """All of them for token 0, which the prompt has made."""
        skipped = 0 if i == 0 else num_layers - self.depth + (i >= self.until)
        return [j for j in range(num_layers) if not self.start <= j < self.start + skipped]


@dataclass(frozen=True)
class Listed:
    """As many layers as `counts` has, and the skipped ones taken from `order`, one after the other."""

    counts: DepthDecay
    order: tuple[int, ...]

    def layers(self, i: int, num_layers: int) -> list[int]:
        """Those that are not skipped."""
        skipped = set(self.order[: num_layers - self.counts.count(i, num_layers)])
        return [j for j in range(num_layers) if j not in skipped]


def rivals(method: DepthDecay, tokens: int, num_layers: int, seeds: int = 3) -> dict[str, list[Depths]]:
    """Schedules that run exactly as many layers in so many tokens: constant depth, last layers dropped, random middle layers."""
    total = sum(method.count(i, num_layers) for i in range(1, tokens))
    low, more = divmod(total, tokens - 1)
    constant = ConstantDepth(min(method.start, low), low + 1, more + 1)
    middle = range(1, num_layers - 1)
    random = [
        tuple(middle[j] for j in torch.randperm(len(middle), generator=torch.Generator().manual_seed(seed)).tolist())
        for seed in range(seeds)
    ]
    return {
        "decay": [method],
        "constant": [constant],
        "last": [Listed(method, tuple(range(num_layers - 1, 0, -1)))],
        "random": [Listed(method, order) for order in random],
    }


@cache
def smollm() -> Any:
    """SmolLM2-135M with its tokenizer."""
    from termwise import zoo

    return zoo.load("smollm2-135m")


def help_windows(count: int, length: int, *, skip: int = 0) -> Tensor:
    """Tokens of English pages of Python's own help, in windows of one length, (count, length)."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[k] for k in ("strings", "class", "execmodel", "compound", "objects", "types", "assignment", "import"))
    ids = torch.tensor(smollm().preparation.tokenizer.encode(text))
    return ids[skip * length : (skip + count) * length].view(count, length)


def losses(model: Any, ids: Tensor, method: Depths | None = None, prompt_length: int = 1) -> Tensor:
    """-log p of every token but the first, (batch, tokens - 1); of a schedule, with layers skipped behind the prompt."""
    with torch.no_grad():
        if method is None:
            logits = model(input_ids=ids, use_cache=False).logits
        else:
            logits = one_pass(model, ids, method, prompt_length=prompt_length)
        return functional.cross_entropy(logits[:, :-1].transpose(1, 2).double(), ids[:, 1:], reduction="none")
