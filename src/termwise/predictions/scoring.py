"""Ask a model about many changed inputs, and read one score of the explained class from each answer.

    logit      z_t
    probability softmax(z)_t
    accuracy   1 where t is the largest of z, else 0

The class t is the one that the model gives to the whole input, or a given one, and stays what it is. Every method that
perturbs goes through `Inquiry.scores`: one batched forward pass per chunk, whatever samples its rows belong to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .perturbation import Features

__all__ = ["SCORES", "Answers", "Inquiry", "Target", "evaluated"]

Target = int | Tensor | Callable[[Any], Tensor] | None

SCORES = ("probability", "logit", "accuracy")
"""What can be read of an answer; a target that is a function gives a score of its own, which counts as a logit."""


class Answers:
    """Scores of some inputs: `logit`, and where there are classes `probability` and `accuracy`; None otherwise."""

    def __init__(self, logit: Tensor, probability: Tensor | None, accuracy: Tensor | None) -> None:
        """Hold them, each (rows,)."""
        self.logit, self.probability, self.accuracy = logit, probability, accuracy

    def of(self, kind: str) -> Tensor:
        """One of them by name.

        Raises:
            ValueError: an unknown kind, or one that needs classes where there are none.
        """
        if kind not in SCORES:
            raise ValueError(f"score must be one of {', '.join(SCORES)}, got {kind!r}")
        found: Tensor | None = getattr(self, kind)
        if found is None:
            raise ValueError(f"score={kind!r} needs an output of several classes: take score='logit'")
        return found


class Inquiry:
    """A model, the class that is asked about, and the answer to the whole input (`whole`)."""

    def __init__(
        self,
        model: nn.Module | Callable[..., Any],
        features: Features,
        target: Target = None,
        *,
        batch_size: int = 32,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Ask about the whole input.

        Raises:
            ValueError: a model in training mode, a target out of range, an output without classes.
        """
        if isinstance(model, nn.Module) and any(m.training for m in model.modules()):
            raise ValueError("the model is in training mode, where its answer is random: call model.eval() first")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.model, self.features, self.batch_size, self.progress = model, features, batch_size, progress
        self.pick = target if callable(target) else None
        self.index = None if self.pick is not None or target is None else _classes(target, features.batch)
        self.whole: Answers
        samples = torch.arange(features.batch)
        self.progress, told = None, self.progress
        self.whole = self.scores(samples, lambda rows: torch.zeros(len(rows), features.n, dtype=torch.bool))
        self.progress = told

    def scores(self, samples: Tensor, replaced: Callable[[Tensor], Tensor]) -> Answers:
        """Scores of every row; arguments as of `Features.batches`."""
        logits: Tensor | None = None
        others: list[Tensor | None] = [None, None]
        found = self.index.clone() if self.index is not None else torch.zeros(self.features.batch, dtype=torch.long)
        done = 0
        for rows, given in self.features.batches(samples, replaced, self.batch_size):
            with torch.no_grad():
                output = self.model(**given) if isinstance(given, Mapping) else self.model(given)
            if self.pick is None and self.index is None:  # of the whole input: the class the model gives
                found[samples[rows]] = _classified(output).argmax(1).cpu()
            parts = self._read(output, found[samples[rows]])
            if logits is None:
                logits = parts[0].new_empty(len(samples))
                others = [None if p is None else torch.empty_like(logits) for p in parts[1:]]
            logits[rows] = parts[0]
            for kept, part in zip(others, parts[1:], strict=True):
                if kept is not None and part is not None:
                    kept[rows] = part
            done += len(rows)
            if self.progress is not None:
                self.progress(done, len(samples))
        self.index = found
        assert logits is not None
        return Answers(logits, others[0], others[1])

    def _read(self, output: Any, index: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if self.pick is not None:
            value = self.pick(output)
            if value.ndim != 1 or len(value) != len(index):
                raise ValueError(f"target must give one score per sample, shape (batch,); it gave {tuple(value.shape)}")
            return value, None, None
        logits = _classified(output)
        n, index = logits.shape[1], index.to(logits.device)
        if bool((index < -n).any() | (index >= n).any()):
            raise ValueError(f"target {index.tolist()[0]} is out of range: the output has {n} classes, 0 to {n - 1}")
        index = index % n
        rows = torch.arange(len(logits), device=logits.device)
        if n == 1:
            return logits[rows, index], None, None
        return logits[rows, index], logits.softmax(1)[rows, index], (logits.argmax(1) == index).to(logits.dtype)


def evaluated(output: Any) -> Tensor:
    """The logits of an output: itself, its `logits`, or its first tensor."""
    if isinstance(output, Tensor):
        return output
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if found is None and isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        found = output[0]
    if not isinstance(found, Tensor):
        raise TypeError(
            f"found no logits in a {type(output).__name__}: pass target=<function from the output to one score per sample>"
        )
    return found


def _classified(output: Any) -> Tensor:
    logits = evaluated(output)
    if logits.ndim != 2:
        raise ValueError(
            f"the output has shape {tuple(logits.shape)}, not (batch, classes): pass target=<function from the output "
            "to one score per sample>"
        )
    return logits


def _classes(target: Any, batch: int) -> Tensor:
    index = torch.as_tensor(target)
    if index.is_floating_point() or index.dtype == torch.bool:
        raise TypeError(f"target must be an integer class index, got {target!r}")
    if index.ndim > 1 or (index.ndim == 1 and len(index) != batch):
        raise ValueError(f"target has shape {tuple(index.shape)} for {batch} samples: one index each, or one for all")
    return index.cpu().expand(batch)
