r"""LoRD: low rank from what layers put out, with one rank for all layers of a type, found by sweeps over types.

    E[y y^T] = V S V^T,      W' = V_r (V_r^T W)                      the projector, about the mean where a bias takes it
    increase(t, r) = score(only type t at rank r) / score(model) - 1,      r_t = least rank whose increase is allowed

A type is a path without its numbers, "layers.*.mlp.up". Data of one domain leave room: what they never ask for is what goes, and
`domain_report` shows it. Two factors save numbers below the rank mn / (m + n), and layers above it stay dense.

Source: Kaushal, Vaidhya & Rish 2023 (LoRD), sections 3 and 4.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from .allocation import Allocation, allocate
from .batches import read_batches
from .ladder import Curve, Fitted, Ladder, with_dense
from .layers import Layer, find_layers
from .low_rank import at_rank, fit_aware
from .products import pair_size

if TYPE_CHECKING:
    import pandas

    from .compressed import Compressed
    from .task import Task

__all__ = ["Score", "choose", "domain_report", "layer_types", "lord", "one_rank_per_type", "type_sweep"]

Score = Callable[[nn.Module, Any], float]
"""Of a model on batches, positive, the lower the better: a perplexity."""

RATIOS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


def layer_types(layers: Mapping[str, Layer]) -> dict[str, str]:
    """The type of each layer: its path with * for numbers, and its shape where layers of that path differ in it.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        >>> layer_types(find_layers(model)[0])
        {'0': '* (4 x 4)', '1': '* (4 x 4)', '2': '* (2 x 4)'}
    """
    paths = {name: re.sub(r"(?<![^.])\d+(?![^.])", "*", name) for name in layers}
    shapes: dict[str, set[tuple[int, int]]] = {}
    for name, path in paths.items():
        shapes.setdefault(path, set()).add(layers[name].shape)
    sized = {name: f"{path} ({layers[name].shape[0]} x {layers[name].shape[1]})" for name, path in paths.items()}
    return {name: sized[name] if len(shapes[path]) > 1 else path for name, path in paths.items()}


def type_sweep(
    model: nn.Module,
    data: Any,
    *,
    ratios: Sequence[float] = RATIOS,
    types: Sequence[str] | None = None,
    score: Score | None = None,
    keep: Sequence[str] = (),
    shrinkage: float = 0.1,
) -> pandas.DataFrame:
    """How much worse a model gets when all layers of one type, and no others, are of low rank.

    Args:
        model: it is not changed.
        data: some inputs of the domain that matters, see `read_batches`: half for statistics, a quarter to score on. A score that
            wants labels finds them in the batches.
        ratios: shares of the full rank min(m, n) to try.
        types: of `layer_types`; all when not given.
        score: of a model on batches. When not given the increase is that of the perplexity of what the model itself would say,
            exp(KL) - 1, for models that return `logits`, and the relative change |f~ - f| / |f| for others.
        keep: patterns of paths left alone.
        shrinkage: see `compress`.

    Returns:
        A row for each type and ratio: type, ratio, rank, `params` (of its layers, as a share of dense; above 1 where two factors
        are larger), increase.

    Raises:
        ValueError: for an unknown type, ratios outside (0, 1], or what `read_batches` refuses.

    Cost: the statistics in one pass, and one pass over a quarter of the data for each type and ratio.
    """
    import pandas

    from .compress import assemble

    if not ratios or not all(0 < ratio <= 1 for ratio in ratios):
        raise ValueError(f"ratios are shares of the full rank, above 0 and up to 1, got {list(ratios)}")
    task = _task(model, data, keep, shrinkage)
    of = layer_types(task.layers)
    wanted = list(dict.fromkeys(of.values())) if types is None else list(types)
    unknown = [t for t in wanted if t not in of.values()]
    if unknown:
        raise ValueError(f"no layers of type {unknown[0]!r}: this model has {', '.join(dict.fromkeys(of.values()))}")
    fitted = {
        e.layer.name: fit_aware(e) for e in task.evidence([name for name in of if of[name] in wanted]) if e.stats is not None
    }
    rows = []
    for kind in wanted:
        members = [name for name in fitted if of[name] == kind]
        for ratio in sorted(ratios, reverse=True) if members else ():
            shape = task.layers[members[0]].shape
            rank = max(1, round(ratio * min(shape)))
            small = assemble(task, {name: at_rank(task.layers[name], fitted[name], rank) for name in members})
            params = pair_size(shape, rank) / math.prod(shape)
            rows.append((kind, ratio, rank, params, _increase(task, small, score)))
    return pandas.DataFrame(rows, columns=["type", "ratio", "rank", "params", "increase"])


def choose(sweep: pandas.DataFrame, max_increase: float = 0.01) -> dict[str, float]:
    """The least ratio of each type that is allowed, it and all above it.

    Args:
        sweep: what `type_sweep` returned.
        max_increase: what is allowed for each type: 0.01 is one per cent.

    Returns:
        Ratios by type; a type none of whose ratios is allowed is missing. Increases of several types together add up, and more.

    Raises:
        ValueError: for an increase that is negative, or a table without the columns.
    """
    if not max_increase >= 0:
        raise ValueError(f"max_increase is a share of 0 or more, got {max_increase!r}")
    if not {"type", "ratio", "increase"} <= set(sweep.columns):
        raise ValueError(f"a sweep has the columns type, ratio and increase, got {list(sweep.columns)}")
    chosen: dict[str, float] = {}
    for kind, rows in sweep.groupby("type", sort=False):
        for row in rows.sort_values("ratio", ascending=False).itertuples():
            if not row.increase <= max_increase:
                break
            chosen[str(kind)] = float(row.ratio)
    return chosen


def lord(
    model: nn.Module,
    ratio: float | Mapping[str, float],
    *,
    data: Any,
    keep: Sequence[str] = (),
    shrinkage: float = 0.1,
) -> Compressed:
    """Replace layers by the projector of their outputs, at one rank for all layers of a type, as published.

    For a budget of parameters instead of ranks: `compress(model, 0.9, data=data, method="lord")`.

    Args:
        model: it is not changed; what stays is shared with the result.
        ratio: share of the full rank, for all types or by type (see `choose`); types that are not named stay dense.
        data: some unlabelled inputs of the domain that matters, see `compress`.
        keep: patterns of paths left alone.
        shrinkage: see `compress`.

    Returns:
        A `Compressed`. Layers whose two factors would be no smaller stay dense.

    Raises:
        ValueError: for ratios outside (0, 1], unknown types, or as `compress`.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16))
        >>> small = lord(model, 0.25, data=torch.randn(200, 16))
        >>> [row.choice for row in small.layers]
        ['rank 4', 'rank 4']
    """
    from .compress import compress
    from .methods import Method

    of = layer_types(find_layers(model, keep)[0])
    ratios = dict(ratio) if isinstance(ratio, Mapping) else dict.fromkeys(of.values(), ratio)
    for kind, share in ratios.items():
        if kind not in of.values():
            raise ValueError(f"no layers of type {kind!r}: this model has {', '.join(dict.fromkeys(of.values()))}")
        if not 0 < share <= 1:
            raise ValueError(f"the ratio of {kind!r} is a share of the full rank, above 0 and up to 1, got {share!r}")

    def at_its_rank(layer: Layer, fitted: Fitted) -> Ladder:
        rank = max(1, round(ratios.get(of[layer.name], 1.0) * min(layer.shape)))
        params = np.array([pair_size(layer.shape, rank) if of[layer.name] in ratios else layer.size])
        errors = fitted["errors"][rank : rank + 1].double().numpy()
        return with_dense(layer, [f"rank {rank}"], params, errors, lambda i: at_rank(layer, fitted, rank))

    method = Method(fit_aware, at_its_rank, _cheapest, name="lord")
    return compress(model, 1.0, data=data, method=method, keep=keep, shrinkage=shrinkage, progress=False)


def one_rank_per_type(ladders: Mapping[str, Ladder], curves: Mapping[str, Curve], budget: float) -> Allocation:
    """The least sum of errors, each a share of its layer's output, with layers of a type at one rank."""
    of = layer_types({name: ladder.layer for name, ladder in ladders.items()})
    groups: dict[tuple[str, int], list[str]] = {}
    for name, curve in curves.items():  # a layer that data never reached has one choice
        groups.setdefault((of[name], len(curve.costs)), []).append(name)
    return allocate(curves, budget, groups=list(groups.values()))


def domain_report(
    model: nn.Module, small: nn.Module, domains: Mapping[str, Any], *, score: Score | None = None
) -> pandas.DataFrame:
    """How much worse a smaller model is, domain by domain.

    Args:
        model: as it was.
        small: the smaller one.
        domains: data by name, see `read_batches`; none of it should have been calibrated on.
        score: as of `type_sweep`.

    Returns:
        A row for each domain: domain, increase.

    Raises:
        ValueError: when there is no domain, or data that the model does not take.
    """
    import pandas

    if not domains:
        raise ValueError("domains is empty: name at least one, domains={'in': batches, 'out': batches}")
    rows = []
    for name, data in domains.items():
        task = _task(model, data, (), 0.0)
        everything = [*task.batches.fit, *task.batches.select, *task.batches.report] if task.batches.apart else task.batches.fit
        task.batches = type(task.batches)(everything, everything, everything)
        rows.append((name, _increase(task, small, score)))
    return pandas.DataFrame(rows, columns=["domain", "increase"])


def _task(model: nn.Module, data: Any, keep: Sequence[str], shrinkage: float) -> Task:
    """Measured by what the model returns: logits in nats, anything else by its length."""
    from .batches import call, evaluating
    from .task import Task

    batches = read_batches(data)
    with evaluating(model), torch.no_grad():
        logits = hasattr(call(model, batches.fit[0]), "logits")
    return Task(model, find_layers(model, keep)[0], batches, "kl" if logits else "l2", shrinkage)


def _increase(task: Task, small: nn.Module, score: Score | None) -> float:
    """Score of the smaller model over that of the model, minus one, on the batches to select on."""
    if score is not None:
        return score(small, task.batches.select) / score(task.model, task.batches.select) - 1
    far = task.relative(task.change(small, "select"), "select")
    return math.expm1(far) if task.metric == "kl" else far


def _cheapest(ladders: Mapping[str, Ladder], curves: Mapping[str, Curve], budget: float) -> Allocation:
    """Low rank wherever that is a choice."""
    choice = {name: int(curve.costs.argmin()) for name, curve in curves.items()}
    error = sum(float(curves[name].errors[i]) for name, i in choice.items())
    return Allocation(choice, sum(float(curves[name].costs[i]) for name, i in choice.items()), error, error, 0.0)
