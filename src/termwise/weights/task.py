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
from .judged import Judged, refuse_undefined
from .ladder import Ladder
from .layers import Layer
from .sensitivity import Distance, Sensitivity, distance

__all__ = ["Task", "Unit"]

Unit = Literal["params", "flops", "bytes", "latency", "error"]

ENOUGH, MOST = 256, 4
"""Draws for the errors of choices: as many in all as are enough, where that is not more than some for each sample."""

AT_ONCE = 2**30
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
        statistics: what the layers read, where it is known: of more rows than `batches` hold.
        step: called with what was done, after each unit of work.
    """

    model: nn.Module
    layers: dict[str, Layer]
    batches: Batches
    metric: Distance = "l2"
    shrinkage: float = 0.1
    seed: int = 0
    statistics: CalibrationStats | None = None
    step: Callable[[str], None] = lambda what: None
    scales: dict[str, float] = field(default_factory=dict)

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

    def groups(self, sensitive: bool, held: bool = True) -> list[list[str]]:
        """Layers whose statistics are held together, in order."""
        groups: list[list[str]] = [[]]
        used = 0
        for name, layer in self.layers.items():
            m, n = layer.shape
            need = (16 if held else 8) * (n * n + (m * m if sensitive else 0))  # of each split, in float64
            if used + need > AT_ONCE and groups[-1]:
                groups.append([])
                used = 0
            groups[-1].append(name)
            used += need
        return groups

    def passes(self, sensitive: bool, held: bool = True) -> int:
        """How often the model is run on a batch for the evidence; where sensitive, each time with a backward pass."""
        fit = len(self.batches.fit) if sensitive or self.statistics is None else 0
        return len(self.groups(sensitive, held)) * (fit + (len(self.batches.select) if held else 0))

    @property
    def draws(self) -> int:
        """Of signs or labels, for each sample that choices are made on: few samples are drawn for more often."""
        apart = self.judged.by_sample
        samples = (max(1, self.judged.shape[0]) if apart else 1) * len(self.batches.select)
        return min(MOST if apart else 8 * MOST, -(-ENOUGH // samples))  # a batch that is not told apart is one sample

    def evidence(self, names: list[str], sensitive: bool = False, held: bool = True) -> Iterator[Evidence]:
        """What is known of some layers, all of whose statistics are held at once.

        Args:
            names: of which, see `groups`. What is random is drawn alike for every group.
            sensitive: also what their errors do to the output of the model.
            held: also the same of the data to select on, for methods whose errors these statistics are to tell.
        """
        layers = {name: self.layers[name] for name in names}
        known: list[CalibrationStats] = []
        felt: list[dict[str, Tensor]] = []
        for batches in ((self.batches.fit, self.batches.select) if held else (self.batches.fit,)) if names else ():
            draws = [torch.Generator().manual_seed(self.seed) for _ in range(2)]  # alike whichever layers are looked at
            stepping = self.stepping(batches)
            ready = self.statistics if batches is self.batches.fit else None
            if sensitive:
                both = Sensitivity(layers, self.metric, self.judged, draws[1], coherent=held)
                with both.attached(self.model):
                    if ready is None:
                        known.append(CalibrationStats.collect(self.model, stepping, layers, generator=draws[0], run=both.run))
                    else:
                        known.append(ready)
                        for batch in stepping:
                            both.run(self.model, batch)
                felt.append(both.found())
            else:
                known.append(ready or CalibrationStats.collect(self.model, stepping, layers, generator=draws[0]))
        for name, layer in layers.items():
            stats, h = ([split.get(name) for split in splits] + [None] * 2 for splits in (known, felt))
            yield Evidence(layer, stats[0], stats[1], h[0], h[1], self.shrinkage)

    def stepping(self, batches: list[Any]) -> Stepping:
        """Batches that are counted as they are run through."""
        return Stepping(batches, self.step)

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
        total, samples = 0.0, 0
        for truth, batch in self._truths(split):
            far = distance(truth, self.outputs(model, [batch])[0], self.metric)
            total, samples = total + float(far.sum()), samples + len(far)
        return total / samples

    def scale(self, split: Literal["select", "report"]) -> float:
        """What a change is relative to: mean |f(x)|^2 per sample for "l2", 2 per position for "kl" (so that it is in nats)."""
        if split not in self.scales:
            for _ in self._truths(split):
                pass
        return self.scales[split]

    def _truths(self, split: Literal["select", "report"]) -> Iterator[tuple[Tensor, Any]]:
        """What this model makes of batches, one at a time, as logits may be larger than the model; finds the scale."""
        whole, samples = 0.0, 0
        for batch in getattr(self.batches, split):
            truth = self.outputs(self.model, [batch])[0]
            refuse_undefined(truth)
            whole += 2 * self.judged.positions(truth, batch) if self.metric == "kl" else float(truth.double().square().sum())
            samples += len(truth)
            yield truth, batch
        self.scales[split] = max(whole / samples, 1e-300)

    def relative(self, change: float, split: Literal["select", "report"] = "report") -> float:
        """A change as people read it: |f~ - f| / |f| for "l2", nats per position for "kl"."""
        share = change / self.scale(split)
        return float(np.sqrt(share)) if self.metric == "l2" else share


@dataclass(frozen=True)
class Stepping:
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
