"""A small language model, trained here on the reference pages of Python's own help: it knows some English by character.

A Llama of transformers (extra `text`) over ASCII codes. Deterministic for a seed, leaves the global random state as it was,
kept for the process. A tenth of the pages is held out.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["help_pages", "small_lm"]

WINDOW = 96


@cache
def help_pages() -> tuple[Tensor, Tensor]:
    """Characters of the pages of `help("topics")`, as ASCII codes: nine tenths to learn from, and the others."""
    from pydoc_data.topics import topics

    ids = [torch.frombuffer(bytearray(topics[k].encode("ascii", "ignore")), dtype=torch.uint8).long() for k in sorted(topics)]
    return torch.cat([x for i, x in enumerate(ids) if i % 10]), torch.cat(ids[::10])


@cache
def small_lm(seed: int = 0, *, layers: int = 8, steps: int = 200) -> Any:
    """A causal language model with `layers` layers of width 48, in eval mode, float32, with frozen weights.

    Args:
        seed: of weights and batches.
        layers: of the decoder.
        steps: of 16 windows.

    Raises:
        ImportError: without transformers.
    """
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as missing:
        raise ImportError('the small language model is one of transformers: pip install "termwise[text]"') from missing
    config = LlamaConfig(
        vocab_size=128, hidden_size=48, intermediate_size=96, num_hidden_layers=layers, num_attention_heads=4,
        max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None, pad_token_id=0,
        initializer_range=0.06,
    )  # fmt: skip
    text, _ = help_pages()
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        optimizer = torch.optim.AdamW(model.parameters(), 6e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps, pct_start=0.15)
        for _ in range(steps):
            at = torch.randint(len(text) - WINDOW - 1, (16,), generator=generator)
            ids = torch.stack([text[i : i + WINDOW + 1] for i in at.tolist()])
            loss = functional.cross_entropy(
                model(input_ids=ids[:, :-1], use_cache=False).logits.flatten(0, 1), ids[:, 1:].flatten()
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model.eval().requires_grad_(False)
