"""Where the samples of a batch lie in an intermediate value, found by moving one sample and seeing what moves.

A model may fold its batch into another axis (windows, heads, experts) or put it second. Index p along an axis of size
n = outer * batch * inner belongs to sample (p // inner) % batch. Two perturbed runs beside the plain one tell axis and
`inner` for every node, whatever the operations between are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from .interpret import interpret

if TYPE_CHECKING:
    from .program import Program

__all__ = ["SampleAxis", "locate", "per_sample"]


@dataclass(frozen=True)
class SampleAxis:
    """The axis that holds the samples, and how: `inner` None means sample-major, index = sample * (n / batch) + rest."""

    dim: int
    inner: int | None = None


def per_sample(value: Tensor, axis: SampleAxis | None, batch: int) -> Tensor:
    """Bring the samples to the front: shape (batch, *value.shape) with `axis.dim` reduced to size n / batch.

    Args:
        value: any value of a node.
        axis: where its samples lie; may be None when there is one sample only.
        batch: number of samples.

    Raises:
        ValueError: when there are several samples and no axis.
    """
    if batch == 1:
        return value.unsqueeze(0)
    if axis is None:
        raise ValueError("the samples of this batch influence each other here, so no part belongs to one of them")
    d, n = axis.dim, value.shape[axis.dim]
    inner = n // batch if axis.inner is None else axis.inner
    split = value.reshape(*value.shape[:d], n // (batch * inner), batch, inner, *value.shape[d + 1 :])
    return split.movedim(d + 1, 0).flatten(d + 1, d + 2)


def locate(program: Program, example: list[Tensor]) -> dict[str, SampleAxis | None]:
    """The sample axis of every active node, from runs on two samples of which one is perturbed.

    Nodes that nothing perturbs (dead units) are taken as sample-major along their first axis.
    """
    from .program import BAGS, FACTORIES, info, op_name, views_of_ids

    batch = example[0].shape[0] if example and example[0].ndim else 1
    if batch < 2 or any(t.ndim == 0 or t.shape[0] != batch for t in example[:1]):
        return {}
    generator = torch.Generator().manual_seed(0)
    axes: dict[str, SampleAxis | None] = {}

    def perturbed(value: Tensor, sample: Tensor | None = None) -> tuple[Tensor, ...]:
        """The value, the value with sample 0 moved, the value with the last sample moved; `sample` says which is where."""
        if sample is None:
            if value.ndim == 0 or value.shape[0] != batch:
                return value, value, value
            sample = torch.arange(batch, device=value.device)
        sample = sample.reshape(*sample.shape, *[1] * (value.ndim - sample.ndim))
        value = value.contiguous()  # as the others are: another layout is another kernel, which rounds otherwise everywhere
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
        step = noise * (value.std().nan_to_num() + 0.1)
        return value, value + step * (sample == 0), value + step * (sample == batch - 1)

    def samples_of(ids: Tensor) -> Tensor:
        """The sample that each entry belongs to."""
        return torch.arange(batch, device=ids.device).reshape(-1, *[1] * (ids.ndim - 1)).expand(ids.shape)

    def visit(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        known = info(node)
        moves = any(info(a).role in ("activation", "cut", "index") for a in node.all_input_nodes)
        if not moves or op_name(node) in FACTORIES:  # what new_empty holds is chance, and no sample's doing
            value = node.target(*_pick(args, 0), **_pick(kwargs, 0))  # type: ignore[operator]
            return value
        values = tuple(node.target(*_pick(args, i), **_pick(kwargs, i)) for i in range(3))  # type: ignore[operator]
        if known.role == "cut":
            views, value = views_of_ids(node), values[0]
            sample = None if views is None else views(plain, samples_of(plain[views.ids]))
            if op_name(node) in BAGS:  # one row for each bag, of the sample of its first id
                if sample is not None:
                    sample = sample[_pick(args, 0)[2][: len(value[0])].clamp_max(len(sample) - 1)]
                values = tuple((moved, *value[1:]) for moved in perturbed(value[0], sample))
            else:
                values = perturbed(value, sample)
        if known.active:  # of several values the first stands for all
            first = tuple(v[0] if isinstance(v, (tuple, list)) else v for v in values)
            if all(isinstance(v, Tensor) for v in first):
                axes[node.name] = _find(first, batch)
        return Triple(values)

    plain = program.bind(example)
    bound: dict[str, Any] = dict(plain)
    for node in program.graph.find_nodes(op="placeholder"):
        if program.placeholders[node.name].kind == "input":
            value = bound[node.name]
            moves = value.is_floating_point() and info(node).active
            bound[node.name] = Triple(perturbed(value) if moves else (value, value, value))
            axes[node.name] = SampleAxis(0) if value.ndim and value.shape[0] == batch else None
    with torch.no_grad():
        interpret(program.graph, bound, visit)
    return axes


class Triple:
    """Three values of one node, side by side."""

    def __init__(self, values: tuple[Any, ...]) -> None:
        """Hold them."""
        self.values = values


def _pick(args: Any, i: int) -> Any:
    """The i-th of every triple in nested arguments."""
    if isinstance(args, Triple):
        return args.values[i]
    if isinstance(args, (tuple, list)):
        return type(args)(_pick(a, i) for a in args)
    if isinstance(args, dict):
        return {k: _pick(v, i) for k, v in args.items()}
    return args


def _find(values: tuple[Tensor, ...], batch: int) -> SampleAxis | None:
    plain, *moved = values
    if any(m.shape != plain.shape for m in moved):
        return None
    first, last = (~((m == plain) | (m.isnan() & plain.isnan())) for m in moved)
    if not first.any() and not last.any():
        return SampleAxis(0) if plain.ndim and plain.shape[0] % batch == 0 else None
    for d, n in enumerate(plain.shape):
        if n % batch:
            continue
        others = [i for i in range(plain.ndim) if i != d]
        touched = [m.any(dim=others) if others else m for m in (first, last)]
        position = torch.arange(n, device=plain.device)
        for inner in [n // batch, *(k for k in range(1, n // batch) if (n // batch) % k == 0)]:
            sample = position // inner % batch
            if not (touched[0] & (sample != 0)).any() and not (touched[1] & (sample != batch - 1)).any():
                return SampleAxis(d, None if inner == n // batch else inner)
    return None
