"""Whole operators taken apart into the primitives they stand for, for methods that need what is inside.

    scaled_dot_product_attention(q, k, v)  =  A v,      A = softmax(scale q k^T + mask)

Fused attention never forms A; a method that reads attention weights needs it as a node of its own. Recognised patterns
(`termwise.core.composite`) hold the very primitives the model wrote, and give them back. Memory: A of every layer,
O(heads s^2) each, where the fused operator needs O(s).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from termwise.core.composite import Composite
from termwise.core.program import Info, Program, info, op_name

__all__ = ["inlined", "unfused"]

aten = torch.ops.aten

_SAFER = {aten.view.default: aten.reshape.default, aten._unsafe_view.default: aten.reshape.default}


def unfused(program: Program) -> Program:
    """The same program with attention composed: products, mask and softmax are nodes, at the same module path."""
    return _expanded(program, "unfused", lambda node: op_name(node) == "scaled_dot_product_attention", _attention)


def inlined(program: Program) -> Program:
    """The same program with every recognised pattern spelled out as the model wrote it."""
    return _expanded(program, "inlined", lambda node: isinstance(node.target, Composite), _pattern)


def _expanded(
    program: Program, key: str, which: Callable[[fx.Node], bool], expand: Callable[[_Writer, fx.Node, Any, Any], fx.Node]
) -> Program:
    """Replace nodes by what `expand` writes in their place; kept with the recording."""
    if not any(which(node) for node in program.nodes):
        return program
    known: Program | None = program.derived.get(key)
    if known is None:
        graph = fx.Graph()
        seen: dict[fx.Node, fx.Node] = {}
        for node in program.graph.nodes:
            if node.op == "call_function" and which(node):
                args, kwargs = fx.map_arg((node.args, node.kwargs), seen.__getitem__)
                seen[node] = expand(_Writer(graph, node), node, args, kwargs)
                seen[node].meta["val"] = node.meta.get("val")
            else:
                seen[node] = graph.node_copy(node, seen.__getitem__)
                # the composed product lies otherwise in memory than the fused one, and `view` refuses
                seen[node].target = _SAFER.get(node.target, node.target)
        known = copy.copy(program.of(None))
        known.graph, known.derived = graph, {}
        program.derived[key] = known
    return known.of(program.model)


class _Writer:
    """Writes the primitives of one node, at its place in the model."""

    def __init__(self, graph: fx.Graph, node: fx.Node) -> None:
        self.graph, self.known, self.like = graph, info(node), node.meta.get("val")

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = self.graph.call_function(target, args, kwargs)
        active = any(info(a).active for a in node.all_input_nodes)
        origin = "" if active else next((info(a).origin for a in node.all_input_nodes), "")
        node.meta["info"] = Info("activation" if active else "constant", self.known.path, self.known.source, origin)
        # of the dtype alone is this true; shapes of inner values are asked for by nobody
        node.meta["val"] = self.like
        return node


def _attention(write: _Writer, node: fx.Node, args: Any, kwargs: Any) -> fx.Node:
    """A v, with A = softmax(scale q k^T + mask)."""
    q, k, v, mask, _, causal = [*args, *[None, 0.0, False][len(args) - 3 :]]
    mask = kwargs.get("attn_mask", mask)
    queries, keys = (a.meta["val"].shape for a in node.args[:2])  # type: ignore[union-attr]
    if kwargs.get("enable_gqa"):
        repeats = queries[-3] // keys[-3]
        k, v = (write(aten.repeat_interleave.self_int, x, int(repeats), -3) for x in (k, v))
    scale = kwargs.get("scale")
    scores = write(aten.matmul.default, q, write(aten.transpose.int, k, -2, -1))
    scores = write(aten.mul.Tensor, scores, 1 / math.sqrt(queries[-1]) if scale is None else scale)
    if causal or kwargs.get("is_causal"):
        scores = write(masked_fill_later, scores)
    if mask is not None:
        boolean = mask.meta["val"].dtype == torch.bool
        scores = (
            write(aten.masked_fill.Scalar, scores, write(_not, mask), -math.inf)
            if boolean
            else write(aten.add.Tensor, scores, mask)
        )
    # a row with every key masked is 0, as in the fused operator, and not NaN
    weights = write(aten._safe_softmax.default, scores, -1)
    return write(aten.matmul.default, weights, v)


def masked_fill_later(scores: Tensor) -> Tensor:
    """Scores of a query with later keys are masked."""
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(later, -math.inf)


masked_fill_later.__name__ = "masked_fill"


def _not(mask: Tensor) -> Tensor:
    return ~mask


def _pattern(write: _Writer, node: fx.Node, args: Any, kwargs: Any) -> fx.Node:
    """The primitives of a recognised pattern; patterns within it are taken apart too."""
    inner: Composite = node.target  # type: ignore[assignment]
    given = iter(args)
    seen: dict[fx.Node, fx.Node] = {}
    last = None
    for step in inner.graph.nodes:
        if step.op == "placeholder":
            seen[step] = next(given)
        elif step.op == "output":
            last = seen[step.args[0]]
        else:
            step_args, step_kwargs = fx.map_arg((step.args, step.kwargs), seen.__getitem__)
            if isinstance(step.target, Composite):
                seen[step] = _pattern(write, step, step_args, step_kwargs)
            else:
                seen[step] = write(step.target, *step_args, **step_kwargs)
                seen[step].meta["val"] = step.meta.get("val", write.like)
    assert last is not None
    return last
