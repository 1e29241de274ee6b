r"""Errors of choices measured at the output of the model: one layer replaced, everything else as it is, and the model run.

    e_l(c) = mean over samples of  distance(f(x; W), f(x; W with layer l as choice c))

What was computed before a layer is reached does not depend on its choice: modules that are done by then give what they gave in
one run without any replacement. Where that does not reproduce the output of the layer as it is (a module that writes into its
input, or works beside its return value), the whole model is run instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .batches import evaluating
from .judged import Judged
from .ladder import Ladder
from .layers import put, sharing_copy
from .sensitivity import Distance, distance

__all__ = ["measured"]


def measured(
    model: nn.Module,
    batches: list[Any],
    ladders: Mapping[str, Ladder],
    metric: Distance = "l2",
    *,
    worst_case: bool = False,
    judged: Judged | None = None,
    after: Callable[[str], None] = lambda name: None,
) -> dict[str, Ladder]:
    """Ladders with errors measured at the output.

    Args:
        model: run in evaluation mode; it is as it was afterwards.
        batches: as `read_batches` gives them.
        ladders: the choices of some of its layers.
        metric: see `distance`.
        worst_case: the largest of the samples instead of their mean.
        judged: what counts of the output; looked at on the first batch when not given.
        after: called with each layer of each batch.

    Returns:
        The same choices; the last one, the layer as it is, has error 0.

    Raises:
        ValueError: when there are no batches, or the model does not take them.

    Cost: choices x layers forward passes per batch, each from its layer on: about half of it, where layers follow each other.
    Memory: what every module puts out for one batch.
    """
    if not batches:
        raise ValueError("there are no batches to measure on")
    judged = judged or Judged.of(model, batches[0])
    trial = sharing_copy(model)  # whose modules are exchanged one by one
    found = {name: np.zeros(len(ladder)) for name, ladder in ladders.items()}
    samples = 0
    with evaluating(trial), torch.no_grad():
        for batch in batches:
            record = _Record(trial)
            truth = record.run(batch, judged)
            samples += len(truth)
            for name, ladder in ladders.items():
                own = trial.get_submodule(name)
                done = record.done_before(own)
                if done and not _reproduces(trial, batch, truth, done, judged):
                    done = {}
                errors = _choices(trial, batch, truth, name, ladder, done, metric, judged)
                if done and not _reproduces(trial, batch, truth, done, judged):  # a choice wrote into what was kept
                    record = _Record(trial)
                    truth = record.run(batch, judged)
                    errors = _choices(trial, batch, truth, name, ladder, {}, metric, judged)
                for i, far in enumerate(errors):
                    found[name][i] = max(found[name][i], far.max()) if worst_case else found[name][i] + far.sum()
                after(name)
    scale = 1 if worst_case else samples
    return {name: replace(ladder, errors=found[name] / scale) for name, ladder in ladders.items()}


def _choices(
    trial: nn.Module,
    batch: Any,
    truth: Tensor,
    name: str,
    ladder: Ladder,
    done: Mapping[nn.Module, list[Any]],
    metric: Distance,
    judged: Judged,
) -> list[np.ndarray]:
    """What each choice of a layer does to each sample; the last is the layer itself, and does nothing."""
    own = trial.get_submodule(name)
    far = []
    try:
        for i in range(len(ladder) - 1):
            put(trial, name, ladder.build(i).module)
            with _given(done):
                far.append(distance(truth, judged(trial, batch), metric).double().cpu().numpy())
    finally:
        put(trial, name, own)
    return [*far, np.zeros(len(truth))]


def _reproduces(model: nn.Module, batch: Any, truth: Tensor, done: Mapping[nn.Module, list[Any]], judged: Judged) -> bool:
    with _given(done):
        return torch.equal(judged(model, batch), truth)


@contextmanager
def _given(done: Mapping[nn.Module, list[Any]]) -> Iterator[None]:
    """Modules give what they gave, call by call, for as long as this takes."""
    before = {module: module.__dict__.get("forward") for module in done}
    try:
        for module, outputs in done.items():
            left = iter(outputs)
            module.forward = lambda *args, left=left, **kwargs: next(left)  # type: ignore[method-assign]
        yield
    finally:
        for module, own in before.items():
            if own is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = own  # type: ignore[method-assign]


class _Record:
    """When each module began and ended in one run, and what it put out."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.clock = 0
        self.began: dict[nn.Module, int] = {}
        self.ended: dict[nn.Module, int] = {}
        self.outputs: dict[nn.Module, list[Any]] = {}

    def run(self, batch: Any, judged: Judged) -> Tensor:
        """The model's output; everything of this run is kept."""
        modules = list(self.model.modules())
        handles = [m.register_forward_pre_hook(self._begin) for m in modules]
        handles += [m.register_forward_hook(self._end) for m in modules]
        try:
            return judged(self.model, batch).clone()
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self, module: nn.Module, args: Any) -> None:
        self.clock += 1
        self.began.setdefault(module, self.clock)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self.clock += 1
        self.ended[module] = self.clock
        self.outputs.setdefault(module, []).append(output)

    def done_before(self, layer: nn.Module) -> dict[nn.Module, list[Any]]:
        """The largest modules that were over before a layer began, and what they put out."""
        start = self.began.get(layer, 0)
        done: dict[nn.Module, list[Any]] = {}

        def collect(module: nn.Module) -> None:
            if module in self.ended and self.ended[module] < start:
                done[module] = self.outputs[module]
            else:
                for child in module.children():
                    collect(child)

        collect(self.model)
        return done
