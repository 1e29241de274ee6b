"""Batch norm folded into the affine operation before it: one rewrite of the graph, for the rules that need it.

    g (W x + b - mu) + beta = (g W) x + g (b - mu) + beta,      g = gamma / sqrt(var + eps)

Rules that treat signs apart do not commute with a batch norm in between. The output changes by rounding only.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx

from termwise.core.program import Info, Program, info, op_name

__all__ = ["fold_batch_norm"]


def fold_batch_norm(program: Program, nodes: set[str]) -> Program:
    """Fold every batch norm that follows one of the named affine nodes and is its only user.

    Args:
        program: left as it is.
        nodes: names of linear and convolution nodes.

    Returns:
        The same program with the pairs replaced; a folded node has the batch norm's name, so that the sample axes of
        the recorded program hold for it too.
    """
    graph = fx.Graph()
    seen: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        affine = node.args[0] if node.op == "call_function" and op_name(node) == "batch_norm" else None
        if isinstance(affine, fx.Node) and affine.name in nodes and len(affine.users) == 1:
            x, weight, *rest = [seen.get(a, a) if isinstance(a, fx.Node) else a for a in affine.args]  # type: ignore[call-overload]
            bias, *rest = rest or [None]
            statistics = [seen[a] if isinstance(a, fx.Node) else a for a in (*node.args[1:5], node.args[7])]
            axis = 1 if op_name(affine).startswith("conv_transpose") else 0
            folded = graph.call_function(_weight, (weight, *statistics, axis)), graph.call_function(_bias, (bias, *statistics))
            for new in folded:
                new.meta = {"val": None, "info": Info("parameter", info(node).path)}
            seen[node] = graph.create_node(
                "call_function", affine.target, (x, *folded, *rest), dict(affine.kwargs), name=node.name
            )
            seen[node].meta = dict(affine.meta)
        else:
            seen[node] = graph.node_copy(node, seen.__getitem__)
    graph.eliminate_dead_code()
    result = copy.copy(program)
    result.graph, result.derived = graph, {}
    return result


def foldable(program: Program) -> set[str]:
    """Affine nodes whose only user is a batch norm that can be folded into them."""
    return {
        node.args[0].name
        for node in program.nodes
        if op_name(node) == "batch_norm" and isinstance(node.args[0], fx.Node) and _folds(node.args[0])
    }


AXES = {"linear": 2, "conv1d": 3, "conv2d": 4, "conv3d": 5, "conv_transpose1d": 3, "conv_transpose2d": 4, "conv_transpose3d": 5}
"""Operators into which a norm folds, and how many axes their value has where its channels are axis 1, as those of the norm."""


def _folds(affine: fx.Node) -> bool:
    name = op_name(affine) if affine.op == "call_function" else ""
    if len(affine.users) != 1 or len(affine.args) < 2 or not isinstance(affine.args[1], fx.Node):
        return False
    axes = affine.args[1].meta["val"].ndim
    if name == "convolution":
        return affine.meta["val"].ndim == axes and not affine.args[6]  # args[6]: transposed
    if affine.meta["val"].ndim != AXES.get(name) or axes != AXES[name]:
        return False
    # with groups a transposed convolution's weight has its output channels in two axes
    return not name.startswith("conv_transpose") or len(affine.args) < 7 or affine.args[6] == 1


def _gain(gamma: Tensor | None, var: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(var + eps) if gamma is None else gamma * torch.rsqrt(var + eps)


def _weight(
    weight: Tensor, gamma: Tensor | None, beta: Tensor | None, mean: Tensor, var: Tensor, eps: float, axis: int
) -> Tensor:
    return weight * _gain(gamma, var, eps).reshape(*[1] * axis, -1, *[1] * (weight.ndim - 1 - axis))


def _bias(bias: Tensor | None, gamma: Tensor | None, beta: Tensor | None, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    shifted = (-mean if bias is None else bias - mean) * _gain(gamma, var, eps)
    return shifted if beta is None else shifted + beta
