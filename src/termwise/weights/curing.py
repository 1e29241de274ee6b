r"""CURing: CUR in the blocks of a model that change their input least, and healing of what that did.

    d_l = arccos(cos(h_l, h_{l+1})) / pi        h_l what block l reads at the last token, averaged over samples

The blocks with the smallest d, first and last excepted, have their query, key and gate matrices replaced by C U R of rank
min(break-even, 256). Healing trains U = U_0 + dU alone, so that blocks and model put out what they did; C and R stay true columns
and rows of the weights.

Source: Park & Moon 2025 (CURing), which layers, and healing.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .batches import call, evaluating, read_batches
from .calibration import CalibrationStats
from .compress import assemble
from .compressed import Compressed, LayerRow
from .cur import break_even, cur
from .ladder import Replacement
from .layers import find_layers, sharing_copy
from .products import triple, triple_size
from .sensitivity import Distance, distance, output_of
from .task import Task

__all__ = ["angular_distance", "curing", "heal"]

LAYERS = ("*q_proj", "*k_proj", "*gate_proj")
"""What is replaced in a block, by the names that transformers gives."""


def curing(
    model: nn.Module,
    blocks: int,
    *,
    data: Any,
    rank: int = 256,
    layers: Sequence[str] = LAYERS,
    metric: Distance = "l2",
) -> Compressed:
    """Replace some matrices of the blocks that matter least by C U R, as published: one rank, no allocator.

    Args:
        model: with a list of blocks. It is not changed; what stays is shared with the result.
        blocks: how many of them.
        data: some unlabelled inputs, see `read_batches`.
        rank: r; where that saves nothing, the largest rank that is not more than the matrix.
        layers: patterns of paths of what is replaced within a block.
        metric: what a change of the output is measured with.

    Returns:
        A `Compressed`, whose parts are each a `CURDecomposition`.

    Raises:
        ValueError: for more blocks than there are between the first and the last, patterns that fit nothing, data that the model
            does not take.

    Cost: two forward passes per batch and a singular value decomposition per matrix.

    Example:
        >>> block = lambda: torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Tanh())
        >>> model = torch.nn.Sequential(*(block() for _ in range(4)))
        >>> small = tw.weights.curing(model, 1, data=torch.randn(64, 32), rank=8, layers=["*.0"])
        >>> [part.rank for part in small.parts.values()]
        [8]
    """
    task = Task(model, find_layers(model)[0], read_batches(data), metric)
    far = angular_distance(model, task.batches.fit)
    inner = list(far)[1:-1]
    if not 1 <= blocks <= len(inner):
        raise ValueError(f"blocks lies in 1..{len(inner)}, those between the first and the last of {len(far)}, got {blocks!r}")
    chosen = sorted(inner, key=far.__getitem__)[:blocks]
    named = [
        name
        for name in task.layers
        if any(name.startswith(f"{block}.") for block in chosen) and any(fnmatch.fnmatch(name, p) for p in layers)
    ]
    if not named:
        there = [name for name in task.layers if name.startswith(f"{chosen[0]}.")]
        raise ValueError(f"layers={list(layers)} fit nothing in {chosen[0]}, which has {', '.join(there) or 'no layers'}")
    stats = CalibrationStats.collect(model, task.batches.fit, {name: task.layers[name] for name in named})
    built, rows = {}, []
    for name, layer in task.layers.items():
        w, choice, params, off = layer.matrix, "dense", layer.size, 0.0
        if name in named:
            r = min(rank, break_even(layer.shape), *layer.shape)
            found = cur(w, r, importance=w.abs() * stats[name].norms.to(w) if name in stats else None)
            factors = found.factors
            built[name] = Replacement(triple(layer, factors["C"], factors["U"], factors["R"]).module, found)
            choice, params, off = f"rank {r}", triple_size(layer.shape, r), found.error()
        rows.append(LayerRow(name, layer.shape, choice, layer.size, params, math.nan, off))
    small = assemble(task, built)
    kept = sum(row.params for row in rows) / task.size
    return Compressed(
        small, "curing", "params", kept, rows, {name: found.weight for name, found in built.items()}, find_layers(model)[1], kept,
        math.nan, task.relative(task.change(small, "report")), metric, sum(p.numel() for p in model.parameters()),
        counted=task.judged.kind,
    )  # fmt: skip


def angular_distance(model: nn.Module, batches: Iterable[Any], blocks: Sequence[str] | None = None) -> dict[str, float]:
    """How far each block turns its input, at the last token, as a share of half a turn.

    Args:
        model: run in evaluation mode; hooks and modes are afterwards as they were.
        batches: as a model takes them, see `read_batches`. With an `attention_mask` the last token is the last that counts.
        blocks: paths of modules that put out the shape they read; the longest list of modules of one class when not given.

    Returns:
        d by path of the block, from 0 (only its length changes) to 1 (turned round), mean over samples.

    Raises:
        ValueError: when there is no such list, a block's output has another shape than its input, or there are no batches.

    Cost: one forward pass per batch.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity(), torch.nn.Identity())
        >>> tw.weights.angular_distance(model, [torch.eye(3)])
        {'0': 0.0, '1': 0.0, '2': 0.0}
    """
    names = _blocks(model) if blocks is None else list(blocks)
    sums = dict.fromkeys(names, 0.0)
    samples = 0
    last: Tensor | None = None

    def watch(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Any) -> None:
            x, out = output_of(args or kwargs), output_of(y)
            if x.shape != out.shape:
                raise ValueError(f"{name} reads {tuple(x.shape)} and puts out {tuple(out.shape)}: name blocks that keep it")
            pair = [_at_last(h, last).double() for h in (x, out)]
            cos = torch.nn.functional.cosine_similarity(*pair, dim=-1).clamp(-1, 1)
            sums[name] += float(torch.where(pair[0].eq(pair[1]).all(-1), 0.0, cos.arccos()).sum()) / math.pi

        return hook

    handles = [model.get_submodule(name).register_forward_hook(watch(name), with_kwargs=True) for name in names]
    try:
        with evaluating(model), torch.no_grad():
            for batch in batches:
                mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
                last = None if mask is None else mask.long().cumsum(1).argmax(1)
                samples += len(output_of(call(model, batch)))
    finally:
        for handle in handles:
            handle.remove()
    if not samples:
        raise ValueError("there are no batches to look at")
    return {name: total / samples for name, total in sums.items()}


def heal(
    small: Compressed, model: nn.Module, *, data: Any, at: Sequence[str] = (), steps: int = 50, lr: float = 0.1
) -> Compressed:
    """Train the links U of the CUR layers, and nothing else, so that the model does what it did.

        min over U_1 ... U_k of   sum over a in `at` of |h_a - h'_a|^2 / |h_a|^2   +   distance of the outputs, on the same scale

    Args:
        small: as `tw.compress(..., method="cur")` or `curing` returned it; it is not changed.
        model: what it was made of.
        data: some unlabelled inputs, see `read_batches`; half of them are trained on.
        at: paths of modules (blocks) whose outputs are compared as well.
        steps: of Adam, a batch each.
        lr: rate of learning, in units of the root mean square of each U.

    Returns:
        A `Compressed` with trained links, its change measured on a quarter of the data that nothing was done with.

    Raises:
        ValueError: when nothing in it is of the form "cur", or data do not fit.

    Cost: a step is two forward passes and a backward one. Memory: activations of a batch.
    """
    task = Task(model, {}, read_batches(data), small.metric)  # type: ignore[arg-type]
    healed = sharing_copy(small.model)
    links: dict[str, nn.Parameter] = {}
    for name, part in small.parts.items():
        if part.form == "cur":
            linking = healed.get_submodule(name)[1]  # type: ignore[index]
            links[name] = linking.weight = nn.Parameter(linking.weight.detach().clone())
    if not links:
        raise ValueError(f"nothing here is of the form 'cur' (made with method={small.method!r}): there is no link to train")
    optimizer = torch.optim.Adam([{"params": [u], "lr": lr * float(u.detach().square().mean().sqrt())} for u in links.values()])
    scale = task.scale("select")
    with evaluating(model), evaluating(healed):
        for step in range(steps):
            batch = task.batches.fit[step % len(task.batches.fit)]
            with torch.no_grad(), _outputs(model, at) as wanted:
                truth = task.judged(model, batch)
            with torch.enable_grad(), _outputs(healed, at) as found:
                loss = distance(truth, task.judged(healed, batch), task.metric).mean() / scale
                for h, own in zip(wanted, found, strict=True):
                    loss = loss + (own - h).square().sum() / h.square().sum().clamp_min(1e-30)
            for u, gradient in zip(links.values(), torch.autograd.grad(loss, list(links.values())), strict=True):
                u.grad = gradient
            optimizer.step()
    parts = dict(small.parts)
    for name, u in links.items():
        u.grad = None
        old = parts[name]
        parts[name] = replace(old, factors={**old.factors, "U": u.detach().flatten(1)})
    rows = [replace(row, weight_error=parts[row.layer].error()) if row.layer in links else row for row in small.layers]
    measured = task.relative(task.change(healed, "report"))
    return replace(small, model=healed, parts=parts, layers=rows, measured=measured)


@contextmanager
def _outputs(model: nn.Module, at: Sequence[str]) -> Any:
    """What modules put out for as long as this takes, in the order of their call."""
    seen: list[Tensor] = []
    handles = [model.get_submodule(name).register_forward_hook(lambda m, args, y: seen.append(output_of(y))) for name in at]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _blocks(model: nn.Module) -> list[str]:
    """The longest list of three or more modules of one class."""
    lists = [
        [f"{name}.{key}" if name else key for key, _ in module.named_children()]
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
        and len(module) >= 3
        and len({type(child) for child in module.children()}) == 1
    ]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of three or more modules of one class: name its blocks in blocks=")
    return max(lists, key=len)


def _at_last(h: Tensor, last: Tensor | None) -> Tensor:
    """Rows of the last token, (batch, width), of (batch, tokens, width)."""
    if h.ndim < 3:
        return h
    if last is None:
        return h[:, -1].flatten(1)
    return h[torch.arange(len(h), device=h.device), last.to(h.device)]
