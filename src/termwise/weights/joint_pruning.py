r"""Which share of its weights each layer loses, so that the output of the model changes least: rate-distortion over layers.

    delta_l(a) = mean over samples of |f(x; W) - f(x; W with the lowest share a of layer l zeroed)|^2
    min over a_1 ... a_L  sum_l delta_l(a_l)      subject to      sum_l kept_l(a_l) <= B

Distortions of single layers add up as long as they are small, E|f - f~|^2 ~ sum_l delta_l, which `joint_distortion` measures: the
whole is the distortion with all masks, a part that of one, and the remainder their interaction. Solved by `allocate`.

Masks are a measurement of what matters, and no compression: a layer with zeros is as large and as slow as without. Biases, norms
and everything that is not a layer's matrix are never pruned, and count in no budget.

Source: Xu et al. 2023, Efficient joint optimization of layer-adaptive weight pruning in deep neural networks, additivity and the
programme; Sun et al. 2024 (WANDA), the score |W| |x|. The published grid runs to a = 1; ours ends at 0.98, since a layer without
weights ends a network that has no way around it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from termwise.core.arguments import integer
from termwise.core.decomposition import Decomposition
from termwise.core.mosaic import mosaic
from termwise.core.pictures import MANY, Bars, Picture, Pictured, Steps

from .allocation import allocate
from .batches import read_batches
from .calibration import CalibrationStats
from .evidence import Evidence
from .factorization import Factorization
from .ladder import Fitted, Ladder, Replacement
from .layers import Layer, find_layers, put, sharing_copy
from .measured_errors import measured
from .products import like
from .sensitivity import Distance, distance
from .task import Task

__all__ = ["Masks", "distortion_curves", "fit_prune", "joint_distortion", "measure_at_output", "prune", "prune_choices"]

Score = Literal["magnitude", "wanda"]

MOST = 0.98
"""The largest share of a layer that may be pruned."""

AMOUNTS = 24
"""Shares tried for each layer by `compress`."""


@dataclass(frozen=True, eq=False)
class Masks(Mapping[str, Tensor], Pictured):
    """What is kept of each layer.

    Attributes:
        kept: by path, True where a weight stays, shape (m, n) of the layer's matrix.
        expected: distortion of the output that the curves add up to.
    """

    kept: Mapping[str, Tensor]
    expected: float = float("nan")

    def __getitem__(self, name: str) -> Tensor:
        return self.kept[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.kept)

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def sparsity(self) -> float:
        """Share of zeros, over all masked layers together."""
        return 1 - sum(int(mask.sum()) for mask in self.kept.values()) / sum(mask.numel() for mask in self.kept.values())

    def pictures(self, sample: int = 0) -> list[Picture]:
        """How much of each layer is kept, and where."""
        names = list(self.kept)[:MANY]
        more = f" {len(names)} of {len(self)} layers are shown." if len(names) < len(self) else ""
        kept = {"kept": [float(self.kept[n].double().mean()) for n in names]}
        expected = "" if math.isnan(self.expected) else f" The output is expected to be off by {self.expected:.3g}."
        note = f"{self.sparsity:.1%} of the weights are zeros.{expected}{more}"
        some = names[:: -(-len(names) // 8)]
        axes = {"value": "share kept", "x": "input", "y": "output"}
        where = [mosaic("", self.kept[n].double(), most=32, top=1.0, signed=False, **axes) for n in some]  # type: ignore[arg-type]
        return [Bars("What is kept of each layer", names, kept, y="share", note=note), Steps("Where", "layer", some, where)]

    def apply(self, model: nn.Module) -> nn.Module:
        """A copy of the model with zeros in its layers: as large and as fast as it was.

        Raises:
            ValueError: when it has no such layer, or one of another shape.
        """
        return _masked(model, self.kept)


def distortion_curves(
    model: nn.Module,
    data: Any,
    *,
    score: Score = "magnitude",
    grid: int = 101,
    worst_case: bool = False,
    most: float = MOST,
    metric: Distance = "l2",
    keep: Sequence[str] = (),
) -> dict[str, Ladder]:
    """What zeros in each layer alone do to the output of the model, for every share of a grid.

    Args:
        model: any model with `nn.Linear` or `nn.Conv2d`. It is not changed.
        data: some unlabelled inputs, see `read_batches`; all of them are measured on.
        score: what is zeroed first: the smallest "magnitude" |W_ij|, or "wanda", |W_ij| |x_j|; compared over the layer.
        grid: shares from 0 to 1, of which those up to `most` are tried.
        worst_case: the largest distortion of a sample instead of the mean over samples.
        most: the largest share, below 1.
        metric: "l2" or "kl", see `sensitivity.distance`.
        keep: patterns of paths left alone.

    Returns:
        A `Ladder` per layer: `.params` are weights kept, `.errors` distortions. Measure again after training.

    Raises:
        ValueError: for an unknown score, fewer than two shares, a largest share not between 0 and 1, or data that do not fit.

    Cost: grid x layers forward passes per batch, about half of each where layers follow one another, see `measured_errors`.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> curves = tw.weights.distortion_curves(model, torch.randn(64, 8), grid=11)
        >>> masks = tw.weights.prune(model, 0.5, curves)
        >>> masks.sparsity >= 0.5, list(masks)
        (True, ['0', '2'])
    """
    if score not in ("magnitude", "wanda"):
        raise ValueError(f"score is 'magnitude' or 'wanda', got {score!r}")
    if integer(grid) is None or grid < 2 or not 0 < most < 1:
        raise ValueError(f"grid is a number of shares from 2 on, most a share between 0 and 1, got {grid!r} and {most!r}")
    batches = read_batches(data).every
    layers = find_layers(model, keep)[0]
    stats = CalibrationStats.collect(model, batches, layers) if score == "wanda" else {}
    amounts = np.linspace(0, 1, grid)
    ladders = {name: _ladder(layer, _order(layer, stats.get(name)), amounts[amounts <= most]) for name, layer in layers.items()}
    return measured(model, batches, ladders, metric, worst_case=worst_case)


def prune(model: nn.Module, sparsity: float, curves: Mapping[str, Ladder], previous: Masks | None = None) -> Masks:
    """The masks that spoil least, by what the curves say.

    Args:
        model: whose layers the curves are of.
        sparsity: share of zeros, over all layers of the curves together; reached at least.
        curves: from `distortion_curves`.
        previous: masks of an earlier round: no layer keeps more than it did there.

    Returns:
        The `Masks`. With weights trained under `previous`, zeros stay zeros, since they are the smallest there are.

    Raises:
        ValueError: for a sparsity that is not between 0 and 1 or beyond the end of the curves, or curves of another model.

    Cost: dynamic programming, O(layers x shares) for a table of fixed width.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity is a share of zeros from 0 to below 1, got {sparsity!r}")
    layers = find_layers(model)[0]
    if strangers := [name for name, c in curves.items() if name not in layers or layers[name].shape != c.layer.shape]:
        raise ValueError(f"this model has no layer {strangers[0]!r} of that shape: measure its own curves")
    budget = (1 - sparsity) * sum(layer.size for layer in (c.layer for c in curves.values()))
    bounds = {name: (0.0, float(mask.sum())) for name, mask in ({} if previous is None else previous).items()}
    found = allocate({name: ladder.curve() for name, ladder in curves.items()}, budget, bounds=bounds)
    kept = {}
    for name, i in found.choice.items():
        part = curves[name].build(i).weight
        kept[name] = torch.ones(curves[name].layer.shape, dtype=torch.bool) if part is None else part.factors["kept"] != 0
    return Masks(kept, found.error)


def joint_distortion(model: nn.Module, masks: Mapping[str, Tensor], data: Any, metric: Distance = "l2") -> Decomposition:
    """How far the output moves with all masks, by layer.

    Args:
        model: it is not changed.
        masks: by path of a layer, True where a weight stays, shape (m, n).
        data: some inputs, see `read_batches`.
        metric: "l2": |f - f~|^2 of each sample.

    Returns:
        A Decomposition, whole of shape (samples,): the distortion with all masks; a part for each layer, the distortion with its
        mask alone; the remainder is what they do together and not apart. `whole.mean() / total().mean()` is 1 where they add up.

    Raises:
        ValueError: for masks that do not fit.

    Cost: layers + 2 forward passes per batch.
    """
    split = read_batches(data)
    task = Task(model, {}, split, metric)
    truths = task.outputs(model, split.every)

    def far(kept: Mapping[str, Tensor]) -> Tensor:
        found = task.outputs(_masked(model, kept), split.every)
        return torch.cat([distance(a, b, metric) for a, b in zip(truths, found, strict=True)])

    return Decomposition(far(masks), {name: far({name: mask}) for name, mask in masks.items()})


def _masked(model: nn.Module, kept: Mapping[str, Tensor]) -> nn.Module:
    layers = find_layers(model)[0]
    small = sharing_copy(model)
    for name, mask in kept.items():
        if name not in layers or layers[name].shape != mask.shape:
            raise ValueError(f"this model has no layer {name!r} of shape {tuple(mask.shape)}: its layers are {', '.join(layers)}")
        put(small, name, like(layers[name], layers[name].matrix * mask.to(layers[name].matrix), layers[name].bias))
    return small


def _order(layer: Layer, stats: Any = None) -> Tensor:
    """Places in the flattened matrix, the least important first."""
    scores = layer.matrix.abs() if stats is None else layer.matrix.abs().double() * stats.norms
    return scores.flatten().argsort(stable=True)


def _ladder(layer: Layer, order: Tensor, amounts: np.ndarray) -> Ladder:
    """The layer with these shares of its weights zeroed, most first; errors are shares of |W|^2, until they are measured."""
    kept = np.unique(np.maximum(np.floor((1 - amounts) * layer.size), 1).astype(np.int64))
    squares = layer.matrix.flatten()[order].double().square().cumsum(0)
    lost = torch.cat([squares.new_zeros(1), squares])[torch.as_tensor(layer.size - kept)] / squares[-1].clamp_min(1e-300)

    def build(i: int) -> Replacement:
        mask = torch.zeros(layer.size, dtype=torch.bool, device=order.device)
        mask[order[layer.size - int(kept[i]) :]] = True
        mask = mask.reshape(layer.shape)
        weight = layer.matrix * mask
        part = Factorization(layer.matrix, form="masked", factors={"values": weight, "kept": mask.to(weight)})
        return Replacement(like(layer, weight, layer.bias), part)

    last = len(kept) - 1 if kept[-1] == layer.size else len(kept)
    return Ladder(
        layer,
        [*(f"{1 - k / layer.size:.1%} zeros" for k in kept[:last]), "dense"],
        np.append(kept[:last], layer.size),
        np.append(lost.cpu().numpy()[:last], 0.0),
        lambda i: Replacement(layer.module) if i == last else build(i),
    )


# -- a method of `compress` -----------------------------------------------------------------------------------------------


def fit_prune(evidence: Evidence) -> Fitted:
    """The order of its weights by magnitude."""
    return {"order": _order(evidence.layer)}


def prune_choices(layer: Layer, fitted: Fitted) -> Ladder:
    """Shares from none to 98 %, evenly spread."""
    return _ladder(layer, fitted["order"], np.linspace(0, MOST, AMOUNTS + 1)[1:])


def measure_at_output(task: Task, ladders: Mapping[str, Ladder], fitted: Mapping[str, Fitted]) -> dict[str, Ladder]:
    """The same with what each does to the output of the model, on the data to choose on."""
    return measured(task.model, task.batches.select, ladders, task.metric, judged=task.judged, after=task.step)
