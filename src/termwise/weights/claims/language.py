"""SmolLM2-135M and its texts, for the slow claims of this room: windows of source code and of prose, and perplexity."""

from __future__ import annotations

import importlib
import inspect
import math
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional

__all__ = ["perplexity", "prose_windows", "source_windows", "the_model"]

WINDOW = 256


@cache
def _subject() -> Any:
    from termwise import zoo

    return zoo.load("smollm2-135m")


def the_model(blocks: int) -> tuple[nn.Module, list[str]]:
    """The language model, and patterns of the blocks behind the first few, to be kept as they are."""
    model = _subject().model.language_model
    model.config.use_cache = False
    return model, [f"model.layers.{i}.*" for i in range(blocks, len(model.model.layers))]


def source_windows(module: str, count: int) -> list[dict[str, torch.Tensor]]:
    """Tokens of the source of a module of Python's library."""
    return _windows(inspect.getsource(importlib.import_module(module)), count)


def prose_windows(count: int) -> list[dict[str, torch.Tensor]]:
    """Tokens of English prose: descriptions of the data sets that come with scikit-learn."""
    from sklearn import datasets

    return _windows("\n".join(getattr(datasets, f"load_{name}")().DESCR for name in ("diabetes", "breast_cancer", "wine")), count)


def _windows(text: str, count: int) -> list[dict[str, torch.Tensor]]:
    ids = _subject().preparation.tokenizer.encode(text)
    if len(ids) < count * WINDOW:
        raise ValueError(f"{count} windows of {WINDOW} tokens are wanted, and the text has {len(ids)}")
    return [{"input_ids": torch.tensor([ids[i * WINDOW : (i + 1) * WINDOW]])} for i in range(count)]


def perplexity(model: nn.Module, windows: list[dict[str, torch.Tensor]]) -> float:
    """The exponential of the mean of -log p(next token)."""
    total, count = 0.0, 0
    with torch.no_grad():
        for window in windows:
            logits, ids = model(**window).logits, window["input_ids"]
            total += float(functional.cross_entropy(logits[0, :-1].double(), ids[0, 1:], reduction="sum"))
            count += ids.shape[1] - 1
    return math.exp(min(total / count, 700.0))
