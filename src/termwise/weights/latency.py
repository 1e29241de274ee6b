"""How long a layer takes on this machine, for each of its choices: measured, because numbers stored are not time.

A product of two matrices has overhead that one does not: a rank below break-even in numbers can be slower than the dense layer.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .batches import call, evaluating
from .ladder import Ladder
from .layers import Layer

__all__ = ["latencies", "ratio"]

POINTS = 6
"""Ranks timed on each ladder; between them costs are interpolated."""
ROUNDS = 9


def latencies(model: nn.Module, batch: Any, ladders: Mapping[str, Ladder]) -> dict[str, np.ndarray]:
    """Seconds per call of every choice of every layer, for the inputs of one batch.

    Choices are timed in turn, several rounds, and the median taken; layers of the same kind, shape and input are timed once.

    Args:
        model: whose layers they are.
        batch: as of `read_batches`.
        ladders: by layer.

    Returns:
        By layer, shape (choices,): monotone in what is stored, the dense layer last, as measured.
    """
    inputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs.setdefault(name, Layer.read(args, kwargs).detach().clone())

        return hook

    handles = [ladder.layer.module.register_forward_pre_hook(keep(name), with_kwargs=True) for name, ladder in ladders.items()]
    try:
        with evaluating(model), torch.no_grad():
            call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    known: dict[Any, np.ndarray] = {}
    found: dict[str, np.ndarray] = {}
    for name, ladder in ladders.items():
        if name not in inputs:
            found[name] = np.zeros(len(ladder))
            continue
        key = (str(ladder.layer.module), inputs[name].shape, tuple(ladder.params))
        if key not in known:
            known[key] = _ladder(ladder, inputs[name])
        found[name] = known[key]
    return found


def _ladder(ladder: Ladder, x: Tensor) -> np.ndarray:
    """Times of one ladder: of a few sizes of each kind, interpolated between them."""
    last = len(ladder) - 1
    kinds = list(ladder.families[:last]) or [None] * last
    members = [np.array([i for i in range(last) if kinds[i] == kind]) for kind in dict.fromkeys(kinds)]
    points = [own[np.unique(np.linspace(0, len(own) - 1, min(POINTS, len(own))).round().astype(int))] for own in members]
    modules = [*(ladder.build(int(i)).module for some in points for i in some), ladder.layer.module]
    times = _medians(modules, x)
    found = np.full(last + 1, times[-1])
    if not last:
        return found
    for own, some, taken in zip(
        members, points, np.split(times[:-1], np.cumsum([len(some) for some in points])[:-1]), strict=True
    ):
        found[own] = np.interp(ladder.params[own], ladder.params[some], np.maximum.accumulate(taken))
    return found


def _medians(modules: list[nn.Module], x: Any, run: Any = lambda module, x: module(x)) -> np.ndarray:
    """Median seconds of each, timed in turn."""
    taken = np.zeros((ROUNDS, len(modules)))
    with torch.no_grad():
        for module in modules:
            run(module, x)
        for turn in range(ROUNDS):
            for i, module in enumerate(modules):
                start = time.perf_counter()
                run(module, x)
                taken[turn, i] = time.perf_counter() - start
    return np.median(taken, axis=0)


def ratio(small: nn.Module, model: nn.Module, batch: Any) -> float:
    """Time of one model over that of another on the same batch, timed in turn."""
    with evaluating(small), evaluating(model):
        new, old = _medians([small, model], batch, call)
    return float(new / old)
