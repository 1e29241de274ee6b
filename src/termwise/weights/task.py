"""What is to be compressed, on what data and for what budget: what every method asks for its evidence."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from .batches import Batches, evaluating
from .calibration import CalibrationStats
from .evidence import Evidence
from .judged import Judged
from .ladder import Ladder
from .layers import Layer
from .sensitivity import Distance, distance, sensitivity

__all__ = ["Task", "Unit"]

Unit = Literal["params", "flops", "bytes", "latency", "error"]

AT_ONCE = 2**31
"""Bytes of statistics that are held at one time; the model is run again for every such group of layers."""


@dataclass(eq=False)
class Task:
    """A model to be made smaller.

    Attributes:
        model: as it is; it is not changed.
        layers: that may be taken apart.
        batches: to fit, to select and to report on.
        metric: how far one output is from another, see `distance`.
        shrinkage: of statistics, see `calibration.shrink`.
        seed: of everything random.
        step: called with what was done, after each unit of work.
    """

    model: nn.Module
    layers: dict[str, Layer]
    batches: Batches
    metric: Distance = "l2"
    shrinkage: float = 0.1
    seed: int = 0
    step: Callable[[str], None] = lambda what: None
    truths: dict[str, list[Tensor]] = field(default_factory=dict)

    @functools.cached_property
    def judged(self) -> Judged:
        """What counts of the model's output.

        Raises:
            ValueError: when data were cut into batches along their first axis, and samples do not lie along it.
        """
        judged = Judged.of(self.model, self.batches.fit[0])
        if self.batches.cut and not judged.rows:
            raise ValueError(
                "data were cut along their first axis, and the output of the model for part of a batch is not part of it: "
                "samples lie along another axis (batch_first=False) or depend on each other; give a list of batches"
            )
        return judged

    @property
    def size(self) -> int:
        """Numbers in all layers as they are."""
        return sum(layer.size for layer in self.layers.values())

    def groups(self, sensitive: bool) -> list[list[str]]:
        """Layers whose statistics are held together, in order."""
        groups: list[list[str]] = [[]]
        used = 0
        for name, layer in self.layers.items():
            m, n = layer.shape
            need = 16 * (n * n + (m * m if sensitive else 0))  # two of each, in float64
            if used + need > AT_ONCE and groups[-1]:
                groups.append([])
                used = 0
            groups[-1].append(name)
            used += need
        return groups

    def passes(self, sensitive: bool) -> str:
        """How often the model is run for the evidence, in words."""
        groups, batches = len(self.groups(sensitive)), len(self.batches.fit) + len(self.batches.select)
        text = f"{groups * batches} forward passes"
        return f"{text} and {groups * batches} with a backward pass" if sensitive else text

    def evidence(self, names: list[str], sensitive: bool = False) -> Iterator[Evidence]:
        """What is known of some layers, all of whose statistics are held at once.

        Args:
            names: of which, see `groups`. What is random is drawn alike for every group.
            sensitive: also what their errors do to the output of the model.
        """
        layers = {name: self.layers[name] for name in names}
        known: list[CalibrationStats] = []
        felt: list[dict[str, Tensor]] = []
        for batches in (self.batches.fit, self.batches.select) if names else ():
            draws = [torch.Generator().manual_seed(self.seed) for _ in range(2)]  # alike whichever layers are looked at
            known.append(CalibrationStats.collect(self.model, _Stepping(batches, self.step), layers, generator=draws[0]))
            if sensitive:
                seen, judged = _Stepping(batches, self.step), self.judged
                felt.append(sensitivity(self.model, seen, layers, metric=self.metric, judged=judged, generator=draws[1]))
        for name, layer in layers.items():
            h = [f.get(name) for f in felt] or [None, None]
            yield Evidence(layer, known[0].get(name), known[1].get(name), h[0], h[1], self.shrinkage)

    def positions(self) -> dict[str, float]:
        """Rows that each layer multiplies for one sample: 1, tokens, pixels."""
        counted: dict[str, float] = {}

        def hook(name: str, layer: Layer) -> Any:
            def count(_: nn.Module, args: Any, y: Tensor) -> None:
                counted[name] = counted.get(name, 0.0) + y.numel() / layer.shape[0]

            return count

        handles = [layer.module.register_forward_hook(hook(name, layer)) for name, layer in self.layers.items()]
        try:
            samples = max(1, len(self.outputs(self.model, self.batches.fit[:1])[0]))
        finally:
            for handle in handles:
                handle.remove()
        return {name: count / samples for name, count in counted.items()}

    def outputs(self, model: nn.Module, batches: list[Any]) -> list[Tensor]:
        """What a model makes of batches, as far as it counts."""
        with evaluating(model), torch.no_grad():
            return [self.judged(model, batch) for batch in batches]

    def change(self, model: nn.Module, split: Literal["select", "report"]) -> float:
        """How far the outputs of another model are from this one's, mean over samples of `distance`."""
        batches = getattr(self.batches, split)
        if split not in self.truths:
            self.truths[split] = self.outputs(self.model, batches)
        total, samples = 0.0, 0
        for batch, truth in zip(batches, self.truths[split], strict=True):
            far = distance(truth, self.outputs(model, [batch])[0], self.metric)
            total, samples = total + float(far.sum()), samples + len(far)
        return total / samples

    def scale(self, split: Literal["select", "report"]) -> float:
        """What a change is relative to: mean |f(x)|^2 per sample for "l2", 2 per position for "kl" (so that it is in nats)."""
        if split not in self.truths:
            self.truths[split] = self.outputs(self.model, getattr(self.batches, split))
        truths, batches = self.truths[split], getattr(self.batches, split)
        samples = sum(len(y) for y in truths)
        if self.metric == "kl":
            return 2 * sum(self.judged.positions(y, batch) for y, batch in zip(truths, batches, strict=True)) / samples
        return max(sum(float(y.square().sum()) for y in truths) / samples, 1e-300)

    def relative(self, change: float, split: Literal["select", "report"] = "report") -> float:
        """A change as people read it: |f~ - f| / |f| for "l2", nats per position for "kl"."""
        share = change / self.scale(split)
        return float(np.sqrt(share)) if self.metric == "l2" else share


@dataclass(frozen=True)
class _Stepping:
    """Batches that are counted as they are run through."""

    batches: list[Any]
    step: Callable[[str], None]

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            self.step("looking at data")
            yield batch


def cost_of(ladder: Ladder, unit: Unit, positions: float) -> np.ndarray:
    """What each choice of a layer costs."""
    if unit == "bytes":
        return ladder.params * float(ladder.layer.matrix.element_size())
    if unit == "flops":
        return 2.0 * ladder.params * positions
    return ladder.params.astype(float)
