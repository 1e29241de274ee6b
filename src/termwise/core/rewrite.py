"""Rewrite a program: every node keeps its value and gets another local derivative, then autograd runs it.

The one of the two ways to run a transform that needs no machinery of its own: the rewritten graph is an ordinary
`torch.fx.GraphModule` whose backward pass is ordinary autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from .composite import Composite, lifted
from .program import Program, op_name

__all__ = ["rewrite"]


def rewrite(program: Program, sites: Mapping[str, Callable[..., Any]], *, lift: torch.dtype | None = None) -> fx.GraphModule:
    """Replace the operators of some nodes.

    Args:
        program: what to rewrite; it is left as it is.
        sites: node name -> function called as ``site(context, *args, **kwargs)`` in place of the node's operator.
        lift: compute in this dtype wherever the program asks for a narrower floating one.

    Returns:
        A module called as ``module(context, *values)`` with one value per placeholder, in order.
    """
    graph = fx.Graph()
    context = graph.placeholder("context")
    seen: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        new = seen[node] = graph.node_copy(node, seen.__getitem__)
        if node.op != "call_function":
            continue
        if lift is not None:
            new.args, new.kwargs = lifted((new.args, new.kwargs), lift)
            if isinstance(new.target, Composite):
                new.target = new.target.lift(lift)
        site = sites.get(node.name)
        if site is not None:
            # generated code tells functions apart by their names
            site.__name__ = site.__qualname__ = f"{op_name(node).replace('.', '_')}_{node.name}"
            site.__module__ = __name__
            new.target, new.args = site, (context, *new.args)
    return fx.GraphModule({}, graph)
