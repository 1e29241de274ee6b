"""Experts grouped: rows that chose the same expert are multiplied by its weights together.

    y_n = W[e_n] x_n          recorded as W[e] (a copy of an expert's weights for every row), then a batched product
    y[e == k] = x[e == k] W[k]^T,      c_x[e == k] = c[e == k] W[k]

A mixture of experts records in every dtype only in the first form, whose memory is rows * out * in. The second is one
matmul per expert and no copy; the value changes by rounding only. In a mapping of rules it is called "expert_product".
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx

from termwise.core.program import Program, info, op_name

__all__ = ["expert_product", "group_experts"]


def group_experts(program: Program, keep: Collection[str] = ()) -> Program:
    """Group every product in which a weight stack, picked from by index, meets one column per row.

    Args:
        program: left as it is.
        keep: names of nodes that stay as they are.

    Returns:
        The same program, or where there is such a product one in which it is an `expert_product` under its own name.
    """
    found = {node for node in program.nodes if node.name not in keep and _picks(node)}
    if not found:
        return program
    graph = fx.Graph()
    seen: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        if node in found:
            stack, ids = node.args[0].args[0], node.args[0].args[1][0]
            args, ids = (seen[node.args[1]], seen[stack]), {"ids": seen[ids]}
            seen[node] = graph.create_node("call_function", expert_product, args, ids, name=node.name)
            seen[node].meta = dict(node.meta)
        else:
            seen[node] = graph.node_copy(node, seen.__getitem__)
    graph.eliminate_dead_code()
    result = copy.copy(program)
    result.graph, result.derived = graph, {}
    return result


def _picks(node: fx.Node) -> bool:
    """Whether this is bmm(W[e], x) with W a constant of three axes, e one index per row, and x one column per row."""
    if op_name(node) != "bmm" or not all(isinstance(a, fx.Node) for a in node.args):
        return False
    picked, x = node.args
    if op_name(picked) not in ("index", "index_select") or info(picked).active:  # type: ignore[arg-type]
        return False
    stack, ids = picked.args[0], picked.args[1] if op_name(picked) == "index" else None  # type: ignore[union-attr,arg-type]
    if not isinstance(ids, (tuple, list)) or len(ids) != 1 or not isinstance(ids[0], fx.Node):
        return False
    values: list[Any] = [stack.meta.get("val"), ids[0].meta.get("val"), x.meta.get("val")]  # type: ignore[union-attr]
    if not all(isinstance(v, Tensor) for v in values):
        return False
    w, e, column = values
    return w.ndim == 3 and e.ndim == 1 and e.dtype != torch.bool and column.ndim == 3 and column.shape[2] == 1


def expert_product(x: Tensor, stack: Tensor, *, ids: Tensor) -> Tensor:
    """W[e] x: x (rows, in, 1), stack (experts, out, in), ids (rows,) -> (rows, out, 1)."""
    y: Tensor = _Grouped.apply(stack.detach(), ids, x.squeeze(2))
    return y.unsqueeze(2)


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, stack: Tensor, ids: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(stack, ids)
        return _each(stack.mT, ids, x)

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> Any:
        stack, ids = ctx.saved_tensors
        return None, None, _each(stack, ids, c)


def _each(stack: Tensor, ids: Tensor, x: Tensor) -> Tensor:
    """x_n W[e_n] for every row, expert by expert: rows sorted once, one matmul each."""
    ids = ids % len(stack)
    order = ids.argsort()
    rows = x[order].split(torch.bincount(ids, minlength=len(stack)).tolist())
    y = torch.cat([r @ w for r, w in zip(rows, stack, strict=True)])
    return torch.empty_like(y).index_copy_(0, order, y)
