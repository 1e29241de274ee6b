"""Every softmax attention of a program: where it is, which tokens ask and which answer, and its weights A in a run.

    o = A v,     A = softmax(scores(q, k)),     A (batch, heads, queries, keys)

An attention is a softmax over keys whose value is multiplied, behind moves alone, with a value that depends on the input.
Its queries and keys belong to *streams*, token sets named by the inputs they are made of: a self-attention stays within
one, a cross-attention asks from one and reads another. Found by following the graph; nothing here knows a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from termwise.core.program import Program, info, op_name
from termwise.core.rewrite import rewrite
from termwise.core.samples import per_sample

from .rules.attention import SOFTMAX
from .rules.linear import MOVES

__all__ = ["Attention", "NoAttention", "attentions", "by_path", "heads", "in_windows", "weights_and_gradients"]

_PRODUCTS = ("matmul", "bmm", "einsum", "baddbmm")
_BEHIND = (*MOVES, "masked_fill", "dropout", "where", "mul")  # what may stand between the softmax and its product with v
_BEFORE = (*MOVES, "masked_fill", "where", "mul", "div", "add", "sub", "clamp", "maximum")  # and between q k^T and the softmax


class NoAttention(ValueError):
    """The model has no softmax attention to look at."""


@dataclass(frozen=True)
class Attention:
    """One softmax attention.

    Attributes:
        node: name of the softmax node, whose value is A.
        path: module path, numbered where a module attends more than once.
        queries: the stream that asks: names of the inputs it is made of.
        keys: the stream that answers.
        read: whether the output is reached from here without another attention between: the head reads this one.
    """

    node: str
    path: str
    queries: tuple[str, ...]
    keys: tuple[str, ...]
    read: bool


def attentions(program: Program) -> list[Attention]:
    """Every softmax attention in order of execution; fused ones must have been taken apart (`termwise.predictions.unfused`).

    Raises:
        NoAttention: when there is none.
    """
    found = {}  # product with v -> softmax
    for node in program.nodes:
        if op_name(node) in SOFTMAX and info(node).active:
            for product, value in _products(node):
                if info(value).active:
                    found[product] = node
    if not found:
        raise NoAttention(
            f"{type(program.model).__name__} has no attention: no softmax in it is multiplied with values that depend on the "
            "input. Use termwise.explain"
        )
    order = [held.name for held in program.placeholders.values() if held.kind == "input"]
    streams: dict[fx.Node, frozenset[str]] = {}
    reached: dict[fx.Node, frozenset[fx.Node]] = {}  # attentions from which a node is reached without another between
    for node in program.graph.nodes:
        if "info" not in node.meta or not info(node).active:
            continue
        sources = [a for a in node.all_input_nodes if info(a).active]
        if node.op == "placeholder" or info(node).role == "cut":
            streams[node], reached[node] = frozenset({info(node).origin}), frozenset()
        elif node in found:
            streams[node], reached[node] = streams[_asks(found[node])], frozenset({node})
        else:
            streams[node] = frozenset().union(*(streams[a] for a in sources))
            reached[node] = frozenset().union(*(reached[a] for a in sources))
    counts: dict[str, int] = {}
    result = []
    for product, softmax in found.items():
        (value,) = [v for p, v in _products(softmax) if p is product]
        path = info(softmax).path or "attention"
        n = counts[path] = counts.get(path, 0) + 1
        asks, answers = (tuple(sorted(streams[n], key=order.index)) for n in (product, value))
        result.append(
            Attention(softmax.name, path if n == 1 else f"{path}#{n}", asks, answers, product in reached[program.output])
        )
    return result


def _products(softmax: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Products that A goes into behind moves, each with its other operand."""
    stack = [softmax]
    while stack:
        node = stack.pop()
        for user in node.users:
            name = op_name(user) if user.op == "call_function" else ""
            if name in _PRODUCTS:
                others = [a for a in user.all_input_nodes if a is not node and info(a).active]
                if len(others) == 1:
                    yield user, others[0]
            elif name in _BEHIND and sum(info(a).active for a in user.all_input_nodes) == 1:
                stack.append(user)


def _asks(softmax: fx.Node) -> fx.Node:
    """The queries: the first operand of the product behind the scores; the scores themselves where there is none."""
    stack = [softmax.all_input_nodes[0]]
    while stack:
        node = stack.pop()
        operands = [a for a in node.all_input_nodes if info(a).active]
        if node.op == "call_function" and op_name(node) in _PRODUCTS and len(operands) == 2:
            return operands[0]
        if node.op == "call_function" and op_name(node) in _BEFORE:
            stack += operands
    return softmax.all_input_nodes[0]


@torch.inference_mode(False)  # in which nothing has a derivative
def weights_and_gradients(
    program: Program, found: list[Attention], tensors: list[Tensor], whole: Callable[[Tensor], Tensor]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """(explained scalars, A of every attention, d whole / d A), one forward and one backward pass.

    Args:
        program: with attention composed.
        found: its attentions.
        tensors: the program's inputs.
        whole: picks one scalar per sample from the output.
    """
    names = {a.node for a in found}
    sites = {n.name: _tap(n.target) for n in program.nodes if n.name in names}
    taps: list[Tensor] = []
    values = program.bind(tensors)
    for name, value in values.items():
        value = values[name] = value.clone() if value.is_inference() else value  # autograd takes no tensors made in that mode
        if program.placeholders[name].kind == "input" and value.is_floating_point():
            values[name] = value.detach().requires_grad_()
    with torch.enable_grad():
        explained = whole(rewrite(program, sites)(taps, *values.values()))
        gradients = (
            torch.autograd.grad(explained.sum(), taps, allow_unused=True) if explained.requires_grad else [None] * len(taps)
        )
    maps = [a.detach() for a in taps]
    return explained.detach(), maps, [torch.zeros_like(a) if g is None else g for a, g in zip(maps, gradients, strict=True)]


def _tap(op: Any) -> Callable[..., Tensor]:
    """The softmax, whose value is a leaf where nothing before it is one (token ids), and is kept."""

    def tap(taps: list[Tensor], *args: Any, **kwargs: Any) -> Tensor:
        value: Tensor = op(*args, **kwargs)
        value = value if value.requires_grad else value.requires_grad_()
        taps.append(value)
        return value

    return tap


def heads(program: Program, attention: Attention, value: Tensor, batch: int) -> Tensor:
    """A, or anything of its shape, as (batch, heads, queries, keys); windows count as heads."""
    split = per_sample(value, program.axes.get(attention.node) if batch > 1 else None, batch)
    return split.reshape(batch, -1, *value.shape[-2:])


def in_windows(program: Program, attention: Attention, value: Tensor, batch: int) -> bool:
    """Whether attention is within windows, so that a token's number is not its place in the sequence."""
    axis = program.axes.get(attention.node) if batch > 1 else None
    # with heads on an axis of their own, what else lies with the samples are windows
    return value.ndim > 4 or (value.ndim == 4 and value.shape[0 if axis is None else axis.dim] != batch)


def by_path(found: list[Attention], values: list[Tensor]) -> Mapping[str, Tensor]:
    """Something of every attention, by its path."""
    return {attention.path: value for attention, value in zip(found, values, strict=True)}
