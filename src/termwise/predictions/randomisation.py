"""The randomisation check: does a map change when the model forgets what it learned?

Layer by layer from the top, the weights of a copy of the model are drawn anew, and the map of the copy is compared with
the first one by Spearman's rank correlation. A map that stays what it was describes the input, or the architecture, and
not what was learned. A rule set that ignores the top layers shows as a correlation of 1 while these are redrawn.

Weights are drawn from a normal distribution with the mean and standard deviation of each parameter, so that activations
keep their size. Cost: one explanation per layer, and one copy of the model.
Source: Adebayo et al. 2018, arXiv 1810.03292 (cascading randomisation).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from termwise.core.arguments import seeded
from termwise.core.pictures import Line, Lines, Picture, Pictured

from .metric import Metric
from .sensitivity import relevance_of

__all__ = ["Randomisation", "randomisation", "spearman"]


@dataclass(frozen=True, eq=False)
class Randomisation(Pictured):
    """Rank correlations with the map of the trained model.

    Attributes:
        layers: module paths, in the order in which they were redrawn.
        correlations: after each of them, (batch, layers).
    """

    layers: list[str]
    correlations: Float[Tensor, "batch layers"]

    def after(self, layer: str | int = -1) -> Metric:
        """The correlation after a layer and all above it were redrawn; by default after all. Near 0 is good."""
        index = self.layers.index(layer) if isinstance(layer, str) else layer
        return Metric(f"rank correlation after {self.layers[index]}", self.correlations[:, index], higher_is_better=False)

    def figure(self, title: str = "") -> bytes:
        """The correlations from top to bottom, mean and spread over samples, as a PNG."""
        from termwise.report.figures import png

        return png(self.pictures(), title)

    def pictures(self, sample: int = 0) -> list[Picture]:
        """The correlations from top to bottom, mean and one deviation over samples."""
        values = self.correlations.double()
        mean, spread = values.mean(0), values.std(0) if len(values) > 1 else values[0] * 0
        line = Line("mean, ± one deviation", self.layers, *(v.tolist() for v in (mean, mean - spread, mean + spread)))
        return [
            Lines("Redrawn from the top down", [line], x="redrawn down to", y="rank correlation with the trained model's map")
        ]


def randomisation(
    model: nn.Module,
    explain: Callable[[nn.Module], Any],
    *,
    layers: Sequence[str] | None = None,
    absolute: bool = False,
    generator: torch.Generator | None = None,
) -> Randomisation:
    """Redraw the weights of a copy from the top down, and follow the map.

    Args:
        model: the trained model; only a copy is changed.
        explain: from a model to its map of the same inputs and target: a tensor, first axis the sample, or an `Explanation`.
        layers: module paths to redraw, in this order; every module with weights of its own, last first, when not given.
        absolute: compare absolute values, for maps whose sign means little.
        generator: of the new weights; seeded with 0 when not given.

    Raises:
        ValueError: a layer that is not there, or has no weights.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
        >>> x = torch.randn(2, 4)
        >>> check = randomisation(model, lambda m: x)           # a "map" that does not look at the model
        >>> check.layers, round(check.after().mean, 9)
        (['2', '0'], 1.0)
    """
    generator = seeded(generator)
    shuffled = copy.deepcopy(model)
    modules = dict(shuffled.named_modules())
    chosen = list(layers) if layers is not None else [n for n, m in modules.items() if _own(m)][::-1]
    if unknown := [n for n in chosen if n not in modules or not any(True for _ in modules[n].parameters())]:
        having = [n for n, m in modules.items() if _own(m)]
        raise ValueError(f"{unknown[0]!r} is no layer with weights: there are {', '.join(having)}")
    if not chosen:
        raise ValueError(f"{type(model).__name__} has no weights to make random")
    before = _map(explain(model), absolute)
    found = []
    for name in chosen:
        with torch.no_grad():
            for weight in modules[name].parameters():
                _redraw(weight, generator)
        found.append(spearman(before, _map(explain(shuffled), absolute)))
    return Randomisation(chosen, torch.stack(found, 1))


def spearman(a: Float[Tensor, "batch n"], b: Float[Tensor, "batch n"]) -> Float[Tensor, " batch"]:
    """Rank correlation of every row; equal values share their mean rank. 0 where one row is constant."""
    ranks = [_mean_ranks(t) for t in (a, b)]
    x, y = (r - r.mean(1, keepdim=True) for r in ranks)
    size = x.norm(dim=1) * y.norm(dim=1)
    return (x * y).sum(1) / torch.where(size == 0, torch.ones_like(size), size)


def _mean_ranks(values: Tensor) -> Tensor:
    ordered, order = values.sort(1)
    # the mean of the first and the last place of each value
    first = torch.searchsorted(ordered, ordered, right=False)
    last = torch.searchsorted(ordered, ordered, right=True) - 1
    return torch.empty_like(ordered, dtype=torch.float64).scatter_(1, order, (first + last).double() / 2)


def _map(found: Any, absolute: bool) -> Tensor:
    values = relevance_of(found).flatten(1)
    return values.abs() if absolute else values


def _own(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


def _redraw(weight: Tensor, generator: torch.Generator) -> None:
    if not weight.is_floating_point():
        return
    spread = weight.double().std() if weight.numel() > 1 else weight.double().abs().mean()
    noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight.device)
    weight.copy_(weight.double().mean() + spread * noise)
