"""A smaller model in one call: evidence from data, choices for every layer, one allocation, one plain model."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from termwise.core.arguments import a_module, number, seeded

from .allocation import Allocation
from .batches import read_batches
from .calibration import CalibrationStats
from .compressed import Compressed, LayerRow
from .evidence import Evidence
from .kept_work import KeptWork, fingerprint
from .ladder import Curve, Fitted, Replacement
from .latency import latencies
from .layers import Layer, find_layers, put, sharing_copy
from .low_rank_linear import GroupedLinear, LowRankLinear
from .methods import METHODS, Method
from .sensitivity import Distance
from .task import Task, Unit, cost_of

__all__ = ["compress"]

TRIALS = 7
"""Models that are tried for a ceiling on the error: to within 1 % of the dense cost."""
UNITS = ("params", "flops", "bytes", "latency", "error")


def compress(
    model: nn.Module,
    budget: float = 0.5,
    *,
    data: Any,
    unit: Unit = "params",
    method: str | Method = "auto",
    keep: Sequence[str] = (),
    metric: Distance | Literal["auto"] = "auto",
    shrinkage: float = 0.1,
    statistics: CalibrationStats | None = None,
    progress: bool = True,
    inplace: bool = False,
    work: str | Path | None = None,
    generator: torch.Generator | None = None,
) -> Compressed:
    """Make a model smaller, and measure by how much its output changed.

        min over choices of  sum_l E |f(x; W) - f(x; W_l')|^2      subject to   sum_l cost(W_l') <= budget * sum_l cost(W_l)

    Layers that are matrices (linear layers, convolutions of one group) are replaced by products of smaller ones, or stay as they
    are. Embeddings, tied heads, depth-wise convolutions, biases and norms are left alone and count in no budget.

    Args:
        model: any model with `nn.Linear` or `nn.Conv2d`. It is not changed; what stays is shared with the result.
        budget: share of what the compressible layers cost now, between 0 and 1; for "error" the largest relative change of the
            output that is allowed, |f~ - f| / |f| (or nats per position, see `metric`): on the quarter of the data to choose on.
            The report says it beside the change on the quarter held out, where it may be more.
        data: some unlabelled inputs, not sorted by what they show, as they are cut where they stand: a tensor of samples, a
            list of batches or a DataLoader, see `read_batches`. Half is for statistics, a quarter to choose on, a quarter to
            report on. 8 rows (tokens, patches) per input feature are few.
        unit: of the budget: "params", "flops" (of the inputs given), "bytes", "latency" (measured on this machine) or "error".
        method: a key of `METHODS`, or a `Method`. "auto" weighs errors by what they do to the output of the model.
        keep: patterns of paths left alone, as of a shell: "head", "encoder.layer.0.*".
        metric: what a change of the output is: "l2", or "kl" of the softmax over its last axis; "auto" takes "kl" for what
            returns `logits`, unless the budget is an "error". `logits` count alone; of a tuple or mapping without them every
            tensor of floating point counts, each relative to its own size, and the report says which did not and why (wrap the
            model for others). Where a batch has an `attention_mask`, padding counts in nothing.
        shrinkage: share of the identity in every statistic, against over-fitting few rows.
        statistics: what the layers read, gathered before from more rows than `data` holds (`CalibrationStats.collect`); it takes
            the place of that of the first half of `data`, which then serves for what errors do to the output.
        progress: show a bar.
        work: folder to keep finished layers in: an interrupted run with the same arguments goes on there, and ends with the same
            result. What was worked out then lies on disk and not in memory.
        inplace: replace in the model itself, for one that does not fit twice.
        generator: of what is random (patches, signs); seed 0 when not given.

    Returns:
        A `Compressed`: `.model`, `.report()`, `.parts` (a `Factorization` for each replaced layer), `.save()`.

    Raises:
        ValueError: for a budget that makes no sense for its unit or is too small, an unknown method (with the nearest), data that
            the model does not take or that hold NaN, a model with nothing to compress.

    Cost: for "auto" a forward and a backward pass per batch: of those for statistics one for each GiB of them, of those to choose
    on up to four backward passes where samples are few; per layer an eigenproblem of its smaller side. Memory: O(model + factors
    of all layers + activations of a batch); the factors of a layer (m, n) are (m + n) min(m, n) numbers, on disk with `work`.
    Besides, n^2 + m^2 numbers of statistics per layer, up to 1 GiB at a time.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(20, 40), torch.nn.ReLU(), torch.nn.Linear(40, 5))
        >>> small = tw.compress(model, 0.6, data=torch.randn(400, 20), progress=False)
        >>> small.kept <= 0.6, small.model(torch.randn(3, 20)).shape
        (True, torch.Size([3, 5]))
    """
    model = a_module(model, "whose layers are replaced")
    chosen = method if isinstance(method, Method) else _method(method)
    before = sum(p.numel() for p in model.parameters())
    expects = chosen.sensitive or chosen.measure is not None
    named = method if isinstance(method, str) else method.name
    if work is not None and not isinstance(method, str):
        raise ValueError("work= keeps the layers of a method by name: put yours into METHODS and name it")
    budget = _checked(budget, unit, shrinkage)
    if chosen.zeros and unit not in ("params", "error"):
        raise ValueError(f"method={named!r} puts zeros into layers, which saves no {unit}: its unit is 'params' or 'error'")
    layers, left = find_layers(model, keep)
    seed = 0 if generator is None else int(torch.randint(2**62, (1,), generator=seeded(generator)))
    if statistics is not None:
        _check_statistics(statistics, layers)
    task = Task(model, layers, read_batches(data), shrinkage=shrinkage, seed=seed, statistics=statistics)
    task.metric = _metric(metric, unit, task)
    with _bar(progress, task, chosen, unit):
        positions = task.positions()
        kept = None if work is None else _kept(work, task, named, chosen)
        fitted = dict(_fit(task, chosen, kept))
        ladders = {name: chosen.ladder(layer, fitted[name]) for name, layer in layers.items()}
        if chosen.measure is not None:
            reached = {name: ladder for name, ladder in ladders.items() if name in positions}
            ladders |= chosen.measure(task, reached, fitted)
    unreached = [name for name in ladders if name not in positions]  # nothing is known of them, and they count in no budget
    left |= dict.fromkeys(unreached, "never reached by the data")
    for name in ladders:
        if name not in unreached and chosen.sensitive and "felt" not in fitted[name]:
            unreached.append(name)
            left[name] = "the output does not depend on it"
    _warn(task, unreached, left)
    if unit == "latency":
        costs = latencies(model, task.batches.select[0], ladders)
    else:
        costs = {name: cost_of(ladder, unit, positions.get(name, 0.0)) for name, ladder in ladders.items()}
    curves = {name: ladder.curve(costs[name]) for name, ladder in ladders.items() if name not in unreached}
    dense, least = (sum(float(f(curve.costs)) for curve in curves.values()) for f in (np.max, np.min))
    if unit != "error" and budget * dense < least:
        raise ValueError(
            f"budget={budget:.3g} of the {unit} is below the least that {named!r} can make of these layers, {least / dense:.3g}"
        )

    def at(limit: float) -> tuple[Allocation, nn.Module, dict[str, Replacement]]:
        allocation = chosen.policy({name: ladders[name] for name in curves}, curves, limit)
        if chosen.build is not None:
            built = chosen.build(task, ladders, allocation.choice)
        else:
            built = {name: ladders[name].build(i) for name, i in allocation.choice.items()}
        return allocation, assemble(task, built), built

    if unit == "error":
        allocation, small, built = _within_error(task, at, dense, curves, budget)
        if not any(replacement.weight for replacement in built.values()):
            warnings.warn(f"no smaller model was found whose output changes by {budget:.3g} or less", UserWarning, stacklevel=2)
    else:
        allocation, small, built = at(budget * dense)
    measured = task.change(small, "report")
    gap = selected = math.nan
    if unit == "error" or (expects and built):
        selected = task.change(small, "select")
    if expects and built:
        gap = selected / max(allocation.error, 1e-12 * task.scale("select"))
    if gap > 2.25:
        warnings.warn(
            f"the output changes {math.sqrt(gap):.2g} times as much as the layers' expected errors add up to: they are too large "
            "for that, or data are few; trust what was measured, and keep more or give more data",
            UserWarning, stacklevel=2,
        )  # fmt: skip
    if inplace:
        for name, replacement in built.items():
            if replacement.weight is not None:
                put(model, name, small.get_submodule(name))
        small = model
    rows = [
        LayerRow(
            name, ladder.layer.shape, ladder.labels[i], ladder.layer.size, int(ladder.params[i]), float(ladder.errors[i]),
            0.0 if (weight := built[name].weight) is None else weight.error(),
        )
        for name, ladder in ladders.items()
        if name in allocation.choice
        for i in (allocation.choice[name],)
    ]  # fmt: skip
    predicted = task.relative(allocation.error) if expects else math.nan
    return Compressed(
        small, named, unit, budget, rows, {name: r.weight for name, r in built.items() if r.weight is not None}, left,
        allocation.cost / dense, predicted, task.relative(measured), task.metric, before, gap, task.judged.kind,
        selected if math.isnan(selected) else task.relative(selected, "select"), task.batches.apart,
    )  # fmt: skip


def _method(name: str) -> Method:
    if not isinstance(name, str):
        raise TypeError(f"method is a name or a termwise.weights.Method, got {name!r}")
    if name not in METHODS:
        import difflib

        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown method {name!r}: {hint}There are: {', '.join(METHODS)}")
    return METHODS[name]


def _checked(budget: float, unit: str, shrinkage: float) -> float:
    """The budget, where it makes sense."""
    if unit not in UNITS:
        raise ValueError(f"unit is one of {', '.join(UNITS)}, got {unit!r}")
    share = number(budget)
    if share is None or not 0 < share < math.inf:
        raise ValueError(f"budget is a positive number, got {budget!r}")
    if unit != "error" and share > 1:
        raise ValueError(f"budget is the share of the {unit} to keep, up to 1, got {budget!r}: for one half write budget=0.5")
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage is a share from 0 to 1, got {shrinkage!r}")
    return share


def _check_statistics(statistics: CalibrationStats, layers: Mapping[str, Layer]) -> None:
    if not set(statistics) & set(layers):
        raise ValueError(f"statistics are of none of the layers to compress; they are of {', '.join([*statistics][:3])}")
    for name in set(statistics) & set(layers):
        found, size = len(statistics[name].mean), layers[name].shape[1]
        if found != size:
            raise ValueError(f"statistics of {name} are of {found} inputs, and it reads {size}: they are of another model")


def _metric(metric: str, unit: str, task: Task) -> Distance:
    if metric not in ("l2", "kl", "auto"):
        raise ValueError(f"metric is 'l2', 'kl' or 'auto', got {metric!r}")
    shape = task.judged.shape
    if metric == "kl" and len(task.judged.scales) > 1:
        found = ", ".join(task.judged.scales)
        raise ValueError(f"metric='kl' is for one tensor of logits, and the model returns {found}: wrap it to return one")
    classes = len(shape) in (2, 3) and shape[-1] > 1  # of a picture of classes the last axis is a place
    if metric == "kl" and not classes:
        raise ValueError(f"metric='kl' is for logits of classes on the last axis, and the output has shape {shape}")
    named = metric == "auto" and unit != "error" and "logits" in task.judged.scales
    return "kl" if metric == "kl" or (named and classes) else "l2"


def _fit(task: Task, method: Method, kept: KeptWork | None) -> Iterator[tuple[str, Fitted]]:
    """What the method works out for each layer; a group of layers of which one is missing is looked at again."""
    held = method.measure is None  # else that looks at the data to select on
    for group in task.groups(method.sensitive, held):
        missing = [name for name in group if kept is None or name not in kept]
        known = (
            task.evidence(missing, method.sensitive, held) if method.data else (Evidence(task.layers[name]) for name in missing)
        )
        for evidence in known:
            name = evidence.layer.name
            task.step(f"taking apart {name}")
            fitted = method.fit(evidence)
            yield name, fitted if kept is None else kept.put(name, fitted)
        if kept is not None:
            yield from ((name, kept.get(name)) for name in group if name not in missing)


def _kept(folder: str | Path, task: Task, name: str, method: Method) -> KeptWork:
    asked = {
        "method": name,
        "model": fingerprint(task.model),
        "data": fingerprint([task.batches.fit, task.batches.select]) if method.data else "",
        "metric": task.metric,
        "shrinkage": task.shrinkage,
        "seed": task.seed,
        "statistics": None if task.statistics is None else fingerprint({n: s.scatter for n, s in task.statistics.items()}),
        "layers": list(task.layers),
    }
    return KeptWork(folder, asked)


@contextlib.contextmanager
def _bar(show: bool, task: Task, method: Method, unit: Unit) -> Iterator[None]:
    """A progress bar over passes and layers, which are counted before the first."""
    if not show:
        yield
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    looking = task.passes(method.sensitive, method.measure is None) if method.data else 0
    back = looking if method.sensitive else 0
    if method.measure is not None:  # all layers at once, or each by itself
        looking += len(task.batches.select) * (1 if method.sensitive else len(task.layers))
        back += len(task.batches.select) * (task.draws if method.sensitive else 0)
    total = looking + len(task.layers)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as bar:
        work = bar.add_task("compress", total=total)

        def step(what: str) -> None:
            bar.update(work, advance=1, description=what[:48])

        task.step = step
        if method.data:
            looking += _measuring(task, method, unit)
            passes = f"{looking} forward and {back} backward passes" if back else f"{looking} forward passes"
            bar.console.print(f"{len(task.layers)} layers; {passes}", style="dim", highlight=False)
        yield
        task.step = lambda what: None


def _measuring(task: Task, method: Method, unit: Unit) -> int:
    """Forward passes besides those for evidence: one for positions, one for each model that is tried, two for each change."""
    trials = TRIALS if unit == "error" else 0
    expects = method.sensitive or method.measure is not None
    chosen_on = trials + (1 if expects or unit == "error" else 0)
    changes = 2 * (chosen_on * len(task.batches.select) + len(task.batches.report))
    return 1 + (unit == "latency") + (1 + trials) + changes


def _warn(task: Task, unreached: list[str], left: dict[str, str]) -> None:
    if not task.batches.apart:
        warnings.warn("data is fewer than three batches: what is reported was not held out; give more", UserWarning, stacklevel=3)
    if unreached:
        warnings.warn(
            f"{len(unreached)} layers have no part in the output for these data and stay as they are: {', '.join(unreached[:3])}",
            UserWarning, stacklevel=3,
        )  # fmt: skip


def assemble(task: Task, built: dict[str, Replacement]) -> nn.Module:
    """A copy of the model with its layers replaced, in a form that it can run."""
    for wrap in (lambda m: m, _with_attributes):
        small = sharing_copy(task.model)
        for name, replacement in built.items():
            if replacement.weight is not None:
                put(small, name, wrap(replacement.module))
        try:
            task.outputs(small, task.batches.select[:1])
        except (AttributeError, ValueError) as problem:
            if wrap is _with_attributes:
                raise RuntimeError(f"the compressed model does not run: {problem}; name the layer in keep=") from problem
            continue
        return small
    raise AssertionError


def _with_attributes(module: nn.Module) -> nn.Module:
    """A sequence of linear layers that answers what an `nn.Linear` is asked."""
    linear = isinstance(module, nn.Sequential) and all(isinstance(m, nn.Linear | GroupedLinear) for m in module)
    return LowRankLinear(*module) if linear else module


def _within_error(
    task: Task,
    at: Callable[[float], tuple[Allocation, nn.Module, dict[str, Replacement]]],
    dense: float,
    curves: dict[str, Curve],
    ceiling: float,
) -> tuple[Allocation, nn.Module, dict[str, Replacement]]:
    """The cheapest found whose measured change, on the batches to select on, is below the ceiling."""
    low, high = sum(float(c.costs.min()) for c in curves.values()), dense
    best = at(high)
    for _ in range(TRIALS):
        middle = (low + high) / 2
        trial = at(middle)
        task.step(f"trying {middle / dense:.0%}")
        if task.relative(task.change(trial[1], "select"), "select") <= ceiling:
            best, high = trial, middle
        else:
            low = middle
    return best
